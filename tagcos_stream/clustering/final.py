"""From centroids to a clustering: every row assigned, large clusters split, small ones merged, exact means.

N examples, D feature dimension, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tagcos_stream.clustering.batches import Nearest, Sums, batches, row_numbers, stream
from tagcos_stream.clustering.kernels import squares
from tagcos_stream.clustering.seeding import seed_centroids
from tagcos_stream.types import ArrayRows, RowBlocks, UserError

if TYPE_CHECKING:
    from tagcos_stream.clustering.kmeans import KMeansState

SPLIT_BYTES = 512 << 20  # float32 rows that a split may sample, over all clusters that are split at once
FILL = 0.7  # a split aims at parts this full, so that uneven parts still fit
SPLIT_ROUNDS = 3  # then what is still too large is cut by row order: equal rows cannot be told apart


@dataclass(frozen=True)
class Clustering:
    """Every row's cluster, and what a cluster is. No cluster is empty."""

    centroids: np.ndarray  # (K, D) float32: a new row belongs to the nearest
    means: np.ndarray  # (K, D) float32, summed in float64: what a pursuit aims at
    sizes: np.ndarray  # (K,) int64
    inertia: np.ndarray  # (K,) float64: sum of squared distances to the mean
    labels: np.ndarray  # (N,) int32
    distances: np.ndarray  # (N,) float32: from the row to the centroid of its cluster


def assign(
    rows: RowBlocks, centroids: np.ndarray, *, device: str = "cpu", progress: Callable[[int, int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid (N,) int32, the lowest of equals, and the distance to it (N,) float32. centroids (K, D) float32."""
    labels, distances = np.empty(rows.n_rows, np.int32), np.empty(rows.n_rows, np.float32)
    nearest = Nearest(centroids, device)
    done = 0
    for numbers, batch in _visit(rows, np.ones(rows.n_rows, bool)):
        labels[numbers], squared = nearest(batch)
        distances[numbers] = np.sqrt(squared)
        done += len(numbers)
        if progress:
            progress(done, rows.n_rows)
    return labels, distances


def finalise(
    rows: RowBlocks,
    state: KMeansState,
    *,
    min_cluster_rows: int = 1,
    max_cluster_rows: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Clustering:
    """Assign every row, split clusters above `max_cluster_rows`, merge those below `min_cluster_rows`, compute exact means.

    A large cluster is split by the same k-means, run on as many of its rows as fit in SPLIT_BYTES; what stays too large (equal
    rows) is cut by row order. A small cluster goes whole to the nearest cluster that has room for it, and stays where none has;
    the centroid of a cluster that absorbs another does not move. Centres without rows are left out.

    Raises:
        UserError: min_cluster_rows above half of max_cluster_rows, which not every pool could meet.
    """
    largest = rows.n_rows if max_cluster_rows is None else max_cluster_rows
    if min_cluster_rows < 1 or (max_cluster_rows is not None and 2 * min_cluster_rows > largest):
        raise UserError(
            f"min_cluster_rows {min_cluster_rows} and max_cluster_rows {max_cluster_rows}: "
            "the first must be 1 or more and at most half of the second"
        )
    draft = _Draft(rows, state.centroids, device)
    draft.assign(progress or (lambda done, total: None))
    for attempt in range(SPLIT_ROUNDS):
        if not draft.split(largest, [seed, attempt]):
            break
    draft.cut(largest)
    draft.merge(min_cluster_rows, largest)
    return draft.clustering()


def _visit(rows: RowBlocks, which: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row numbers (r,), rows (r, D) float32) of the rows marked in `which` (N,), reading only blocks that have some."""
    starts = rows.starts
    plan = batches(rows, [b for b in range(len(starts) - 1) if which[starts[b] : starts[b + 1]].any()])
    for group, batch in stream(rows, plan):
        numbers = row_numbers(rows, group)
        mask = which[numbers]
        yield (numbers, batch) if mask.all() else (numbers[mask], batch[mask])


class _Draft:
    """Labels and their sums; splits and merges keep both in step, so that the means never need another full pass."""

    def __init__(self, rows: RowBlocks, centroids: np.ndarray, device: str) -> None:
        self.rows, self.device = rows, device
        self.centroids = np.ascontiguousarray(centroids, np.float32)
        self.labels = np.zeros(rows.n_rows, np.int32)
        self.distances = np.zeros(rows.n_rows, np.float32)
        self.sums, self.square = np.zeros(centroids.shape), np.zeros(len(centroids))  # of the rows, and of their squared lengths
        self.sizes = np.zeros(len(centroids), np.int64)

    def assign(self, progress: Callable[[int, int], None]) -> None:
        nearest = Nearest(self.centroids, self.device)
        done = 0
        for numbers, batch in _visit(self.rows, np.ones(self.rows.n_rows, bool)):
            labels, squared = nearest(batch)
            self._count(numbers, batch, labels, squared)
            done += len(numbers)
            progress(done, self.rows.n_rows)

    def _count(self, numbers: np.ndarray, batch: np.ndarray, labels: np.ndarray, squared: np.ndarray) -> None:
        self.labels[numbers] = labels
        self.distances[numbers] = np.sqrt(squared)
        Sums(self.sums, self.device).add(batch, labels)
        lengths = np.empty(len(batch))
        squares(batch, lengths)
        self.square += np.bincount(labels, lengths, minlength=len(self.sizes))
        self.sizes += np.bincount(labels, minlength=len(self.sizes))

    def _forget(self, clusters: np.ndarray) -> None:
        self.sums[clusters], self.square[clusters], self.sizes[clusters] = 0.0, 0.0, 0

    def _add_centroids(self, more: np.ndarray) -> None:
        self.centroids = np.vstack([self.centroids, more])
        self.sums = np.vstack([self.sums, np.zeros(more.shape)])
        self.square = np.append(self.square, np.zeros(len(more)))
        self.sizes = np.append(self.sizes, np.zeros(len(more), np.int64))

    def split(self, largest: int, seed: list[int]) -> bool:
        """Split what is above `largest`; whether there was any. One pass for the samples, one to assign."""
        large = np.flatnonzero(self.sizes > largest)
        if not large.size:
            return False
        generator = np.random.default_rng(seed)
        samples = self._samples(large, generator)
        parts: dict[int, tuple[np.ndarray, Nearest]] = {}
        for k in large.tolist():
            count = min(int(np.ceil(self.sizes[k] / (FILL * largest))), len(samples[k]))
            centroids, _ = seed_centroids(ArrayRows(samples[k]), count, int(generator.integers(2**31)), self.device)
            numbers = np.append(k, np.arange(len(self.sizes), len(self.sizes) + count - 1))
            self.centroids[k] = centroids[0]
            self._add_centroids(centroids[1:])
            parts[k] = numbers, Nearest(centroids, self.device)
        which = np.isin(self.labels, large)
        self._forget(large)
        for rows, batch in _visit(self.rows, which):
            old, new, squared = self.labels[rows], np.empty(len(rows), np.int64), np.empty(len(rows))
            for k in np.unique(old).tolist():
                numbers, nearest = parts[k]
                here = old == k
                label, squared[here] = nearest(batch[here])
                new[here] = numbers[label]
            self._count(rows, batch, new, squared)
        return True

    def _samples(self, clusters: np.ndarray, generator: np.random.Generator) -> dict[int, np.ndarray]:
        """As many rows of each cluster as fit, by cluster."""
        share = min(1.0, SPLIT_BYTES / (4 * self.rows.dim * int(self.sizes[clusters].sum())))
        which = np.zeros(self.rows.n_rows, bool)
        found: dict[int, np.ndarray] = {}
        filled: dict[int, int] = {}
        for k in clusters.tolist():
            count = max(2, int(share * self.sizes[k]))
            which[generator.choice(np.flatnonzero(self.labels == k), min(count, int(self.sizes[k])), replace=False)] = True
            found[k], filled[k] = np.empty((min(count, int(self.sizes[k])), self.rows.dim), np.float32), 0
        for rows, batch in _visit(self.rows, which):
            for k in np.unique(self.labels[rows]).tolist():
                some = batch[self.labels[rows] == k]
                found[k][filled[k] : filled[k] + len(some)] = some
                filled[k] += len(some)
        return found

    def cut(self, largest: int) -> None:
        """Cut what is still above `largest` by row order, evenly; the parts share a centroid."""
        large = np.flatnonzero(self.sizes > largest)
        if not large.size:
            return
        which = np.isin(self.labels, large)
        target = self.labels.copy()
        for k in large.tolist():
            count = int(np.ceil(self.sizes[k] / largest))
            numbers = np.append(k, np.arange(len(self.sizes), len(self.sizes) + count - 1))
            for number, part in zip(numbers, np.array_split(np.flatnonzero(self.labels == k), count), strict=True):
                target[part] = number
            self._add_centroids(np.repeat(self.centroids[k : k + 1], count - 1, axis=0))
        self._forget(large)
        for rows, batch in _visit(self.rows, which):
            self._count(rows, batch, target[rows].astype(np.int64), self.distances[rows].astype(np.float64) ** 2)

    def merge(self, smallest: int, largest: int) -> None:
        """Move the rows of small clusters, the smallest first, to the nearest mean with room; then their distances."""
        stuck: set[int] = set()
        goes = np.arange(len(self.sizes))
        while True:
            small = [k for k in np.flatnonzero((self.sizes > 0) & (self.sizes < smallest)).tolist() if k not in stuck]
            if not small:
                break
            k = min(small, key=lambda k: (self.sizes[k], k))
            room = np.flatnonzero((self.sizes > 0) & (self.sizes + self.sizes[k] <= largest))
            room = room[room != k]
            if not room.size:
                stuck.add(k)
                continue
            means = self.sums[room] / self.sizes[room, None]
            into = int(room[((means - self.sums[k] / self.sizes[k]) ** 2).sum(axis=1).argmin()])
            for array in (self.sums, self.square, self.sizes):
                array[into] += array[k]
            self._forget(np.array([k]))
            goes[goes == k] = into
        moved = goes[self.labels] != self.labels
        self.labels = goes[self.labels].astype(np.int32)
        for rows, batch in _visit(self.rows, moved):
            self.distances[rows] = np.linalg.norm(batch - self.centroids[self.labels[rows]], axis=1)

    def clustering(self) -> Clustering:
        full = np.flatnonzero(self.sizes)
        number = np.full(len(self.sizes), -1, np.int32)
        number[full] = np.arange(len(full))
        sizes = self.sizes[full]
        means = self.sums[full] / sizes[:, None]
        # sum |x|^2 - n |mean|^2 in float64: good to 1e-16 of the rows' squared lengths
        inertia = np.maximum(self.square[full] - sizes * (means**2).sum(axis=1), 0.0)
        return Clustering(self.centroids[full], means.astype(np.float32), sizes, inertia, number[self.labels], self.distances)
