"""Stage 5: the coreset, chosen group by group by the method asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from flows.context import RunContext
from flows.reference import reference_rows
from flows.results import Clustering, Features, Selection
from flows.stages.eligible import eligible
from flows.stages.group_mean import group_mean, view_of_counted
from flows.stages.match import measure
from flows.stages.pool_view import PoolClustering, open_pool_clustering
from flows.stages.target_match import measure_target
from flows.stages.target_rows import GroupTargets, Target, open_target, target_of_groups
from flows.workers.executor import partitioned, sharing
from flows.workers.select import GroupChoice, GroupTask, SelectSpec, choose_groups
from storage.catalog import clusterings, refreshes, selections
from tagcos_stream.identity import choice_id
from tagcos_stream.selection.groups import Groups, divide, example_columns, share_budget
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.selection.stands import affordable
from tagcos_stream.selection.targets import allocate_by_target


def select(run: RunContext, features: Features, clusters: Clustering) -> Selection:
    """Choose each group's share of the budget by the run's method.

    Each finished group is committed, so a kill loses one at most. A group whose inputs equal those of an earlier run takes over
    that run's choice.

    Parameters
    ----------
    run
        Context of the run.
    features, clusters
        Of the pool; the clustering is empty for a method that needs none.

    Returns
    -------
    Selection
        Counts.

    Raises
    ------
    UserError
        The method does not fit in memory_limit, or cannot choose from this pool.
    """
    settings, method = run.settings, METHODS[run.settings.method]
    space_id, rows = features.space_id, eligible(run, features)
    pool = rows.rows
    view = None if clusters.clustering_id is None else open_pool_clustering(run, clusters.clustering_id, pool)
    groups = divide(method, pool) if view is None else divide(method, pool, view.labels, view.reader.n_clusters)
    target = open_target(run, space_id)
    asked = None if target is None or not method.reads_features else target_of_groups(target, groups, view)
    if asked is None or view is None:
        budgets = share_budget(groups, settings.budget(rows.of))
    else:
        budgets = allocate_by_target(groups.sizes, settings.budget(rows.of), asked.weights)
    counting = view_of_counted(run, rows, view)
    matched = group_mean(run, space_id, rows, view, counting, len(groups.sizes))
    if warning := method.warning(len(pool), int(budgets.sum()), settings.dim):
        run.reporter.say(warning)
    large = [g for g, n in enumerate(groups.sizes.tolist()) if not affordable(n, int(budgets[g]), settings.dim)]
    if large:
        run.reporter.say(
            f"which example stands for which is not computed in {len(large)} of {len(groups.sizes)} groups: the largest has "
            f"{groups.sizes.max()} rows, more than a few minutes' work; methods within clusters have smaller groups"
        )
    earlier, reference = _earlier(run, space_id, pool), reference_rows(run.catalog, settings, pool, run.reselects)
    place = space_id if view is None else view.reader.clustering_id
    shares = None if asked is None else _shares(asked, budgets)
    followed = {} if target is None or shares is None else {g: [target.target_id, float(share)] for g, share in enumerate(shares)}
    inputs = {
        g: choice_id(
            settings,
            place,
            g,
            pool[members],
            int(budgets[g]),
            _ids(pool, members, earlier),
            _ids(pool, members, reference),
            followed.get(g),
            matched.counted[g],
        )
        for g, members in ((g, groups.members(g)) for g in np.flatnonzero(groups.sizes).tolist())
    }
    copied = selections.copy_unchanged(run.catalog, run.run_id, inputs)
    done = selections.groups_done(run.catalog, run.run_id)
    inertia = None if view is None else view.totals.inertia()
    with run.reporter.stage("select", "chosen") as progress:
        ready = resumed = int(budgets[sorted(done)].sum()) if done else 0
        progress(ready, int(budgets.sum()))
        tasks = _tasks(
            run, pool, view, groups, budgets, [g for g in inputs if g not in done], earlier, reference, matched.means, asked
        )
        spec = _spec(run, space_id, view, len(tasks), target)
        within = lambda chosen: progress(resumed + chosen)  # noqa: E731
        for found in partitioned(choose_groups, spec, tasks, settings, progress=within):
            g, members = found.group, pool[groups.members(found.group)]
            spread = None if inertia is None else float(inertia[g])
            share = None if shares is None else float(shares[g])
            _commit(
                run,
                found,
                members,
                int(budgets[g]),
                inertia=spread,
                inputs=inputs[g],
                sticky=earlier is not None,
                target_share=share,
            )
            ready += int(budgets[g])
            progress(ready)
    counts: dict[str, Any] = {"selected": int(budgets.sum()), "pool": rows.of, "clusters": len(inputs), "copied": len(copied)}
    if rows.excluded:
        counts |= {"eligible": len(pool), "excluded": dict(rows.excluded)}
    measured = measure(run, space_id, rows, view, counting)
    if target is not None:
        measured |= measure_target(run, features, target)
    return Selection(counts["selected"], counts | measured)


def _shares(asked: GroupTargets, budgets: np.ndarray) -> np.ndarray:
    """Return (G,) the share of the target in each group.

    A group that has none of it, but a budget since the others gave all their rows, counts by its budget, so that its examples
    have a weight.
    """
    shares = asked.weights / asked.weights.sum()
    beyond = (asked.weights == 0) & (budgets > 0)
    shares[beyond] = budgets[beyond] / budgets.sum()
    normalised: np.ndarray = shares / shares.sum()
    return normalised


def _earlier(run: RunContext, space_id: str, pool: pl.DataFrame) -> np.ndarray | None:
    """(N,) bool: rows that the run before chose; None where they are not to be kept, or the method does not keep any."""
    if run.settings.sticky is None or "sticky" not in METHODS[run.settings.method].settings:
        return None
    base = refreshes.base_run(run.catalog, run.run_id, space_id)
    chosen = set() if base is None else selections.chosen_by(run.catalog, base)
    return pool["example_id"].is_in(list(chosen)).to_numpy()


def _ids(pool: pl.DataFrame, members: np.ndarray, which: np.ndarray | None) -> list[str] | None:
    """Ids of the members that are marked; None where nothing is."""
    return None if which is None else pool["example_id"].gather(members[which[members]]).to_list()


def _spec(run: RunContext, space_id: str, view: PoolClustering | None, n_tasks: int, target: Target | None) -> SelectSpec:
    settings = run.settings
    name = None if view is None else view.reader.clustering_id
    return SelectSpec(
        run.root.files,
        settings.method,
        {setting: getattr(settings, setting) for setting in METHODS[settings.method].settings},
        space_id,
        name,
        () if name is None else tuple(clusterings.parts(run.catalog, name)),
        run.memory_limit // sharing(settings, n_tasks),
        target.features if target is not None and METHODS[settings.method].needs_target else None,
    )


def _tasks(
    run: RunContext,
    pool: pl.DataFrame,
    view: PoolClustering | None,
    groups: Groups,
    budgets: np.ndarray,
    left: Sequence[int],
    earlier: np.ndarray | None,
    reference: np.ndarray | None,
    means: np.ndarray | None,
    asked: GroupTargets | None,
) -> list[GroupTask]:
    """The groups that are left, with what the method reads of each."""
    method = METHODS[run.settings.method]
    distances = view.reader.distances[view.positions] if view is not None and "distance" in method.columns else None
    columns = example_columns(method, pool, run.settings.seed, distances, reference)
    if asked is not None and method.features:
        means = asked.vectors
    tasks = []
    for g in left:
        mine = groups.members(g)
        where: dict[str, Any] = (
            {"locations": pool[mine].select("segment", "row")} if view is None else {"positions": view.positions[mine]}
        )
        tasks.append(
            GroupTask(
                g,
                int(budgets[g]),
                {name: values[mine] for name, values in columns.items()},
                mean=None if means is None else means[g],
                earlier=None if earlier is None else np.flatnonzero(earlier[mine]),
                **where,
            )
        )
    return tasks


def _commit(
    run: RunContext,
    found: GroupChoice,
    rows: pl.DataFrame,
    budget: int,
    *,
    inertia: float | None,
    inputs: str,
    sticky: bool,
    target_share: float | None,
) -> None:
    choice, stands = found.choice, found.stands
    kept = len(choice.indices) - len(choice.scores)  # in no round

    def column(values: np.ndarray | None, kind: type[pl.DataType]) -> pl.Series:
        if values is None:
            return pl.Series([None] * len(choice.indices), dtype=kind)
        return pl.Series(values, dtype=kind, nan_to_null=True).extend_constant(None, len(choice.indices) - len(values))

    selections.commit_group(
        run.catalog,
        run.run_id,
        found.group,
        budget=budget,
        residual=choice.residual,
        seconds=found.seconds,
        stats={**choice.stats, "stands_seconds": round(found.stands_seconds, 3)},
        inertia=inertia,
        inputs=inputs,
        kept=kept if sticky else None,
        target_share=target_share,
        selection=pl.DataFrame(
            {
                "example_id": rows["example_id"].gather(choice.indices),
                "rank": np.arange(len(choice.indices)),
                "round": column(choice.rounds, pl.Int32),
                "score": column(choice.scores, pl.Float64),
                "residual_after": column(choice.residuals, pl.Float64),
                "weight": column(choice.weights, pl.Float64),
            }
        ),
        candidates=rows.select(
            "segment",
            "row",
            margin=pl.Series(choice.margins),
            representative=pl.lit(None, pl.Int32) if stands is None else pl.Series(stands.places, dtype=pl.Int32),
            cosine=pl.lit(None, pl.Float32) if stands is None else pl.Series(stands.cosines),
        ),
    )
