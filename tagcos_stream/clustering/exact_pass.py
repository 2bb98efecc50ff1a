"""An exact pass of k-means, stretch by stretch: computed anywhere, in any order, and put together in the order of the rows.

D feature dimension, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tagcos_stream.clustering.stream import Nearest, Stretch, stream
from tagcos_stream.clustering.sums import Sums
from tagcos_stream.types import RowBlocks


@dataclass
class StretchSums(Sums):
    """Of the rows nearest to each centroid, in one stretch or in several consecutive ones.

    Adding the stretches that follow gives the same bits in any grouping where sums are exact (see `sums`).
    """

    inertia: tuple[float, ...]  # of each stretch: kept apart, as its sum would depend on the order


# (centroids (K, D) float32, stretches) -> their sums, in order; one may cover several
Passes = Callable[[np.ndarray, Sequence[Stretch]], Iterator[StretchSums]]


def pass_sums(rows: RowBlocks, nearest: Nearest, stretch: Stretch) -> StretchSums:
    """Assign the rows of a stretch to the nearest centroid and sum them.

    Parameters
    ----------
    rows
        All rows.
    nearest
        With the centroids.
    stretch
        Groups of blocks.

    Returns
    -------
    StretchSums
        Of the stretch.
    """
    found, inertia = Sums.empty(*nearest.shape), 0.0
    for _, batch in stream(rows, stretch):
        labels, squared = nearest(batch)
        found.count(batch, labels, nearest.device, nearest.threads)
        inertia += float(squared.sum())
    return StretchSums(found.sums, found.sizes, (inertia,))


def passes_here(rows: RowBlocks, device: str = "cpu") -> Passes:
    """Make a `Passes` that works in this process, one stretch after the other.

    Parameters
    ----------
    rows, device
        All rows, and the torch device that computes.

    Returns
    -------
    Passes
        The default of `kmeans.fit`.
    """

    def passes(centroids: np.ndarray, stretches: Sequence[Stretch]) -> Iterator[StretchSums]:
        nearest = Nearest(centroids, device)
        for stretch in stretches:
            yield pass_sums(rows, nearest, stretch)

    return passes
