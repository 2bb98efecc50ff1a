"""Which centroid a row is nearest to: every distance in float64, without torch, which takes seconds to import and 150 MiB."""

from __future__ import annotations

import numpy as np

from tagcos_stream.clustering.threaded import decide


class NearestCentroid:
    """Nearest of (K, D) centroids, the lowest of equals; equal centroids share their rows evenly, by key."""

    def __init__(self, centroids: np.ndarray, threads: int = 1) -> None:
        self.shape = centroids.shape
        self.threads = threads
        groups: dict[bytes, list[int]] = {}
        for k, centroid in enumerate(centroids):
            groups.setdefault(centroid.tobytes(), []).append(k)
        members = list(groups.values())
        self._first = np.array([group[0] for group in members])
        self._copies = np.array([len(group) for group in members])
        self._members = np.concatenate([np.array(group) for group in members])
        self._begin = np.concatenate([[0], np.cumsum(self._copies)])[:-1]
        self._centroids = np.ascontiguousarray(centroids[self._first], np.float32)

    def __call__(self, batch: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels (r,) int64 and squared distances (r,) float64 of rows (r, D) float32 with keys (r,) uint64."""
        near, squared = decide(batch, self._centroids, *self._scores(batch), self.threads)
        copy = (keys % self._copies[near].astype(np.uint64)).astype(np.int64)
        return self._members[self._begin[near] + copy], squared

    def _scores(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (r, K) float32 and (r,) float64: centroids whose score is within the second of the best may be the nearest."""
        return np.zeros((len(batch), len(self._centroids)), np.float32), np.full(len(batch), np.inf)
