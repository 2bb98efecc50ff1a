"""Views and means of feature rows that are read block by block.  N rows, D feature dimension, K groups."""

from __future__ import annotations

import numpy as np

from tagcos_stream.types import RowBlocks


class Dimensions:
    """RowBlocks over some of the dimensions of others; `which` (D,) bool."""

    def __init__(self, rows: RowBlocks, which: np.ndarray) -> None:
        self._rows = rows
        self._which = np.flatnonzero(which)
        self.n_rows, self.starts, self.dim = rows.n_rows, rows.starts, len(self._which)

    def read(self, block: int) -> np.ndarray:
        return np.ascontiguousarray(self._rows.read(block)[:, self._which])


def group_means(rows: RowBlocks, labels: np.ndarray, n_groups: int) -> np.ndarray:
    """(K, D) float64: mean row of each group, in one pass; zeros for an empty one. labels (N,) int in [0, K)."""
    sums = np.zeros((n_groups, rows.dim))
    for block in range(len(rows.starts) - 1):
        mine = labels[rows.starts[block] : rows.starts[block + 1]]
        found = rows.read(block)
        for group in np.unique(mine):
            sums[group] += found[mine == group].sum(axis=0, dtype=np.float64)
    return sums / np.maximum(np.bincount(labels, minlength=n_groups), 1)[:, None]
