"""The inner products that a pursuit has computed: of the rows it may choose exactly, and of those it may draft.

n rows of a cluster, D feature dimension, p slots (drafted rows, whose products with each other are exact), l listed rows.
"""

from __future__ import annotations

import numpy as np

from tagcos_stream.rows.held import Rows
from tagcos_stream.selection.pursuit.int16_rows import FineRows

LISTED = 512  # rows that a draft chooses among: each costs an inner product with every other
SPARE = 512  # slots beyond the budget, so that a draft always has room


def capacity(n: int, budget: int) -> int:
    """Slots that a pursuit allocates: the budget and a quarter more, for rows that were drafted and are not (yet) chosen."""
    return min(n, budget + max(SPARE, budget // 4))


def list_length(n: int) -> int:
    """Rows of the short list."""
    return min(n, LISTED)


class Slots:
    """Drafted rows by slot, with their features and their inner products with each other, summed in float64."""

    def __init__(self, rows: Rows, slots: int) -> None:
        self._rows = rows
        self.gram = np.empty((slots, slots))  # untouched pages cost nothing
        self.features = np.empty((slots, rows.dim), np.float32)
        self.row = np.empty(slots, np.int64)
        self.slot_of = np.full(rows.n, -1, np.int64)
        self.open = np.zeros(slots, bool)  # may still be chosen
        self.size = 0
        self.computed = 0
        self.batches = 0

    @property
    def room(self) -> int:
        """Number of rows that still fit."""
        return len(self.row) - self.size

    def add(self, wanted: np.ndarray) -> None:
        """Give slots to these rows (B,), none of which has one; there must be room."""
        assert len(wanted) <= self.room, "make room first"
        here = slice(self.size, self.size + len(wanted))
        batch = self.features[here]
        batch[:] = self._rows.take(wanted)
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
                self.features[new] = self.features[old]
        count = len(slots)
        self.gram[:count, :count] = self.gram[np.ix_(slots, slots)]
        self.row[:count] = self.row[slots]
        self.open[:count] = self.open[slots]
        self.size = count
        return moved


class Shortlist:
    """Rows without a slot that may be chosen soon, with their inner products in 16 bits: what a draft takes steps among.

    A row that was likely once may be so again: it keeps its place and its products until it gets a slot, or the list is full
    of rows that were wanted since.
    """

    def __init__(self, rows: Rows, slots: Slots, length: int) -> None:
        self._rows, self._slots = rows, slots
        self.row = np.empty(length, np.int64)
        self.gram = np.empty((length, length), np.float32)  # with each other
        self.cross = np.empty((len(slots.row), length), np.float32)  # of open slots with the listed
        self.size = 0
        self._codes, self._slot_codes = FineRows(rows, length), FineRows(rows, len(slots.row))
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
        here, all_listed = slice(self.size, self.size + len(new)), slice(0, self.size + len(new))
        self._codes.put(here, self._rows.take(new))
        products = self._codes.product(all_listed, self._codes, here)
        self.gram[all_listed, here] = products
        self.gram[here, all_listed] = products.T
        open_slots = np.flatnonzero(self._slots.open[: self._slots.size])
        if len(open_slots):
            slots = slice(int(open_slots[0]), int(open_slots[-1]) + 1)
            self.cross[slots, here] = self._slot_codes.product(slots, self._codes, here)
        self.row[here] = new
        self._place[new] = np.arange(here.start, here.stop)
        self._wanted[here] = self._calls
        self.size = here.stop

    def correlations(self, residual: np.ndarray) -> np.ndarray:
        """(size,) float32: products of the listed rows with a residual (D,) float32, right to about 1e-5 of its length."""
        probe = FineRows(self._rows, 1)
        probe.put(slice(0, 1), residual[None])
        return self._codes.product(slice(0, self.size), probe, slice(0, 1))[:, 0]

    def hand_over(self, rows: np.ndarray) -> None:
        """Take rows off the list that got slots, the last ones given; those that were not listed are left alone."""
        place, slots = self._place[rows], self._slots.slot_of[rows]
        known, listed = place >= 0, slice(0, self.size)
        self._slot_codes.copy(slots[known], self._codes, place[known])
        self.cross[slots[known], listed] = self.gram[place[known], listed]
        for slot in slots[~known].tolist():
            here = slice(slot, slot + 1)
            self._slot_codes.put(here, self._slots.features[here])
            if self.size:
                self.cross[here, listed] = self._slot_codes.product(here, self._codes, listed)
        self._vacate(place[known])

    def keep(self, slots: np.ndarray) -> None:
        """Follow `Slots.keep`."""
        self.cross[: len(slots)] = self.cross[slots]
        self._slot_codes.copy(np.arange(len(slots)), self._slot_codes, slots)

    def _vacate(self, places: np.ndarray) -> None:
        """Give up these places; the last rows of the list move in."""
        self._place[self.row[places]] = -1
        size = self.size - len(places)
        gone = np.zeros(self.size, bool)
        gone[places] = True
        holes, movers = np.flatnonzero(gone[:size]), size + np.flatnonzero(~gone[size:])
        self.gram[holes, : self.size] = self.gram[movers, : self.size]
        self.gram[:size, holes] = self.gram[:size, movers]
        self.cross[: self._slots.size, holes] = self.cross[: self._slots.size, movers]
        self._codes.copy(holes, self._codes, movers)
        self.row[holes] = self.row[movers]
        self._wanted[holes] = self._wanted[movers]
        self._place[self.row[holes]] = holes
        self.size = size
