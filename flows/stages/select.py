"""Stages 5 and 6: the coreset chosen group by group, by the method asked for, and its publication."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl

from flows.context import Job
from flows.stages.choose import Groups, choose, labelled, pursued, scalars, strata, warning, whole_pool
from flows.stages.cluster import View, features_pool, open_view
from flows.stages.match import measure
from flows.workers.executor import partitioned, sharing
from storage import snapshot
from storage.arrays import segments
from storage.catalog import clusterings, refreshes, runs, selections
from tagcos_stream.identity import choice_id
from tagcos_stream.selection.budget import allocate
from tagcos_stream.selection.methods import METHODS, Choice

Chosen = Iterator[tuple[int, Choice, float]]  # group, what was chosen from it, seconds


def select(job: Job) -> dict[str, Any]:
    """Choose each group's share of the budget by the method asked for; a finished group is committed, so a kill costs one.

    A group whose inputs an earlier run had takes over that run's choice.
    """
    settings = job.settings
    space_id, pool = features_pool(job)
    view = None
    if METHODS[settings.method].within == "clusters":
        view = open_view(job, runs.run_status(job.catalog, job.run_id).run["clustering_id"], pool)
    groups = _groups(job, space_id, pool, view)
    budgets = allocate(groups.sizes, settings.budget(len(pool)))
    if said := warning(settings.method, len(pool), int(budgets.sum()), settings.dim):
        job.reporter.say(said)
    earlier = _earlier(job, space_id, pool)
    place = space_id if view is None else view.reader.clustering_id
    inputs = {
        g: choice_id(settings, place, g, pool[members], int(budgets[g]), _earlier_of(pool, members, earlier))
        for g, members in ((g, groups.members(g)) for g in np.flatnonzero(groups.sizes).tolist())
    }
    copied = selections.copy_unchanged(job.catalog, job.run_id, inputs)
    done = selections.clusters_done(job.catalog, job.run_id)
    left = [g for g in inputs if g not in done]
    with job.reporter.stage("select", "chosen") as progress:
        ready = resumed = int(budgets[sorted(done)].sum()) if done else 0
        progress(ready, int(budgets.sum()))

        def chosen(count: float) -> None:
            progress(resumed + count)

        if view is not None and settings.method == "tagcos":
            found = _pursue(job, view, groups, budgets, left, earlier, chosen)
        else:
            found = _choose(job, pool, view, groups, budgets, left, chosen)
        for g, choice, seconds in found:
            _commit(job, g, pool[groups.members(g)], choice, int(budgets[g]), groups.inertia, inputs[g], seconds)
            ready += int(budgets[g])
            progress(ready)
    counts = {"selected": int(budgets.sum()), "pool": len(pool), "clusters": len(inputs), "copied": len(copied)}
    return counts | measure(job, space_id, pool, view)


def _groups(job: Job, space_id: str, pool: pl.DataFrame, view: View | None) -> Groups:
    """What shares the budget. Of a clustering, which may know more rows, the pool's."""
    if view is not None:
        reader, positions, totals = view.reader, view.positions, view.totals
        return labelled(
            view.labels, reader.n_clusters, lambda mine: reader.rows(positions[mine]), totals.means(), totals.inertia()
        )
    if METHODS[job.settings.method].within == "strata":
        return strata(pool)
    return whole_pool(segments.open_features(job.root.files, space_id, pool))


def _earlier(job: Job, space_id: str, pool: pl.DataFrame) -> np.ndarray | None:
    """(N,) bool: rows that the run before chose; None where they are not to keep their place, which is the pursuit's to offer."""
    if job.settings.sticky is None or job.settings.method != "tagcos":
        return None
    base = refreshes.base_run(job.catalog, job.run_id, space_id)
    chosen = set() if base is None else selections.chosen_by(job.catalog, base)
    return pool["example_id"].is_in(list(chosen)).to_numpy()


def _earlier_of(pool: pl.DataFrame, members: np.ndarray, earlier: np.ndarray | None) -> list[str] | None:
    """Ids of the members that are to keep their place."""
    return None if earlier is None else pool["example_id"].gather(members[earlier[members]]).to_list()


def _pursue(
    job: Job,
    view: View,
    groups: Groups,
    budgets: np.ndarray,
    left: Sequence[int],
    earlier: np.ndarray | None,
    progress: Callable[[float], None],
) -> Chosen:
    """The pursuit in clusters, wherever partitions run; in the order in which they finish."""
    from flows.workers.pursuit import ClusterTask, PursuitSpec, pursue

    settings, name = job.settings, view.reader.clustering_id
    tasks = []
    for g in left:
        mine = groups.members(g)
        kept = np.flatnonzero(earlier[mine]) if earlier is not None else np.zeros(0, np.int64)
        tasks.append(ClusterTask(g, view.positions[mine], groups.target(g), int(budgets[g]), kept))
    spec = PursuitSpec(
        job.root.files,
        name,
        tuple(clusterings.parts(job.catalog, name)),
        settings.ridge,
        settings.tol,
        settings.sticky,
        job.memory_limit // sharing(settings, len(tasks)),
    )
    for found in partitioned(pursue, spec, tasks, settings, progress=progress):
        yield found.cluster, pursued(found.pursuit, found.held), found.seconds


def _choose(
    job: Job,
    pool: pl.DataFrame,
    view: View | None,
    groups: Groups,
    budgets: np.ndarray,
    left: Sequence[int],
    progress: Callable[[float], None],
) -> Chosen:
    """The other methods, group by group, in this process."""
    settings = job.settings
    distances = None if view is None else view.reader.distances[view.positions]
    known = scalars(settings.method, pool, settings.seed, distances)
    before = 0
    for g in left:
        start = time.perf_counter()
        told = lambda chosen, of, before=before: progress(before + chosen)  # noqa: E731
        choice = choose(settings, groups, known, g, int(budgets[g]), progress=told)
        yield g, choice, time.perf_counter() - start
        before += int(budgets[g])


def _commit(
    job: Job,
    group: int,
    rows: pl.DataFrame,
    choice: Choice,
    budget: int,
    inertia: np.ndarray | None,
    inputs: str,
    seconds: float,
) -> None:
    kept = len(choice.indices) - len(choice.scores)  # in no round

    def column(values: np.ndarray | None, kind: type[pl.DataType]) -> pl.Series:
        if values is None:
            return pl.Series([None] * len(choice.indices), dtype=kind)
        return pl.Series(values, dtype=kind, nan_to_null=True).extend_constant(None, len(choice.indices) - len(values))

    selections.commit_cluster(
        job.catalog,
        job.run_id,
        group,
        budget=budget,
        residual=choice.residual,
        seconds=seconds,
        stats=choice.stats,
        inertia=None if inertia is None else float(inertia[group]),
        inputs=inputs,
        kept=None if job.settings.sticky is None or job.settings.method != "tagcos" else kept,
        selection=pl.DataFrame(
            {
                "example_id": rows["example_id"].gather(choice.indices),
                "rank": np.arange(len(choice.indices)),
                "round": column(choice.rounds, pl.Int32),
                "correlation": column(choice.scores, pl.Float64),
                "residual_after": column(choice.residuals, pl.Float64),
                "weight": column(choice.weights, pl.Float64),
            }
        ),
        candidates=rows.select("segment", "row", margin=pl.Series(choice.margins)),
    )


def publish(job: Job) -> dict[str, Any]:
    """Mark the run complete and publish a snapshot that readers open without a lock."""
    runs.finish_run(job.catalog, job.run_id)
    return {"snapshot": snapshot.publish(job.root, job.run_id)}
