"""Which chosen row stands for each row of a group: the chosen row with the largest cosine.

n rows of a group, D feature dimension, k chosen.

A product in float32 finds the candidates of each row; all whose cosine may be the largest, given the rounding of that product,
are then decided in float64. So the answer depends neither on blocks and threads nor on how many chosen rows are held at a time.
The cost is that of the product, n k D multiplications.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numba import njit

from tagcos_stream.memory import require_memory
from tagcos_stream.rows.held import CHUNK, Rows, open_rows, shape
from tagcos_stream.types import RowBlocks

TILE = 1024  # chosen rows that a matrix product compares at once
TIE = 1e-12  # cosines this close are tied
MAX_MULTIPLICATIONS = 1e13  # multiplications that are worth the answer: minutes on a few cores


@dataclass(frozen=True)
class Stands:
    """The representative of every row of a group.

    Parameters
    ----------
    places
        (n,) int64: place of the representative in the order of choice, from 0.
    cosines
        (n,) float32: cosine between the row and its representative; 0 where either row is zero.
    """

    places: np.ndarray
    cosines: np.ndarray


def affordable(n: int, k: int, dim: int) -> bool:
    """Whether `stands_for` takes at most some minutes for n rows of D dimensions and k chosen."""
    return float(n) * k * dim <= MAX_MULTIPLICATIONS


def peak_bytes(dim: int, n: int, held: int, block_rows: int = CHUNK) -> int:
    """Most memory that `stands_for` takes beyond its features, bytes; `held` chosen rows are in memory at a time."""
    tile = min(TILE, held)
    return 4 * dim * (held + 2 * block_rows) + 4 * tile * block_rows + 8 * held + 32 * n + (16 << 20)


def stands_for(
    features: np.ndarray | RowBlocks,
    chosen: np.ndarray,
    *,
    memory_limit: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Stands:
    """Find the chosen row that is nearest to each row, by cosine.

    Parameters
    ----------
    features
        (n, D) rows of one group, in memory or read block by block.
    chosen
        (k,) int64: positions of the chosen rows, in order of choice, k >= 1.
    memory_limit
        Bytes. Where the chosen rows do not fit, the features are read once for each batch of them that does.
    threads
        Default all cores.
    progress
        Called with (rows compared, rows to compare), summed over the reads.

    Returns
    -------
    Stands
        Of several chosen rows that are equally near (within 1e-12), the one chosen first.

    Raises
    ------
    UserError
        A single chosen row needs more memory than `memory_limit`.
    """
    n, dim = shape(features)
    if not len(chosen):
        raise ValueError("no row is chosen: none can stand for others")
    block_rows = min(n, CHUNK) if isinstance(features, np.ndarray) else int(np.diff(features.starts).max(initial=1))
    held = _held(dim, n, len(chosen), block_rows, memory_limit)
    best, places, norms = np.full(n, -np.inf), np.zeros(n, np.int64), np.empty(n)
    reads = -(-len(chosen) // held)
    with open_rows(features, hold=False, threads=threads) as rows:
        for read, start in enumerate(range(0, len(chosen), held)):
            batch = rows.take(np.asarray(chosen[start : start + held], np.int64))
            for done in _compare(rows, batch, start, (best, places, norms)):
                if progress:
                    progress(read * n + done, reads * n)
    cosines = np.divide(best, norms, out=np.zeros(n), where=norms > 0)
    return Stands(places, np.clip(cosines, -1, 1).astype(np.float32))


def _held(dim: int, n: int, k: int, block_rows: int, memory_limit: int | None) -> int:
    """Chosen rows that are held at a time."""
    if memory_limit is None:
        return k
    least = peak_bytes(dim, n, 1, block_rows)
    require_memory(f"finding which chosen example stands for each of {n} rows of {dim} dimensions", least, memory_limit)
    each = 4 * dim + 8 + 4 * block_rows  # the last counts a tile that grows with it
    return int(min(k, max(1, (memory_limit - least) // each)))


def _compare(rows: Rows, batch: np.ndarray, first: int, found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Iterator[int]:
    """Update `found` (as of `_decide`, but of all rows) by a batch (h, D) float32 of chosen rows.

    The batch's first row was chosen as number `first`. Yields how many rows are compared.
    """
    best, places, norms = found
    lengths = np.sqrt(np.einsum("hd,hd->h", batch, batch, dtype=np.float64))
    inverse = np.divide(1.0, lengths, out=np.zeros(len(batch)), where=lengths > 0)
    # a float32 product of rows of these lengths is off by at most D 2^-24; two are compared
    slack = (rows.dim + 16) * 2.0**-23
    for start, block in rows.blocks():
        share = rows.share(len(block))

        def work(at: int, start: int = start, block: np.ndarray = block, share: int = share) -> None:
            piece = block[at : at + share]
            here = slice(start + at, start + at + len(piece))
            for tile in range(0, len(batch), TILE):
                scores = np.matmul(piece, batch[tile : tile + TILE].T)
                some = slice(tile, tile + TILE)
                _decide(piece, batch[some], scores, inverse[some], first + tile, slack, (best[here], places[here], norms[here]))

        rows.each(work, range(0, len(block), share))
        yield start + len(block)


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _dot(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for d in range(a.size):
        total += np.float64(a[d]) * np.float64(b[d])
    return total


@njit(nogil=True, cache=True)
def _decide(
    rows: np.ndarray,
    chosen: np.ndarray,
    scores: np.ndarray,
    inverse: np.ndarray,
    first: int,
    slack: float,
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Decide in float64 among the chosen rows that `scores` leaves in question.

    rows (r, D), chosen (h, D), scores (r, h) float32: inner products; inverse (h,) float64: 1 / length of the chosen;
    found: best (r,) float64 <a, c> / |c| so far, places (r,) int64, norms (r,) float64, written.
    """
    best, places, norms = found
    for i in range(rows.shape[0]):
        norms[i] = np.sqrt(_dot(rows[i], rows[i]))
        floor = best[i]
        for j in range(scores.shape[1]):
            floor = max(floor, scores[i, j] * inverse[j])
        floor -= slack * norms[i]
        for j in range(scores.shape[1]):
            if scores[i, j] * inverse[j] >= floor:
                value = _dot(rows[i], chosen[j]) * inverse[j]
                if value > best[i] + TIE * norms[i]:
                    best[i] = value
                    places[i] = first + j
