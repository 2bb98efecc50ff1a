"""From centroids to a clustering: large clusters split, small ones dissolved, every row with its nearest, exact means.

N examples, D feature dimension, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tagcos_stream.clustering.assign import Assigner, Assigning, assign, assigning_here, visit
from tagcos_stream.clustering.init import seed_centroids
from tagcos_stream.clustering.state import Clustering, KMeansState
from tagcos_stream.clustering.stream import batches, row_numbers, stream
from tagcos_stream.clustering.sums import ClusterSums
from tagcos_stream.types import ArrayRows, RowBlocks, UserError

SPLIT_BYTES = 512 << 20  # float32 rows that a split may sample, over all clusters that are split at once
FILL = 0.7  # a split aims at parts this full, so that uneven parts still fit
SPLIT_ROUNDS = 3  # then what is still too large is shared by key: equal rows cannot be separated


def finalise(
    rows: RowBlocks,
    state: KMeansState,
    keys: np.ndarray | None = None,
    *,
    min_cluster_rows: int = 1,
    max_cluster_rows: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    assigning: Assigning | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Clustering:
    """Assign every row, split clusters above `max_cluster_rows`, dissolve those below `min_cluster_rows`, compute exact means.

    A large cluster is split by the same k-means, run on as many of its rows as fit in SPLIT_BYTES, and every row goes to the
    nearest centroid of all; a cluster that stays too large (equal rows) gets several equal centroids, which share its rows by
    key. A small cluster's centroid is dropped and its rows go to their nearest one, unless that makes another cluster too
    large; then it stays. Centroids without rows are left out.

    Parameters
    ----------
    rows
        N rows.
    state
        Of a finished fit.
    keys
        (N,) uint64, any fixed number for each row (its id); by default the row numbers.
    min_cluster_rows, max_cluster_rows
        Limits of a cluster's size; None for no upper limit.
    seed
        Of the splits.
    device
        Torch device.
    assigning
        Computes the stretches of full assignments; by default this process does.
    progress
        Called with rows done and their total.

    Returns
    -------
    Clustering
        Labels, distances, centroids and exact sums.

    Raises
    ------
    UserError
        min_cluster_rows is above half of max_cluster_rows, which not every pool could meet.
    """
    largest = rows.n_rows if max_cluster_rows is None else max_cluster_rows
    if min_cluster_rows < 1 or (max_cluster_rows is not None and 2 * min_cluster_rows > largest):
        raise UserError(
            f"min_cluster_rows {min_cluster_rows} and max_cluster_rows {max_cluster_rows}: "
            "the first must be 1 or more and at most half of the second"
        )
    keys = np.arange(rows.n_rows, dtype=np.uint64) if keys is None else keys
    draft = _Draft(rows, state.centroids, keys, device, assigning or assigning_here(rows, device))
    draft.split(state.sizes, largest, [seed, 0])  # those of its last pass: most often right, and it saves a pass to know
    draft.assign(progress)
    for attempt in range(1, SPLIT_ROUNDS + 1):
        if not draft.split(draft.totals.sizes, largest, [seed, attempt]):
            break
        draft.assign()
    draft.share(largest)
    draft.dissolve(min_cluster_rows, largest)
    return draft.clustering()


class _Draft:
    """Centroids and what they come to. `labels` are always those that the centroids still in use give."""

    def __init__(self, rows: RowBlocks, centroids: np.ndarray, keys: np.ndarray, device: str, assigning: Assigning) -> None:
        self.rows, self.keys, self.device, self._assigning = rows, keys, device, assigning
        self.centroids = np.ascontiguousarray(centroids, np.float32)
        self._forget_all()

    def assign(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Assign every row again, in one pass."""
        self._forget_all()  # not twice in memory
        found = assign(self.rows, self.centroids, self.keys, assigning=self._assigning, progress=progress)
        self.labels, self.distances, self.totals = found.labels, found.distances, found.totals

    def _forget_all(self) -> None:
        self.labels, self.distances = np.empty(0, np.int32), np.empty(0, np.float32)
        self.totals = ClusterSums.empty(0, self.rows.dim)

    def _move(self, which: np.ndarray, to: np.ndarray) -> None:
        """Give the marked rows to the nearest of the centroids `to`, and count them there."""
        assigner = Assigner(self.centroids[to], self.device)
        for numbers, batch in visit(self.rows, which):
            found, squared = assigner(batch, self.keys[numbers])
            found = to[found]
            self.labels[numbers], self.distances[numbers] = found, np.sqrt(squared)
            self.totals.count(batch, found, self.device, assigner.threads)

    def _forget(self, clusters: np.ndarray) -> None:
        self.totals.sums[clusters], self.totals.squares[clusters], self.totals.sizes[clusters] = 0.0, 0, 0

    def split(self, sizes: np.ndarray, largest: int, seed: list[int]) -> bool:
        """Split the centroids of clusters that have, by these sizes (K,), more rows than `largest`; whether there were any."""
        large = np.flatnonzero(sizes > largest)
        if not large.size:
            return False
        generator = np.random.default_rng(seed)
        samples = self._samples(large, sizes, generator)
        for k in large.tolist():
            count = min(int(np.ceil(sizes[k] / (FILL * largest))), len(samples[k]))
            if not count:
                continue
            centroids, _ = seed_centroids(ArrayRows(samples[k]), count, int(generator.integers(2**31)), self.device)
            self.centroids[k] = centroids[0]
            # equal parts are one: only `share` makes copies, and counts them
            more = [c for i, c in enumerate(centroids[1:], 1) if not (centroids[:i] == c).all(axis=1).any()]
            self.centroids = np.vstack([self.centroids, *more])
        return True

    def _samples(self, clusters: np.ndarray, sizes: np.ndarray, generator: np.random.Generator) -> dict[int, np.ndarray]:
        """As many rows of each cluster as fit, by cluster, from as few blocks, drawn at random, as have them."""
        share = min(1.0, SPLIT_BYTES / (4 * self.rows.dim * int(sizes[clusters].sum())))
        found = {
            k: np.empty((min(max(2, int(share * sizes[k])), sizes[k]), self.rows.dim), np.float32) for k in clusters.tolist()
        }
        filled = dict.fromkeys(found, 0)
        assigner = Assigner(self.centroids, self.device)
        for group, batch in stream(self.rows, batches(self.rows, generator.permutation(len(self.rows.starts) - 1))):
            labels, _ = assigner(batch, self.keys[row_numbers(self.rows, group)])
            for k, kept in found.items():
                some = batch[labels == k][: len(kept) - filled[k]]
                kept[filled[k] : filled[k] + len(some)] = some
                filled[k] += len(some)
            if all(filled[k] == len(kept) for k, kept in found.items()):
                break
        return {k: kept[: filled[k]] for k, kept in found.items()}

    def share(self, largest: int) -> None:
        """Give what is still above `largest` as many equal centroids as let each hold its share."""
        large = np.flatnonzero(self.totals.sizes > largest)
        if not large.size:
            return
        for k in large.tolist():
            keys = self.keys[self.labels == k]
            count = int(np.ceil(len(keys) / largest))
            while np.bincount((keys % np.uint64(count)).astype(np.int64)).max() > largest:
                count += 1
            self.centroids = np.vstack([self.centroids, np.repeat(self.centroids[k : k + 1], count - 1, axis=0)])
        self.assign()
        while not self.totals.sizes.all():  # a copy without rows would keep its share of those to come
            self.centroids = self.centroids[self.totals.sizes > 0]
            self.assign()

    def dissolve(self, smallest: int, largest: int) -> None:
        """Give up the centroids of small clusters, the smallest first; their rows go to the nearest of those that remain."""
        stuck: set[int] = set()
        while True:
            sizes = self.totals.sizes
            small = [k for k in np.flatnonzero((sizes > 0) & (sizes < smallest)).tolist() if k not in stuck]
            rest = np.flatnonzero(sizes > 0)
            if not small or len(rest) == 1:
                return
            k = min(small, key=lambda k: (sizes[k], k))
            stuck.add(k)
            if (self.centroids == self.centroids[k]).all(axis=1).sum() > 1:
                continue  # a copy: without it, the others would share all its rows again
            mine = np.flatnonzero(self.labels == k)
            assigner, rest = Assigner(self.centroids[rest[rest != k]], self.device), rest[rest != k]
            goes = np.concatenate(
                [rest[assigner(batch, self.keys[rows])[0]] for rows, batch in visit(self.rows, self.labels == k)]
            )
            if (sizes + np.bincount(goes, minlength=len(sizes)))[goes].max() <= largest:
                self._forget(np.array([k]))
                which = np.zeros(self.rows.n_rows, bool)
                which[mine] = True
                self._move(which, rest)

    def clustering(self) -> Clustering:
        full = np.flatnonzero(self.totals.sizes)
        number = np.full(len(self.centroids), -1, np.int32)
        number[full] = np.arange(len(full))
        return Clustering(self.centroids[full], number[self.labels], self.distances, self.totals.take(full))
