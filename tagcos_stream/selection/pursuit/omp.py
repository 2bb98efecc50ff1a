"""Ridge-regularised non-negative orthogonal matching pursuit: the few rows whose weighted sum represents a target.

n rows of a cluster, D feature dimension, k budget. The algorithm is GRAD-MATCH's (arXiv 2103.00123) as TAGCOS runs it (arXiv
2407.15235, released code `OrthogonalMP_REG_Parallel`), in rounds that restart on the remaining rows. We differ on purpose: every
round makes progress, the order of choice is kept, and one solve over all chosen rows gives the weights. No torch in here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tagcos_stream.memory import require_memory
from tagcos_stream.rows import kernels as row_kernels
from tagcos_stream.rows.held import CHUNK, Rows, gram, open_rows, shape
from tagcos_stream.selection.pursuit import int8_rows, kernels, rounds
from tagcos_stream.selection.pursuit.gram_cache import Shortlist, Slots, capacity, list_length
from tagcos_stream.selection.pursuit.int8_rows import RoundedRows, width
from tagcos_stream.selection.pursuit.rounds import Counts, Problem, Round
from tagcos_stream.selection.ridge import nonnegative_ridge
from tagcos_stream.types import RowBlocks, UserError

TAKEN = 1024  # chosen rows read at once to measure the match
REMEDY = "raise memory_limit or lower max_cluster_rows"  # if the pursuit in a cluster does not fit in memory
SEED = 20240721  # of the hash keys; results do not depend on it


@dataclass(frozen=True)
class Stats:
    """Counts of the work that a pursuit did."""

    rounds: int
    columns: int  # rows drafted: their Gram columns were computed, among themselves
    unused: int  # of them, not chosen
    blocks: int  # drafts they came in
    taken_back: int  # steps that a proof refused
    compared: int  # pairs of a step and a row that bytes did not rule out
    exact_checks: int  # steps decided in float64
    held: bool  # rows kept in memory, or read again for every proof


@dataclass(frozen=True)
class Pursuit:
    """The chosen rows in order of choice, their weights, and how well these match the target."""

    indices: np.ndarray  # (k,) int64
    rounds: np.ndarray  # (k,) int32, from 0
    correlations: np.ndarray  # (k,) float64: <a, r> with the residual when chosen
    residuals: np.ndarray  # (k,) float64: |r|/|b| after the choice, within its round; 0 where |b| is 0
    weights: np.ndarray  # (k,) float64, not negative: ridge fit of the target by all chosen rows
    residual: float  # |b - sum of weight times row| / |b|; 0 where |b| is 0
    margins: np.ndarray  # (n,) float32: <a, b - sum of weight times row> of every row
    stats: Stats


def omp_select(
    features: np.ndarray | RowBlocks,
    target: np.ndarray,
    budget: int,
    *,
    ridge: float = 1.0,
    tol: float = 1e-4,
    memory_limit: int | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    remedy: str = REMEDY,
) -> Pursuit:
    """Greedily choose `budget` rows whose non-negative combination best matches a target.

    A round repeatedly takes the row with the largest (signed) correlation with the residual, fits the target by the rows of the
    round with a ridge penalty and drops rows with negative weights. It stops when a row of the round is found again, the newest
    row is dropped or the residual is below `tol`; the next round starts over on the rows not yet chosen. Ties go to the lowest
    row (correlations that differ by at most 1e-11 |a||b| are tied). The choices are those of exact arithmetic: they depend
    neither on the number of threads nor on whether rows are held in memory or streamed.

    Parameters
    ----------
    features
        (n, D) floating-point array, read as float32, or blocks of rows. Rows need not have unit length.
    target
        (D,) vector, usually the mean of the rows.
    budget
        Rows to choose, 0 or more; with more than n all rows are chosen.
    ridge
        Penalty on the squared weights, above 0. The first fit of a round is not penalised.
    tol
        Relative residual |r|/|b| at which a round stops.
    memory_limit
        Bytes that this call may use on top of `features`; None for no limit. Rows that do not fit are streamed, that is, read
        again for every proof.
    threads
        Cores to use, None for all. BLAS is limited to one thread in the whole process during the call.
    progress
        Called with (rows chosen so far, budget).
    remedy
        End of the error message if the problem does not fit in `memory_limit`.

    Returns
    -------
    Pursuit
        Rows in order of choice, and their weights.

    Raises
    ------
    UserError
        Shapes do not match, a row or the target is not finite (the message names it), a parameter is out of range, or the
        problem does not fit in `memory_limit` even when rows are streamed.

    References
    ----------
    Killamsetty et al., "GRAD-MATCH: gradient matching based data subset selection", ICML 2021, arXiv 2103.00123.
    Zhang et al., "TAGCOS: task-agnostic gradient clustered coreset selection", arXiv 2407.15235.

    Examples
    --------
    >>> rows = np.eye(3, dtype=np.float32)
    >>> omp_select(rows, np.array([0.1, 0.9, 0.5]), budget=2).indices
    array([1, 2])
    """
    n, dim = shape(features)
    target = np.asarray(target, np.float64)
    if target.shape != (dim,):
        raise UserError(f"target has shape {target.shape}, but the features have {dim} dimensions: expected ({dim},)")
    if not np.isfinite(target).all():
        raise UserError(f"target dimension {np.flatnonzero(~np.isfinite(target))[0]} is NaN or infinite")
    if budget < 0:
        raise UserError(f"budget {budget} must be 0 or more")
    if not ridge > 0 or not np.isfinite(ridge):
        raise UserError(f"ridge {ridge} must be above 0: use a small one, such as 1e-6, for next to none")
    budget = min(budget, n)
    hold = _holds(features, n, dim, budget, memory_limit, remedy)
    with open_rows(features, hold=hold, threads=threads) as rows:
        return _select(rows, hold, target, budget, ridge, tol, progress or (lambda done, total: None))


def refit(
    features: np.ndarray | RowBlocks,
    target: np.ndarray,
    indices: np.ndarray,
    *,
    ridge: float,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit the target by given rows, as `omp_select` fits it by those that it chose.

    Parameters
    ----------
    features, target, ridge, threads
        As for `omp_select`, which has checked them.
    indices
        (k,) int64, the rows.

    Returns
    -------
    weights, margins, residual
        (k,) float64, (n,) float32 and float, as in `Pursuit`. Takes no more memory than a pursuit of k rows.
    """
    with open_rows(features, hold=False, threads=threads) as rows:
        target = np.asarray(target, np.float64)
        chosen = rows.take(indices)
        products = np.empty(len(indices))
        row_kernels.dots(chosen, target, products)
        weights = nonnegative_ridge(gram(chosen, rows.product), products, ridge)
        return weights, *_match(rows, target, indices, weights)


def peak_bytes(n: int, dim: int, budget: int, *, hold: bool, blocks: int | None) -> int:
    """Return the peak memory of `omp_select` on top of its features, in bytes.

    Parameters
    ----------
    n, dim, budget
        n rows, D and rows to choose.
    hold
        Whether rows are held in memory: rounded to bytes and, if they are read in blocks, also in at most float32.
    blocks
        Rows of the largest block if features are read in blocks; None if they are an array.

    Returns
    -------
    int
        Bytes.
    """
    budget = min(budget, n)
    slots = capacity(n, budget)
    listed, states = list_length(n), rounds.LONGEST + 1
    if hold:
        rows = width(dim) * n + (0 if blocks is None else (4 * n + 8 * blocks) * dim)
    else:
        rows = 5 * CHUNK * dim if blocks is None else 13 * blocks * dim
    store = 8 * slots * slots + 4 * slots * dim
    shortlist = (listed + slots) * (2 * width(dim) + 4 * listed)
    factor = 8 * budget * budget
    local = 8 * slots * slots + 4 * slots * listed
    local += (budget + states) * max(8 * slots, 4 * (slots + listed))
    logs = 2 * 8 * states * (2 * slots + listed + budget)
    proof = 4 * int8_rows.PROBES * (n + dim) + 16 * states * dim + 2 * 4 * rounds.COMPARED * dim
    proof += 8 * dim * (budget // rounds.SUBTRACTED + 1)
    drafted = 4 * 2 * rounds.CANDIDATES * (2 * listed + slots + 2 * dim) + 4 * slots * dim
    weights = 4 * 8 * budget * budget + 4 * budget * dim + 2 * 8 * 1024 * budget
    vectors = 136 * n + 4 * TAKEN * dim
    return rows + store + shortlist + factor + max(local + logs + proof + drafted, weights) + vectors + (32 << 20)


def _holds(features: np.ndarray | RowBlocks, n: int, dim: int, budget: int, memory_limit: int | None, remedy: str) -> bool:
    """Whether to hold the rows, or refuse."""
    blocks = None if isinstance(features, np.ndarray) else int(np.diff(features.starts).max(initial=1))
    needed = peak_bytes(n, dim, budget, hold=False, blocks=blocks)
    require_memory(f"choosing {budget} of {n} rows of {dim} dimensions", needed, memory_limit, remedy)
    return memory_limit is None or peak_bytes(n, dim, budget, hold=True, blocks=blocks) <= memory_limit


def _select(
    rows: Rows, hold: bool, target: np.ndarray, budget: int, ridge: float, tol: float, progress: Callable[[int, int], None]
) -> Pursuit:
    n = rows.n
    codes = RoundedRows(rows, hold=hold)
    products, hashes = rows.scan(target, SEED, also=codes.take_in)
    norm = np.sqrt(products[:, 1])
    twin, lowest = _copies(products, hashes)
    problem = Problem(rows, target, products[:, 0].copy(), norm, lowest, ridge, tol)
    store = Slots(rows, capacity(n, budget))
    shortlist = Shortlist(rows, store, list_length(n))
    fit = kernels.Fit(
        np.empty((budget, budget)),
        np.empty(budget),
        np.empty(budget),
        np.empty(budget, np.int64),
        np.zeros(1, np.int64),
        np.zeros(1),
    )
    counts = Counts()
    indices, rounds, correlations, residuals = (
        np.empty(budget, np.int64),
        np.empty(budget, np.int32),
        np.empty(budget),
        np.empty(budget),
    )
    done, number = 0, 0
    while done < budget:
        first = _largest(problem)
        alone = _alone(problem, first)
        story = {first: (float(problem.products[first]), alone)}
        members = np.array([first])
        if alone >= tol and budget - done > 1:
            current = Round(problem, codes, store, shortlist, fit, counts, budget - done)

            def within(members: int, before: int = done) -> None:
                progress(before + members, budget)

            members = current.run(within)
            story = current.story
            if not members.size:  # all rows were dropped: take the first, so that every round makes progress
                members, story = np.array([first]), {first: (float(problem.products[first]), 1.0)}
        for row in members.tolist():
            indices[done], rounds[done], (correlations[done], residuals[done]) = row, number, story[row]
            done += 1
            problem.open[row] = False
            if twin[row] >= 0:
                problem.open[twin[row]] = True
            if store.slot_of[row] >= 0:
                store.open[store.slot_of[row]] = False
        number += 1
        progress(done, budget)
    weights = nonnegative_ridge(_chosen_gram(store, rows, indices), problem.products[indices], ridge)
    margins, residual = _match(rows, target, indices, weights)
    unused = store.computed - int((store.slot_of[indices] >= 0).sum())
    stats = Stats(
        number, store.computed, unused, store.batches, counts.taken_back, counts.compared, counts.exact_checks, held=hold
    )
    return Pursuit(indices, rounds, correlations, residuals, weights, residual, margins, stats)


def _copies(products: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find equal rows. They tie in every step and the lowest wins, so a row need not compete before its lower copies are chosen.

    Returns twin (n,) int64, the next copy of each row or -1, and lowest (n,) bool, rows without a lower copy.
    """
    n = len(hashes)
    order = np.lexsort((np.arange(n), products[:, 1], products[:, 0], hashes))
    same = (hashes[order[1:]] == hashes[order[:-1]]) & (products[order[1:]] == products[order[:-1]]).all(axis=1)
    twin = np.full(n, -1, np.int64)
    twin[order[:-1][same]] = order[1:][same]
    lowest = np.ones(n, bool)
    lowest[order[1:][same]] = False
    return twin, lowest


def _largest(problem: Problem) -> int:
    """The open row with the largest <a, b>; of tied ones the lowest."""
    products = np.where(problem.open, problem.products, -np.inf)
    best = int(np.argmax(products))
    slack = kernels.TIE * problem.length * np.maximum(problem.norm, problem.norm[best])
    return int(np.argmax(products[best] - products <= slack))


def _alone(problem: Problem, row: int) -> float:
    """|r|/|b| after fitting the target by one row, not penalised."""
    if problem.length == 0.0:
        return 0.0
    cosine = problem.products[row] / (problem.norm[row] * problem.length) if problem.norm[row] > 0 else 0.0
    return float(np.sqrt(max(1.0 - cosine * cosine, 0.0)))


def _chosen_gram(store: Slots, rows: Rows, indices: np.ndarray) -> np.ndarray:
    """(k, k) float64; computed from the rows if some chosen row has no slot (any more)."""
    slots = store.slot_of[indices]
    if (slots >= 0).all():
        return store.gram[np.ix_(slots, slots)]
    return gram(rows.take(indices), rows.product)


def _match(rows: Rows, target: np.ndarray, indices: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Every row's correlation with the final residual, and that residual's relative length."""
    left, length = target.copy(), float(np.sqrt(target @ target))
    for start in range(0, len(indices), TAKEN):
        part = indices[start : start + TAKEN]
        row_kernels.subtract(rows.take(part), np.arange(len(part)), weights[start : start + TAKEN], left)
    margins = np.empty(rows.n, np.float32)
    rows.correlate(left, margins)
    return margins, float(np.linalg.norm(left) / length) if length else 0.0
