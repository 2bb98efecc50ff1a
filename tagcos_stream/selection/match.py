"""How well a selection stands for its pool: the error of the mean feature, on dimensions seen or reserved.

N rows, D feature dimension, K clusters, k chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tagcos_stream.rows.held import gram
from tagcos_stream.selection.ridge import nonnegative_ridge

CHUNK = 1024  # chosen rows that are read at once
HELD_OUT = 8  # one dimension in so many is kept for measuring
HELD_OUT_SEED = 8192


def reserved_dimensions(dim: int) -> np.ndarray:
    """Return the reserved dimensions: a fixed random eighth that a measured selection must not see.

    Parameters
    ----------
    dim
        D.

    Returns
    -------
    np.ndarray
        (D,) bool.
    """
    order = np.random.default_rng(HELD_OUT_SEED).permutation(dim)
    held = np.zeros(dim, bool)
    held[order[: max(dim // HELD_OUT, 1)]] = True
    return held


@dataclass(frozen=True)
class Match:
    """Relative errors |estimate - mean| / |mean| of the pool's mean feature and of each cluster's.

    `plain` gives every selected row the same weight, `weighted` its share. 1 explains nothing, and so does a cluster without a
    chosen row; NaN where the mean itself is zero.
    """

    plain: float
    weighted: float
    cluster_plain: np.ndarray  # (K,)
    cluster_weighted: np.ndarray  # (K,)
    selected: np.ndarray  # (K,) int64


def match(
    means: np.ndarray, sizes: np.ndarray, gather: Callable[[np.ndarray], np.ndarray], labels: np.ndarray, shares: np.ndarray
) -> Match:
    """Measure the errors of a selection's mean feature, of the pool and by cluster.

    Parameters
    ----------
    means
        (K, D) exact means of the clusters.
    sizes
        (K,) rows in each.
    gather
        Maps positions among the selected to their rows (m, D); called with at most CHUNK of them.
    labels
        (k,) cluster of each selected row.
    shares
        (k,) its share in the pool's mean; need not sum to 1.

    Returns
    -------
    Match
        Errors with equal and with given weights.
    """
    n_clusters, k = len(sizes), len(labels)
    plain, weighted = np.zeros((2, n_clusters, means.shape[1]))
    for start in range(0, k, CHUNK):
        part = np.arange(start, min(start + CHUNK, k))
        found = gather(part).astype(np.float64)
        for cluster in np.unique(labels[part]):
            mine = labels[part] == cluster
            plain[cluster] += found[mine].sum(axis=0)
            weighted[cluster] += shares[part[mine]] @ found[mine]
    selected = np.bincount(labels, minlength=n_clusters)
    total = int(sizes.sum())
    mean = sizes @ means / total
    own_plain = plain / np.maximum(selected, 1)[:, None]
    own_weighted = weighted * (total / np.maximum(sizes, 1))[:, None]
    return Match(
        plain=relative_error(plain.sum(axis=0) / max(k, 1), mean),
        weighted=relative_error(weighted.sum(axis=0), mean),
        cluster_plain=np.array([relative_error(a, b) for a, b in zip(own_plain, means, strict=True)]),
        cluster_weighted=np.array([relative_error(a, b) for a, b in zip(own_weighted, means, strict=True)]),
        selected=selected,
    )


def match_bytes(n_clusters: int, dim: int) -> int:
    """Return the peak memory of `Sums.of` and `match`: means, both estimates, and what they are divided into.

    Parameters
    ----------
    n_clusters, dim
        K and D; the number of rows does not matter.

    Returns
    -------
    int
        Bytes.
    """
    return 8 * 6 * n_clusters * dim + 3 * 8 * CHUNK * dim


def relative_error(estimate: np.ndarray, mean: np.ndarray) -> float:
    """Return |estimate - mean| / |mean|.

    Parameters
    ----------
    estimate, mean
        (D,).

    Returns
    -------
    float
        1 if the estimate is zero.
    """
    length = float(np.linalg.norm(mean))
    return float(np.linalg.norm(estimate - mean)) / length if length else float("nan")


def fitted_weights(chosen: np.ndarray, mean: np.ndarray, ridge: float) -> np.ndarray:
    """Return the non-negative ridge weights with which the selected rows match the pool's mean best.

    Parameters
    ----------
    chosen
        (k, D) float32.
    mean
        (D,).
    ridge
        Above 0.

    Returns
    -------
    np.ndarray
        (k,) float64.
    """
    products = np.array([row.astype(np.float64) @ mean for row in chosen])
    return nonnegative_ridge(gram(chosen, np.inner), products, ridge)


def fit_bytes(k: int, dim: int) -> int:
    """Return the peak memory of `fitted_weights` with its rows.

    Parameters
    ----------
    k, dim
        Selected rows, and D.

    Returns
    -------
    int
        Bytes.
    """
    return 4 * k * dim + 4 * 8 * k * k + 2 * 8 * 1024 * k


def reached(chosen: Sequence[object], everything: Sequence[object]) -> float:
    """Return the fraction of kinds (datasets, clusters) that have at least one selected example.

    Parameters
    ----------
    chosen
        Kind of each selected example.
    everything
        Kind of each example.

    Returns
    -------
    float
        From 0 to 1.
    """
    kinds = set(everything)
    return len(set(chosen) & kinds) / len(kinds)
