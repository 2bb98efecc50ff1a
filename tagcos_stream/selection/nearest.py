"""The nearest rows of two sets by cosine, in one pass over the larger one.  n rows, m queries, D feature dimension."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tagcos_stream.memory import require_memory
from tagcos_stream.rows import kernels
from tagcos_stream.rows.held import CHUNK, PIECE, Rows, open_rows, shape
from tagcos_stream.types import RowBlocks

SEED = 20261201  # of the hash keys; results do not depend on it
COPIES_BYTES = 72  # of `Copies` for a row, while it looks for equal ones


@dataclass(frozen=True)
class Nearest:
    """Nearest rows and queries.

    Parameters
    ----------
    rows
        (m,) int64: the row nearest to each query, the lowest of equals.
    cosines
        (m,) float32: the cosine between them; 0 where either is zero.
    queries
        (n,) int64: the query nearest to each row.
    row_cosines
        (n,) float32: the cosine between them.
    """

    rows: np.ndarray
    cosines: np.ndarray
    queries: np.ndarray
    row_cosines: np.ndarray


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Scale rows to length 1.

    Parameters
    ----------
    rows
        (n, D) floating point.

    Returns
    -------
    np.ndarray
        (n, D) float32; a zero row stays zero.
    """
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    return (rows * np.divide(1.0, lengths, out=np.zeros(len(rows)), where=lengths > 0)[:, None]).astype(np.float32)


class Copies:
    """Which rows of a pass are equal. The last bits of a row's cosine depend on its place in a block, so that equal rows differ.

    Parameters
    ----------
    n, dim
        Rows and D.
    """

    def __init__(self, n: int, dim: int) -> None:
        self._keys = np.random.default_rng(SEED).integers(0, 2**64, dim, np.uint64)
        self._nothing = np.zeros(dim)
        self._products, self._hashes = np.empty((n, 2)), np.empty(n, np.uint64)

    def take_in(self, rows: Rows, start: int, block: np.ndarray) -> None:
        """Read a block (r, D) float32 whose first row is `start`."""

        def read(at: int) -> None:
            piece = block[at : at + PIECE]
            here = slice(start + at, start + at + len(piece))
            kernels.scan(piece, self._nothing, self._keys, self._products[here], self._hashes[here])

        rows.each(read, range(0, len(block), PIECE))

    def lowest(self) -> np.ndarray:
        """Return (n,) int64 the lowest row that equals each row, after all blocks were read."""
        squares, hashes = self._products[:, 1], self._hashes
        order = np.lexsort((np.arange(len(hashes)), squares, hashes))
        is_first = np.ones(len(order), bool)
        is_first[1:] = (hashes[order[1:]] != hashes[order[:-1]]) | (squares[order[1:]] != squares[order[:-1]])
        found = np.empty(len(order), np.int64)
        found[order] = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
        return found


def cosine_blocks(rows: Rows, unit: np.ndarray, copies: Copies | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """Compute the cosines of all rows with some queries, block by block.

    Parameters
    ----------
    rows
        N rows.
    unit
        (m, D) float32, queries of length 1, as from `unit_rows`.
    copies
        Reads every block, too.

    Yields
    ------
    tuple
        The rows of a block, and their (r, m) float32 cosines; 0 for a zero row.
    """
    for start, block in rows.blocks():
        if copies is not None:
            copies.take_in(rows, start, block)
        lengths = np.sqrt(np.einsum("nd,nd->n", block, block))
        scale = np.divide(1.0, lengths, out=np.zeros(len(block), np.float32), where=lengths > 0)
        yield slice(start, start + len(block)), rows.product(block, unit) * scale[:, None]


def peak_bytes(dim: int, n: int, m: int, block_rows: int = CHUNK) -> int:
    """Most memory that `nearest` takes beyond its features, bytes."""
    return 8 * m * dim + 3 * 4 * block_rows * (dim + m) + 12 * (n + m) + COPIES_BYTES * n + (16 << 20)


def nearest(
    features: np.ndarray | RowBlocks, queries: np.ndarray, *, memory_limit: int | None = None, threads: int | None = None
) -> Nearest:
    """Find the nearest row of each query and the nearest query of each row, by cosine in float32. Equal rows have equal cosines.

    Parameters
    ----------
    features
        (n, D) rows, in memory or read block by block; n >= 1.
    queries
        (m, D) floating point, m >= 1.
    memory_limit
        Bytes.
    threads
        Default all cores.

    Returns
    -------
    Nearest

    Raises
    ------
    UserError
        More memory is needed than `memory_limit`.
    """
    n, dim = shape(features)
    block_rows = min(n, CHUNK) if isinstance(features, np.ndarray) else int(np.diff(features.starts).max(initial=1))
    what = f"comparing {n} rows of {dim} dimensions with {len(queries)} target examples"
    require_memory(what, peak_bytes(dim, n, len(queries), block_rows), memory_limit, "raise memory_limit, or give fewer of them")
    unit = unit_rows(queries)
    best, cosines = np.zeros(len(queries), np.int64), np.full(len(queries), -np.inf, np.float32)
    of_row, row_cosines = np.empty(n, np.int64), np.empty(n, np.float32)
    copies = Copies(n, dim)
    with open_rows(features, hold=False, threads=threads) as rows:
        for here, found in cosine_blocks(rows, unit, copies):
            of_row[here] = found.argmax(axis=1)
            row_cosines[here] = found.max(axis=1)
            top = found.argmax(axis=0)
            value = found[top, np.arange(len(queries))]
            better = value > cosines
            best[better], cosines[better] = here.start + top[better], value[better]
    lowest = copies.lowest()
    best, of_row, row_cosines = lowest[best], of_row[lowest], row_cosines[lowest]
    return Nearest(best, np.clip(cosines, -1, 1), of_row, np.clip(row_cosines, -1, 1))
