"""What a cluster's members come to: sums that do not depend on who added what, and when.

N examples, D feature dimension, K clusters, r rows of a batch. Stored features are float16 of length 1 at most: multiples of
2**-24, so their float64 sums are exact while they stay below 2**29 (half a billion rows). Exact sums may be added, taken back
and added again in any order: the means of a clustering that grew are, to the bit, those of one made at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNIT = 2.0**-32  # of the squared lengths, which are summed as whole numbers: N |x|**2 must stay below 2**31


@dataclass
class Totals:
    """Of the members of K clusters. Mutable: `count` and += add in place."""

    sums: np.ndarray  # (K, D) float64
    squares: np.ndarray  # (K,) int64, in UNITs: squared lengths
    sizes: np.ndarray  # (K,) int64

    @classmethod
    def empty(cls, n_clusters: int, dim: int) -> Totals:
        return cls(np.zeros((n_clusters, dim)), np.zeros(n_clusters, np.int64), np.zeros(n_clusters, np.int64))

    def count(self, batch: np.ndarray, labels: np.ndarray, device: str = "cpu") -> None:
        """Add rows (r, D) float32 with labels (r,) int64."""
        # torch and Numba take seconds to import, and a run that finds nothing new counts nothing
        from tagcos_stream.clustering.kernels import squares
        from tagcos_stream.clustering.stream import Sums

        Sums(self.sums, device).add(batch, labels)
        lengths = np.empty(len(batch))
        squares(batch, lengths)
        np.add.at(self.squares, labels, np.rint(lengths / UNIT).astype(np.int64))
        self.sizes += np.bincount(labels, minlength=len(self.sizes))

    def __add__(self, other: Totals) -> Totals:
        return Totals(self.sums + other.sums, self.squares + other.squares, self.sizes + other.sizes)

    def __iadd__(self, other: Totals) -> Totals:
        self.sums += other.sums
        self.squares += other.squares
        self.sizes += other.sizes
        return self

    def __sub__(self, other: Totals) -> Totals:
        return Totals(self.sums - other.sums, self.squares - other.squares, self.sizes - other.sizes)

    def of(self, clusters: np.ndarray) -> Totals:
        return Totals(self.sums[clusters], self.squares[clusters], self.sizes[clusters])

    def means(self) -> np.ndarray:
        """(K, D) float32; zero for a cluster without members."""
        return (self.sums / np.maximum(self.sizes, 1)[:, None]).astype(np.float32)

    def inertia(self) -> np.ndarray:
        """(K,) float64: sum of squared distances to the mean, good to 1e-10 a row."""
        sizes = np.maximum(self.sizes, 1)
        return np.maximum(self.squares * UNIT - (self.sums**2).sum(axis=1) / sizes, 0.0)
