"""Herding: each step takes the row that brings the plain mean of the chosen nearest to a target (Welling 2009, ICML).

N rows, D feature dimension, k budget.

With s the sum of the t - 1 chosen, the next row minimises |(s + a_j)/t - b|, that is, maximises <a_j, t b - s> - |a_j|^2 / 2. The
products with t b - s follow from <a_j, b> and one Gram column a step; the columns of the B rows that rank highest are computed
together, in one pass over the rows, and again when a row without one comes to the top. Choices are the plain algorithm's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tagcos_stream.memory import require_memory
from tagcos_stream.rows.held import CHUNK, Rows, open_rows, shape
from tagcos_stream.selection.gram_columns import TIE, GramColumns, holds, peak_bytes
from tagcos_stream.selection.methods import Choice, Group, Limits, Method, Words
from tagcos_stream.types import RowBlocks


def herding(
    features: np.ndarray | RowBlocks,
    target: np.ndarray,
    budget: int,
    *,
    begin: Sequence[int] = (),
    memory_limit: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Choice:
    """Choose rows greedily so that their plain mean follows a target; of equal rows the lowest wins.

    Scores are <a_j, t b - s> - |a_j|^2 / 2 at the moment of choice, margins the same of every row for one step more.

    Parameters
    ----------
    features
        (n, D) array or blocks.
    target
        (D,).
    budget
        Rows to choose.
    begin
        Rows to choose first, whatever their score; they have none.
    memory_limit
        Bytes; None for no limit.
    threads
        Default all cores.
    progress
        Called with rows chosen and the budget.

    Returns
    -------
    Choice
        In order of choice.

    Raises
    ------
    UserError
        More memory is needed than `memory_limit`, or a row is not finite.
    """
    n, dim = shape(features)
    budget = min(budget, n)
    block_rows = CHUNK if isinstance(features, np.ndarray) else int(np.diff(features.starts).max(initial=1))
    needed = peak_bytes(dim, n, block_rows)
    what = f"herding among {n} rows of {dim} dimensions"
    require_memory(what, needed, memory_limit, "raise memory_limit, or choose herding-clusters")
    with open_rows(features, hold=holds(n, dim), threads=threads) as rows:
        return _herd(rows, np.asarray(target, np.float64), budget, begin, progress)


def _herd(
    rows: Rows, target: np.ndarray, budget: int, begin: Sequence[int], progress: Callable[[int, int], None] | None
) -> Choice:
    scanned = rows.scan(target, seed=0)[0]
    products, tie = scanned[:, 0], TIE * float(scanned[:, 1].max(initial=0.0))
    value = products - scanned[:, 1] / 2  # <a_j, t b - s> - |a_j|^2 / 2 of every row
    left_rows = np.ones(rows.n, bool)
    columns = GramColumns(rows)
    indices, scores = np.empty(budget, np.int64), np.empty(budget)
    for t in range(budget):
        left = np.where(left_rows, value, -np.inf)
        row = int(begin[t]) if t < len(begin) else int(np.argmax(left >= left.max() - tie))
        if columns.slot[row] < 0:
            columns.refill(left, row)
        indices[t], scores[t] = row, value[row] if t >= len(begin) else np.nan
        left_rows[row] = False
        value += products
        value -= columns.of(row)
        if progress and (t + 1) % 64 == 0:
            progress(t + 1, budget)
    return Choice(indices, scores, value, stats={"passes": columns.passes, "columns": columns.computed})


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Follow the group's mean.

    Parameters
    ----------
    group, budget, settings, limits
        As for every method; no setting is read.

    Returns
    -------
    Choice
        As `herding` returns it.
    """
    begin = () if group.pinned is None else group.pinned.tolist()
    return herding(
        group.rows,
        group.target,
        budget,
        begin=begin,
        memory_limit=limits.memory,
        threads=limits.threads,
        progress=limits.progress,
    )


WORDS = Words("herding score {:.4g}")
REFERENCE = "Welling, Herding dynamical weights to learn, ICML 2009, https://doi.org/10.1145/1553374.1553517"
HERDING = Method(
    "herding",
    within="pool",
    choose=choose,
    words=WORDS,
    reference=REFERENCE,
    features=True,
    begins_with_pins=True,
    multiplications=lambda rows, budget, dim: float(rows) * budget * dim,
)
HERDING_CLUSTERS = replace(HERDING, name="herding-clusters", within="clusters", seeded=True, multiplications=None)
