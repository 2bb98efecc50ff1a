"""Sharing a selection budget over clusters.  K clusters."""

from __future__ import annotations

import numpy as np


def allocate(sizes: np.ndarray, total: int) -> np.ndarray:
    """Share `total` over clusters in proportion to their sizes, by largest remainder.

    A non-empty cluster gets at least one where the total allows (total >= number of non-empty clusters), taken from the
    clusters that are furthest above their exact share. (The released code floors 5% a cluster, so that a cluster under
    20 rows gets nothing and the total falls short.)

    Args:
        sizes: (K,) integers, rows per cluster.
        total: number of rows to choose; at most sum(sizes).

    Returns:
        (K,) int64, 0 <= budget <= size, summing to `total` exactly. Ties go to the lowest cluster.

    Raises:
        ValueError: total negative or more than there are rows, or a negative size.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    rows = int(sizes.sum())
    if (sizes < 0).any():
        raise ValueError(f"cluster sizes must not be negative, got {sizes.min()}")
    if not 0 <= total <= rows:
        raise ValueError(f"budget {total} must lie between 0 and the {rows} rows there are")
    if total == 0:
        return np.zeros_like(sizes)
    # whole numbers throughout (below 2**63 for up to a billion rows): floating shares would break ties by rounding error
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
