"""A plan: what a run takes from its root, and what it computes, stage by stage, with the reason. Made by reading only.

The same decisions that stages take are taken here: which space and clustering (flows/reuse.py), which run goes on. `tagcos run`
prints the plan once the pool is known, `tagcos run --dry-run` prints it without a run, `tagcos estimate` prices it, and the
Prefect summary shows it. A run that was interrupted is planned again like any other.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from flows.reference import reference_rows
from flows.reuse import find_clustering, find_spaces
from flows.survey import Survey
from flows.survey_target import TargetSurvey
from storage.catalog import planning, pool, refreshes, runs, spaces
from storage.database import Catalog
from tagcos_stream.config import VECTORS, Settings
from tagcos_stream.declare import decided_by
from tagcos_stream.identity import choice_id, config_hash
from tagcos_stream.selection.groups import divide, share_budget
from tagcos_stream.selection.methods import METHODS

USUAL_TOKENS = 300.0  # of an example, where none was encoded yet


@dataclass(frozen=True)
class Step:
    """What one stage does: `compute` of `total` units; the others are there already."""

    stage: str
    compute: int
    total: int
    unit: str
    reuse: str | None  # id of the space, clustering or run that is used as it is
    reason: str

    @property
    def summary(self) -> str:
        """One phrase: how much is computed, what is reused, and why."""
        reused = "" if self.reuse is None else f"; reuses {self.reuse}"
        return f"{self.stage} {self.compute:,} of {self.total:,} {self.unit} ({self.reason}{reused})"


@dataclass(frozen=True)
class Plan:
    """The steps of a run, in order."""

    run_id: str | None  # of the unfinished run that goes on; None where a new one begins
    steps: tuple[Step, ...]
    exact: bool  # False: counts are upper bounds, or scaled from a sample

    def step(self, stage: str) -> Step:
        """Return the step of a stage.

        Parameters
        ----------
        stage
            A stage's name, as in the plan's rows.

        Returns
        -------
        Step
            Its step of this plan.
        """
        return next(step for step in self.steps if step.stage == stage)

    @property
    def summary(self) -> str:
        """What is computed once the sources are read, in one line for a log."""
        return "plan: " + "; ".join(step.summary for step in self.steps if step.stage != "ingest")

    def rows(self) -> list[dict[str, Any]]:
        """Return the plan as plain rows, for tables and JSON.

        Returns
        -------
        list of dict
            One row for each step.
        """
        return [asdict(step) for step in self.steps]


def make_plan(settings: Settings, catalog: Catalog | None, found: Survey, own: str | None = None) -> Plan:
    """Plan a run of these settings.

    Parameters
    ----------
    settings
        Those of the run.
    catalog
        Of the root; None where there is none yet.
    found
        What the sources hold (flows/survey.py), or the pool of a run whose sources are read.
    own
        That run.

    Returns
    -------
    Plan
        Steps ingest, warm-up, gradients, cluster, select.
    """
    run_id = None if catalog is None else planning.unfinished_run(catalog, config_hash(settings), settings.name or runs.MAIN)
    known = {} if catalog is None else find_spaces(catalog, settings, own)
    gradients, missing = _gradients(settings, catalog, found, known)
    space = known.get(settings.gradient)
    rows = _with_features(catalog, space, found)
    space_id = None if space is None else space.space_id
    cluster = _cluster(settings, catalog, space_id, rows, missing, run_id)
    steps = (
        _ingest(found),
        _warm_up(settings, catalog, known, run_id),
        gradients,
        cluster,
        _select(settings, catalog, space_id, rows, cluster, missing),
    )
    return Plan(run_id, steps, found.exact and not missing)


def plan_from_pool(settings: Settings, catalog: Catalog, run_id: str, files: int) -> Plan:
    """Plan a run whose sources have been read, so that the catalog knows its pool.

    Parameters
    ----------
    settings
        Of the run.
    catalog
        Of the root.
    run_id
        The run.
    files
        Number of files of its sources.

    Returns
    -------
    Plan
        Per stage, what is reused and what is computed.
    """
    found = pool.pool(catalog, run_id)
    missing = planning.wanted(catalog, run_id).join(found, on="example_id", how="anti")
    return make_plan(settings, catalog, Survey(files, 0, found, target=TargetSurvey(missing)), run_id)


def plan_reselect(settings: Settings, catalog: Catalog, base: str, space_id: str) -> Plan:
    """Plan a selection from the stored features of a run.

    Parameters
    ----------
    settings
        Those of the new run.
    catalog
        Of the root.
    base
        The complete run whose pool is selected from.
    space_id
        The feature space that is selected by.

    Returns
    -------
    Plan
        Steps cluster and select.
    """
    run_id = planning.unfinished_run(catalog, config_hash(settings, base), settings.name)
    rows = planning.with_features(catalog, space_id, pool.pool(catalog, base))
    cluster = _cluster(settings, catalog, space_id, rows, 0, run_id)
    exact = settings.where is None and settings.exclude is None and settings.include is None and not settings.target
    return Plan(run_id, (cluster, _select(settings, catalog, space_id, rows, cluster, 0)), exact)


def _with_features(catalog: Catalog | None, space: spaces.Space | None, found: Survey) -> pl.DataFrame:
    if catalog is None or space is None:
        return found.known.clear()
    return planning.with_features(catalog, space.space_id, found.known)


def _ingest(found: Survey) -> Step:
    reason = f"{found.new:,} new examples" if found.unread else "all were read before"
    return Step("ingest", found.unread, found.files, "files", None, reason)


def _warm_up(settings: Settings, catalog: Catalog | None, known: dict[str, spaces.Space], run_id: str | None) -> Step:
    wanted = settings.model_variants
    if not wanted:
        known_id = known[VECTORS].space_id if known else None
        return Step("warm-up", 0, 0, "adapters", known_id, "vectors of your own need no model")
    known = {name: space for name, space in known.items() if name != VECTORS}
    if settings.reads_base_model:
        known_id = known["hidden"].space_id if known else None
        return Step("warm-up", 0, 0, "adapters", known_id, "hidden states of the model without adapter")
    if known:
        sibling = known.get(settings.gradient) or next(iter(known.values()))
        lacking = [name for name in wanted if name not in known]
        reason = "same settings" if not lacking else f"same adapter; new spaces for {', '.join(lacking)}"
        return Step("warm-up", 0, 1, "adapters", sibling.space_id, reason)
    return Step("warm-up", 1, 1, "adapters", None, _why_no_space(settings, catalog, run_id))


def _why_no_space(settings: Settings, catalog: Catalog | None, run_id: str | None) -> str:
    """Which settings of the newest run differ, of those that decide features."""
    newest = None if catalog is None else planning.newest_config(catalog, settings.name or runs.MAIN, run_id)
    if catalog is None or newest is None:
        return "first run of this root"
    before, now = json.loads(newest["config"]), settings.model_dump(mode="json")
    names = decided_by(Settings, "weights", "warmup", "feature")
    differ = [name for name in names if name in before and before[name] != now[name]]
    if not differ:
        if settings.adapter and runs.run_row(catalog, newest["run_id"])["space_id"] is not None:
            return f"adapter {settings.adapter} has other content than in {newest['run_id']}"
        return f"{newest['run_id']} did not finish it"
    return "; ".join(f"{name} is {now[name]}, not {before[name]} as in {newest['run_id']}" for name in differ)


def _gradients(settings: Settings, catalog: Catalog | None, found: Survey, known: dict[str, spaces.Space]) -> tuple[Step, int]:
    """(the step, examples that the space selected by lacks): whole blocks are computed, in every wanted space that lacks them."""
    wanted = [known.get(name) for name in settings.variants]
    first = known.get(settings.gradient)
    reuse = None if first is None else first.space_id
    target = found.target
    fresh = found.new + len(target.new)
    if catalog is None or found.known.is_empty():
        compute = fresh + len(target.known)
        return Step("gradients", compute, compute, "examples", None, "none is in the root"), found.new
    lacking: dict[tuple[str, int], int] = {}
    missing = found.new  # in the space that is selected by
    for number, space in enumerate(wanted):
        space_id = None if space is None else space.space_id
        own = _incomplete(catalog, space_id, found.known, settings.block_rows)
        lacking |= own | _incomplete(catalog, space_id, target.known, settings.block_rows)
        missing += sum(own.values()) if number == 0 else 0
    everything = pl.concat([found.known.select("segment", "row"), target.known.select("segment", "row")])
    total = planning.segment_rows(catalog, everything) + fresh
    reasons = []
    if any(space is None for space in wanted):
        reasons.append("a new space has none")
    elif lacking:
        reasons.append(f"{len(lacking)} blocks are not complete")
    if fresh:
        reasons.append(f"{fresh:,} examples are new")
    compute = sum(lacking.values()) + fresh
    return Step("gradients", compute, total, "examples", reuse, "; ".join(reasons) or "every block is complete"), missing


def _incomplete(catalog: Catalog, space_id: str | None, rows: pl.DataFrame, block_rows: int) -> dict[tuple[str, int], int]:
    """The blocks with one of these rows that a space lacks, and how many rows each has."""
    touched = planning.blocks(catalog, space_id, rows, block_rows)
    return {(segment, block): n for segment, block, n, complete in touched.iter_rows() if not complete}


def _cluster(
    settings: Settings,
    catalog: Catalog | None,
    space_id: str | None,
    pool: pl.DataFrame,
    missing: int,
    run_id: str | None,
) -> Step:
    total = len(pool) + missing
    if METHODS[settings.method].within != "clusters":
        return Step("cluster", 0, 0, "rows", None, f"method {settings.method} needs no clusters")

    def fit(reason: str) -> Step:
        return Step("cluster", total, total, "rows", None, reason)

    if catalog is None or space_id is None:
        return fit("a new space has no clusters")
    exact, known = find_clustering(catalog, settings, space_id, pool)
    if known is None:
        return fit("no clustering has these settings")
    if known == exact and not missing:
        return Step("cluster", 0, total, "rows", known, "fitted to just this pool")
    decided = None if run_id is None else refreshes.recorded(catalog, run_id)
    if settings.refit == "always":
        return fit("refit is always")
    if decided is not None and decided["refitted"]:
        return fit(f"{run_id} found that {known} no longer fits")
    fresh = planning.unclustered(catalog, known, pool) + missing
    kept = "kept while it fits the data" if settings.refit == "auto" else "kept, as refit is never"
    return Step("cluster", fresh, total, "rows", known, kept)


def _mean_tokens(settings: Settings, rows: pl.DataFrame) -> float:
    """Tokens of an example, as a budget in tokens counts them, of rows with a feature; where none is known, a few hundred."""
    counted = "tokens" if settings.tokens_all else "target_tokens"
    mean = None if rows.is_empty() else rows[counted].mean()
    return USUAL_TOKENS if mean is None else float(mean)  # type: ignore[arg-type]


def _select(
    settings: Settings, catalog: Catalog | None, space_id: str | None, rows: pl.DataFrame, cluster: Step, missing: int
) -> Step:
    """Groups whose inputs an earlier run had are copied; which those are is known once every row has its feature and cluster."""
    total = settings.budget(len(rows) + missing, None if settings.tokens is None else _mean_tokens(settings, rows))
    if catalog is None or space_id is None or missing or cluster.compute:
        return Step("select", total, total, "choices", None, "groups that do not change are copied" if catalog else "first run")
    method = METHODS[settings.method]
    if settings.target and method.reads_features:
        return Step("select", total, total, "choices", None, "what the target asks of each group is known once its features are")
    if any(text is not None for text in (settings.where, settings.target_where, settings.exclude, settings.include)):
        return Step("select", total, total, "choices", None, "which rows may be chosen is known once the run has its clusters")
    if settings.tokens is not None or settings.share or settings.balance != "natural":
        return Step("select", total, total, "choices", None, "shares and tokens are divided as the choice goes on")
    if settings.sticky is not None and "sticky" in method.settings:
        return Step("select", total, total, "choices", None, "sticky compares with the choices of the run before")
    place = cluster.reuse
    if place is None:
        place, groups = space_id, divide(method, rows)
    else:
        labels, n_clusters = planning.labels(catalog, place, rows)
        groups = divide(method, rows, labels.to_numpy(), n_clusters)
    budgets = share_budget(groups, total)
    marked = reference_rows(catalog, settings, rows, None)

    def inputs_of(g: int) -> str:
        members = groups.members(g)
        reference = None if marked is None else rows["example_id"].gather(members[marked[members]]).to_list()
        return choice_id(settings, place, g, rows[members], int(budgets[g]), reference=reference)

    inputs = {g: inputs_of(g) for g in np.flatnonzero(groups.sizes).tolist()}
    known = planning.known_choices(catalog, inputs)
    compute = total - int(budgets[sorted(known)].sum()) if known else total
    if not known:
        return Step("select", total, total, "choices", None, "no group was chosen from with these settings")
    return Step("select", compute, total, "choices", max(known.values()), f"{len(known)} of {len(inputs)} groups are unchanged")
