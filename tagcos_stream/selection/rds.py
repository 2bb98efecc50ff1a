"""Round robin over target examples, each taking the row nearest to it.  n rows, m target examples, k budget, D dimensions.

The selection of RDS+ (Ivison et al. 2025, arXiv 2503.01807), which uses it on hidden states: the target examples take turns, and
each takes the row with the largest cosine that is not taken yet. Here the parts take turns, and within a part its examples, so
that a large part does not drown a small one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tagcos_stream.memory import require_memory
from tagcos_stream.rows.held import CHUNK, open_rows, shape
from tagcos_stream.selection.methods import Choice, Group, Limits, Method, Words
from tagcos_stream.selection.nearest import COPIES_BYTES, Copies, cosine_blocks, unit_rows
from tagcos_stream.types import RowBlocks

FIRST = 64  # rows that are sorted for a target example before its first turn


def turns(parts: np.ndarray, budget: int) -> np.ndarray:
    """Say which target example takes each row.

    Parameters
    ----------
    parts
        (m,) int64, the part of each target example.
    budget
        Rows to take, k.

    Returns
    -------
    np.ndarray
        (k,) int64: the parts in turn, and the examples of each part in turn.
    """
    members = [np.flatnonzero(parts == part) for part in np.unique(parts)]
    turn = np.arange(budget)
    part, lap = turn % len(members), turn // len(members)
    return np.array([members[p][n % len(members[p])] for p, n in zip(part.tolist(), lap.tolist(), strict=True)], np.int64)


def peak_bytes(dim: int, n: int, m: int, budget: int, block_rows: int = CHUNK) -> int:
    """Most memory that `round_robin` takes beyond its features, bytes."""
    queues = 8 * m * min(n, max(FIRST, 4 * budget))
    return 4 * m * n + (16 + COPIES_BYTES) * n + 8 * m * dim + queues + 3 * 4 * block_rows * (dim + m) + 24 * budget + (16 << 20)


def round_robin(
    features: np.ndarray | RowBlocks,
    wanted: np.ndarray,
    parts: np.ndarray,
    budget: int,
    *,
    memory_limit: int | None = None,
    threads: int | None = None,
) -> Choice:
    """Take rows for target examples in turn.

    Parameters
    ----------
    features
        (n, D) rows, in memory or read block by block.
    wanted
        (m, D) floating point, the target examples.
    parts
        (m,) int64, their parts.
    budget
        Rows to choose, k <= n.
    memory_limit, threads
        Bytes, and number of threads; by default all cores.

    Returns
    -------
    Choice
        Scores are cosines with the target example whose turn it was, margins those with the one whose turn is next. Of equal rows
        the lowest is taken.

    Raises
    ------
    UserError
        More memory is needed than `memory_limit`: all n m cosines are held.
    """
    n, dim = shape(features)
    budget = min(budget, n)
    block_rows = min(n, CHUNK) if isinstance(features, np.ndarray) else int(np.diff(features.starts).max(initial=1))
    what = f"round robin of {len(wanted)} target examples over {n} rows of {dim} dimensions"
    needed = peak_bytes(dim, n, len(wanted), budget, block_rows)
    require_memory(what, needed, memory_limit, "raise memory_limit, give fewer target examples, or use --method less")
    cosines = np.empty((len(wanted), n), np.float32)
    unit, copies = unit_rows(wanted), Copies(n, dim)
    with open_rows(features, hold=False, threads=threads) as rows:
        for here, found in cosine_blocks(rows, unit, copies):
            cosines[:, here] = found.T
    lowest = copies.lowest()
    later = np.flatnonzero(lowest != np.arange(n))
    for row in cosines:  # one after the other: a gather of all would take as much memory again
        row[later] = row[lowest[later]]
    order = turns(parts, budget + 1)
    queues = [_Queue(row) for row in cosines]
    taken = np.zeros(n, bool)
    indices, scores = np.empty(budget, np.int64), np.empty(budget)
    for place, query in enumerate(order[:budget].tolist()):
        row = queues[query].next(taken)
        taken[row] = True
        indices[place], scores[place] = row, cosines[query, row]
    return Choice(indices, scores, cosines[order[budget]].copy())


class _Queue:
    """The rows of one target example in order of cosine, the lowest first of equals; sorted as far as they were asked for."""

    def __init__(self, cosines: np.ndarray) -> None:
        self._cosines = cosines
        self._sorted = np.empty(0, np.int64)
        self._at = 0

    def next(self, taken: np.ndarray) -> int:
        while True:
            while self._at < len(self._sorted):
                row = int(self._sorted[self._at])
                self._at += 1
                if not taken[row]:
                    return row
            self._sort(max(FIRST, 4 * len(self._sorted)))

    def _sort(self, count: int) -> None:
        cosines = self._cosines
        count = min(count, len(cosines))
        least = np.partition(cosines, len(cosines) - count)[len(cosines) - count]
        some = np.flatnonzero(cosines >= least)  # all equals of the last one, too
        self._sorted = some[np.argsort(-cosines[some], kind="stable")]


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Take rows for the examples of the target set in turn."""
    assert group.wanted is not None, "the method needs a target set, but does not declare it"
    wanted = group.wanted
    return round_robin(group.rows, wanted.rows, wanted.parts, budget, memory_limit=limits.memory, threads=limits.threads)


RDS = Method(
    "rds",
    within="pool",
    choose=choose,
    words=Words("cosine {:.4f} with the target example whose turn it was", "cosine {:.4f} with the target example that is next"),
    reference="RDS+, https://arxiv.org/abs/2503.01807",
    features=True,
    needs_target=True,
)
