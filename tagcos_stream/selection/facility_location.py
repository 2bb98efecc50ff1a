"""Facility location: the chosen rows are those to which all rows are most similar.  n rows, D feature dimension, k budget.

The sum over all rows i of max(0, largest cosine of i with a chosen row) is monotone and submodular, so the greedy choice, the row
that adds most, is within 1 - 1/e of the best (Nemhauser, Wolsey and Fisher 1978). What a row adds can only shrink: what was last
computed bounds it from above, and only rows whose bound comes to the top are evaluated again (Minoux 1978). Choices are those of
the plain greedy algorithm. Every row is compared with every other, n² D multiplications, twice where there is not room for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tagcos_stream.memory import require_memory
from tagcos_stream.rows.held import CHUNK, Rows, open_rows, shape
from tagcos_stream.selection.gram_columns import TIE, holds
from tagcos_stream.selection.methods import Choice, Group, Limits, Method, Words
from tagcos_stream.types import RowBlocks

BATCH = 256  # rows that are compared with all others in one pass
SIMILARITIES = 2 << 30  # bytes of similarities that are kept, so that what is chosen does not depend on the memory there is


def kept(n: int) -> int:
    """Rows whose similarities to all rows are kept: all up to 23,170, of more rows those that add most."""
    return min(n, max(SIMILARITIES // (4 * n), BATCH)) if n else 0


def peak_bytes(dim: int, n: int, block_rows: int = CHUNK) -> int:
    """Most memory that `facility_location` takes beyond its features, in bytes; `block_rows`: rows of the largest block."""
    rows = 4 * n * dim if holds(n, dim) else 0
    batch = min(BATCH, n)
    passing = 8 * max(CHUNK, block_rows) * (dim + batch) + 4 * batch * (n + dim)
    return rows + 4 * kept(n) * n + passing + 96 * n + (32 << 20)


def facility_location(
    features: np.ndarray | RowBlocks,
    budget: int,
    *,
    begin: Sequence[int] = (),
    memory_limit: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Choice:
    """Choose `budget` rows, each the one that adds most to the sum of similarities; of rows that add the same the lowest.

    `begin`: rows to choose first, which have no score. Scores are what a row added when it was chosen, margins what every row
    would add in the end. Rows of length 0 are similar to none.

    Raises
    ------
    UserError
        More memory needed than `memory_limit` bytes, or a row that is not finite.
    """
    n, dim = shape(features)
    budget = min(budget, n)
    block_rows = CHUNK if isinstance(features, np.ndarray) else int(np.diff(features.starts).max(initial=1))
    what = f"facility location among {n} rows of {dim} dimensions"
    require_memory(what, peak_bytes(dim, n, block_rows), memory_limit, "raise memory_limit, or lower max_cluster_rows")
    with open_rows(features, hold=holds(n, dim), threads=threads) as rows:
        return _choose(rows, budget, begin, progress)


def _choose(rows: Rows, budget: int, begin: Sequence[int], progress: Callable[[int, int], None] | None) -> Choice:
    similar = _Similarities(rows)
    covered = np.zeros(rows.n, np.float32)  # of every row, its largest similarity to a chosen one
    bound = np.empty(rows.n)  # on what a row adds, -inf once chosen
    for row, own in similar.all():
        bound[row] = _added(own, covered)
    evaluated_at = np.zeros(rows.n, np.int64)  # number of chosen rows that the bound takes into account
    indices, scores, evaluations = np.empty(budget, np.int64), np.empty(budget), 0
    for t in range(budget):
        if t < len(begin):
            row = int(begin[t])
            np.maximum(covered, similar.of(row, bound), out=covered)
            indices[t], scores[t], bound[row] = row, np.nan, -np.inf
            continue
        while True:
            top = bound.max()
            tied = np.flatnonzero(bound >= top - TIE * (1 + top))  # as of two rows that are similar to each other alone
            stale = tied[evaluated_at[tied] < t]
            if not len(stale):
                break
            row = int(stale[np.argmax(bound[stale])])
            bound[row] = _added(similar.of(row, bound), covered)
            evaluated_at[row] = t
            evaluations += 1
        row = int(tied[0])
        np.maximum(covered, similar.of(row, bound), out=covered)
        indices[t], scores[t], bound[row] = row, bound[row], -np.inf
        if progress and (t + 1) % 64 == 0:
            progress(t + 1, budget)
    passes = similar.passes
    for row, own in similar.all():
        bound[row] = _added(own, covered)
    return Choice(indices, scores, bound, stats={"passes": passes, "evaluations": evaluations})


def _added(own: np.ndarray, covered: np.ndarray) -> float:
    """What a row adds: by how much it is more similar to each row than any chosen one is."""
    more = own - covered
    return float(np.maximum(more, 0, out=more).sum(dtype=np.float64))


class _Similarities:
    """Cosines of rows with all rows. Those of rows that were asked for are kept, as many as there is room for."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        lengths = np.sqrt(rows.scan(np.zeros(rows.dim), seed=0)[0][:, 1])
        self.inverse = np.divide(1.0, lengths, out=np.zeros(rows.n), where=lengths > 0).astype(np.float32)
        self.kept = np.empty((kept(rows.n), rows.n), np.float32)
        self.owner = np.full(len(self.kept), -1, np.int64)  # row of a slot, -1 while it is free
        self.slot = np.full(rows.n, -1, np.int64)
        self.passes = 0

    def all(self) -> Iterator[tuple[int, np.ndarray]]:
        """Every row and its cosines (n,) float32, by passes over the rows. The first rows are kept while there is room."""
        for start in range(0, self.rows.n, BATCH):
            numbers = np.arange(start, min(start + BATCH, self.rows.n))
            if (self.slot[numbers] < 0).any():
                found = self._compute(numbers)
                if start + len(numbers) <= len(self.kept) and (self.owner < 0).any():
                    self._keep(numbers, found, np.arange(start, start + len(numbers)))
            else:
                found = self.kept[self.slot[numbers]]
            yield from zip(numbers.tolist(), found, strict=True)

    def of(self, row: int, value: np.ndarray) -> np.ndarray:
        """(n,) float32 cosines of a row. Where they are not kept, those of the rows of largest value are computed with them.

        value: (n,) float64, -inf for rows that will not be asked for any more.
        """
        if self.slot[row] < 0:
            lacking = np.where(self.slot < 0, value, -np.inf)
            lacking[row] = np.inf
            count = min(BATCH, len(self.kept), int((lacking > -np.inf).sum()))
            new = np.sort(np.argpartition(-lacking, count - 1)[:count])
            order = np.argsort(np.where(self.owner < 0, -np.inf, value[self.owner]), kind="stable")
            self._keep(new, self._compute(new), order[:count])
            self.passes += 1
        return self.kept[self.slot[row]]

    def _compute(self, numbers: np.ndarray) -> np.ndarray:
        found = np.empty((len(numbers), self.rows.n), np.float32)
        self.rows.columns(self.rows.take(numbers), found)
        found *= self.inverse
        found *= self.inverse[numbers, None]
        return found

    def _keep(self, numbers: np.ndarray, found: np.ndarray, slots: np.ndarray) -> None:
        """Keep the cosines of these rows in these slots, in place of those of other rows."""
        gone = self.owner[slots]
        self.slot[gone[gone >= 0]] = -1
        self.kept[slots], self.owner[slots], self.slot[numbers] = found, numbers, slots


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose from the rows of a cluster."""
    begin = () if group.pinned is None else group.pinned.tolist()
    return facility_location(
        group.rows, budget, begin=begin, memory_limit=limits.memory, threads=limits.threads, progress=limits.progress
    )


FACILITY_LOCATION = Method(
    "facility-location",
    within="clusters",
    choose=choose,
    words=Words("added {:.4g} to the similarity of all rows", "would add {:.4g} to the similarity of all rows"),
    reference="Submodularity in data subset selection and active learning, https://proceedings.mlr.press/v37/wei15.html",
    seeded=True,
    features=True,
    begins_with_pins=True,
)
