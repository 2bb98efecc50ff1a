"""The mean feature that the choice from each group matches.  G groups, D feature dimension."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from flows.context import RunContext
from flows.stages.eligible import Eligible
from flows.stages.pool_view import PoolClustering, open_pool_clustering
from storage.arrays import segments
from tagcos_stream.clustering.sums import Sums
from tagcos_stream.selection.methods import METHODS


@dataclass(frozen=True)
class Matched:
    """What the choices from G groups match."""

    means: np.ndarray | None  # (G, D); None where the method computes the mean of its rows, or reads no features
    counted: tuple[pl.DataFrame | None, ...]  # G frames: the rows whose mean it is; None where these are the group's own rows


def group_mean(
    run: RunContext,
    space_id: str,
    eligible: Eligible,
    view: PoolClustering | None,
    counting: PoolClustering | None,
    n_groups: int,
) -> Matched:
    """Find the mean that each group's choice matches: of the rows that count, or of the group's own rows where none of it counts.

    Parameters
    ----------
    run
        Its method decides whether means are needed.
    space_id
        The feature space.
    eligible
        The rows that may be chosen and the rows that count.
    view, counting
        The clustering for the rows that may be chosen, and for those that count; None for a method without clusters.
    n_groups
        Number of groups G.

    Returns
    -------
    Matched
        Means, and the rows that they are of.
    """
    own: tuple[pl.DataFrame | None, ...] = (None,) * n_groups
    if not METHODS[run.settings.method].features:
        return Matched(None, own)
    if view is None:
        if eligible.same:
            return Matched(None, own)
        return Matched(mean_of(run, space_id, eligible.counted)[None], (eligible.counted,))  # of the one group, the pool
    means = view.totals.centroids()
    if eligible.same:
        return Matched(means, own)
    assert counting is not None
    sizes = counting.totals.sizes
    labels = counting.labels
    counted = tuple(eligible.counted.filter(labels == g) if n else None for g, n in enumerate(sizes.tolist()))
    return Matched(np.where(sizes[:, None] > 0, counting.totals.centroids(), means), counted)


def mean_of(run: RunContext, space_id: str, rows: pl.DataFrame) -> np.ndarray:
    """Read the mean feature of some rows.

    Parameters
    ----------
    run
        The run.
    space_id
        The feature space.
    rows
        With segment and row, in their order.

    Returns
    -------
    np.ndarray
        (D,) float64.
    """
    features = segments.open_features(run.root.files, space_id, rows)
    mean: np.ndarray = Sums.of(features, np.zeros(len(rows), np.int64), 1, threads=run.settings.threads).means()[0]
    return mean


def view_of_counted(run: RunContext, eligible: Eligible, view: PoolClustering | None) -> PoolClustering | None:
    """Open the clustering for the rows that count.

    Parameters
    ----------
    run
        The run.
    eligible
        The rows that may be chosen and the rows that count.
    view
        The clustering for the rows that may be chosen; None if there is none.

    Returns
    -------
    PoolClustering or None
        `view` itself where both are the same rows.
    """
    if view is None or eligible.same:
        return view
    return open_pool_clustering(run, view.reader.clustering_id, eligible.counted)
