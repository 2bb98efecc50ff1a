"""The examples that a selection stands for in place of its group's mean.  m target examples, P parts, G groups, D dimensions.

A target is a weighted mean: parts count by their weights, however many examples they have, and the examples of a part count
equally. So a part of three examples counts as much as one of three thousand.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from tagcos_stream.selection.budget import allocate, fill


@dataclass(frozen=True)
class TargetRows:
    """The features of a target set.

    Parameters
    ----------
    rows
        (m, D) float32.
    parts
        (m,) int64 in [0, P), the part of each example.
    weights
        (P,) float64 above 0, the weight of each part; need not sum to 1.
    """

    rows: np.ndarray
    parts: np.ndarray
    weights: np.ndarray

    @property
    def relative(self) -> np.ndarray:
        """(m,) float64: what each example counts, relative to the one that counts most.

        Exactly 1 where all examples count equally, so that sums stay exact and equal those of a plain mean.
        """
        counts = np.bincount(self.parts, minlength=len(self.weights))
        each = np.divide(self.weights, counts, out=np.zeros(len(counts)), where=counts > 0)
        return (each / each.max())[self.parts]

    @property
    def shares(self) -> np.ndarray:
        """(m,) float64: the share of each example in the target; sums to 1."""
        relative = self.relative
        shares: np.ndarray = relative / relative.sum()
        return shares

    def part_means(self) -> np.ndarray:
        """Compute the mean feature of each part.

        Returns
        -------
        np.ndarray
            (P, D) float64.
        """
        equal = TargetRows(self.rows, self.parts, np.ones(len(self.weights)))
        return group_targets(equal, self.parts, len(self.weights))[0]


def group_targets(target: TargetRows, labels: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide a target among groups.

    Parameters
    ----------
    target
        The target's features.
    labels
        (m,) int in [0, G): the group of each target example.
    n_groups
        G.

    Returns
    -------
    vectors : np.ndarray
        (G, D) float64: the weighted mean of the target examples in each group; of all of them for a group that has none.
    weights : np.ndarray
        (G,) float64: the weight of the target in each group. Whole numbers, the counts, where all examples count equally.
    """
    sums, weights = np.zeros((n_groups + 1, target.rows.shape[1])), np.zeros(n_groups + 1)
    relative = target.relative
    for part in range(len(target.weights)):
        mine = target.parts == part
        if not mine.any():
            continue
        weight = float(relative[mine][0])
        for group in (*np.unique(labels[mine]), n_groups):  # the last one is of all examples
            here = mine if group == n_groups else mine & (labels == group)
            sums[group] += weight * target.rows[here].sum(axis=0, dtype=np.float64)
            weights[group] += weight * int(here.sum())
    vectors = sums / np.where(weights > 0, weights, 1)[:, None]
    vectors[:-1][weights[:-1] == 0] = vectors[-1]
    return vectors[:-1], weights[:-1]


def allocate_by_target(sizes: np.ndarray, total: int, weights: np.ndarray) -> np.ndarray:
    """Divide a budget among groups in proportion to the target's weight in them, by largest remainder.

    A group of fewer rows than its part gives all of them; the others share the rest by their weights, and once no group with a
    weight has rows left, the groups without one share it by their sizes. Every group with a weight gets at least one row if the
    total allows. Weights that are proportional to the sizes give what `allocate` gives.

    Parameters
    ----------
    sizes
        (G,) integers, rows per group.
    total
        Number of rows to choose, at most sum(sizes).
    weights
        (G,) float64, not negative, with a positive sum.

    Returns
    -------
    np.ndarray
        (G,) int64, 0 <= budget <= size, with sum `total` exactly. Ties go to the lowest group.

    Raises
    ------
    ValueError
        The total is negative or exceeds the number of rows, or a weight is negative or all are 0.
    """
    sizes, weights = np.asarray(sizes, np.int64), np.asarray(weights, np.float64)
    if not 0 <= total <= sizes.sum():
        raise ValueError(f"budget {total} must lie between 0 and the {sizes.sum()} rows there are")
    if (weights < 0).any() or not weights.any():
        raise ValueError(f"weights must not be negative, and one must be above 0, got {weights.min()} to {weights.max()}")
    budget = np.zeros_like(sizes)
    present = np.flatnonzero((weights > 0) & (sizes > 0))
    here = min(total, int(sizes[present].sum()))
    budget[present] = fill(sizes[present], here, weights[present])
    if total >= len(present):
        whole = sum(Fraction(float(weight)) for weight in weights[present])
        quotas = {g: Fraction(float(weights[g])) * here / whole for g in present.tolist()}
        for g in present[budget[present] == 0].tolist():
            above = max((h for h in quotas if budget[h] > 1), key=lambda h: (int(budget[h]) - quotas[h], -h))
            budget[above] -= 1
            budget[g] = 1
    return budget + allocate(np.where(weights > 0, 0, sizes), total - here)
