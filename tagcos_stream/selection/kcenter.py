"""Greedy k-center: each choice is the row furthest from all chosen before.

Sources: Gonzalez 1985; Sener and Savarese 2018, arXiv 1708.00489 (as "k-Center-Greedy").

N rows, D feature dimension, k budget, B candidates.

The plain algorithm reads every row for every choice. A row's distance to the chosen can only shrink, so what was last measured
bounds it from above; only the B rows with the largest bounds are held and measured against each new choice. While the furthest
of them is at least as far as the largest bound outside, it is the furthest of all. So choices are the plain algorithm's (decided
in float64), and a row is read again only when its bound comes to the top. The cost that stays is the last pass, which measures
what was left: N k D multiplications, more than an hour for a million rows, 50,000 choices and 8,192 dimensions at 200 GFLOP/s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tagcos_stream.memory import require_memory
from tagcos_stream.rows.held import CHUNK, Rows, open_rows, shape
from tagcos_stream.selection.methods import Choice, Group, Limits, Method, Words
from tagcos_stream.types import RowBlocks

CANDIDATES = 2048  # fixed, so that the machine's memory does not touch what is chosen
TILE = 1024  # centres that a matrix product compares at once


def peak_bytes(dim: int, n: int, budget: int, block_rows: int = CHUNK) -> int:
    """Most memory that `kcenter` takes beyond its features, bytes."""
    batch = max(min(CANDIDATES, n), block_rows)
    return 4 * budget * dim + (4 + 2 * 8) * batch * dim + 8 * TILE * dim + 24 * batch * TILE + 48 * n + (32 << 20)


def kcenter(
    features: np.ndarray | RowBlocks,
    budget: int,
    *,
    begin: Sequence[int],
    memory_limit: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Choice:
    """Choose `budget` rows, beginning with rows `begin`, each further one furthest (Euclidean) from those before it.

    Scores are the distance to the nearest chosen one at the moment of choice (NaN for the first ones), margins the same of every
    row in the end (0 for those chosen). `threads`: default all cores; their number changes no bit.

    Raises
    ------
    UserError
        More memory needed than `memory_limit` bytes.
    """
    n, dim = shape(features)
    budget = min(budget, n)
    block_rows = CHUNK if isinstance(features, np.ndarray) else int(np.diff(features.starts).max(initial=1))
    needed = peak_bytes(dim, n, budget, block_rows)
    require_memory(
        f"k-center of {budget} among {n} rows of {dim} dimensions",
        needed,
        memory_limit,
        "raise memory_limit, select fewer, or choose another method",
    )
    with open_rows(features, hold=False, threads=threads) as rows:
        return _kcenter(rows, budget, begin, progress)


def _kcenter(rows: Rows, budget: int, begin: Sequence[int], progress: Callable[[int, int], None] | None) -> Choice:
    search = _Search(rows, budget)
    for row in begin[:budget]:
        search.choose(int(row), np.nan)
    if budget:
        search.measure_all(np.float64)
    while search.chosen < budget:
        search.refill()
        if progress:
            progress(search.chosen, budget)
    search.measure_all(np.float32)  # nothing is decided by it any more
    margins = np.sqrt(np.maximum(search.bound, 0.0))
    return Choice(search.indices, search.scores, margins, stats={"refills": search.refills, "measured": search.measured})


class _Search:
    """Bounds of all rows, and how many centres each has been measured against."""

    def __init__(self, rows: Rows, budget: int) -> None:
        self.rows = rows
        self.budget = budget
        self.bound = np.full(rows.n, np.inf)  # squared distance to the nearest centre, at most; -1 once chosen
        self.known = np.zeros(rows.n, np.int64)  # centres that the bound counts
        self.centres = np.empty((budget, rows.dim), np.float32)
        self.squares = np.empty(budget)
        self.indices = np.empty(budget, np.int64)
        self.scores = np.empty(budget)
        self.chosen = self.refills = self.measured = 0

    def choose(self, row: int, score: float, vector: np.ndarray | None = None) -> None:
        vector = self.rows.take(np.array([row]))[0] if vector is None else vector
        t = self.chosen
        self.centres[t], self.squares[t] = vector, np.square(vector, dtype=np.float64).sum()
        self.indices[t], self.scores[t] = row, score
        self.bound[row] = -1.0
        self.chosen += 1

    def measure(self, numbers: np.ndarray, vectors: np.ndarray) -> None:
        """Bring the bounds of these rows (m,) up to date, in the precision of their vectors (m, D)."""
        squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
        for start in range(int(self.known[numbers].min(initial=self.chosen)), self.chosen, TILE):
            here = slice(start, min(start + TILE, self.chosen))
            products = self.rows.product(vectors, self.centres[here].astype(vectors.dtype)).astype(np.float64, copy=False)
            nearest = (self.squares[here] - 2 * products).min(axis=1) + squares
            self.bound[numbers] = np.minimum(self.bound[numbers], np.maximum(nearest, 0.0))
            self.measured += products.size
        self.known[numbers] = self.chosen

    def measure_all(self, kind: type) -> None:
        for start, block in self.rows.blocks():
            self.measure(np.arange(start, start + len(block)), block.astype(kind, copy=False))

    def refill(self) -> None:
        """Measure the rows with the largest bounds, then choose among them as long as no row outside can be further."""
        self.refills += 1
        held = min(CANDIDATES, self.rows.n)
        candidates = np.sort(np.argpartition(-self.bound, held - 1)[:held])
        outside = self.bound.copy()
        outside[candidates] = -1.0
        rest = outside.max()
        vectors = self.rows.take(candidates).astype(np.float64)
        self.measure(candidates, vectors)
        squares = np.einsum("nd,nd->n", vectors, vectors)
        bound = self.bound[candidates]
        while self.chosen < self.budget:
            at = int(np.argmax(bound))
            if bound[at] < max(rest, 0.0):
                break
            self.choose(int(candidates[at]), float(np.sqrt(bound[at])), vectors[at])
            nearest = self.squares[self.chosen - 1] - 2 * self.rows.product(vectors, vectors[at : at + 1])[:, 0] + squares
            bound = np.minimum(bound, np.maximum(nearest, 0.0))
            bound[at] = -1.0
            self.measured += held
        unchosen = bound >= 0
        self.bound[candidates[unchosen]] = bound[unchosen]
        self.known[candidates] = self.chosen


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Begin with the pinned rows, or with the row of the largest draw."""
    begin = [int(np.argmax(group.columns["draw"]))] if group.pinned is None else group.pinned.tolist()
    return kcenter(group.rows, budget, begin=begin, memory_limit=limits.memory, threads=limits.threads, progress=limits.progress)


KCENTER = Method(
    "kcenter",
    within="pool",
    choose=choose,
    words=Words("{:.4g} from the nearest chosen before it", "{:.4g} from the nearest chosen", unscored="the first, by draw"),
    reference="Active learning for convolutional neural networks: a core-set approach, https://arxiv.org/abs/1708.00489",
    seeded=True,
    features=True,
    begins_with_pins=True,
    columns=("draw",),
    multiplications=lambda rows, budget, dim: float(rows) * budget * dim,
)
