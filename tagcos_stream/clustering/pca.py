"""Clusters in a plane, to look at: the first two principal components of their centroids.

K clusters, D feature dimension.
"""

from __future__ import annotations

import numpy as np


def plane(centroids: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project centroids (K, D) on the two directions in which they, weighted by size (K,), spread most.

    Works on the (K, K) inner products, so that memory is that of the centroids in float64 and a square of K, whatever D.

    Returns:
        (coordinates (K, 2) float64 around the weighted mean, shares (2,) float64 of the spread between clusters that each
        direction holds). Directions that hold nothing have coordinates 0. The sign makes the furthest cluster positive.
    """
    if len(centroids) != len(sizes) or not len(sizes) or np.min(sizes) <= 0:
        raise ValueError(f"{len(centroids)} centroids, sizes {sizes}: as many sizes as centroids, all positive")
    weights = sizes / np.sum(sizes)
    centred = centroids - weights @ centroids.astype(np.float64)
    root = np.sqrt(weights)
    # X' W X and this Gram matrix share their eigenvalues; its eigenvectors give the coordinates without the directions
    values, vectors = np.linalg.eigh(root[:, None] * (centred @ centred.T) * root)
    values = np.maximum(values, 0)
    if values.sum() == 0:
        return np.zeros((len(sizes), 2)), np.zeros(2)
    coordinates, shares = np.zeros((len(sizes), 2)), np.zeros(2)
    for axis in range(min(2, len(sizes))):
        value = values[-1 - axis]
        if value <= 1e-12 * values[-1]:
            break
        found = vectors[:, -1 - axis] * np.sqrt(value) / root
        coordinates[:, axis] = found * (1 if found[np.argmax(np.abs(found))] > 0 else -1)
        shares[axis] = value / values.sum()
    return coordinates, shares
