"""Loops of the clustering, compiled by Numba.  N examples, D feature dimension, K clusters, r rows of a batch.

No kernel is `parallel`: `threaded` cuts a batch into parts, which changes no bit, whatever their number.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def add_rows(batch: np.ndarray, labels: np.ndarray, span: tuple[int, int], sums: np.ndarray) -> None:
    """Add each row to its label's sum, in float64, for a range of dimensions.

    Threads share a batch by dimensions, so no thread adds to another's sums, and the order of addition, hence the result, does
    not depend on their number.

    Parameters
    ----------
    batch
        (r, D) float32 or float64.
    labels
        (r,) int64, negative to leave a row out.
    span
        First dimension, and the one after the last.
    sums
        (K, D) float64, updated.
    """
    for i in range(batch.shape[0]):
        label = labels[i]
        if label >= 0:
            for d in range(span[0], span[1]):
                sums[label, d] += np.float64(batch[i, d])


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def squares(batch: np.ndarray, out: np.ndarray) -> None:
    """Compute |x|^2 of every row in float64.

    Parameters
    ----------
    batch
        (r, D) float32.
    out
        (r,) float64, filled.
    """
    for i in range(batch.shape[0]):
        total = 0.0
        for d in range(batch.shape[1]):
            total += np.float64(batch[i, d]) * np.float64(batch[i, d])
        out[i] = total


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def fold(block: np.ndarray, signs: np.ndarray, out: np.ndarray) -> None:
    """Count sketch with strided buckets: coordinate d goes to bucket d % w with a random sign.

    Parameters
    ----------
    block
        (r, D) float32.
    signs
        (D,) float32 of -1 and 1.
    out
        (r, w) float32, filled.
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
    """Find the nearest centroid of every row among those whose score is within `slack` of the best; of equals the lowest.

    Parameters
    ----------
    batch
        (r, D) float32.
    centroids
        (K, D) float32.
    scores
        (r, K) float32.
    slack
        (r,) float64.
    labels
        (r,) int64, filled.
    squared
        (r,) float64, filled with the squared distance.
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
