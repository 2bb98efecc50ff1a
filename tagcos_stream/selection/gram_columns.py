"""Inner products of a few rows with all rows, for greedy methods that need them row by row.  n rows, D feature dimension.

The columns of the rows that rank highest are computed together, in one pass over all rows, and again when a row without a
column comes to the top.
"""

from __future__ import annotations

import numpy as np

from tagcos_stream.rows.held import CHUNK, Rows

COLUMNS = 256  # fixed, so that the machine's memory does not touch what is chosen
TIE = 1e-6  # in units of the largest value: what float32 products do not tell apart, so that the lowest row is chosen
HELD_BYTES = 1 << 30  # rows that take less in float32 are held, others are read again for every pass


def holds(n: int, dim: int) -> bool:
    """Whether rows are held in memory: by their number alone."""
    return 4 * n * dim <= HELD_BYTES


def peak_bytes(dim: int, n: int, block_rows: int = CHUNK) -> int:
    """Most memory that the columns of n rows and a pass over these take, in bytes; `block_rows`: rows of the largest block."""
    columns = min(COLUMNS, n)
    rows = 4 * n * dim if holds(n, dim) else 0
    return rows + 4 * columns * (n + dim) + 8 * max(CHUNK, block_rows) * (dim + columns) + 96 * n + (32 << 20)


class GramColumns:
    """Gram columns of the rows that rank highest, against all rows."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.columns = np.empty((min(COLUMNS, rows.n), rows.n), np.float32)
        self.owner = np.full(len(self.columns), -1, np.int64)
        self.slot = np.full(rows.n, -1, np.int64)
        self.passes = self.computed = 0

    def of(self, row: int) -> np.ndarray:
        """(n,) float32: inner products of a row that has a column with all rows. Not to be written to."""
        return self.columns[self.slot[row]]

    def refill(self, value: np.ndarray, row: int) -> None:
        """Compute the columns of the rows with the largest values, `row` among them; those that are there already stay.

        value: (n,) float64, -inf for rows that cannot be chosen any more.
        """
        count = len(self.columns)
        wanted = np.argpartition(-value, count - 1)[:count]
        wanted = wanted[np.isfinite(value[wanted])]
        if row not in wanted:  # as good as the best up to rounding
            wanted[0] = row
        kept = np.flatnonzero(np.isin(self.owner, wanted))
        for place, slot in enumerate(kept.tolist()):
            self.columns[place] = self.columns[slot]
        owners = self.owner[kept]
        new = np.sort(wanted[~np.isin(wanted, owners)])
        self.rows.columns(self.rows.take(new), self.columns[len(kept) : len(kept) + len(new)])
        self.owner[:] = -1
        self.owner[: len(kept)], self.owner[len(kept) : len(kept) + len(new)] = owners, new
        self.slot[:] = -1
        used = self.owner >= 0
        self.slot[self.owner[used]] = np.flatnonzero(used)
        self.passes += 1
        self.computed += len(new)
