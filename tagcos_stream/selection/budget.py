"""Allocation of a selection budget to clusters.  K clusters."""

from __future__ import annotations

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
    # integers throughout (below 2**63 for up to a billion rows): with floating-point quotas rounding errors would break ties
    exact = sizes * total  # in units of 1 / rows
    budget = exact // rows
    remainder = exact % rows
    budget[np.argsort(-remainder, kind="stable")[: total - int(budget.sum())]] += 1
    if total >= np.count_nonzero(sizes):
        for k in np.flatnonzero((budget == 0) & (sizes > 0)):
            above = np.where(budget > 1, budget * rows - exact, -rows)
            budget[np.argmax(above)] -= 1
            budget[k] += 1
    return budget
