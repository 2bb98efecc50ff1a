"""Stages 4 to 6: clusters of the features, the coreset chosen in each, and its publication."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from flows.job import Job
from flows.partitions import partitioned, place_of
from storage import arrays, blocks, clustered, clusterings, features, gc, regroup, runs, selections, snapshot
from tagcos_stream.config import Settings, digest
from tagcos_stream.coreset import allocate
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from flows.pursuing import Pursued
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
    """Choose each cluster's share of the budget by matching pursuit; a finished cluster is committed, so a kill costs one."""
    from flows.pursuing import ClusterTask, PursuitSpec, pursue

    settings = job.settings
    _, pool = _pool(job)
    name = runs.run_status(job.catalog, job.run_id).run["clustering_id"]
    reader = clustered.open_clustering(job.root.files, name, clusterings.parts(job.catalog, name))
    sizes = np.asarray(reader.sizes)
    budgets = allocate(sizes, settings.budget(len(pool)))
    done = selections.clusters_done(job.catalog, job.run_id)
    tasks = [ClusterTask(k, int(budgets[k])) for k in range(len(sizes)) if k not in done]
    several = settings.workers if place_of(settings) == "processes" else 1  # they share the machine
    parts = tuple(clusterings.parts(job.catalog, name))
    spec = PursuitSpec(job.root.files, name, parts, settings.ridge, settings.tol, job.memory_limit // several)
    with job.reporter.stage("select", "chosen") as progress:
        ready = resumed = int(budgets[sorted(done)].sum()) if done else 0
        progress(ready, int(budgets.sum()))
        for found in partitioned(pursue, spec, tasks, settings, progress=lambda chosen: progress(resumed + chosen)):
            _commit(job, pool[reader.cluster_rows(found.task.cluster)], found)
            ready += found.task.budget
            progress(ready)
    return {"selected": int(budgets.sum()), "pool": len(pool), "clusters": len(sizes)}


def _commit(job: Job, members: pl.DataFrame, found: Pursued) -> None:
    """members: the cluster's rows of the pool, in the order that the pursuit saw them."""
    pursuit = found.pursuit
    selections.commit_cluster(
        job.catalog,
        job.run_id,
        found.task.cluster,
        budget=found.task.budget,
        residual=pursuit.residual,
        seconds=found.seconds,
        stats=asdict(pursuit.stats),
        selection=pl.DataFrame(
            {
                "example_id": members["example_id"].gather(pursuit.indices),
                "rank": np.arange(len(pursuit.indices)),
                "round": pursuit.rounds,
                "correlation": pursuit.correlations,
                "residual_after": pursuit.residuals,
                "weight": pursuit.weights,
            }
        ),
        candidates=members.select("segment", "row", margin=pl.Series(pursuit.margins)),
    )


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
