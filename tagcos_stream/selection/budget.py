"""Allocation of a selection budget to groups.  K groups."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def allocate(sizes: np.ndarray, total: int) -> np.ndarray:
    """Divide a budget among clusters in proportion to their sizes, by largest remainder.

    Every non-empty cluster gets at least one row if the total allows (total >= number of non-empty clusters); these rows are
    taken from the clusters that are furthest above their exact quota. (The paper's released code rounds 5% of each cluster
    down, so that a cluster of fewer than 20 rows gets nothing and the sum is below the total.)

    Parameters
    ----------
    sizes
        (K,) integers, rows per cluster.
    total
        Number of rows to choose, at most sum(sizes).

    Returns
    -------
    np.ndarray
        (K,) int64, 0 <= budget <= size, with sum `total` exactly. Ties go to the lowest cluster.

    Raises
    ------
    ValueError
        The total is negative or exceeds the number of rows, or a size is negative.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    rows = int(sizes.sum())
    if (sizes < 0).any():
        raise ValueError(f"cluster sizes must not be negative, got {sizes.min()}")
    if not 0 <= total <= rows:
        raise ValueError(f"budget {total} must lie between 0 and the {rows} rows there are")
    if total == 0:
        return np.zeros_like(sizes)
    # integers throughout: with floating-point quotas rounding errors would break ties
    exact = sizes * total if rows * total < 2**63 else sizes.astype(object) * total  # in units of 1 / rows
    budget = exact // rows
    remainder = exact % rows
    budget[np.argsort(-remainder, kind="stable")[: total - int(budget.sum())]] += 1
    if total >= np.count_nonzero(sizes):
        for k in np.flatnonzero((budget == 0) & (sizes > 0)):
            above = np.where(budget > 1, budget * rows - exact, -rows)
            budget[np.argmax(above)] -= 1
            budget[k] += 1
    return budget.astype(np.int64, copy=False)


def fill(sizes: np.ndarray, total: int, weights: np.ndarray, least: np.ndarray | None = None) -> np.ndarray:
    """Divide a budget among groups in proportion to their weights, by largest remainder, within bounds.

    A group whose part exceeds its rows gives all of them, and one whose part is below its minimum gives that; the others share
    the rest, again by their weights. Which of the two comes first is decided as in `tagcos_stream.selection.shares.fix`.

    Parameters
    ----------
    sizes
        (K,) integers, the most that a group can give.
    total
        Budget, between sum(least) and sum(sizes).
    weights
        (K,) above 0.
    least
        (K,) integers, minimum of each group; by default 0.

    Returns
    -------
    np.ndarray
        (K,) int64, least <= budget <= size, with sum `total` exactly. Ties go to the lowest group.

    Raises
    ------
    ValueError
        The total cannot be divided, or a weight is not above 0.
    """
    high = [int(size) for size in sizes]
    low = [0] * len(high) if least is None else [int(minimum) for minimum in least]
    if not sum(low) <= total <= sum(high):
        raise ValueError(f"budget {total} must lie between {sum(low)} and the {sum(high)} rows there are")
    if not (np.asarray(weights) > 0).all():
        raise ValueError(f"weights must be above 0, got {np.min(weights)}")
    exact = [Fraction(float(weight)) for weight in weights]  # rounding errors would break ties
    budget = [0] * len(high)
    left, sharing = total, list(range(len(high)))
    while sharing:
        whole = sum(exact[k] for k in sharing)
        quotas = {k: exact[k] * left / whole for k in sharing}
        above = {k: quotas[k] - high[k] for k in sharing if quotas[k] >= high[k]}
        below = {k: low[k] - quotas[k] for k in sharing if quotas[k] < low[k]}
        bound = {k: high[k] for k in above} if sum(above.values()) >= sum(below.values()) else {k: low[k] for k in below}
        if not bound:
            floors = {k: int(quotas[k]) for k in sharing}
            by_remainder = sorted(sharing, key=lambda k: (floors[k] - quotas[k], k))
            more = set(by_remainder[: left - sum(floors.values())])
            for k in sharing:
                budget[k] = floors[k] + (k in more)
            break
        for k, amount in bound.items():
            budget[k] = amount
            left -= amount
        sharing = [k for k in sharing if k not in bound]
    return np.array(budget, np.int64)
