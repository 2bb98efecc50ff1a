"""Stages 4 to 6: clusters of the features, the coreset chosen in each, and its publication."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from flows.choosing import Groups, Scalars, choose, scalars, strata, warning, whole_pool
from flows.job import Job
from flows.measuring import assigned, measure
from storage import arrays, blocks, clustered, clusterings, features, gc, regroup, runs, selections, snapshot
from tagcos_stream.config import Settings, digest
from tagcos_stream.controls.methods import METHODS
from tagcos_stream.coreset import allocate
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from tagcos_stream.clustering.kmeans import Clustering

STATE_EVERY = 10.0  # seconds between saved states of a k-means fit


def clustering_id(settings: Settings, space_id: str, pool: pl.DataFrame, n_clusters: int) -> str:
    """Name of a clustering: what it was made from. The same pool, space and settings find the one that is already there."""
    return digest(
        {
            "space": space_id,
            "pool": digest("".join(pool["example_id"].to_list())),
            "clusters": n_clusters,
            "rows": [settings.min_cluster_rows, settings.max_cluster_rows],
            "seed": settings.seed,
        }
    )


def cluster(job: Job) -> dict[str, Any]:
    """Cluster the pool's features, measure every row against its centroid, and lay the rows out cluster by cluster."""
    from tagcos_stream.clustering import kmeans

    settings = job.settings
    if METHODS[settings.method].within != "clusters":
        return {"clustering_id": None, "reused": True, "clusters": 0, "rows": 0}
    space_id, pool = _pool(job)
    n_clusters = min(settings.clusters or kmeans.default_clusters(len(pool)), len(pool))
    name = clustering_id(settings, space_id, pool, n_clusters)
    runs.set_run(job.catalog, job.run_id, clustering_id=name)
    known = clusterings.clusters(job.catalog, name)
    if len(known):
        return {"clustering_id": name, "reused": True, "clusters": len(known), "rows": len(pool)}

    rows = features.open_features(job.root.files, space_id, pool)
    made = _fit(job, name, rows, n_clusters)
    with job.reporter.stage("regroup", "rows") as progress:
        part = regroup.regroup(
            job.root.files,
            name,
            rows,
            made.labels,
            centroids=made.centroids,
            means=made.means,
            sizes=made.sizes,
            inertia=made.inertia,
            memory_limit=job.memory_limit // 2,
            progress=progress,
        )
    clusterings.add_clustering(
        job.catalog,
        job.run_id,
        name,
        space_id,
        clusters=pl.DataFrame({"cluster": np.arange(len(made.sizes)), "size": made.sizes, "inertia": made.inertia}),
        rows=pool.select("segment", "row").with_columns(cluster=pl.Series(made.labels), distance=pl.Series(made.distances)),
        part=part,
        config={
            "clusters": n_clusters,
            "min_cluster_rows": settings.min_cluster_rows,
            "max_cluster_rows": settings.max_cluster_rows,
            "seed": settings.seed,
        },
    )
    return {"clustering_id": name, "reused": False, "clusters": len(made.sizes), "rows": len(pool)}


def _fit(job: Job, name: str, rows: features.FeatureRows, n_clusters: int) -> Clustering:
    """Fit and finish a k-means; its state is saved every few seconds, so that a killed fit goes on."""
    from tagcos_stream.clustering import kmeans

    settings, files = job.settings, job.root.files
    key = gc.work_key(job.run_id, f"kmeans-{name}.safetensors")
    state = None
    if files.size(key) is not None:
        state = kmeans.KMeansState.from_arrays(arrays.load_arrays(files, key)[0])
    with job.reporter.stage("k-means", "rows") as progress:
        saved = time.monotonic()
        states = kmeans.fit(rows, n_clusters, seed=settings.seed, state=state, memory_limit=job.memory_limit, progress=progress)
        for state in states:
            if time.monotonic() - saved >= STATE_EVERY:
                arrays.save_arrays(files, key, state.to_arrays())
                saved = time.monotonic()
    assert state is not None
    with job.reporter.stage("assign", "rows") as progress:
        return kmeans.finalise(
            rows,
            state,
            min_cluster_rows=settings.min_cluster_rows,
            max_cluster_rows=settings.max_cluster_rows,
            seed=settings.seed,
            progress=progress,
        )


def select(job: Job) -> dict[str, Any]:
    """Choose each group's share of the budget by the method asked for; a finished group is committed, so a kill costs one."""
    settings = job.settings
    space_id, pool = _pool(job)
    groups, known = _groups(job, space_id, pool)
    budgets = allocate(groups.sizes, settings.budget(len(pool)))
    done = selections.clusters_done(job.catalog, job.run_id)
    said = warning(settings.method, len(pool), int(budgets.sum()), settings.dim)
    if said:
        job.reporter.say(said)
    with job.reporter.stage("select", "chosen") as progress:
        ready = int(budgets[sorted(done)].sum()) if done else 0
        progress(ready, int(budgets.sum()))
        for k in range(len(budgets)):
            if k in done:
                continue
            start = time.perf_counter()
            choice = choose(
                settings,
                groups,
                known,
                k,
                int(budgets[k]),
                progress=lambda chosen, of, ready=ready: progress(ready + chosen),  # type: ignore[misc]
            )
            mine = pool[groups.members(k)]
            selections.commit_cluster(
                job.catalog,
                job.run_id,
                k,
                budget=int(budgets[k]),
                residual=choice.residual,
                seconds=time.perf_counter() - start,
                stats=choice.stats,
                selection=pl.DataFrame(
                    {
                        "example_id": mine["example_id"].gather(choice.indices),
                        "rank": np.arange(len(choice.indices)),
                        "round": choice.rounds,
                        "correlation": choice.scores,
                        "residual_after": choice.residuals,
                        "weight": choice.weights,
                    }
                ).with_columns(pl.col("correlation").fill_nan(None)),
                candidates=mine.select("segment", "row", margin=pl.Series(choice.margins)),
            )
            ready += int(budgets[k])
            progress(ready)
    return {"selected": int(budgets.sum()), "pool": len(pool), "clusters": len(budgets), **measure(job, space_id, pool)}


def _groups(job: Job, space_id: str, pool: pl.DataFrame) -> tuple[Groups, Scalars]:
    method, seed = job.settings.method, job.settings.seed
    if METHODS[method].within == "strata":
        return strata(pool), scalars(method, pool, seed)
    if METHODS[method].within == "pool":
        return whole_pool(features.open_features(job.root.files, space_id, pool)), scalars(method, pool, seed)
    name = runs.run_status(job.catalog, job.run_id).run["clustering_id"]
    reader = clustered.open_clustering(job.root.files, name, clusterings.parts(job.catalog, name))
    groups = Groups(np.asarray(reader.sizes), reader.cluster_rows, reader.cluster, lambda k: reader.means[k])
    distances = assigned(job.catalog, name, pool)["distance"].to_numpy() if method == "centroid" else None
    return groups, scalars(method, pool, seed, distances)


def publish(job: Job) -> dict[str, Any]:
    """Mark the run complete and publish a snapshot that readers open without a lock."""
    runs.finish_run(job.catalog, job.run_id)
    return {"snapshot": snapshot.publish(job.root, job.run_id)}


def _pool(job: Job) -> tuple[str, pl.DataFrame]:
    space_id = runs.run_status(job.catalog, job.run_id).run["space_id"]
    pool = blocks.features_pool(job.catalog, job.run_id, space_id)
    if not len(pool):
        raise UserError("no example of the pool has a usable gradient; see `tagcos sql 'FROM rejects_by_reason'`")
    return space_id, pool
