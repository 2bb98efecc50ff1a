"""The Gram columns that a pursuit has computed, and what is needed to choose among them.

n rows of a cluster, D feature dimension, p slots (rows whose column is known).
"""

from __future__ import annotations

import numpy as np

from tagcos_stream.pursuit.rows import Rows

LISTED = 768  # rows that a draft chooses among: each costs an inner product with every other
SPARE = 512  # slots beyond the budget, so that a block of candidates always has room


def capacity(n: int, budget: int) -> int:
    """Slots that a pursuit allocates: the budget and a quarter more, for candidates that are not (yet) chosen."""
    return min(n, budget + max(SPARE, budget // 4))


def list_length(n: int) -> int:
    """Rows of the short list."""
    return min(n, LISTED)


class GramStore:
    """Gram columns by slot, in float32 against every row and in float64 against each other."""

    def __init__(self, rows: Rows, slots: int) -> None:
        self._rows = rows
        self.columns = np.empty((slots, rows.n), np.float32)  # untouched pages cost nothing
        self.gram = np.empty((slots, slots))
        self.features = np.empty((slots, rows.dim), np.float32)
        self.row = np.empty(slots, np.int64)
        self.slot_of = np.full(rows.n, -1, np.int64)
        self.open = np.zeros(slots, bool)  # may still be chosen
        self.size = 0
        self.computed = 0
        self.batches = 0

    @property
    def room(self) -> int:
        return len(self.row) - self.size

    def add(self, wanted: np.ndarray) -> None:
        """Compute the columns of these rows (B,), none of which has a slot; there must be room."""
        assert len(wanted) <= self.room, "make room first"
        here = slice(self.size, self.size + len(wanted))
        batch = self._rows.take(wanted)
        self._rows.columns(batch, self.columns[here])
        self.features[here] = batch
        products = self._rows.exact(self.features[: here.stop], batch)
        self.gram[: here.stop, here] = products
        self.gram[here, : here.stop] = products.T
        self.row[here] = wanted
        self.slot_of[wanted] = np.arange(here.start, here.stop)
        self.open[here] = True
        self.size = here.stop
        self.computed += len(wanted)
        self.batches += 1

    def keep(self, slots: np.ndarray) -> np.ndarray:
        """Forget all but these slots (ascending). Returns the new slot of every old one, -1 where forgotten."""
        moved = np.full(self.size, -1, np.int64)
        moved[slots] = np.arange(len(slots))
        self.slot_of[self.row[: self.size]] = moved
        for new, old in enumerate(slots):  # ascending, so nothing is overwritten before it has moved
            if new != old:
                self.columns[new] = self.columns[old]
                self.features[new] = self.features[old]
        count = len(slots)
        self.gram[:count, :count] = self.gram[np.ix_(slots, slots)]
        self.row[:count] = self.row[slots]
        self.open[:count] = self.open[slots]
        self.size = count
        return moved


class Shortlist:
    """Rows without a column that may be chosen soon, with their inner products in float32: what a draft takes steps among.

    A row that was likely once may be so again: it keeps its place and its products until it gets a column, or the list is full
    of rows that were wanted since.
    """

    def __init__(self, rows: Rows, length: int) -> None:
        self._rows = rows
        self.row = np.empty(length, np.int64)
        self.gram = np.empty((length, length), np.float32)
        self.size = 0
        self._features = np.empty((length, rows.dim), np.float32)
        self._place = np.full(rows.n, -1, np.int64)  # of a row in the list, -1 where it is not
        self._wanted = np.zeros(length, np.int64)  # the last call that wanted the row in this place
        self._calls = 0

    def add(self, wanted: np.ndarray) -> None:
        """List these rows (m,), at most as many as the list is long."""
        self._calls += 1
        place = self._place[wanted]
        self._wanted[place[place >= 0]] = self._calls
        new = wanted[place < 0]
        if not len(new):
            return
        excess = self.size + len(new) - len(self.row)
        if excess > 0:
            self._vacate(np.argpartition(self._wanted[: self.size], excess - 1)[:excess])
        here = slice(self.size, self.size + len(new))
        self._features[here] = self._rows.take(new)
        products = self._rows.product(self._features[: here.stop], self._features[here])
        self.gram[: here.stop, here] = products
        self.gram[here, : here.stop] = products.T
        self.row[here] = new
        self._place[new] = np.arange(here.start, here.stop)
        self._wanted[here] = self._calls
        self.size = here.stop

    def remove(self, rows: np.ndarray) -> None:
        """Take rows off the list; those that are not on it are left alone."""
        place = self._place[rows]
        self._vacate(place[place >= 0])

    def _vacate(self, places: np.ndarray) -> None:
        """Give up these places; the last rows of the list move in."""
        self._place[self.row[places]] = -1
        size = self.size - len(places)
        gone = np.zeros(self.size, bool)
        gone[places] = True
        holes, movers = np.flatnonzero(gone[:size]), size + np.flatnonzero(~gone[size:])
        self.gram[holes, : self.size] = self.gram[movers, : self.size]
        self.gram[:size, holes] = self.gram[:size, movers]
        self._features[holes] = self._features[movers]
        self.row[holes] = self.row[movers]
        self._wanted[holes] = self._wanted[movers]
        self._place[self.row[holes]] = holes
        self.size = size
