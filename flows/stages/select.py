"""Stage 5: the coreset, chosen group by group by the method asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from flows.context import RunContext
from flows.progress import Stage
from flows.reference import reference_rows
from flows.results import Clustering, Features, Selection
from flows.stages.budgets import Budget, divided, plan_budget, settle
from flows.stages.eligible import eligible
from flows.stages.group_mean import Matched, group_mean, mean_of, view_of_counted
from flows.stages.match import measure
from flows.stages.pool_view import PoolClustering, open_pool_clustering
from flows.stages.target_match import measure_target
from flows.stages.target_rows import GroupTargets, Target, open_target, target_of_groups
from flows.workers.executor import partitioned, place_of, sharing, threads_of
from flows.workers.select import GroupChoice, GroupTask, SelectSpec, choose_groups
from storage.catalog import choices, clusterings, refreshes, selections
from tagcos_stream.identity import choice_id
from tagcos_stream.selection.division import Division
from tagcos_stream.selection.groups import divide, example_columns
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.selection.stands import affordable
from tagcos_stream.selection.tokens import most_rows
from tagcos_stream.types import UserError


@dataclass(frozen=True)
class SelectInputs:
    """What the choices of a run depend on, however its budget is divided.  N examples that may be chosen."""

    space_id: str
    pool: pl.DataFrame  # N rows
    view: PoolClustering | None  # of methods within clusters
    budget: Budget
    matched: Matched  # means of the groups that the method makes
    earlier: np.ndarray | None  # (N,) bool: rows that the run before chose, where they are to be kept
    reference: np.ndarray | None  # (N,) bool: rows of the selection that the method compares with
    pinned: np.ndarray | None  # (N,) bool: rows that must be chosen
    target: Target | None
    asked: GroupTargets | None  # what the target asks of the groups that the method makes

    def counted(self, division: Division, group: int) -> pl.DataFrame | None:
        """Return the rows whose mean the choice from a group matches.

        Parameters
        ----------
        division
            The budget's division.
        group
            Number of a group of it.

        Returns
        -------
        pl.DataFrame or None
            Those that count of the group's clusters and datasets; None for the group's own rows, also where none counts.
        """
        rows = self.matched.counted[group % len(self.matched.counted)]
        if rows is None or self.budget.is_whole(division, group):
            return rows
        own, dataset = division.dataset_of(group), pl.col("dataset").fill_null("")
        rows = rows.filter(~dataset.is_in(division.parts) if own is None else dataset == own)
        return rows if len(rows) else None

    def mean(self, run: RunContext, division: Division, group: int) -> np.ndarray | None:
        """Return what the choice from a group matches.

        Parameters
        ----------
        run
            The run.
        division
            The budget's division.
        group
            Number of a group of it.

        Returns
        -------
        np.ndarray or None
            (D,); None for the mean of the group's rows where that is not known.
        """
        made = group % len(self.budget.groups.sizes)
        if self.asked is not None:
            return self.asked.vectors[made]
        if self.matched.means is None:
            return None
        if self.budget.is_whole(division, group):
            mean: np.ndarray = self.matched.means[made]
            return mean
        rows = self.counted(division, group)
        return None if rows is None else mean_of(run, self.space_id, rows)


def select(run: RunContext, features: Features, clusters: Clustering) -> Selection:
    """Choose each group's share of the budget by the run's method.

    Each finished group is committed, so a kill loses only those under way. A group whose inputs equal those of an earlier run
    takes over that run's choice. Where the budget has to be divided otherwise after a round of choice
    (flows/stages/budgets.py), the groups whose part changes are chosen from again.

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
        The method does not fit in memory_limit, cannot choose from this pool, or bounds of datasets cannot be met.
    """
    settings, method = run.settings, METHODS[run.settings.method]
    space_id, rows = features.space_id, eligible(run, features, clusters.clustering_id)
    pool = rows.rows
    view = None if clusters.clustering_id is None else open_pool_clustering(run, clusters.clustering_id, pool)
    groups = divide(method, pool) if view is None else divide(method, pool, view.labels, view.reader.n_clusters)
    target = open_target(run, space_id)
    asked = None if target is None or not method.reads_features else target_of_groups(target, groups, view)
    if asked is not None and view is not None:
        groups = replace(groups, target=asked.weights)
    budget = plan_budget(run, pool, groups, rows.of, rows.pinned)
    counting = view_of_counted(run, rows, view)
    matched = group_mean(run, space_id, rows, view, counting, len(groups.sizes))
    if warning := method.warning(len(pool), settings.budget(rows.of, budget.mean_cost), settings.dim):
        run.reporter.say(warning)
    earlier, reference = _earlier(run, space_id, pool), reference_rows(run.catalog, settings, pool, run.reselects)
    inputs = SelectInputs(space_id, pool, view, budget, matched, earlier, reference, rows.pinned, target, asked)
    copied: set[int] = set()
    with run.reporter.stage("select", "chosen") as progress:
        while True:
            division = divided(run, budget)
            copied |= _choose(run, inputs, division, progress)
            if not settle(run, budget, division, pool):
                break
    chosen = choices.spent(run.catalog, run.run_id)
    if not chosen["selected"].sum():
        shortest = chosen.select(pl.col("next_tokens").min()).item()
        raise UserError(
            f"tokens {budget.total:,}: they pay for none of the examples that method {method.name} would choose first, of which "
            f"the shortest has {shortest}; give more tokens"
        )
    counts: dict[str, Any] = {"selected": int(chosen["selected"].sum()), "pool": rows.of, "clusters": len(chosen)}
    counts["copied"] = len(copied)
    if budget.costs is not None:
        counts["tokens"] = int(chosen["tokens"].sum())
    if rows.pinned is not None:
        counts["pinned"] = int(rows.pinned.sum())
    if rows.excluded:
        counts |= {"eligible": len(pool), "excluded": dict(rows.excluded)}
    measured = measure(run, space_id, rows, view, counting)
    if target is not None:
        measured |= measure_target(run, features, target)
    return Selection(counts["selected"], counts | measured)


def _choose(run: RunContext, given: SelectInputs, division: Division, progress: Stage) -> set[int]:
    """Choose from all groups whose choice is not there yet. Returns the groups whose choice an earlier run had."""
    settings, groups, budgets = run.settings, division.groups, division.budgets
    pool, view, target, budget = given.pool, given.view, given.target, given.budget
    most = budgets if division.first_rows is None else division.first_rows
    large = [g for g, n in enumerate(groups.sizes.tolist()) if not affordable(n, int(most[g]), settings.dim)]
    if large:
        run.reporter.say(
            f"which example stands for which is not computed in {len(large)} of {len(groups.sizes)} groups: the largest has "
            f"{groups.sizes.max()} rows, more than a few minutes' work; methods within clusters have smaller groups"
        )
    place = given.space_id if view is None else view.reader.clustering_id
    shares = None if given.asked is None else _shares(given.asked, division)
    inputs = {}
    for g in np.flatnonzero(groups.sizes).tolist():
        members, first = groups.members(g), None if division.first_rows is None else int(division.first_rows[g])
        followed = None if target is None or shares is None else [target.target_id, float(shares[g])]
        inputs[g] = choice_id(
            settings,
            place,
            g,
            pool[members],
            int(budgets[g]),
            earlier=_ids(pool, members, given.earlier),
            reference=_ids(pool, members, given.reference),
            target=followed,
            counted=given.counted(division, g),
            first_rows=first,
            pinned=_ids(pool, members, given.pinned),
        )
    choices.drop_changed(run.catalog, run.run_id, inputs)
    copied = choices.copy_unchanged(run.catalog, run.run_id, inputs)
    done = choices.groups_done(run.catalog, run.run_id)
    inertia = None if view is None else view.totals.inertia()
    ready = resumed = int(budgets[sorted(done)].sum()) if done else 0
    progress(ready, int(budgets.sum()))
    tasks = _tasks(run, given, division, [g for g in inputs if g not in done])
    lanes = _lanes(run, division)
    spec = _spec(run, given.space_id, view, max(lanes, sharing(settings, len(tasks))), target)
    within = None if budget.costs is not None else lambda chosen: progress(resumed + chosen)
    for found in partitioned(choose_groups, spec, tasks, settings, lanes=lanes, progress=within, needs_model=False):
        g, rows = found.group, pool[groups.members(found.group)]
        _commit(
            run,
            found,
            rows,
            int(budgets[g]),
            inertia=float(inertia[g]) if inertia is not None and budget.is_whole(division, g) else None,
            inputs=inputs[g],
            sticky=given.earlier is not None,
            target_share=None if shares is None else float(shares[g]),
        )
        ready += int(budgets[g])
        progress(ready)
    return copied


def _shares(asked: GroupTargets, division: Division) -> np.ndarray:
    """Return (G,) the share of the target in each group.

    A group that has none of it, but a budget since the others gave all their rows, counts by its budget, so that its examples
    have a weight.
    """
    budgets = division.budgets
    weights = np.tile(asked.weights, len(budgets) // len(asked.weights))
    if len(weights) > len(asked.weights):  # what the target has in a cluster is divided among the cluster's parts
        parts = budgets.reshape(-1, len(asked.weights))
        weights = weights * (parts / np.maximum(parts.sum(axis=0), 1)).ravel()
    shares = weights / (weights.sum() or 1.0)
    beyond = (weights == 0) & (budgets > 0)
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


def _lanes(run: RunContext, division: Division) -> int:
    """How many groups to choose from at the same time in this process.

    All groups count, chosen from or not, so that a run that goes on after a kill does as it would have done.
    """
    settings, method = run.settings, METHODS[run.settings.method]
    some = np.flatnonzero(division.groups.sizes)
    if place_of(settings) != "threads" or method.peak_bytes is None or len(some) < 2:
        return 1
    needed = max(method.peak_bytes(int(division.groups.sizes[g]), _most_rows(division, int(g)), settings.dim) for g in some)
    return max(1, min(threads_of(settings), len(some), run.memory_limit // needed))


def _most_rows(division: Division, group: int) -> int:
    """How many rows a method is asked for at the most: a budget in tokens may pay for more than it is asked for at first."""
    budget = int(division.budgets[group])
    if division.costs is None or division.first_rows is None:
        return budget
    return most_rows(division.costs[division.groups.members(group)], budget, int(division.first_rows[group]))


def _spec(run: RunContext, space_id: str, view: PoolClustering | None, sharers: int, target: Target | None) -> SelectSpec:
    settings = run.settings
    name = None if view is None else view.reader.clustering_id
    return SelectSpec(
        run.root.files,
        settings.method,
        {setting: getattr(settings, setting) for setting in METHODS[settings.method].settings},
        space_id,
        name,
        () if name is None else tuple(clusterings.parts(run.catalog, name)),
        run.memory_limit // sharers,
        target.features if target is not None and METHODS[settings.method].needs_target else None,
    )


def _tasks(run: RunContext, given: SelectInputs, division: Division, left: Sequence[int]) -> list[GroupTask]:
    """The groups that are left, with what the method reads of each."""
    method, pool, view, earlier = METHODS[run.settings.method], given.pool, given.view, given.earlier
    distances = view.reader.distances[view.positions] if view is not None and "distance" in method.columns else None
    columns = example_columns(method, pool, run.settings.seed, distances, given.reference)
    tasks = []
    for g in left:
        mine = division.groups.members(g)
        pinned = np.zeros(0, np.int64) if given.pinned is None else np.flatnonzero(given.pinned[mine])
        where: dict[str, Any] = (
            {"locations": pool[mine].select("segment", "row")} if view is None else {"positions": view.positions[mine]}
        )
        tasks.append(
            GroupTask(
                g,
                int(division.budgets[g]),
                {name: values[mine] for name, values in columns.items()},
                mean=given.mean(run, division, g) if method.features else None,
                earlier=None if earlier is None else np.flatnonzero(earlier[mine]),
                costs=None if division.costs is None else division.costs[mine],
                first_rows=None if division.first_rows is None else int(division.first_rows[g]),
                pinned=pinned if len(pinned) else None,
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

    choices.commit_group(
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
