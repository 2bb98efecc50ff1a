"""How well a selection stands for its pool: measured at the end of every run, and of every unit of `diagnose`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import polars as pl

from flows.context import RunContext
from flows.stages.eligible import Eligible
from flows.stages.pool_view import PoolClustering, open_pool_clustering
from storage.arrays import segments
from storage.catalog import clusterings, diagnostics, selections
from tagcos_stream.clustering.sums import Sums
from tagcos_stream.selection.match import Match, match, match_bytes, reached


def measure(
    run: RunContext, space_id: str, eligible: Eligible, view: PoolClustering | None, counting: PoolClustering | None
) -> dict[str, Any]:
    """Record how well the selection matches the mean feature of the rows that count, as a whole and by cluster.

    Errors are over all dimensions, those that the selection was made by. The chosen rows are read, and no others where there is a
    clustering, whose totals are exact.

    Parameters
    ----------
    run
        The run, its selection recorded.
    space_id
        Its feature space.
    eligible
        The rows that may be chosen and the rows that count.
    view, counting
        The run's clustering for each of them; None for a method without clusters: then the newest clustering that has every
        example of the pool is used.

    Returns
    -------
    dict
        error_plain and error_weighted.
    """
    start = time.perf_counter()
    pool, counted = eligible.rows, eligible.counted
    if view is None and (name := clusterings.find_covering(run.catalog, run.run_id, space_id)):
        view = open_pool_clustering(run, name, pool)
        counting = view if eligible.same else open_pool_clustering(run, name, counted)
    rows = segments.open_features(run.root.files, space_id, pool)
    by_cluster = view is not None and match_bytes(view.reader.n_clusters, rows.dim) <= run.memory_limit
    labels, sizes = np.zeros(len(pool), np.int64), np.array([len(counted)])
    if view is None or counting is None:
        target = rows if eligible.same else segments.open_features(run.root.files, space_id, counted)
        means = Sums.of(target, np.zeros(len(counted), np.int64), 1, threads=run.settings.threads).means()
    elif by_cluster:
        labels, means, sizes = view.labels.astype(np.int64), counting.totals.centroids(), counting.totals.sizes
    else:
        means = counting.totals.sums.sum(axis=0)[None] / len(counted)
        run.reporter.say("the match is measured of the whole pool only: by cluster it would not fit in memory_limit")
    shares = selections.shares(run.catalog, run.run_id)
    chosen = pool.select("segment", "row").with_row_index("at").join(shares, on=["segment", "row"]).sort("at")
    at = chosen["at"].to_numpy().astype(np.int64)
    found = match(means, sizes, lambda part: rows.gather(at[part]), labels[at], chosen["share"].to_numpy())
    diagnostics.commit(
        run.catalog,
        run.run_id,
        method=run.settings.method,
        fraction=len(at) / eligible.of,
        seed=run.settings.seed,
        dimensions="seen",
        rows=measured_rows(found, sizes, coverage(pool, at, labels), by_cluster=by_cluster),
        seconds=time.perf_counter() - start,
    )
    return {"error_plain": round(found.plain, 4), "error_weighted": round(found.weighted, 4)}


def measured_rows(
    found: Match,
    sizes: np.ndarray,
    covered: tuple[float, float],
    *,
    by_cluster: bool,
    fitted: float | None = None,
    chosen: np.ndarray | None = None,
) -> pl.DataFrame:
    """Make the rows of `diagnostics` for one measured selection.

    Parameters
    ----------
    found
        Its errors.
    sizes
        (K,) rows of each cluster.
    covered
        Fractions of datasets and clusters reached.
    by_cluster
        Whether to make rows of single clusters.
    fitted
        Error with weights fitted on other dimensions.
    chosen
        Positions of the selected examples in the pool.

    Returns
    -------
    pl.DataFrame
        One row for the pool, and one for each cluster that has rows.
    """
    k = len(sizes) if by_cluster else 0
    frame = pl.DataFrame(
        {
            "cluster": pl.Series([None, *range(k)], dtype=pl.Int32),
            "size": [int(sizes.sum()), *sizes[:k].tolist()],
            "selected": [int(found.selected.sum()), *found.selected[:k].tolist()],
            "error_plain": [found.plain, *found.cluster_plain[:k].tolist()],
            "error_weighted": [found.weighted, *found.cluster_weighted[:k].tolist()],
            "error_fitted": pl.Series([fitted, *[None] * k], dtype=pl.Float64),
            "datasets_reached": pl.Series([covered[0], *[None] * k], dtype=pl.Float64),
            "clusters_reached": pl.Series([covered[1] if by_cluster else None, *[None] * k], dtype=pl.Float64),
            "chosen": pl.Series([None if chosen is None else chosen.tolist(), *[None] * k], dtype=pl.List(pl.UInt32)),
        }
    )
    return frame.filter(pl.col("size") > 0).with_columns(pl.col("error_plain", "error_weighted", "error_fitted").fill_nan(None))


def coverage(pool: pl.DataFrame, chosen: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the fractions of datasets and clusters that have a selected example.

    Parameters
    ----------
    pool, labels
        The pool with its column dataset, and (N,) cluster of each example.
    chosen
        Positions in the pool.

    Returns
    -------
    tuple of (float, float)
        Of datasets and of clusters.
    """
    datasets = pool["dataset"]
    return reached(datasets.gather(chosen).to_list(), datasets.to_list()), reached(labels[chosen].tolist(), labels.tolist())
