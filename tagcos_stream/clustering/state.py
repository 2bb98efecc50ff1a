"""Values of a clustering: the state of a fit that is under way, and the result.

N examples, D feature dimension, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from tagcos_stream.clustering.sums import ClusterSums

MINIBATCH, PASSES, DONE = 0, 1, 2  # phases of a fit


@dataclass(frozen=True)
class KMeansState:
    """A fit at one moment, as a value: `fit(..., state=state)` goes on from it, bit for bit."""

    centroids: np.ndarray  # (K, D) float32
    counts: np.ndarray  # (K,) float64: rows that each centre was moved by
    sums: np.ndarray  # (K, D) float64: of the pass under way
    sizes: np.ndarray  # (K,) int64: of the pass under way, at the end of the last one
    inertia: float  # of the pass under way
    smoothed: float  # mini-batches: smoothed inertia a row
    best: float  # mini-batches: lowest smoothed inertia so far
    stale: int  # mini-batches since then
    phase: int  # MINIBATCH, PASSES or DONE
    epoch: int  # of the phase
    position: int  # of the epoch, done: batches (MINIBATCH) or stretches (PASSES)
    history: np.ndarray  # (passes,) float64: inertia of each finished pass, against the centroids it began with

    @property
    def done(self) -> bool:
        """Whether the fit is finished."""
        return self.phase == DONE

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return every field as an array, for safetensors or npz.

        Returns
        -------
        dict
            Array by field name.
        """
        return {field.name: np.array(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> KMeansState:
        """Make a state from the result of `to_arrays`.

        Parameters
        ----------
        arrays
            Array by field name.

        Returns
        -------
        KMeansState
            The same state.
        """

        def value(name: str, kind: str) -> object:
            array = np.asarray(arrays[name])
            return array if kind == "np.ndarray" else array.item()

        return cls(**{field.name: value(field.name, str(field.type)) for field in fields(cls)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Clustering:
    """Every row's cluster, and what a cluster is. No cluster is empty. The labels are `assign(rows, centroids, keys)`."""

    centroids: np.ndarray  # (K, D) float32: a row belongs to the nearest
    labels: np.ndarray  # (N,) int32
    distances: np.ndarray  # (N,) float32: from the row to the centroid of its cluster
    totals: ClusterSums

    @property
    def sizes(self) -> np.ndarray:
        """(K,) int64."""
        return self.totals.sizes

    @property
    def means(self) -> np.ndarray:
        """(K, D) float32: what a pursuit aims at."""
        return self.totals.centroids()

    @property
    def inertia(self) -> np.ndarray:
        """(K,) float64: sum of squared distances to the mean."""
        return self.totals.inertia()
