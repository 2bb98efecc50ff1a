"""The rows of a cluster rounded to bytes, which tell the rows whose inner product with a residual may be large.

A product of bytes reads a quarter of the memory of a float32 one and is half the work, and what rounding may have changed is
bounded (`int_kernels.encode`): so it rules out all but a few rows, which are compared exactly.

n rows of a cluster, D feature dimension, W: D rounded up to whole vectors, T probes (residuals).
"""

from __future__ import annotations

import numpy as np

from tagcos_stream.rows.held import PIECE, Rows
from tagcos_stream.selection.pursuit import int_kernels
from tagcos_stream.selection.pursuit.int_kernels import LANES, TALL, WIDE

BYTE = 126.0  # largest size of a number before it is rounded to a byte
PROBES = 12  # residuals multiplied at once: reading the bytes takes less than the work from 8 on
ROOM = 4096  # pairs of a probe and a row that a piece of rows is expected to find at most
SEED = 20240721  # of the dither; results do not depend on it


def width(dim: int) -> int:
    """Numbers of a rounded row: zeros fill the last vector."""
    return max(-(-dim // LANES), 1) * LANES


def multiply(rows: Rows, codes: np.ndarray, probes: np.ndarray, out: np.ndarray) -> None:
    """`int_kernels.multiply`, on all threads."""
    share = rows.share(len(codes))

    def piece(at: int) -> None:
        at = min(at, len(codes) - TALL)
        int_kernels.multiply(codes[at : at + share], probes, out[:, at : at + share])

    rows.each(piece, range(0, len(codes), share))


class RoundedRows:
    """Rows as `scale` times bytes. Held, or rounded again from the rows for every probe."""

    def __init__(self, rows: Rows, *, hold: bool) -> None:
        self._rows = rows
        height = max(rows.n, TALL)
        self._width = width(rows.dim)
        self._dither = np.random.default_rng(SEED).random(rows.dim, np.float32) - np.float32(0.5)
        root = np.sqrt(self._width)
        self._longest = max(2**31 / ((BYTE + 1) * root) - root, 1.0)  # of a residual, so that no product leaves 32 bits
        self._codes = np.zeros((height, self._width), np.int8) if hold else None
        self._scale = np.empty(rows.n, np.float32)
        self._error = np.empty(rows.n, np.float32)
        self._products = np.empty((PROBES, height), np.int32)
        self._probes = np.zeros((PROBES, self._width), np.int16)
        self._step = np.zeros(PROBES, np.float32)
        self._miss = np.zeros(PROBES, np.float32)

    def take_in(self, start: int, piece: np.ndarray) -> None:
        """Round these rows (r, D) float32, the first of which is row `start`."""
        here = slice(start, start + len(piece))
        codes = np.empty((len(piece), self._width), np.int8) if self._codes is None else self._codes[here]
        int_kernels.encode(piece, self._dither, BYTE, codes, self._scale[here], self._error[here])

    def _encode(self, rows: np.ndarray, codes: np.ndarray) -> None:
        """Add codes (r, W), zeros, of rows (r, D) float32 that were added before."""

        def encode(at: int) -> None:
            known = np.empty((2, PIECE), np.float32)
            int_kernels.encode(rows[at : at + PIECE], self._dither, BYTE, codes[at : at + PIECE], known[0], known[1])

        self._rows.each(encode, range(0, len(rows), PIECE))

    def probe(self, residuals: np.ndarray) -> None:
        """Multiply all rows with these (T, D) float32, at most PROBES."""
        int_kernels.encode_finely(residuals, self._longest, self._probes, self._step, self._miss)
        count = max(len(residuals), WIDE)
        if self._codes is not None:
            multiply(self._rows, self._codes, self._probes[:count], self._products[:count])
            return
        for start, block in self._rows.blocks():
            codes = np.zeros((max(len(block), TALL), self._width), np.int8)
            self._encode(block, codes)
            products = np.empty((count, len(codes)), np.int32)
            multiply(self._rows, codes, self._probes[:count], products)
            self._products[:count, start : start + len(block)] = products[:, : len(block)]

    def correlations(self, t: int) -> np.ndarray:
        """(n,) float32, about <a, r> with the t-th residual of the last probe."""
        return self._scale * self._step[t] * self._products[t, : self._rows.n]

    def reaching(self, length: np.ndarray, rounding: np.ndarray, bound: np.ndarray, norm: np.ndarray) -> np.ndarray:
        """Find the rows that may have <a, r> >= bound[t] for a probe t; no other row has.

        Parameters
        ----------
        length, rounding, bound
            (T,) float64: |r|, how far the residual that was probed may be from it, and the bound, for
            the first T residuals of the last probe.
        norm
            (n,) float64, |a|.

        Returns
        -------
        np.ndarray
            (m, 2) int64: probe t and row.
        """
        count = len(bound)
        up = np.float32(1 + 1e-5)  # float32 rounding of the bounds themselves
        miss = (self._miss[:count] + rounding).astype(np.float32) * up
        reach = (length + rounding).astype(np.float32) * up
        least = (bound - 1e-6 * np.abs(bound)).astype(np.float32)
        long = (norm * (1 + 1e-6)).astype(np.float32) + self._scale * np.float32(np.sqrt(self._rows.dim))
        share = self._rows.share(self._rows.n)
        found: dict[int, np.ndarray] = {}

        def search(at: int) -> None:
            here = slice(at, at + share)
            pairs: np.ndarray = np.empty((ROOM, 2), np.int64)
            # the array whole: a slice of it would be another type to compile for
            given = self._products, at, self._scale[here], self._error[here], long[here], self._step[:count], reach, miss, least
            many = int_kernels.reaching(*given, pairs)
            if many > len(pairs):
                pairs = np.empty((many, 2), np.int64)
                int_kernels.reaching(*given, pairs)
            found[at] = pairs[:many] + np.array([0, at])

        self._rows.each(search, range(0, self._rows.n, share))
        return np.concatenate([found[at] for at in sorted(found)])
