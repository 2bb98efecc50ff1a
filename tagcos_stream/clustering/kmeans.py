"""K-means over rows that do not fit in memory: mini-batches, then full passes for as long as they improve the objective.

N examples, D feature dimension, K clusters. Euclidean, Lloyd's objective: the sum of squared distances to the nearest centroid.
Sources: k-means++ with several trials a step (Arthur and Vassilvitskii 2007), mini-batch updates with a learning rate of
1/count for each centre (Sculley 2010, algorithm 1), then Lloyd (1982). Splitting, merging and exact means are in refine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np

from tagcos_stream.clustering.assign import Assigned, assign
from tagcos_stream.clustering.exact_pass import Passes, passes_here
from tagcos_stream.clustering.init import sample_rows, seed_centroids
from tagcos_stream.clustering.refine import finalise
from tagcos_stream.clustering.state import DONE, MINIBATCH, PASSES, Clustering, KMeansState
from tagcos_stream.clustering.stream import STRETCH_BATCHES, Nearest, batch_rows, batches, stream, stretches
from tagcos_stream.clustering.sums import Sums
from tagcos_stream.memory import require_memory
from tagcos_stream.types import RowBlocks, UserError

__all__ = ["Assigned", "Clustering", "KMeansState", "assign", "default_clusters", "finalise", "fit", "pass_bytes", "peak_bytes"]

SMOOTHING = 10  # batches that the smoothed inertia remembers
REASSIGN_EVERY = 10  # batches
REASSIGN_BELOW = 0.01  # of the largest count: such a centre is moved to a far row (as scikit-learn's reassignment_ratio)


def default_clusters(n_rows: int) -> int:
    """Return the default number of clusters: N / 10,000, at least 1 and at most 10,000.

    This gives clusters of the published size (100 clusters for a million rows). Models trained on selections from smaller
    clusters were measured to be worse, at little saving (docs/measurements: evaluation.md, clustering.md).

    Parameters
    ----------
    n_rows
        N.

    Returns
    -------
    int
        K.
    """
    return min(max(round(n_rows / 10_000), 1), 10_000)


def fit(
    rows: RowBlocks,
    n_clusters: int,
    *,
    seed: int,
    state: KMeansState | None = None,
    device: str = "cpu",
    memory_limit: int | None = None,
    max_epochs: int = 1,
    max_passes: int = 20,
    pass_tol: float = 2e-4,
    passes: Passes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[KMeansState]:
    """Fit centroids by k-means++, mini-batches and full passes.

    Seeds by k-means++ on a sample (of `sample_rows` rows), shuffles blocks into mini-batches until the smoothed inertia stops
    falling or `max_epochs` are over, then makes full passes until one reduces the inertia by a fraction less than `pass_tol`. A
    single cluster takes one full pass, since its mean is exact then.

    Parameters
    ----------
    rows
        (N, D) feature rows, read block by block.
    n_clusters
        K, 1 to N.
    seed
        Seed of all random choices.
    state
        Last state of an interrupted fit of the same rows with the same arguments, to resume from.
    device
        Torch device of the matrix products.
    memory_limit
        Bytes; checked before anything is read. None: no limit.
    max_epochs
        Maximum number of epochs of mini-batches.
    max_passes
        Maximum number of full passes.
    pass_tol
        Relative reduction of the inertia below which full passes stop.
    passes
        Implementation of the full passes. Default: in this process. The result is the same to the bit.
    progress
        Called with (rows processed, maximum number of rows).

    Yields
    ------
    KMeansState
        After every stretch of batches; the last one has `done` set.

    Raises
    ------
    UserError
        K is out of range, or more memory is needed than allowed.

    References
    ----------
    Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    Sculley, "Web-scale k-means clustering", WWW 2010, algorithm 1 (mini-batches with a learning rate of 1/count).
    Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28(2), 1982 (full passes).
    """
    n = rows.n_rows
    if not 1 <= n_clusters <= n:
        raise UserError(f"{n_clusters} clusters of {n} rows: choose between 1 and {n}")
    needed = peak_bytes(n, rows.dim, n_clusters, block_rows=int(np.diff(rows.starts).max()))
    require_memory(
        f"clustering {n} rows of {rows.dim} dimensions into {n_clusters} clusters",
        needed,
        memory_limit,
        "raise memory_limit or lower the number of clusters",
    )
    report = progress or (lambda done, total: None)
    total = n * (max_epochs + max_passes)
    passes = passes or passes_here(rows, device)
    if state is None:
        state = _start(rows, n_clusters, seed, device)
        yield state
    while not state.done:
        exact = state.phase == PASSES
        epoch = _full_pass(rows, state, passes) if exact else _minibatches(rows, state, seed, device)
        for state in epoch:
            yield state
        state = _next_epoch(rows, state, seed, max_epochs, max_passes, pass_tol)
        report(total if state.done else n * (max_epochs * (state.phase > MINIBATCH) + state.epoch), total)
        yield state


def peak_bytes(n_rows: int, dim: int, n_clusters: int, *, block_rows: int = 1024) -> int:
    """Return the peak memory of `fit` and `finalise` in bytes. Of N it depends only by 13 bytes per row (labels, distances).

    Parameters
    ----------
    n_rows
        N.
    dim
        D.
    n_clusters
        K.
    block_rows
        Most rows of a block.

    Returns
    -------
    int
        Bytes.
    """
    batch, scores = _batch_bytes(dim, n_clusters, block_rows)
    centres = n_clusters * dim * (4 * 3 + 8 * 5)
    sample = 4 * dim * sample_rows(n_rows, n_clusters, dim)
    return 13 * n_rows + centres + max(3 * batch + 2 * scores, 2 * sample + scores) + (64 << 20)


def pass_bytes(dim: int, n_clusters: int, *, block_rows: int = 1024) -> int:
    """Return the peak memory of one process that computes stretches of a full pass, in bytes, without its imports.

    Parameters
    ----------
    dim, n_clusters, block_rows
        As for `peak_bytes`.

    Returns
    -------
    int
        Bytes.
    """
    batch, scores = _batch_bytes(dim, n_clusters, block_rows)
    return n_clusters * dim * (4 * 3 + 8 * 3) + 3 * batch + 2 * scores + (64 << 20)


def _batch_bytes(dim: int, n_clusters: int, block_rows: int) -> tuple[int, int]:
    """Bytes of a batch's rows, and of their scores against all centroids."""
    rows = batch_rows(dim) + block_rows
    return 4 * dim * rows, 4 * rows * n_clusters


def _start(rows: RowBlocks, n_clusters: int, seed: int, device: str) -> KMeansState:
    centroids, counts = seed_centroids(rows, n_clusters, seed, device)
    few = len(batches(rows, range(len(rows.starts) - 1))) < SMOOTHING  # full passes are as fast on so few batches
    return KMeansState(
        centroids=centroids,
        counts=counts,
        sums=np.zeros(centroids.shape),
        sizes=np.zeros(n_clusters, np.int64),
        inertia=0.0,
        smoothed=np.inf,
        best=np.inf,
        stale=0,
        phase=PASSES if few or n_clusters == 1 else MINIBATCH,
        epoch=0,
        position=0,
        history=np.empty(0),
    )


def _minibatches(rows: RowBlocks, state: KMeansState, seed: int, device: str) -> Iterator[KMeansState]:
    """One epoch of mini-batches over shuffled blocks, or its beginning where the smoothed inertia no longer falls."""
    order = np.random.default_rng([seed, 1, state.epoch]).permutation(len(rows.starts) - 1)
    plan = batches(rows, order)
    for _, batch in stream(rows, plan[state.position :]):
        state = minibatch_step(state, batch, seed, device)
        if state.stale >= SMOOTHING:
            break
        if state.position % STRETCH_BATCHES == 0:
            yield state
    yield state


def minibatch_step(state: KMeansState, batch: np.ndarray, seed: int, device: str = "cpu") -> KMeansState:
    """Move each centroid to the running mean of all rows it was ever assigned.

    Parameters
    ----------
    state
        Before the batch.
    batch
        (r, D) float32.
    seed
        Of the draws for centroids that hardly any row is near to.
    device
        Torch device.

    Returns
    -------
    KMeansState
        After the batch.
    """
    nearest = Nearest(state.centroids, device)
    labels, squared = nearest(batch)
    found = Sums.empty(*state.centroids.shape)
    found.count(batch, labels, device, nearest.threads)
    moved = np.flatnonzero(found.sizes)
    counts = state.counts + found.sizes
    centroids = state.centroids.copy()
    old = state.centroids[moved].astype(np.float64)
    centroids[moved] = old + (found.sums[moved] - found.sizes[moved, None] * old) / counts[moved, None]
    position = state.position + 1
    if position % REASSIGN_EVERY == 0:
        generator = np.random.default_rng([seed, 2, state.epoch, position])
        _reassign(centroids, counts, batch, squared, generator)
    inertia = float(squared.mean())
    smoothed = inertia if np.isinf(state.smoothed) else state.smoothed + (inertia - state.smoothed) * 2 / (SMOOTHING + 1)
    fell = smoothed < state.best
    return replace(
        state,
        centroids=centroids,
        counts=counts,
        smoothed=smoothed,
        best=smoothed if fell else state.best,
        stale=0 if fell else state.stale + 1,
        position=position,
    )


def _reassign(
    centroids: np.ndarray, counts: np.ndarray, batch: np.ndarray, squared: np.ndarray, generator: np.random.Generator
) -> None:
    """Move centres that hardly any row is near to rows of the batch that are far from every centre, in place."""
    poor = np.flatnonzero(counts < REASSIGN_BELOW * counts.max())[: len(batch) // 2]
    far = int(np.count_nonzero(squared))
    poor = poor[:far]
    if poor.size:
        centroids[poor] = batch[generator.choice(len(batch), len(poor), replace=False, p=squared / squared.sum())]
        counts[poor] = counts[np.setdiff1d(np.arange(len(counts)), poor)].min(initial=1.0)  # not moved again at once


def _full_pass(rows: RowBlocks, state: KMeansState, passes: Passes) -> Iterator[KMeansState]:
    """Assign every row to the centroids the pass began with; sums, sizes and inertia so far go into the state."""
    for part in passes(state.centroids, stretches(rows)[state.position :]):
        state = replace(
            state,
            sums=state.sums + part.sums,
            sizes=state.sizes + part.sizes,
            inertia=reduce(add, part.inertia, state.inertia),
            position=state.position + len(part.inertia),
        )
        yield state


def _next_epoch(rows: RowBlocks, state: KMeansState, seed: int, max_epochs: int, max_passes: int, pass_tol: float) -> KMeansState:
    if state.phase == MINIBATCH:
        last = state.stale >= SMOOTHING or state.epoch + 1 >= max_epochs
        return replace(state, phase=PASSES if last else MINIBATCH, epoch=0 if last else state.epoch + 1, position=0)
    history = np.append(state.history, state.inertia)
    centroids = state.centroids.copy()
    full = state.sizes > 0
    centroids[full] = state.sums[full] / state.sizes[full, None]
    if not full.all():
        _refill(rows, centroids, np.flatnonzero(~full), np.random.default_rng([seed, 3, state.epoch]))
    settled = len(history) > 1 and history[-2] - history[-1] < pass_tol * history[-2]
    done = settled or len(history) >= max_passes or len(centroids) == 1
    return replace(
        state,
        centroids=centroids,
        sums=np.zeros_like(state.sums),
        sizes=state.sizes if done else np.zeros_like(state.sizes),
        inertia=0.0,
        phase=DONE if done else PASSES,
        epoch=state.epoch + 1,
        position=0,
        history=history,
    )


def _refill(rows: RowBlocks, centroids: np.ndarray, empty: np.ndarray, generator: np.random.Generator) -> None:
    """Put empty centres on rows of one random block, far ones likelier; where all rows lie on centres, leave them empty."""
    block = np.array(rows.read(int(generator.integers(len(rows.starts) - 1))), np.float32)
    _, squared = Nearest(np.delete(centroids, empty, axis=0), "cpu")(block)
    count = min(len(empty), int(np.count_nonzero(squared > 1e-6 * squared.max(initial=0.0))))
    if count:
        centroids[empty[:count]] = block[generator.choice(len(block), count, replace=False, p=squared / squared.sum())]
