"""The rows that a pursuit reads: held in memory as they come, or read again from their blocks for every pass.

n rows of a cluster, D feature dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from threadpoolctl import threadpool_limits

from tagcos_stream.machine import available_cpus
from tagcos_stream.rows import kernels as row_kernels
from tagcos_stream.types import RowBlocks, UserError

CHUNK = 4096  # rows a matrix product takes at once: enough for full speed, small compared with the store
PIECE = 64  # rows a thread scans at once: 2 MiB at D=8192, stays in its cache
MULTIPLIED = 256  # rows of a piece of a matrix product at the most
LEAST = 8  # rows of a piece at the least, more than any kernel multiplies at once


class Rows:
    """Uniform access to (n, D) features, whether they fit or not. Every answer is float32 and the same either way.

    All work is cut up for one pool of threads, BLAS's products too, whose own threads the caller turns off: they would go on
    spinning between products, on the cores that our kernels need.
    """

    def __init__(self, features: np.ndarray | RowBlocks, pool: ThreadPoolExecutor, *, hold: bool, threads: int) -> None:
        self._features = features
        self._pool = pool
        self._threads = threads
        self.n, self.dim = shape(features)
        self._held = features if isinstance(features, np.ndarray) else None
        if hold and not isinstance(features, np.ndarray):
            self._held = self._hold(features)

    def _hold(self, features: RowBlocks) -> np.ndarray:
        held: np.ndarray | None = None
        for b in range(len(features.starts) - 1):
            block = features.read(b)
            if held is None:
                held = np.empty((self.n, self.dim), np.float32 if block.dtype.itemsize > 4 else block.dtype)
            held[features.starts[b] : features.starts[b + 1]] = block
        return np.empty((0, self.dim), np.float32) if held is None else held

    def each(self, work: Callable[[int], None], items: range) -> None:
        """work(item) for every item, on all threads."""
        if self._threads == 1 or len(items) <= 1:
            for item in items:
                work(item)
            return
        list(self._pool.map(work, items))

    def share(self, rows: int) -> int:
        """Rows of a piece of these many: two pieces a thread, so that a slow thread is not waited for long."""
        return max(LEAST, -(-rows // (2 * self._threads)))

    def _raw(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, (r, D) rows as they are) over the features in order."""
        if self._held is not None:
            for start in range(0, self.n, CHUNK):
                yield start, self._held[start : start + CHUNK]
            return
        assert not isinstance(self._features, np.ndarray)
        starts = self._features.starts
        for b in range(len(starts) - 1):
            yield int(starts[b]), self._features.read(b)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, (r, D) float32 C-contiguous) over all rows in order."""
        for start, block in self._raw():
            if block.dtype == np.float32 and block.flags.c_contiguous:
                yield start, block
                continue
            wide = np.empty(block.shape, np.float32)

            def convert(at: int, block: np.ndarray = block, wide: np.ndarray = wide) -> None:
                wide[at : at + PIECE] = single(block[at : at + PIECE])

            self.each(convert, range(0, len(block), PIECE))
            yield start, wide

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(B, D) float32: the rows named, in that order."""
        if self._held is not None:
            return single(self._held[rows])
        assert not isinstance(self._features, np.ndarray)
        return take(self._features, rows)

    def scan(
        self, target: np.ndarray, seed: int, also: Callable[[int, np.ndarray], None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read all rows once and compute everything that needs every row.

        Parameters
        ----------
        target
            (D,) float64.
        seed
            Of the hash keys.
        also
            Called with the first row and the (r, D) float32 of every piece, finite or not, on any thread.

        Returns
        -------
        products, hashes
            (n, 2) float64, <a, b> and |a|^2; (n,) uint64.

        Raises
        ------
        UserError
            A row is not finite; names the first.
        """
        keys = np.random.default_rng(seed).integers(0, 2**64, self.dim, np.uint64)
        products = np.empty((self.n, 2))
        hashes = np.empty(self.n, np.uint64)
        for start, block in self._raw():

            def read(at: int, start: int = start, block: np.ndarray = block) -> None:
                piece = single(block[at : at + PIECE])
                here = slice(start + at, start + at + len(piece))
                row_kernels.scan(piece, target, keys, products[here], hashes[here])
                if also:
                    also(start + at, piece)

            self.each(read, range(0, len(block), PIECE))
            wrong = np.flatnonzero(~np.isfinite(products[start : start + len(block), 1]))
            if wrong.size:
                raise UserError(f"features row {start + wrong[0]} holds NaN or infinity: reject such rows before selecting")
        return products, hashes

    def columns(self, batch: np.ndarray, out: np.ndarray) -> None:
        """Gram columns: out[i, j] = <batch_i, a_j>. batch (B, D) float32, out (B, n) float32."""
        for start, block in self.blocks():
            out[:, start : start + len(block)] = self.product(block, batch).T  # this way round is the faster one

    def product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Inner products of left (p, D) with right (q, D), both float32 or both float64: (p, q).

        A piece's last bits depend on its size, which therefore does not depend on the number of threads.
        """
        out = np.empty((len(left), len(right)), left.dtype)
        share = min(max(LEAST, -(-len(left) // 4)), MULTIPLIED)

        def multiply(at: int) -> None:
            np.matmul(left[at : at + share], right.T, out=out[at : at + share])

        self.each(multiply, range(0, len(left), share))
        return out

    def exact(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Inner products of float32 rows left (p, D) with right (B, D), summed in float64: (p, B)."""
        if min(len(left), len(right)) < row_kernels.SIDE:
            return self.product(left.astype(np.float64), right.astype(np.float64))
        out = np.empty((len(left), len(right)))
        share = self.share(len(left))

        def multiply(at: int) -> None:
            at = min(at, len(left) - row_kernels.SIDE)
            row_kernels.products(left[at : at + share], right, out[at : at + share])

        self.each(multiply, range(0, len(left), share))
        return out

    def correlate(self, vector: np.ndarray, out: np.ndarray) -> None:
        """out[j] = <a_j, v> in float64, each row summed alone. vector (D,) float64, out (n,) float."""
        for start, block in self._raw():

            def read(at: int, start: int = start, block: np.ndarray = block) -> None:
                piece = single(block[at : at + PIECE])
                values = np.empty(len(piece))
                row_kernels.dots(piece, vector, values)
                out[start + at : start + at + len(piece)] = values

            self.each(read, range(0, len(block), PIECE))


def single(block: np.ndarray) -> np.ndarray:
    """The rows (r, D) in float32, C-contiguous; a copy where they are not yet."""
    if block.dtype == np.float16:  # numpy takes ten times as long
        out = np.empty(block.shape, np.float32)
        row_kernels.widen(np.ascontiguousarray(block).view(np.uint16), out.view(np.uint32), out)
        return out
    return np.ascontiguousarray(block, np.float32)


def take(features: RowBlocks, rows: np.ndarray) -> np.ndarray:
    """(B, D) float32: the rows (B,) named, in that order; every block that has one is read once."""
    out = np.empty((len(rows), features.dim), np.float32)
    block = np.searchsorted(features.starts, rows, side="right") - 1
    for b in np.unique(block):
        here = np.flatnonzero(block == b)
        out[here] = single(features.read(int(b))[rows[here] - features.starts[b]])
    return out


def shape(features: np.ndarray | RowBlocks) -> tuple[int, int]:
    """Return rows and dimensions of features. UserError if an array is not two-dimensional."""
    if isinstance(features, np.ndarray):
        if features.ndim != 2:
            raise UserError(f"features must be two-dimensional (rows, dimensions), got shape {features.shape}")
        return features.shape[0], features.shape[1]
    return features.n_rows, features.dim


@contextmanager
def open_rows(features: np.ndarray | RowBlocks, *, hold: bool, threads: int | None = None) -> Iterator[Rows]:
    """Rows with their threads, default all cores; BLAS is limited to one thread in the whole process as long as they are open."""
    cores = threads or available_cpus()
    # rows are checked to be finite when first read; a BLAS kernel may yet raise the flag on lanes past an array's end
    with threadpool_limits(1, user_api="blas"), np.errstate(invalid="ignore"), ThreadPoolExecutor(cores) as pool:
        yield Rows(features, pool, hold=hold, threads=cores)


def gram(rows: np.ndarray, product: Callable[[np.ndarray, np.ndarray], np.ndarray], step: int = 1024) -> np.ndarray:
    """(k, k) float64: inner products of rows (k, D) float32 with each other, `step` dimensions converted at a time.

    product: (k, step) and (k, step) float64 -> (k, k), such as Rows.product.
    """
    total = np.zeros((len(rows), len(rows)))
    for at in range(0, rows.shape[1], step):
        part = rows[:, at : at + step].astype(np.float64)
        total += product(part, part)
    return total
