"""Sums of rows by label: the one accumulator of k-means passes, of clusterings and of mean features.

N examples, D feature dimension, K labels (clusters or groups), r rows of a batch. Stored features are float16 of length 1 at
most: multiples of 2**-24, so their float64 sums are exact while they stay below 2**29 (half a billion rows). Exact sums may be
added, subtracted and added again in any order: the means of a clustering that grew equal, to the bit, those of one made at
once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import add, sub
from typing import Any, Self

import numpy as np

from tagcos_stream.types import RowBlocks

UNIT = 2.0**-32  # of the squared lengths, which are summed as whole numbers: N |x|**2 must stay below 2**31


@dataclass
class Sums:
    """Sum and number of the rows of each label. Mutable: `count` and += add in place."""

    sums: np.ndarray  # (K, D) float64
    sizes: np.ndarray  # (K,) int64

    @classmethod
    def empty(cls, n_labels: int, dim: int) -> Sums:
        """Return the sums of no rows.

        Parameters
        ----------
        n_labels, dim
            K and D.

        Returns
        -------
        Sums
            All zero.
        """
        return Sums(np.zeros((n_labels, dim)), np.zeros(n_labels, np.int64))

    @staticmethod
    def of(rows: RowBlocks, labels: np.ndarray, n_labels: int, threads: int | None = None) -> Sums:
        """Sum all rows in one pass.

        Parameters
        ----------
        rows
            N rows.
        labels
            (N,) int in [0, K).
        n_labels
            K.
        threads
            Default all cores.

        Returns
        -------
        Sums
            Of these rows.
        """
        found = Sums.empty(n_labels, rows.dim)
        labels = labels.astype(np.int64)
        for block in range(len(rows.starts) - 1):
            mine = labels[rows.starts[block] : rows.starts[block + 1]]
            batch = rows.read(block)
            found.count(batch.astype(np.result_type(batch, np.float32)), mine, threads=threads)  # Numba has no float16
        return found

    def count(self, batch: np.ndarray, labels: np.ndarray, device: str = "cpu", threads: int | None = None) -> None:
        """Add rows. The number of threads changes no bit.

        Parameters
        ----------
        batch
            (r, D) float32 or float64.
        labels
            (r,) int64 in [0, K).
        device
            Torch device that adds them.
        threads
            On the CPU; default all cores.
        """
        self.sizes += np.bincount(labels, minlength=len(self.sizes))
        if device != "cpu":
            import torch

            one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels), len(self.sums)).to(device, torch.float64)
            self.sums += (one_hot.T @ torch.from_numpy(batch).to(device, torch.float64)).cpu().numpy()
            return
        # Numba takes seconds to import, and a run that finds nothing new counts nothing
        from tagcos_stream.clustering.threaded import add_rows

        add_rows(batch, labels, self.sums, threads)

    def take(self, labels: np.ndarray) -> Self:
        """Return the entries of some labels.

        Parameters
        ----------
        labels
            Indices or mask of the labels to keep.

        Returns
        -------
        Sums
            A copy with these labels only.
        """
        return type(self)(*(getattr(self, field.name)[labels] for field in fields(self)))

    def means(self) -> np.ndarray:
        """Return the mean row of each label.

        Returns
        -------
        np.ndarray
            (K, D) float64; zero for a label without rows.
        """
        return self.sums / np.maximum(self.sizes, 1)[:, None]

    def __add__(self, other: Self) -> Self:
        return self._each(add, other)

    def __sub__(self, other: Self) -> Self:
        return self._each(sub, other)

    def __iadd__(self, other: Self) -> Self:
        for field in fields(self):
            mine = getattr(self, field.name)
            mine += getattr(other, field.name)
            setattr(self, field.name, mine)
        return self

    def _each(self, combine: Callable[[Any, Any], Any], other: Self) -> Self:
        return type(self)(*(combine(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)))


@dataclass
class ClusterSums(Sums):
    """Of the members of K clusters, with their squared lengths, from which the inertia follows."""

    squares: np.ndarray  # (K,) int64, in UNITs: squared lengths

    @classmethod
    def empty(cls, n_labels: int, dim: int) -> ClusterSums:
        """As `Sums.empty`."""
        return ClusterSums(np.zeros((n_labels, dim)), np.zeros(n_labels, np.int64), np.zeros(n_labels, np.int64))

    def count(self, batch: np.ndarray, labels: np.ndarray, device: str = "cpu", threads: int | None = None) -> None:
        """As `Sums.count`."""
        from tagcos_stream.clustering.threaded import squared_lengths

        super().count(batch, labels, device, threads)
        np.add.at(self.squares, labels, np.rint(squared_lengths(batch, threads) / UNIT).astype(np.int64))

    def centroids(self) -> np.ndarray:
        """Return the means as they are stored.

        Returns
        -------
        np.ndarray
            (K, D) float32; zero for a cluster without members.
        """
        return self.means().astype(np.float32)

    def inertia(self) -> np.ndarray:
        """Return the sum of squared distances to the mean, of each cluster.

        Returns
        -------
        np.ndarray
            (K,) float64, accurate to 1e-10 per row.
        """
        sizes = np.maximum(self.sizes, 1)
        return np.maximum(self.squares * UNIT - (self.sums**2).sum(axis=1) / sizes, 0.0)
