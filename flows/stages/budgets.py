"""The division of a selection's budget: bounds, balance and weights of datasets, and budgets in tokens.

Without these the budget is divided once, before any choice. With bounds of datasets, or tokens that groups leave over, it is
divided again after a round of choice (tagcos_stream/selection/shares.py), until nothing is to change. What a round settled is in
the catalog, and groups whose part does not change keep their choice: a selection that was killed goes on in the same round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from flows.context import RunContext
from storage.catalog import choices, selections
from storage.catalog import pool as catalog_pool
from tagcos_stream.config import Settings
from tagcos_stream.selection.division import Division, divide_budget, grants, weigh, weighted
from tagcos_stream.selection.groups import Groups, require_column
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.selection.shares import Bounds, bounds_of, bounds_with_pins, fix, parse_shares
from tagcos_stream.types import UserError


@dataclass(frozen=True)
class Budget:
    """The budget of a run, and what bounds its division."""

    groups: Groups  # as the method makes them
    datasets: np.ndarray  # (N,) str, of every example that may be chosen
    total: int  # in `unit`
    unit: str  # examples or tokens
    costs: np.ndarray | None  # (N,) int64, tokens of every example, where the budget is in tokens
    bounds: Mapping[str, Bounds]  # of every dataset; empty where none was asked for
    own: Mapping[str, int]  # budgets of datasets that follow from their weights, before any choice
    pinned: np.ndarray | None = None  # (N,) bool, of every example that may be chosen: those that must be

    @property
    def is_settled_in_rounds(self) -> bool:
        """Whether the division may change after a choice."""
        return bool(self.bounds) or self.costs is not None

    @property
    def mean_cost(self) -> float | None:
        """Tokens of an example; None for a budget in examples."""
        return None if self.costs is None else float(self.costs.mean())

    def is_whole(self, division: Division, group: int) -> bool:
        """Whether a group has all members of the group that the method made."""
        return group < len(self.groups.sizes) and division.groups.sizes[group] == self.groups.sizes[group]


def plan_budget(run: RunContext, pool: pl.DataFrame, groups: Groups, of: int, pinned: np.ndarray | None) -> Budget:
    """Read what is asked for, and check it against the pool.

    Parameters
    ----------
    run
        With the settings count, fraction or tokens, share and balance.
    pool
        N examples that may be chosen, with dataset, tokens and target_tokens.
    groups
        As the method makes them of the pool.
    of
        Examples that a fraction is of.
    pinned
        (N,) bool, examples that must be chosen; None where there are none.

    Raises
    ------
    UserError
        Bounds that cannot be met, a dataset that the pool lacks, or a budget that pays for no example or not for the pinned
        ones; with the numbers.
    """
    settings, costs = run.settings, token_costs(run.settings, pool)
    datasets = pool["dataset"].fill_null("").to_numpy().astype(str)
    grouped = np.zeros(len(pool), bool)
    grouped[groups.order[groups.edges[0] : groups.edges[-1]]] = True
    amounts = np.ones(len(pool), np.int64) if costs is None else costs
    total, unit = settings.budget(of), "examples"
    if costs is not None:
        total, unit = min(int(settings.tokens or 0), int(costs.sum())), "tokens"
        if total < costs.min(initial=total + 1):
            raise UserError(f"tokens {total}: the shortest example of the pool has {costs.min()}; give more tokens")
    if pinned is not None and (needed := int((amounts * pinned).sum())) > total:
        raise UserError(
            f"include pins {pinned.sum():,} examples, which take {needed:,} {unit}, but the budget is {total:,}: pin fewer, or "
            "raise the budget"
        )
    shares = parse_shares(settings.share)
    weights = catalog_pool.dataset_weights(run.catalog, run.run_id)
    weights |= {name: share.weight for name, share in shares.items() if share.weight is not None}
    names, codes = np.unique(datasets, return_inverse=True)
    there = dict(zip(names.tolist(), np.bincount(codes, amounts * grouped).astype(np.int64).tolist(), strict=True))
    in_datasets = METHODS[settings.method].within == "datasets"
    equal = settings.balance == "equal" and not in_datasets
    if equal:
        weights = {name: weights.get(name, 1.0) / has for name, has in there.items() if has}
    weighs = len(there) > 1 if equal else len({weights.get(name, 1.0) for name in there}) > 1
    if not shares and not weighs and not (in_datasets and costs is not None):
        return Budget(groups, datasets, total, unit, costs, {}, {}, pinned)
    bounds = bounds_of(shares, total, there, unit)
    if pinned is not None:
        taken = np.bincount(codes, amounts * pinned).astype(np.int64).tolist()
        bounds = bounds_with_pins(bounds, dict(zip(names.tolist(), taken, strict=True)), total, unit)
    own: dict[str, int] = {}
    if in_datasets:
        groups = weigh(groups, list(there), bounds, weights)
    elif weighs:
        own = weighted(total, there, bounds, weights)
    return Budget(groups, datasets, total, unit, costs, bounds, own, pinned)


def token_costs(settings: Settings, pool: pl.DataFrame) -> np.ndarray | None:
    """(N,) int64, tokens of every example as the budget counts them; None for a budget in examples. UserError if it has none."""
    if settings.tokens is None:
        return None
    return require_column(pool, "tokens" if settings.tokens_all else "target_tokens", "a budget in tokens").astype(np.int64)


def divided(run: RunContext, budget: Budget) -> Division:
    """The budget of every group, as far as the selection has settled it."""
    fixed = dict(budget.own)
    given: dict[int, int] = {}
    if budget.is_settled_in_rounds:
        for row in choices.budget_steps(run.catalog, run.run_id).iter_rows(named=True):
            if row["dataset"] is not None:
                fixed[row["dataset"]], given = row["amount"], {}
            else:
                given[row["group_id"]] = row["amount"]
    made = divide_budget(budget.groups, budget.datasets, budget.total, fixed, budget.costs, budget.pinned)
    budgets = made.budgets.copy()
    budgets[list(given)] = list(given.values())
    return replace(made, budgets=budgets)


def settle(run: RunContext, budget: Budget, division: Division, pool: pl.DataFrame) -> bool:
    """After a round of choice, record what has to be divided otherwise; False if nothing has, and the selection is final."""
    if not budget.is_settled_in_rounds:
        return False
    spent = choices.spent(run.catalog, run.run_id)
    chosen = pool["example_id"].is_in(list(selections.chosen_by(run.catalog, run.run_id))).to_numpy()
    amounts = np.ones(len(pool), np.int64) if budget.costs is None else budget.costs
    names, codes = np.unique(budget.datasets, return_inverse=True)
    of_dataset = dict(zip(names.tolist(), np.bincount(codes, amounts * chosen).astype(np.int64).tolist(), strict=True))
    found: dict[str, int] = {}
    if METHODS[run.settings.method].within != "datasets" and not budget.own and budget.bounds:
        found = fix(budget.bounds, of_dataset, division.parts)
    steps = pl.DataFrame(
        {"dataset": list(found), "group_id": [None] * len(found), "amount": list(found.values())},
        {"dataset": pl.String, "group_id": pl.Int32, "amount": pl.Int64},
    )
    if not found and budget.costs is not None:
        given = _grants(budget, division, spent, of_dataset)
        steps = pl.DataFrame(
            {"dataset": [None] * len(given), "group_id": list(given), "amount": list(given.values())}, steps.schema
        )
    if steps.is_empty():
        return False
    earlier = choices.budget_steps(run.catalog, run.run_id)["step"]
    choices.add_budget_steps(run.catalog, run.run_id, int(earlier.max() or 0) + 1, steps)  # type: ignore[arg-type]
    return True


def _grants(budget: Budget, division: Division, spent: pl.DataFrame, of_dataset: Mapping[str, int]) -> dict[int, int]:
    """Tokens for one row more in groups that can pay for it with what all have left."""
    groups = spent["group_id"].to_list()
    in_datasets = budget.groups.most is not None
    names = sorted(of_dataset)
    datasets = {g: names[g] if in_datasets else division.dataset_of(g) for g in groups}
    return grants(
        {g: int(division.budgets[g]) for g in groups},
        dict(zip(groups, spent["tokens"].to_list(), strict=True)),
        dict(zip(groups, spent["next_tokens"].to_list(), strict=True)),
        budget.total,
        {g: name for g, name in datasets.items() if name is not None},
        {name: bound.high - of_dataset[name] for name, bound in budget.bounds.items()},
    )
