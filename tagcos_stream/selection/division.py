"""The division of a budget among groups, with bounds of datasets or in tokens.  N examples, G groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from tagcos_stream.selection.budget import fill
from tagcos_stream.selection.groups import Groups, by_label, share_budget
from tagcos_stream.selection.shares import Bounds
from tagcos_stream.selection.tokens import first_rows


@dataclass(frozen=True)
class Division:
    """Groups of a pool and the budget of each, in examples or tokens."""

    groups: Groups
    budgets: np.ndarray  # (G,) int64
    costs: np.ndarray | None = None  # (N,) int64, tokens of every example where the budget is in tokens
    first_rows: np.ndarray | None = None  # (G,) int64, rows to ask a method for at first; only with costs
    parts: tuple[str, ...] = ()  # datasets with a budget of their own, each in as many groups as all the others are in

    def dataset_of(self, group: int) -> str | None:
        """Dataset that alone is in a group; None for a group of those that share a budget."""
        part = group // (len(self.budgets) // (len(self.parts) + 1))
        return None if part == 0 else self.parts[part - 1]


def weigh(groups: Groups, names: list[str], bounds: Mapping[str, Bounds], weights: Mapping[str, float]) -> Groups:
    """Groups that are datasets, in order of `names`, with their weights and bounds."""
    return replace(
        groups,
        weights=np.array([weights.get(name, 1.0) for name in names]),
        most=np.array([bounds[name].high for name in names]),
        least=np.array([bounds[name].low for name in names]),
    )


def weighted(total: int, there: Mapping[str, int], bounds: Mapping[str, Bounds], weights: Mapping[str, float]) -> dict[str, int]:
    """Budget of every dataset in proportion to its weight times what it has, within its bounds.

    Parameters
    ----------
    total
        Budget, in examples or tokens.
    there
        What each dataset of the pool has.
    bounds
        Of every dataset.
    weights
        By dataset; 1 for those that are not named.
    """
    names = [name for name in sorted(there) if there[name]]
    shares = np.array([weights.get(name, 1.0) * there[name] for name in names])
    high, low = ([getattr(bounds[name], end) for name in names] for end in ("high", "low"))
    return dict(zip(names, fill(np.array(high), total, shares, np.array(low)).tolist(), strict=True))


def divide_budget(
    groups: Groups,
    datasets: np.ndarray,
    total: int,
    fixed: Mapping[str, int],
    costs: np.ndarray | None = None,
    pinned: np.ndarray | None = None,
) -> Division:
    """Divide a budget among groups, where some datasets have a budget of their own.

    Parameters
    ----------
    groups
        G groups, as the method makes them.
    datasets
        (N,) str, dataset of every example.
    total
        Budget, in examples or tokens.
    fixed
        Budget of datasets that have their own. With P of them there are (P + 1) G groups: first those of the other datasets,
        then those of each dataset in order of name.
    costs
        (N,) int64, tokens of every example, where the budget is in tokens.
    pinned
        (N,) bool, examples that must be chosen; None where there are none.

    Returns
    -------
    Division
        With the groups as they were if no dataset has its own budget.
    """
    if not fixed:
        budgets = share_budget(groups, total, costs, pinned)
        return Division(groups, budgets, costs, _first_rows(groups, budgets, costs))
    names, n_groups = sorted(fixed), len(groups.sizes)
    part = np.searchsorted(names, datasets) % len(names)
    part = np.where(np.array(names)[part] == datasets, part + 1, 0)
    labels = np.full(len(datasets), -1, np.int64)
    for g in range(n_groups):
        labels[groups.members(g)] = g
    split = by_label(np.where(labels < 0, -1, part * n_groups + labels), n_groups * (len(names) + 1))
    budgets = np.zeros(len(split.sizes), np.int64)
    for p, budget in enumerate([total - sum(fixed.values()), *(fixed[name] for name in names)]):
        here = slice(p * n_groups, (p + 1) * n_groups)
        own = Groups(split.order, split.edges[here.start : here.stop + 1], target=groups.target)
        budgets[here] = share_budget(own, budget, costs, pinned)
    return Division(split, budgets, costs, _first_rows(split, budgets, costs), tuple(names))


def _first_rows(groups: Groups, budgets: np.ndarray, costs: np.ndarray | None) -> np.ndarray | None:
    if costs is None:
        return None
    return np.array([first_rows(costs[groups.members(g)], int(budgets[g])) for g in range(len(budgets))])


def grants(
    budgets: Mapping[int, int],
    spent: Mapping[int, int],
    following: Mapping[int, int | None],
    total: int,
    datasets: Mapping[int, str],
    room: Mapping[str, int],
) -> dict[int, int]:
    """Share what groups left of their tokens: each may choose one row more, those that left most first.

    Parameters
    ----------
    budgets, spent
        Tokens by group: what it was given, and what its rows cost.
    following
        Tokens of the row that would be next in each group; None where there is none.
    total
        Budget of all groups together.
    datasets
        Dataset by group, of those that hold one dataset with a maximum.
    room
        Tokens that such a dataset may take beyond what it has.

    Returns
    -------
    dict
        New budget of the groups that get a row: what their rows then cost. Empty if no row fits any more.
    """
    left, given, rest = total - sum(spent.values()), {}, dict(room)
    for g in sorted(budgets, key=lambda g: (spent[g] - budgets[g], g)):
        cost, dataset = following[g], datasets.get(g, "")
        if cost is not None and cost <= min(left, rest.get(dataset, left)):
            given[g] = spent[g] + cost
            left -= cost
            if dataset in rest:
                rest[dataset] -= cost
    return given
