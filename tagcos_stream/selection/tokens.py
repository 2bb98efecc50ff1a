"""Budgets in tokens: any method chooses the longest prefix of its order that fits.  n examples of a group.

A greedy method's order does not depend on how many rows it is asked for, so the prefix is what it would choose one row at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from tagcos_stream.selection.methods import Choice, Group, Limits, Method
from tagcos_stream.selection.pins import others, spent, with_pinned

Found = TypeVar("Found")


def first_rows(costs: np.ndarray, budget: int) -> int:
    """Rows to ask a method for at first: those that a budget pays for at the mean cost, and an eighth more."""
    mean = max(float(costs.mean()), 1.0) if len(costs) else 1.0
    return max(1, min(len(costs), int(budget / mean * 1.125) + 1))


def prefix(costs: np.ndarray, budget: int, first: int, order: Callable[[int], tuple[np.ndarray, Found]]) -> tuple[int, Found]:
    """Ask for more rows until the budget does not pay for all of them, or there are no more.

    Parameters
    ----------
    costs
        (n,) int64, of every row.
    budget
        What the rows may cost together.
    first
        Rows to ask for at first.
    order
        Number of rows -> rows in order of choice, and what else belongs to that choice.

    Returns
    -------
    Number of leading rows that the budget pays for, and the last answer of `order`.
    """
    asked = first
    while True:
        indices, found = order(asked)
        fits = int(np.searchsorted(np.cumsum(costs[indices]), budget, side="right"))
        if fits < len(indices) or asked >= len(costs):
            return fits, found
        asked = min(2 * asked, len(costs))


def most_rows(costs: np.ndarray, budget: int, first: int) -> int:
    """Return how many rows `prefix` asks for at the most, whatever the order: enough that even the cheapest exceed the budget.

    Parameters
    ----------
    costs, budget, first
        As for `prefix`.

    Returns
    -------
    int
        At most n.
    """
    payable = int(np.searchsorted(np.cumsum(np.sort(costs)), budget, side="right"))
    asked = first
    while asked <= payable and asked < len(costs):
        asked *= 2
    return min(asked, len(costs))


def spending(costs: np.ndarray, indices: np.ndarray, fits: int) -> dict[str, int | None]:
    """What a prefix costs, and what one more row would: recorded with the choice."""
    following = int(costs[indices[fits]]) if fits < len(indices) else None
    return {"tokens": int(costs[indices[:fits]].sum()), "next_tokens": following}


def choose_within(method: Method, group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose rows of a group by a budget in rows, or in tokens where the group has costs.

    Parameters
    ----------
    method
        One that gives weights meets a budget in tokens itself: its weights are those of exactly the rows that it chooses.
    group
        With `costs` where the budget is in tokens. Pinned rows come first; a method that does not account for them chooses the
        rest of the budget from the other rows.
    budget
        Rows, or tokens.
    settings, limits
        As for `Method.choose`.

    Returns
    -------
    Choice
        Its stats have `tokens` and `next_tokens` where the budget is in tokens.

    Raises
    ------
    ValueError
        The method did not choose what it was asked for.
    """
    if group.pinned is not None and not method.accounts_for_pins:
        mean = group.mean if group.mean is not None or not method.features else group.target
        rest, sub = others(group, group.pinned, mean)
        left = Choice(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
        if len(rest):
            left = choose_within(method, sub, budget - spent(group, group.pinned), settings, limits)
        return with_pinned(left, group, group.pinned, rest)
    if group.costs is None or method.weights:
        choice = method.choose(group, budget, settings, limits)
        _require_sound(method, group, budget, choice)
        return choice
    costs = group.costs

    def order(rows: int) -> tuple[np.ndarray, Choice]:
        choice = method.choose(group, rows, settings, limits)
        return choice.indices, choice

    fits, choice = prefix(costs, budget, group.first_rows or first_rows(costs, budget), order)
    return replace(
        choice,
        indices=choice.indices[:fits],
        scores=choice.scores[:fits],
        margins=choice.margins,
        stats=choice.stats | spending(costs, choice.indices, fits),
    )


def _require_sound(method: Method, group: Group, budget: int, choice: Choice) -> None:
    """Refuse what a faulty method chose, before it is recorded as a selection."""
    chosen, n = choice.indices, len(choice.margins)
    if len(np.unique(chosen)) < len(chosen):
        raise ValueError(f"method {method.name} chose a row of a group twice")
    if group.pinned is not None and not np.isin(group.pinned, chosen).all():
        raise ValueError(f"method {method.name} left out rows of Group.pinned, which it must choose")
    if group.costs is None and len(chosen) != min(budget, n):
        raise ValueError(f"method {method.name} chose {len(chosen)} of {n} rows, and was asked for {min(budget, n)}")
    if group.costs is not None and group.costs[chosen].sum() > budget:
        raise ValueError(f"method {method.name} spent {group.costs[chosen].sum()} tokens, and the budget is {budget}")
