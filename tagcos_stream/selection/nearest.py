"""The nearest rows of two sets by cosine, in one pass over the larger one.  n rows, m queries, D feature dimension."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tagcos_stream.memory import require_memory
from tagcos_stream.rows.held import CHUNK, Rows, open_rows, shape
from tagcos_stream.types import RowBlocks


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


def cosine_blocks(rows: Rows, unit: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Compute the cosines of all rows with some queries, block by block.

    Parameters
    ----------
    rows
        N rows.
    unit
        (m, D) float32, queries of length 1, as from `unit_rows`.

    Yields
    ------
    tuple
        The rows of a block, and their (r, m) float32 cosines; 0 for a zero row.
    """
    for start, block in rows.blocks():
        lengths = np.sqrt(np.einsum("nd,nd->n", block, block))
        scale = np.divide(1.0, lengths, out=np.zeros(len(block), np.float32), where=lengths > 0)
        yield slice(start, start + len(block)), rows.product(block, unit) * scale[:, None]


def peak_bytes(dim: int, n: int, m: int, block_rows: int = CHUNK) -> int:
    """Most memory that `nearest` takes beyond its features, bytes."""
    return 8 * m * dim + 3 * 4 * block_rows * (dim + m) + 12 * (n + m) + (16 << 20)


def nearest(
    features: np.ndarray | RowBlocks, queries: np.ndarray, *, memory_limit: int | None = None, threads: int | None = None
) -> Nearest:
    """Find the nearest row of each query and the nearest query of each row, by cosine in float32.

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
    with open_rows(features, hold=False, threads=threads) as rows:
        for here, found in cosine_blocks(rows, unit):
            of_row[here] = found.argmax(axis=1)
            row_cosines[here] = found.max(axis=1)
            top = found.argmax(axis=0)
            value = found[top, np.arange(len(queries))]
            better = value > cosines
            best[better], cosines[better] = here.start + top[better], value[better]
    return Nearest(best, np.clip(cosines, -1, 1), of_row, np.clip(row_cosines, -1, 1))
