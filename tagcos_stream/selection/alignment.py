"""Cosines of rows with a few vectors, and how many rows are nearly the same.  n rows, m vectors, D feature dimension."""

from __future__ import annotations

import numpy as np

from tagcos_stream.memory import require_memory
from tagcos_stream.rows.held import open_rows, shape
from tagcos_stream.selection.nearest import cosine_blocks, unit_rows
from tagcos_stream.types import RowBlocks

ALIKE = 0.5  # cosine from which on two rows count as nearly the same (docs/measurements/targets.md)
BLOCK = 1024  # rows that are compared with all others at once


def cosines(features: np.ndarray | RowBlocks, vectors: np.ndarray, *, threads: int | None = None) -> np.ndarray:
    """Compute the cosine of every row with some vectors, in one pass.

    Parameters
    ----------
    features
        (n, D) rows, in memory or read block by block.
    vectors
        (m, D) floating point.
    threads
        Default all cores.

    Returns
    -------
    np.ndarray
        (n, m) float32; 0 where the row or the vector is zero.
    """
    unit = unit_rows(vectors)
    found = np.empty((shape(features)[0], len(vectors)), np.float32)
    with open_rows(features, hold=False, threads=threads) as rows:
        for here, block in cosine_blocks(rows, unit):
            found[here] = np.clip(block, -1, 1)
    return found


def alike_bytes(n: int, dim: int) -> int:
    """Most memory that `alike` takes, bytes."""
    return 4 * n * dim + 3 * 4 * BLOCK * (n + dim) + (16 << 20)


def alike(features: np.ndarray | RowBlocks, *, memory_limit: int | None = None, threads: int | None = None) -> np.ndarray:
    """Count the rows that are nearly the same as each row: those whose cosine with it is ALIKE or more.

    Takes n**2 D multiplications, so it is for the rows of one cluster.

    Parameters
    ----------
    features
        (n, D) rows, in memory or read block by block.
    memory_limit, threads
        Bytes; and how many threads, default all cores.

    Returns
    -------
    np.ndarray
        (n,) int64, at least 1: the row itself counts.

    Raises
    ------
    UserError
        More memory is needed than `memory_limit`.
    """
    n, dim = shape(features)
    require_memory(
        f"comparing {n} rows of {dim} dimensions with each other",
        alike_bytes(n, dim),
        memory_limit,
        "raise memory_limit, or lower max_cluster_rows",
    )
    unit, counts = np.empty((n, dim), np.float32), np.ones(n, np.int64)
    with open_rows(features, hold=False, threads=threads) as rows:
        for start, block in rows.blocks():
            unit[start : start + len(block)] = unit_rows(block)
        for start in range(0, n, BLOCK):
            near = rows.product(unit[start : start + BLOCK], unit) >= ALIKE
            near[np.arange(len(near)), start + np.arange(len(near))] = True  # also a zero row is the same as itself
            counts[start : start + BLOCK] = near.sum(axis=1)
    return counts
