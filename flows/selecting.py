"""Stages 5 and 6: the coreset chosen in each cluster, and its publication."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from flows.choosing import Groups, Scalars, choose, scalars, strata, warning, whole_pool
from flows.clustering import features_pool, open_view
from flows.job import Job
from flows.measuring import measure
from flows.partitions import partitioned, sharing
from storage import clusterings, features, refreshes, runs, selections, snapshot
from tagcos_stream.config import Settings, digest
from tagcos_stream.controls.methods import METHODS
from tagcos_stream.coreset import allocate

if TYPE_CHECKING:
    from flows.pursuing import Pursued

CHOICE = 1  # raise it when the same inputs choose otherwise than before


@dataclass(frozen=True)
class Cluster:
    """What a cluster's choice depends on. n rows."""

    number: int
    rows: pl.DataFrame  # the pool's rows in it, in order of segment and row
    positions: np.ndarray  # (n,) int64: where they lie in the clustering
    mean: np.ndarray  # (D,) float32
    inertia: float
    budget: int
    earlier: np.ndarray  # rows of it that the run before chose, where they are to keep their place

    def inputs(self, clustering_id: str, settings: Settings) -> str:
        """Equal inputs, equal choice: members (the mean follows from them), budget, settings, and earlier choices if sticky."""
        members = hashlib.blake2b(digest_size=16)
        for (segment,), part in self.rows.select("segment", "row").group_by("segment", maintain_order=True):
            members.update(str(segment).encode() + part["row"].to_numpy().astype("<i8").tobytes())
        sticky = None if settings.sticky is None else [settings.sticky, self.rows["example_id"].gather(self.earlier).to_list()]
        named = [CHOICE, clustering_id, self.number, members.hexdigest(), self.budget, settings.ridge, settings.tol, sticky]
        return digest(named, 32)


def select(job: Job) -> dict[str, Any]:
    """Choose by the method asked for, and measure how well the choice stands for its pool."""
    space_id, pool = features_pool(job)
    chosen = _pursue(job, space_id, pool) if job.settings.method == "tagcos" else _control(job, space_id, pool)
    return {"pool": len(pool), **chosen, **measure(job, space_id, pool)}


def _pursue(job: Job, space_id: str, pool: pl.DataFrame) -> dict[str, Any]:
    """Choose each cluster's share of the budget by matching pursuit; a finished cluster is committed, so a kill costs one.

    A cluster whose inputs an earlier run had takes over that run's choice.
    """
    from flows.pursuing import ClusterTask, PursuitSpec, pursue

    settings = job.settings
    pool = pool.select("example_id", "segment", "row")
    name = runs.run_status(job.catalog, job.run_id).run["clustering_id"]
    view = open_view(job, name, pool)
    budgets = allocate(view.totals.sizes, settings.budget(len(pool)))
    base = refreshes.base_run(job.catalog, job.run_id, space_id) if settings.sticky is not None else None
    earlier = selections.chosen_by(job.catalog, base) if base is not None else set()
    was_chosen = pool["example_id"].is_in(list(earlier)).to_numpy()
    means, inertia = view.totals.means(), view.totals.inertia()
    order = np.argsort(view.labels, kind="stable")
    edges = np.searchsorted(view.labels[order], np.arange(len(budgets) + 1))

    def cluster(k: int) -> Cluster:
        mine = order[edges[k] : edges[k + 1]]
        chosen = np.flatnonzero(was_chosen[mine])
        return Cluster(k, pool[mine], view.positions[mine], means[k], float(inertia[k]), int(budgets[k]), chosen)

    inputs = {k: cluster(k).inputs(name, settings) for k in np.flatnonzero(view.totals.sizes).tolist()}
    copied = selections.copy_unchanged(job.catalog, job.run_id, inputs)
    done = selections.clusters_done(job.catalog, job.run_id)
    left = (cluster(k) for k in inputs if k not in done)
    tasks = [ClusterTask(one.number, one.positions, one.mean, one.budget, one.earlier) for one in left]
    parts = tuple(clusterings.parts(job.catalog, name))
    spec = PursuitSpec(
        job.root.files,
        name,
        parts,
        settings.ridge,
        settings.tol,
        settings.sticky,
        job.memory_limit // sharing(settings, len(tasks)),
    )
    with job.reporter.stage("select", "chosen") as progress:
        ready = resumed = int(budgets[sorted(done)].sum()) if done else 0
        progress(ready, int(budgets.sum()))
        for found in partitioned(pursue, spec, tasks, settings, progress=lambda chosen: progress(resumed + chosen)):
            _commit(job, cluster(found.cluster), inputs[found.cluster], found)
            ready += int(budgets[found.cluster])
            progress(ready)
    return {"selected": int(budgets.sum()), "clusters": len(inputs), "copied": len(copied)}


def _commit(job: Job, one: Cluster, inputs: str, found: Pursued) -> None:
    pursuit, held = found.pursuit, found.held
    columns: dict[str, Any] = {
        "round": pl.Series(pursuit.rounds),
        "correlation": pl.Series(pursuit.correlations),
        "residual_after": pl.Series(pursuit.residuals),
    }
    choice = pursuit if held is None else held
    kept = None if job.settings.sticky is None else 0
    if held is not None:
        # those that only keep their place were not chosen in any round
        place = np.array([np.flatnonzero(pursuit.indices == row)[0] for row in held.indices[: held.fresh]], np.int64)
        kept = len(held.indices) - held.fresh
        nothing = pl.Series([None] * kept, dtype=pl.Float64)
        columns = {k: v.gather(place).extend(nothing.cast(v.dtype)) for k, v in columns.items()}
    selections.commit_cluster(
        job.catalog,
        job.run_id,
        one.number,
        budget=one.budget,
        residual=choice.residual,
        seconds=found.seconds,
        stats=asdict(pursuit.stats),
        inertia=one.inertia,
        inputs=inputs,
        kept=kept,
        selection=pl.DataFrame(
            {
                "example_id": one.rows["example_id"].gather(choice.indices),
                "rank": np.arange(len(choice.indices)),
                **columns,
                "weight": choice.weights,
            }
        ),
        candidates=one.rows.select("segment", "row", margin=pl.Series(choice.margins)),
    )


def _control(job: Job, space_id: str, pool: pl.DataFrame) -> dict[str, Any]:
    """Choose each group's share of the budget by one of the other methods; a finished group is committed."""
    settings = job.settings
    groups, known = _groups(job, space_id, pool)
    budgets = allocate(groups.sizes, settings.budget(len(pool)))
    done = selections.clusters_done(job.catalog, job.run_id)
    said = warning(settings.method, len(pool), int(budgets.sum()), settings.dim)
    if said:
        job.reporter.say(said)
    with job.reporter.stage("select", "chosen") as progress:
        ready = int(budgets[sorted(done)].sum()) if done else 0
        progress(ready, int(budgets.sum()))
        for k in np.flatnonzero(groups.sizes).tolist():
            if k in done:
                continue
            start = time.perf_counter()

            def told(chosen: int, of: int, ready: int = ready) -> None:
                progress(ready + chosen)

            choice = choose(settings, groups, known, k, int(budgets[k]), progress=told)
            mine = pool[groups.members(k)]
            selections.commit_cluster(
                job.catalog,
                job.run_id,
                k,
                budget=int(budgets[k]),
                residual=choice.residual,
                seconds=time.perf_counter() - start,
                stats=choice.stats,
                selection=pl.DataFrame(
                    {
                        "example_id": mine["example_id"].gather(choice.indices),
                        "rank": np.arange(len(choice.indices)),
                        "round": choice.rounds,
                        "correlation": choice.scores,
                        "residual_after": choice.residuals,
                        "weight": choice.weights,
                    }
                ).with_columns(pl.col("correlation").fill_nan(None)),
                candidates=mine.select("segment", "row", margin=pl.Series(choice.margins)),
            )
            ready += int(budgets[k])
            progress(ready)
    return {"selected": int(budgets.sum()), "clusters": len(budgets)}


def _groups(job: Job, space_id: str, pool: pl.DataFrame) -> tuple[Groups, Scalars]:
    method, seed = job.settings.method, job.settings.seed
    if METHODS[method].within == "strata":
        return strata(pool), scalars(method, pool, seed)
    if METHODS[method].within == "pool":
        return whole_pool(features.open_features(job.root.files, space_id, pool)), scalars(method, pool, seed)
    view = open_view(job, runs.run_status(job.catalog, job.run_id).run["clustering_id"], pool)
    means = view.totals.means()
    groups = Groups(
        view.totals.sizes,
        lambda k: np.flatnonzero(view.labels == k),
        lambda k: view.reader.rows(view.positions[view.labels == k]),
        lambda k: means[k],
    )
    return groups, scalars(method, pool, seed, view.reader.distances[view.positions])


def publish(job: Job) -> dict[str, Any]:
    """Mark the run complete and publish a snapshot that readers open without a lock."""
    runs.finish_run(job.catalog, job.run_id)
    return {"snapshot": snapshot.publish(job.root, job.run_id)}
