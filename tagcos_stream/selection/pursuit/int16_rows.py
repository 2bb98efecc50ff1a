"""A few rows in 16 bits a number, for inner products with each other that are quick and good enough to draft by.

D feature dimension, W: D rounded up to whole vectors.
"""

from __future__ import annotations

import numpy as np

from tagcos_stream.rows.held import Rows
from tagcos_stream.selection.pursuit import int_kernels
from tagcos_stream.selection.pursuit.int8_rows import multiply, width
from tagcos_stream.selection.pursuit.int_kernels import TALL, WIDE

LENGTH = 2**15.5  # of a rounded row: so no product of two leaves 32 bits


class FineRows:
    """Rows by place, each a multiple of whole numbers: at D = 8192 products are right to 1e-5 of the lengths."""

    def __init__(self, rows: Rows, length: int) -> None:
        self._rows = rows
        self._codes = np.zeros((max(length, TALL), width(rows.dim)), np.int16)  # untouched pages cost nothing
        self._scale = np.zeros(max(length, TALL), np.float32)

    def put(self, places: slice, features: np.ndarray) -> None:
        """Round rows (m, D) float32 into these places."""
        most, error = LENGTH - np.sqrt(features.shape[1]), np.empty(len(features), np.float32)
        int_kernels.encode_finely(features, most, self._codes[places], self._scale[places], error)

    def copy(self, to: np.ndarray, other: FineRows, places: np.ndarray) -> None:
        """Take over the rows in these places of another, or of this one where none of them is overwritten."""
        self._codes[to], self._scale[to] = other._codes[places], other._scale[places]

    def product(self, here: slice, other: FineRows, places: slice) -> np.ndarray:
        """Inner products of the rows here (p) with those in `places` of another (v): (p, v) float32."""
        rows, columns = _at_least(here, TALL, len(self._codes)), _at_least(places, WIDE, len(other._codes))
        out = np.empty((columns.stop - columns.start, rows.stop - rows.start), np.int32)
        multiply(self._rows, self._codes[rows], other._codes[columns], out)
        values = out[places.start - columns.start :, here.start - rows.start :]
        values = values[: places.stop - places.start, : here.stop - here.start]
        return ((values * other._scale[places, None]) * self._scale[here]).T


def _at_least(places: slice, count: int, capacity: int) -> slice:
    """Extend these places to `count` of them."""
    start = min(places.start, capacity - count)
    return slice(start, max(places.stop, start + count))
