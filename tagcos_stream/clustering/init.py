"""Where k-means starts: k-means++ on a sample.  N examples, D feature dimension, K clusters, S rows of the sample."""

from __future__ import annotations

import numpy as np
import torch

from tagcos_stream.clustering.kernels import fold
from tagcos_stream.clustering.stream import Nearest, batch_rows
from tagcos_stream.clustering.sums import Sums
from tagcos_stream.types import RowBlocks

SAMPLE_BYTES = 512 << 20  # of float32 rows, unless K asks for more
WIDTH = 512  # dimensions of the sketch that seeds are drawn in
STARTS = 4  # the best of so many seedings
ITERATIONS = 8  # of Lloyd on the sample


def sample_rows(n_rows: int, n_clusters: int, dim: int) -> int:
    """Return the number of rows that seeding looks at.

    16 K and at least 8,192, within SAMPLE_BYTES, but never under 2 K (or N).

    Parameters
    ----------
    n_rows, n_clusters, dim
        N, K and D.

    Returns
    -------
    int
        Rows.
    """
    wished = min(max(16 * n_clusters, 8192), SAMPLE_BYTES // (4 * dim))
    return min(n_rows, max(wished, 2 * n_clusters))


def seed_centroids(rows: RowBlocks, n_clusters: int, seed: int, device: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw initial centroids.

    Several seedings, each with a few Lloyd iterations, compete in a sketch of the sample, which preserves inner products well
    enough at a fraction of the cost; the best one continues in all D dimensions.

    Parameters
    ----------
    rows
        N rows.
    n_clusters
        K.
    seed
        Of the draws.
    device
        Torch device.

    Returns
    -------
    tuple of (np.ndarray, np.ndarray)
        Centroids (K, D) float32, and how many rows of the sample each stands for, (K,) float64.
    """
    generator = np.random.default_rng([seed, 0])
    sample = read_sample(rows, sample_rows(rows.n_rows, n_clusters, rows.dim), generator)
    small = _sketched(sample, generator)
    best, labels = np.inf, np.zeros(len(sample), np.int64)
    for _ in range(STARTS if n_clusters <= 1000 else 1):
        picks = plus_plus(small, n_clusters, generator, device)
        _, found, inertia = _lloyd(small, small[picks], device)
        if inertia < best:
            best, labels, chosen = inertia, found, picks
    centroids = _means(sample, labels, sample[chosen], device)
    centroids, labels, _ = _lloyd(sample, centroids, device)
    return centroids, np.bincount(labels, minlength=n_clusters).astype(np.float64)


def read_sample(rows: RowBlocks, count: int, generator: np.random.Generator) -> np.ndarray:
    """Read a fraction of the rows of random blocks.

    Neighbouring rows in the store come from one source, so no more than a quarter of a block is taken if there are enough
    blocks.

    Parameters
    ----------
    rows
        N rows.
    count
        S.
    generator
        For the draw.

    Returns
    -------
    np.ndarray
        (S, D) float32.
    """
    lengths = np.diff(rows.starts)
    sample = np.empty((count, rows.dim), np.float32)
    share = max(count / rows.n_rows, 0.25)
    taken = 0
    for block in generator.permutation(len(lengths)):
        length = int(lengths[block])
        some = min(int(np.ceil(share * length)), count - taken)
        sample[taken : taken + some] = rows.read(int(block))[np.sort(generator.choice(length, some, replace=False))]
        taken += some
        if taken == count:
            break
    assert taken == count, "shares round up, so the blocks suffice"
    return sample


def plus_plus(points: np.ndarray, n_clusters: int, generator: np.random.Generator, device: str) -> np.ndarray:
    """Choose rows by k-means++: each with probability proportional to its squared distance to those before it.

    Of 2 + log K draws the one that lowers the inertia most is kept (one draw above 1,000 clusters, where more cost too much).
    If all points are taken or equal, the lowest rows not yet used follow.

    Parameters
    ----------
    points
        (S, w) float32.
    n_clusters
        K.
    generator
        For the draws.
    device
        Torch device.

    Returns
    -------
    np.ndarray
        (K,) int64 row numbers.
    """
    x = torch.from_numpy(points).to(device)
    norms = (x.double() ** 2).sum(1).float()
    trials = 2 + int(np.log(n_clusters)) if n_clusters <= 1000 else 1
    picks = [int(generator.integers(len(points)))]

    def distances(at: list[int]) -> torch.Tensor:
        return torch.clamp(norms[None] + norms[at][:, None] - 2 * (x[at] @ x.T), min=0.0)

    floor = 1e-6 * float(norms.max())  # below it a distance is rounding
    nearest = distances(picks)[0]
    while len(picks) < n_clusters:
        nearest[nearest < floor] = 0.0
        mass = nearest.cpu().numpy().astype(np.float64).cumsum()
        if mass[-1] <= 0.0:
            spare = np.setdiff1d(np.arange(len(points)), picks)[: n_clusters - len(picks)]
            return np.append(picks, spare)
        draws = np.minimum(np.searchsorted(mass, generator.random(trials) * mass[-1], side="right"), len(points) - 1).tolist()
        tried = torch.minimum(nearest[None], distances(draws))
        won = int(tried.double().sum(1).argmin())
        nearest = tried[won]
        picks.append(draws[won])
    return np.array(picks)


def _sketched(sample: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    if sample.shape[1] <= WIDTH:
        return sample
    signs = generator.choice(np.array([-1, 1], np.float32), sample.shape[1])
    small = np.empty((len(sample), WIDTH), np.float32)
    fold(sample, signs, small)
    return small


def _lloyd(points: np.ndarray, centroids: np.ndarray, device: str) -> tuple[np.ndarray, np.ndarray, float]:
    """A few iterations in memory: centroids, the labels they came from, and the inertia before their last move."""
    for _ in range(ITERATIONS):
        nearest = Nearest(centroids, device)
        labels = np.empty(len(points), np.int64)
        inertia = 0.0
        step = batch_rows(points.shape[1])
        for start in range(0, len(points), step):
            labels[start : start + step], squared = nearest(points[start : start + step])
            inertia += float(squared.sum())
        centroids = _means(points, labels, centroids, device)
    return centroids, labels, inertia


def _means(points: np.ndarray, labels: np.ndarray, otherwise: np.ndarray, device: str) -> np.ndarray:
    """(K, D) float32 means by label; `otherwise` where a label has no row."""
    found = Sums.empty(*otherwise.shape)
    found.count(points, labels, device, torch.get_num_threads())
    return np.where(found.sizes[:, None] > 0, found.means(), otherwise).astype(np.float32)
