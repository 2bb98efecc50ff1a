"""Loops of the clustering, compiled by Numba.  N examples, D feature dimension, K clusters, r rows of a batch."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def add_rows(batch: np.ndarray, labels: np.ndarray, span: tuple[int, int], sums: np.ndarray) -> None:
    """sums[label] += row in float64 for the dimensions of `span`: threads share a batch by dimensions, so none adds to
    another's sums and the order of addition, hence the result, does not depend on their number.

    Args:
        batch: (r, D) float32. labels: (r,) int64, negative to leave a row out. sums: (K, D) float64.
    """
    for i in range(batch.shape[0]):
        label = labels[i]
        if label >= 0:
            for d in range(span[0], span[1]):
                sums[label, d] += np.float64(batch[i, d])


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def squares(batch: np.ndarray, out: np.ndarray) -> None:
    """|x|^2 of every row in float64. batch (r, D) float32, out (r,) float64."""
    for i in range(batch.shape[0]):
        total = 0.0
        for d in range(batch.shape[1]):
            total += np.float64(batch[i, d]) * np.float64(batch[i, d])
        out[i] = total


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def fold(block: np.ndarray, signs: np.ndarray, out: np.ndarray) -> None:
    """Count sketch with strided buckets: coordinate d goes to bucket d % w with a random sign.

    block (r, D) float32, signs (D,) float32 of -1 and 1, out (r, w) float32.
    """
    width = out.shape[1]
    dim = block.shape[1]
    for i in range(block.shape[0]):
        out[i, :] = 0.0
        for start in range(0, dim, width):
            for q in range(min(width, dim - start)):
                out[i, q] += signs[start + q] * block[i, start + q]


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def _squared_distance(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for d in range(a.shape[0]):
        difference = np.float64(a[d]) - np.float64(b[d])
        total += difference * difference
    return total


@njit(nogil=True, cache=True)
def decide(
    batch: np.ndarray, centroids: np.ndarray, scores: np.ndarray, slack: np.ndarray, labels: np.ndarray, squared: np.ndarray
) -> None:
    """The nearest centroid of every row, the lowest of equals, among those whose score is within `slack` of the best.

    batch (r, D) float32, centroids (K, D) float32, scores (r, K) float32, slack (r,) float64; labels (r,) int64 and squared
    (r,) float64, the squared distance, are filled.
    """
    for i in range(batch.shape[0]):
        limit = np.float64(scores[i].min()) + slack[i]
        best = np.inf
        for k in range(centroids.shape[0]):
            if scores[i, k] <= limit:
                distance = _squared_distance(batch[i], centroids[k])
                if distance < best:
                    best, labels[i] = distance, k
        squared[i] = best
