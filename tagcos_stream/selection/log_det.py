"""Log-determinant: the chosen rows span the largest volume.  n rows, D feature dimension, k budget.

Greedy MAP inference of a determinantal point process (Chen, Zhang and Zhou 2018, algorithm 1) with the kernel S + I, S the
cosines of the rows: I keeps the determinant above 0 where there are more rows than dimensions, and no row lowers it. With the
Cholesky factor of the kernel of the chosen rows, extended by a row for each choice, what every row adds is known after each
choice: n k D multiplications for the cosines with the chosen and n k² / 2 for the factor, which takes 4 n k bytes.

SPICE (Chang et al. 2026) takes from the gain of a row whose gradient opposes the mean of those chosen before. Its published code
approximates the information by the diagonal of the Fisher matrix and gradients of their own lengths, within batches of 128
candidates; here it is that of `log-det`: exact, of directions, over the whole cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tagcos_stream.memory import require_memory
from tagcos_stream.rows.held import CHUNK, Rows, open_rows, shape
from tagcos_stream.selection import gram_columns
from tagcos_stream.selection.gram_columns import TIE, GramColumns, holds
from tagcos_stream.selection.methods import Choice, Choose, Group, Limits, Method, Words
from tagcos_stream.types import RowBlocks

DIAGONAL = 1.0  # added to the cosine of a row with itself
PENALTY = 0.1  # of SPICE, its authors' default


def peak_bytes(dim: int, n: int, budget: int, block_rows: int = CHUNK) -> int:
    """Most memory that `log_det` takes beyond its features, in bytes."""
    return gram_columns.peak_bytes(dim, n, block_rows) + 4 * budget * n


def log_det(
    features: np.ndarray | RowBlocks,
    budget: int,
    draw: np.ndarray,
    *,
    begin: Sequence[int] = (),
    penalty: float = 0.0,
    memory_limit: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Choice:
    """Choose `budget` rows, each the one that adds most to the logarithm of the determinant.

    All rows add the same at first, but for those of length 0: the one with the largest draw (n,) is chosen. `begin`: rows to
    choose first instead, which have no score. `penalty`: what a row loses for a cosine of -1 with the mean direction of those
    chosen before, and for cosines below 0 in proportion. Scores are what a row added when it was chosen, margins what every row
    would add in the end, less the penalty.

    Raises
    ------
    UserError
        More memory needed than `memory_limit` bytes, or a row that is not finite.
    """
    n, dim = shape(features)
    budget = min(budget, n)
    block_rows = CHUNK if isinstance(features, np.ndarray) else int(np.diff(features.starts).max(initial=1))
    needed = peak_bytes(dim, n, budget, block_rows)
    what = f"log-determinant of {budget} among {n} rows of {dim} dimensions"
    require_memory(what, needed, memory_limit, "raise memory_limit, select fewer, or lower max_cluster_rows")
    with open_rows(features, hold=holds(n, dim), threads=threads) as rows:
        return _choose(rows, budget, draw, begin, penalty, progress)


def _choose(
    rows: Rows,
    budget: int,
    draw: np.ndarray,
    begin: Sequence[int],
    penalty: float,
    progress: Callable[[int, int], None] | None,
) -> Choice:
    lengths = np.sqrt(rows.scan(np.zeros(rows.dim), seed=0)[0][:, 1])
    inverse = np.divide(1.0, lengths, out=np.zeros(rows.n), where=lengths > 0).astype(np.float32)
    columns = GramColumns(rows)
    added = (lengths > 0) + DIAGONAL  # of every row, the factor by which the determinant would grow
    lost = np.zeros(rows.n)  # of every row, its penalty
    towards, squared = np.zeros(rows.n), 0.0  # products with the sum of the chosen directions, and the square of its length
    left = np.ones(rows.n, bool)
    factor = np.empty((budget, rows.n), np.float32)
    indices, scores = np.empty(budget, np.int64), np.empty(budget)
    for t in range(budget):
        value = np.where(left, np.log(added) - lost if penalty else added, -np.inf)
        if t < len(begin):
            row = int(begin[t])
        elif t == 0:
            row = int(np.argmax(np.where(added == added.max(), draw, -1.0)))
        else:
            row = int(np.argmax(value >= value.max() - TIE))
        if columns.slot[row] < 0:
            columns.refill(value, row)
        indices[t], scores[t], left[row] = row, np.log(added[row]) - lost[row] if t >= len(begin) else np.nan, False
        cosines = columns.of(row) * (inverse[row] * inverse)
        if penalty:
            squared += 2 * towards[row] + cosines[row]
            towards += cosines
            lost = penalty * np.maximum(-towards, 0) / np.sqrt(max(squared, TIE))
        factor[t] = (cosines - factor[:t, row] @ factor[:t]) / np.sqrt(added[row])
        added -= factor[t].astype(np.float64) ** 2
        np.maximum(added, DIAGONAL, out=added)  # never less, but for rounding
        if progress and (t + 1) % 64 == 0:
            progress(t + 1, budget)
    return Choice(indices, scores, np.log(added) - lost, stats={"passes": columns.passes, "columns": columns.computed})


def _method(penalty: float) -> Choose:
    def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
        """Choose from the rows of a cluster."""
        return log_det(
            group.rows,
            budget,
            group.columns["draw"],
            begin=() if group.pinned is None else group.pinned.tolist(),
            penalty=penalty,
            memory_limit=limits.memory,
            threads=limits.threads,
            progress=limits.progress,
        )

    return choose


LOG_DET = Method(
    "log-det",
    within="clusters",
    choose=_method(0.0),
    words=Words("added {:.4g} to the log-determinant", "would add {:.4g} to the log-determinant"),
    reference="Fast greedy MAP inference for determinantal point process, https://arxiv.org/abs/1709.05135",
    seeded=True,
    features=True,
    begins_with_pins=True,
    columns=("draw",),
)

SPICE = Method(
    "spice",
    within="clusters",
    choose=_method(PENALTY),
    words=Words(
        "added {:.4g} to the log-determinant, less its conflict with those chosen before",
        "would add {:.4g} to the log-determinant, less its conflict with the chosen",
    ),
    reference="SPICE: submodular penalized information-conflict selection, https://arxiv.org/abs/2601.23155",
    seeded=True,
    features=True,
    begins_with_pins=True,
    columns=("draw",),
)
