"""An exact pass of k-means, stretch by stretch: computed anywhere, in any order, and put together in the order of the rows.

D feature dimension, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tagcos_stream.clustering.stream import Nearest, Stretch, Sums, stream
from tagcos_stream.types import RowBlocks


@dataclass(frozen=True)
class PassSums:
    """What the rows of one or several stretches, one after the other, come to."""

    sums: np.ndarray  # (K, D) float64: of the rows that are nearest to each centroid
    sizes: np.ndarray  # (K,) int64
    inertia: tuple[float, ...]  # of each stretch: kept apart, as its sum would depend on the order

    def __add__(self, later: PassSums) -> PassSums:
        """With the stretches that follow. Bit for bit the same in any grouping where sums are exact (see totals)."""
        return PassSums(self.sums + later.sums, self.sizes + later.sizes, self.inertia + later.inertia)


# (centroids (K, D) float32, stretches) -> their sums, in order; one may cover several
Passes = Callable[[np.ndarray, Sequence[Stretch]], Iterator[PassSums]]


def pass_sums(rows: RowBlocks, nearest: Nearest, stretch: Stretch) -> PassSums:
    """Give each row of a stretch to the nearest centroid."""
    sums = Sums(np.zeros(nearest.shape), nearest.device)
    sizes, inertia = np.zeros(nearest.shape[0], np.int64), 0.0
    for _, batch in stream(rows, stretch):
        labels, squared = nearest(batch)
        sums.add(batch, labels)
        sizes += np.bincount(labels, minlength=len(sizes))
        inertia += float(squared.sum())
    return PassSums(sums.sums, sizes, (inertia,))


def passes_here(rows: RowBlocks, device: str = "cpu") -> Passes:
    """In this process, one stretch after the other."""

    def passes(centroids: np.ndarray, stretches: Sequence[Stretch]) -> Iterator[PassSums]:
        nearest = Nearest(centroids, device)
        for stretch in stretches:
            yield pass_sums(rows, nearest, stretch)

    return passes
