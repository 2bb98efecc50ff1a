"""Signals that are computed from features for conditions that name them: alignment with means, and rows nearly the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from flows.context import RunContext
from flows.results import Features
from flows.stages.pool_view import open_pool_clustering
from flows.stages.target_rows import open_target
from storage.arrays import segments
from storage.catalog import signals
from tagcos_stream.clustering.sums import Sums
from tagcos_stream.selection.alignment import alike, cosines
from tagcos_stream.selection.targets import group_targets
from tagcos_stream.types import RowBlocks


def compute_alignments(run: RunContext, features: Features, clustering_id: str | None, asked: frozenset[str]) -> None:
    """Compute the columns `signals.ALIGNMENTS` of a run's pool, and record them.

    One pass over the features, by cluster if there are clusters; without, one more for the pool's mean.

    Parameters
    ----------
    run
        The run; alignments of an earlier attempt are replaced.
    features
        The pool with features: N rows.
    clustering_id
        The clustering of the pool; None without one: then there are neither `cluster_alignment` nor `alike`.
    asked
        Names of columns: `target_alignment` and `alike` are computed only if they are among them.

    Raises
    ------
    UserError
        A cluster is too large to compare its rows in memory_limit.
    """
    pool, threads = features.pool, run.settings.threads
    target = open_target(run, features.space_id) if "target_alignment" in asked else None
    wanted = None
    if target is not None:
        wanted = group_targets(target.features, np.zeros(len(target.features.parts), np.int64), 1)[0][0]
    found = np.full((len(pool), 3), np.nan, np.float32)  # with the means of pool, cluster and target
    counts = np.zeros(len(pool), np.int64)  # 0: not computed
    with run.reporter.stage("alignment", "rows") as progress:
        done = 0
        for members, rows, means in _groups(run, features, clustering_id):
            vectors = (*means, wanted)
            given = [n for n, vector in enumerate(vectors) if vector is not None]
            found[members[:, None], given] = cosines(rows, np.stack([v for v in vectors if v is not None]), threads=threads)
            if clustering_id is not None and "alike" in asked:
                counts[members] = alike(rows, memory_limit=run.memory_limit, threads=threads)
            done += len(members)
            progress(done, len(pool))
    columns = {name: pl.Series(found[:, n], dtype=pl.Float64, nan_to_null=True) for n, name in enumerate(signals.ALIGNMENTS[:3])}
    computed = pl.Series(counts).replace(0, None)
    signals.record_alignments(run.catalog, run.run_id, pool.select("segment", "row", **columns, alike=computed))


def _groups(
    run: RunContext, features: Features, clustering_id: str | None
) -> Iterator[tuple[np.ndarray, RowBlocks, tuple[np.ndarray, np.ndarray | None]]]:
    """Positions in the pool, features, and the means of the pool and of the cluster: of each cluster, or of the whole pool."""
    pool = features.pool
    if clustering_id is None:
        whole = np.zeros(len(pool), np.int64)
        rows = segments.open_features(run.root.files, features.space_id, pool)
        yield np.arange(len(pool)), rows, (Sums.of(rows, whole, 1, threads=run.settings.threads).means()[0], None)
        return
    view = open_pool_clustering(run, clustering_id, pool)
    mean = view.totals.sums.sum(axis=0) / len(pool)
    order, sizes = np.argsort(view.labels, kind="stable"), view.totals.sizes
    means = view.totals.means()
    for cluster, members in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
        if len(members):
            yield members, view.reader.rows(view.positions[members]), (mean, means[cluster])
