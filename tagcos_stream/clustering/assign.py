"""Which cluster a row belongs to: a function of the row, its key and the centroids, and of nothing else.

N examples, D feature dimension, K clusters, r rows of a batch. Matrix products in float32 say which centroids may be the nearest;
where rounding could have decided, the distances themselves, summed in float64, decide. So a row gets the same cluster and the
same distance in whatever batch it comes, and rows assigned today join those of last year as if all had come at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tagcos_stream.clustering.nearest import NearestCentroid
from tagcos_stream.clustering.stream import Stretch, batches, row_numbers, span, stream, stretches
from tagcos_stream.clustering.sums import ClusterSums
from tagcos_stream.clustering.threaded import squared_lengths
from tagcos_stream.types import RowBlocks

EPS = 2.0**-24  # of float32


@dataclass(frozen=True)
class Assigned:
    """Rows with their clusters."""

    labels: np.ndarray  # (N,) int32
    distances: np.ndarray  # (N,) float32: Euclidean, to the centroid
    totals: ClusterSums


class Assigner(NearestCentroid):
    """As `NearestCentroid`, for many rows: products in float32 on a torch device say which distances are worth computing."""

    def __init__(self, centroids: np.ndarray, device: str = "cpu") -> None:
        super().__init__(centroids, torch.get_num_threads())
        self.device = device
        self._device_centroids = torch.from_numpy(self._centroids).to(device)
        self._lengths = (self._device_centroids.double() ** 2).sum(1)
        self._squares = self._lengths.float()
        self._longest = float(self._lengths.max())

    def _scores(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = torch.addmm(self._squares, torch.from_numpy(batch).to(self.device), self._device_centroids.T, alpha=-2)
        lengths = squared_lengths(batch, self.threads)
        # the error of |c|^2 - 2 <x, c> in float32, whatever the order of its D additions; twice, as two are compared
        dim = batch.shape[1]
        return scores.cpu().numpy(), 2 * EPS * (2 * (dim + 2) * np.sqrt(lengths * self._longest) + 3 * self._longest)


def visit(rows: RowBlocks, which: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read the marked rows, and only blocks that have some.

    Parameters
    ----------
    rows
        N rows.
    which
        (N,) bool.

    Yields
    ------
    tuple of (np.ndarray, np.ndarray)
        Row numbers (r,) and rows (r, D) float32.
    """
    starts = rows.starts
    plan = batches(rows, [b for b in range(len(starts) - 1) if which[starts[b] : starts[b + 1]].any()])
    for group, batch in stream(rows, plan):
        numbers = row_numbers(rows, group)
        mask = which[numbers]
        yield (numbers, batch) if mask.all() else (numbers[mask], batch[mask])


# (centroids (K, D) float32, (stretch, keys (r,) uint64 of its rows) each) -> (number of the stretch, its r rows), in any order
Assigning = Callable[[np.ndarray, Sequence[tuple[Stretch, np.ndarray]]], Iterator[tuple[int, Assigned]]]


def assign_stretch(rows: RowBlocks, assigner: Assigner, stretch: Stretch, keys: np.ndarray) -> Assigned:
    """Assign the r rows of a stretch.

    Parameters
    ----------
    rows
        All rows.
    assigner
        With the centroids.
    stretch
        Groups of blocks.
    keys
        (r,) uint64 of these rows.

    Returns
    -------
    Assigned
        Labels, distances and sums.
    """
    labels, distances = np.empty(len(keys), np.int32), np.empty(len(keys), np.float32)
    totals = ClusterSums.empty(*assigner.shape)
    done = 0
    for _, batch in stream(rows, stretch):
        these = slice(done, done + len(batch))
        found, squared = assigner(batch, keys[these])
        labels[these], distances[these] = found, np.sqrt(squared)
        totals.count(batch, found, assigner.device, assigner.threads)
        done += len(batch)
    return Assigned(labels, distances, totals)


def assigning_here(rows: RowBlocks, device: str = "cpu") -> Assigning:
    """Make an `Assigning` that works in this process, one stretch after the other.

    Parameters
    ----------
    rows, device
        All rows, and the torch device that the assigner uses for them.

    Returns
    -------
    Assigning
        For `assign`.
    """

    def assigning(centroids: np.ndarray, tasks: Sequence[tuple[Stretch, np.ndarray]]) -> Iterator[tuple[int, Assigned]]:
        assigner = Assigner(centroids, device)
        for number, (stretch, keys) in enumerate(tasks):
            yield number, assign_stretch(rows, assigner, stretch, keys)

    return assigning


def assign(
    rows: RowBlocks,
    centroids: np.ndarray,
    keys: np.ndarray | None = None,
    *,
    device: str = "cpu",
    assigning: Assigning | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Assigned:
    """Assign every row to a centroid in one pass.

    Parameters
    ----------
    rows
        N rows.
    centroids
        (K, D) float32.
    keys
        (N,) uint64; by default the row numbers.
    device
        Torch device.
    assigning
        Computes the stretches, in any order, since sums are exact; by default this process does.
    progress
        Called with rows done and N.

    Returns
    -------
    Assigned
        Of all rows.
    """
    keys = np.arange(rows.n_rows, dtype=np.uint64) if keys is None else keys
    labels, distances = np.empty(rows.n_rows, np.int32), np.empty(rows.n_rows, np.float32)
    totals = ClusterSums.empty(*centroids.shape)
    cut = stretches(rows)
    tasks = [(stretch, keys[span(rows, stretch)]) for stretch in cut]
    done = 0
    for number, part in (assigning or assigning_here(rows, device))(centroids, tasks):
        these = span(rows, cut[number])
        labels[these], distances[these] = part.labels, part.distances
        totals += part.totals
        done += len(part.labels)
        if progress:
            progress(done, rows.n_rows)
    return Assigned(labels, distances, totals)


def count(rows: RowBlocks, labels: np.ndarray, n_clusters: int) -> ClusterSums:
    """Sum rows whose clusters are known: those that left a clustering, to be subtracted.

    Parameters
    ----------
    rows, labels
        N rows, and the cluster of each, (N,) int32.
    n_clusters
        K.

    Returns
    -------
    ClusterSums
        Exact.
    """
    totals = ClusterSums.empty(n_clusters, rows.dim)
    for numbers, batch in visit(rows, np.ones(rows.n_rows, bool)):
        totals.count(batch, labels[numbers].astype(np.int64), threads=torch.get_num_threads())
    return totals
