"""Stage 4: the pool's rows in clusters. A pool that grew keeps its clusters while they fit: new rows join them in one pass."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from flows.context import RunContext
from flows.results import Clustering, Features
from flows.reuse import find_clustering
from flows.stages.pool_view import PoolClustering, open_pool_clustering
from storage import gc
from storage.arrays import grouped, safetensors_io, segments
from storage.catalog import clusterings, refreshes, runs
from tagcos_stream.clustering import drift
from tagcos_stream.identity import clustering_recipe
from tagcos_stream.selection.methods import METHODS

if TYPE_CHECKING:
    from tagcos_stream.clustering.assign import Assigning
    from tagcos_stream.clustering.exact_pass import Passes
    from tagcos_stream.clustering.kmeans import Assigned
    from tagcos_stream.clustering.kmeans import Clustering as FittedClustering

STATE_EVERY = 10.0  # seconds between saved states of a k-means fit


def cluster(run: RunContext, features: Features) -> Clustering:
    """Find the pool's clustering or fit one; rows that it lacks join it.

    A clustering of exactly this pool is used as it is. Otherwise the one that has most of the pool is kept as long as it fits
    (setting `refit`), and only rows that it lacks are read. A method that needs no clusters gets none.

    Parameters
    ----------
    run
        Context of the run.
    features
        Of its pool.

    Returns
    -------
    Clustering
        Id and counts.

    Raises
    ------
    UserError
        The fit does not fit in memory_limit.
    """
    settings = run.settings
    space_id, pool = features.space_id, features.pool
    if METHODS[settings.method].within != "clusters":
        _record(run, features, None, None, refitted=False)
        return Clustering(None, {"clustering_id": None, "reused": True, "clusters": 0, "rows": len(pool)})
    exact, known = find_clustering(run.catalog, settings, space_id, pool)
    decided = refreshes.recorded(run.catalog, run.run_id)
    if known is None or (known != exact and (settings.refit == "always" or (decided is not None and decided["refitted"]))):
        if decided is None:
            _record(run, features, None, None, refitted=True)
        return _refit(run, features, exact, parent=known)
    view = open_pool_clustering(run, known, pool)
    fresh = pool.filter(pl.Series(view.positions < 0))
    joined = _assign(run, space_id, view, fresh)
    measured = _measure(run, features, view, joined)
    refitted = known != exact and settings.refit == "auto" and bool(measured.reasons_to_recluster)
    if decided is None:
        _record(run, features, known, measured, refitted=refitted, assigned=0 if refitted else len(fresh))
    elif not refitted:
        refitted = bool(decided["refitted"]) and known != exact
    if refitted:
        run.reporter.say("clusters no longer fit (" + "; ".join(measured.reasons_to_recluster) + "): clustering again")
        return _refit(run, features, exact, parent=known)
    if joined is not None:
        part = _regroup(run, known, segments.open_features(run.root.files, space_id, fresh), joined, len(view.reader.parts))
        clusterings.add_rows(run.catalog, known, rows=_assignments(fresh, joined), part=part)
    runs.set_run(run.catalog, run.run_id, clustering_id=known)
    detail = {"clustering_id": known, "reused": True, "clusters": int((view.totals.sizes > 0).sum()), "rows": len(pool)}
    return Clustering(known, detail | {"joined": len(fresh), "advice": measured.advice})


def keys(pool: pl.DataFrame) -> np.ndarray:
    """Return a number for each example that does not depend on where it is stored.

    Parameters
    ----------
    pool
        Column example_id.

    Returns
    -------
    np.ndarray
        (n,) uint64, the first half of each id.
    """
    return pool["example_id"].str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64).to_numpy()


def _assign(run: RunContext, space_id: str, view: PoolClustering, fresh: pl.DataFrame) -> Assigned | None:
    if not len(fresh):
        return None
    from tagcos_stream.clustering.assign import assign  # torch takes seconds to import

    with run.reporter.stage("assign", "rows") as progress:
        rows = segments.open_features(run.root.files, space_id, fresh)
        return assign(rows, view.reader.centroids, keys(fresh), progress=progress)


def _measure(run: RunContext, features: Features, view: PoolClustering, joined: Assigned | None) -> drift.Drift:
    """Hold the pool, with the rows about to join, against what the clustering was when it was fitted."""
    from tagcos_stream.clustering.sums import ClusterSums

    reader = view.reader
    first = ClusterSums(*reader.totals(1))
    size = int(first.sizes.sum())
    later = view.positions[view.positions >= size]
    labels, distances = reader.labels[later], reader.distances[later]
    totals = view.totals
    if joined is not None:
        labels, distances = np.append(labels, joined.labels), np.append(distances, joined.distances)
        totals = totals + joined.totals
    fitted = drift.Fitted(reader.labels[:size], reader.distances[:size], first.sizes, first.centroids(), first.inertia())
    rows = {row["seen"]: row for row in refreshes.warm_up_view(run.catalog, run.run_id, features.space_id).iter_rows(named=True)}
    losses = [
        drift.Moments(row["n"], row["loss"], row["std"])
        for row in (rows.get(True), rows.get(False))
        if row and row["loss"] is not None
    ]
    unseen = rows[False]["n"] / len(features.pool) if False in rows else 0.0
    return drift.measure(
        fitted,
        labels,
        distances,
        sizes=totals.sizes,
        means=totals.centroids(),
        max_cluster_rows=run.settings.max_cluster_rows,
        unseen=unseen if run.settings.warms_up else None,  # nobody knows what an imported adapter was trained on
        losses=(losses[0], losses[1]) if len(losses) == 2 else None,
    )


def _record(
    run: RunContext,
    features: Features,
    name: str | None,
    measured: drift.Drift | None,
    *,
    refitted: bool,
    assigned: int | None = None,
) -> None:
    """Write down what changed since the run before. A first run has nothing to tell."""
    base = refreshes.base_run(run.catalog, run.run_id, features.space_id)
    if base is None and name is None:
        return
    counts = refreshes.changes(run.catalog, run.run_id, base) if base else {"added": 0, "returned": 0, "retired": 0}
    values: dict[str, Any] = {"base_run": base, "clustering_id": name, "pool": len(features.pool), "assigned": assigned, **counts}
    values |= {"refitted": refitted, "advice": "keep" if measured is None else measured.advice}
    if measured is not None:
        values |= {
            "since_fit": round(measured.share * len(features.pool)),
            "share": measured.share,
            "distance_shift": measured.distance_shift,
            "distance_error": measured.distance_error,
            "movement": measured.movement,
            "loss_shift": measured.loss_shift,
            "unseen": measured.unseen,
            "why": "; ".join([*measured.reasons_to_recluster, *measured.reasons_to_warm_up]) or None,
        }
    refreshes.record(run.catalog, run.run_id, values, drift.THRESHOLDS)


def _refit(run: RunContext, features: Features, name: str, parent: str | None) -> Clustering:
    """Cluster the whole pool: every feature is read, no gradient is computed."""
    from flows.workers.kmeans import worker_passes
    from tagcos_stream.clustering import kmeans

    settings, space_id, pool = run.settings, features.space_id, features.pool
    n_clusters = min(settings.clusters or kmeans.default_clusters(len(pool)), len(pool))
    rows = segments.open_features(run.root.files, space_id, pool)
    made = _fit(run, name, rows, n_clusters, keys(pool), worker_passes(run, features, rows, n_clusters))
    grouped.write_centroids(run.root.files, name, made.centroids)
    part = _regroup(run, name, rows, made, 0)
    clusterings.add_clustering(
        run.catalog,
        run.run_id,
        name,
        space_id,
        clusters=pl.DataFrame({"cluster": np.arange(len(made.sizes)), "size": made.sizes, "inertia": made.inertia}),
        rows=_assignments(pool, made),
        part=part,
        recipe=clustering_recipe(settings, space_id),
        parent=parent,
        config={
            "clusters": n_clusters,
            "min_cluster_rows": settings.min_cluster_rows,
            "max_cluster_rows": settings.max_cluster_rows,
            "seed": settings.seed,
        },
    )
    return Clustering(name, {"clustering_id": name, "reused": False, "clusters": len(made.sizes), "rows": len(pool)})


def _fit(
    run: RunContext,
    name: str,
    rows: segments.FeatureRows,
    n_clusters: int,
    keys: np.ndarray,
    workers: tuple[Passes, Assigning] | tuple[None, None],
) -> FittedClustering:
    """Fit and finish a k-means; its state is saved every few seconds, so that a killed fit goes on."""
    from tagcos_stream.clustering import kmeans

    settings, files = run.settings, run.root.files
    passes, assigning = workers
    key = gc.work_key(run.run_id, f"kmeans-stretches-{name}.safetensors")  # before schema 6 positions counted batches: "kmeans-"
    state = None
    if files.size(key) is not None:
        state = kmeans.KMeansState.from_arrays(safetensors_io.load_arrays(files, key)[0])
    with run.reporter.stage("k-means", "rows") as progress:
        saved = time.monotonic()
        states = kmeans.fit(
            rows,
            n_clusters,
            seed=settings.seed,
            state=state,
            memory_limit=run.memory_limit,
            passes=passes,
            progress=progress,
        )
        for state in states:
            if time.monotonic() - saved >= STATE_EVERY:
                safetensors_io.save_arrays(files, key, state.to_arrays())
                saved = time.monotonic()
    assert state is not None
    with run.reporter.stage("assign", "rows") as progress:
        return kmeans.finalise(
            rows,
            state,
            keys,
            min_cluster_rows=settings.min_cluster_rows,
            max_cluster_rows=settings.max_cluster_rows,
            seed=settings.seed,
            assigning=assigning,
            progress=progress,
        )


def _regroup(
    run: RunContext, name: str, rows: segments.FeatureRows, made: Assigned | FittedClustering, part: int
) -> grouped.PartInfo:
    with run.reporter.stage("regroup", "rows") as progress:
        return grouped.regroup(
            run.root.files,
            name,
            rows,
            made.labels,
            distances=made.distances,
            sums=made.totals.sums,
            squares=made.totals.squares,
            part=part,
            memory_limit=run.memory_limit // 2,
            progress=progress,
        )


def _assignments(rows: pl.DataFrame, made: Assigned | FittedClustering) -> pl.DataFrame:
    return rows.select("segment", "row", cluster=pl.Series(made.labels), distance=pl.Series(made.distances))
