"""Stages 5 and 6: the coreset chosen in each cluster, and its publication."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from flows.clustering import features_pool, open_view
from flows.job import Job
from storage import refreshes, runs, selections, snapshot
from tagcos_stream.config import Settings, digest
from tagcos_stream.coreset import allocate

if TYPE_CHECKING:
    from storage.clustered import ClusteringReader

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
    """Choose each cluster's share of the budget by matching pursuit; a finished cluster is committed, so a kill costs one.

    A cluster whose inputs an earlier run had takes over that run's choice.
    """
    settings = job.settings
    space_id, pool = features_pool(job)
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

    def clusters() -> Iterator[Cluster]:
        for k in np.flatnonzero(view.totals.sizes).tolist():
            mine = order[edges[k] : edges[k + 1]]
            chosen = np.flatnonzero(was_chosen[mine])
            yield Cluster(k, pool[mine], view.positions[mine], means[k], float(inertia[k]), int(budgets[k]), chosen)

    inputs = {one.number: one.inputs(name, settings) for one in clusters()}
    copied = selections.copy_unchanged(job.catalog, job.run_id, inputs)
    done = selections.clusters_done(job.catalog, job.run_id)
    with job.reporter.stage("select", "chosen") as progress:
        ready = int(budgets[sorted(done)].sum()) if done else 0
        progress(ready, int(budgets.sum()))
        for one in clusters():
            if one.number not in done:
                _choose(job, view.reader, one, inputs[one.number], lambda chosen, ready=ready: progress(ready + chosen))
                ready += one.budget
                progress(ready)
    return {"selected": int(budgets.sum()), "pool": len(pool), "clusters": len(inputs), "copied": len(copied)}


def _choose(job: Job, reader: ClusteringReader, one: Cluster, inputs: str, progress: Any) -> None:
    from tagcos_stream.pursuit.omp import omp_select
    from tagcos_stream.pursuit.sticky import hold_on

    settings = job.settings
    start = time.perf_counter()
    rows = reader.rows(one.positions)
    pursuit = omp_select(
        rows,
        one.mean,
        one.budget,
        ridge=settings.ridge,
        tol=settings.tol,
        memory_limit=job.memory_limit,
        progress=lambda chosen, of: progress(chosen),
    )
    columns: dict[str, Any] = {
        "round": pl.Series(pursuit.rounds),
        "correlation": pl.Series(pursuit.correlations),
        "residual_after": pl.Series(pursuit.residuals),
    }
    indices, weights, margins, residual, kept = pursuit.indices, pursuit.weights, pursuit.margins, pursuit.residual, None
    if settings.sticky is not None:
        held = hold_on(
            rows,
            one.mean,
            indices,
            margins,
            residual,
            one.earlier,
            margin=settings.sticky,
            ridge=settings.ridge,
        )
        kept = 0
        if held is not None:
            # those that only keep their place were not chosen in any round
            place = np.array([np.flatnonzero(indices == row)[0] for row in held.indices[: held.fresh]], np.int64)
            kept = len(held.indices) - held.fresh
            nothing = pl.Series([None] * kept, dtype=pl.Float64)
            columns = {k: v.gather(place).extend(nothing.cast(v.dtype)) for k, v in columns.items()}
            indices, weights, margins, residual = held.indices, held.weights, held.margins, held.residual
    selections.commit_cluster(
        job.catalog,
        job.run_id,
        one.number,
        budget=one.budget,
        residual=residual,
        seconds=time.perf_counter() - start,
        stats=asdict(pursuit.stats),
        inertia=one.inertia,
        inputs=inputs,
        kept=kept,
        selection=pl.DataFrame(
            {
                "example_id": one.rows["example_id"].gather(indices),
                "rank": np.arange(len(indices)),
                **columns,
                "weight": weights,
            }
        ),
        candidates=one.rows.select("segment", "row", margin=pl.Series(margins)),
    )


def publish(job: Job) -> dict[str, Any]:
    """Mark the run complete and publish a snapshot that readers open without a lock."""
    runs.finish_run(job.catalog, job.run_id)
    return {"snapshot": snapshot.publish(job.root, job.run_id)}
