"""A run's view of a clustering that may know more rows than the run's pool has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from flows.context import RunContext
from storage.arrays import grouped_reader
from storage.catalog import clusterings

if TYPE_CHECKING:
    from tagcos_stream.clustering.sums import ClusterSums


@dataclass(frozen=True)
class PoolClustering:
    """A run's own view of a clustering: those of its rows that are in the pool."""

    reader: grouped_reader.ClusteringReader
    positions: np.ndarray  # (n,) int64: of every pool row in the clustering, -1 where it is not in it
    totals: ClusterSums  # exact, of the pool rows that are in it

    @property
    def labels(self) -> np.ndarray:
        """(n,) int32 by pool row, -1 where it is not in it."""
        return np.append(self.reader.labels, np.int32(-1))[self.positions]


def open_pool_clustering(run: RunContext, name: str, pool: pl.DataFrame) -> PoolClustering:
    """Open a clustering with the exact sums of the pool's rows in it.

    These are the sums of all its rows less those of rows that left the pool; if more left than stayed, those of the rest.

    Parameters
    ----------
    run
        Context of the run.
    name
        Id of the clustering.
    pool
        Columns segment and row.

    Returns
    -------
    PoolClustering
        Reader, positions of the pool's rows, and sums.
    """
    from tagcos_stream.clustering.sums import ClusterSums

    reader = grouped_reader.ClusteringReader(run.root.files, name, clusterings.parts(run.catalog, name))
    positions = reader.find(pool)
    here = np.sort(positions[positions >= 0])
    gone = np.setdiff1d(np.arange(reader.n_rows), here, assume_unique=True)
    some = here if len(here) < len(gone) else gone
    totals = ClusterSums.empty(reader.n_clusters, reader.dim)
    if len(some):
        from tagcos_stream.clustering.assign import count

        totals = count(reader.rows(some), reader.labels[some], reader.n_clusters)
    return PoolClustering(reader, positions, totals if some is here else ClusterSums(*reader.totals()) - totals)
