"""Passes of k-means over the pool's features: the part of the clustering that workers run, stretch by stretch.

On a CPU, as on the driver, so that who computes a stretch changes no bit of it, as long as each has the same number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from flows.context import RunContext
from flows.results import Features
from flows.workers.executor import partitioned, sharing
from flows.workers.work import Progress, WorkerResources, set_threads
from storage.arrays.segments import FeatureRows, open_features
from storage.files.base import Files
from tagcos_stream.clustering.assign import Assigned, Assigner, Assigning, assign_stretch
from tagcos_stream.clustering.exact_pass import Passes, StretchSums, pass_sums
from tagcos_stream.clustering.kmeans import pass_bytes, peak_bytes
from tagcos_stream.clustering.stream import Nearest, Stretch, stretches
from tagcos_stream.config import Settings

# A worker lives for one pass and takes about 4 s to start, as it imports torch; a stretch is 1 GiB of rows in float32, a second
# and more of work. With fewer for each, much of the pass would be waiting for workers.
STRETCHES_A_WORKER = 8


@dataclass(frozen=True)
class PassSpec:
    """What a worker needs for a pass over all features of a pool."""

    files: Files
    space_id: str
    pool: pl.DataFrame  # segment, row: in that order
    centroids: np.ndarray  # (K, D) float32


def sum_stretches(
    spec: PassSpec, resources: WorkerResources, tasks: Iterator[tuple[int, Stretch]], progress: Progress | None
) -> Iterator[tuple[int, StretchSums]]:
    """Sum the features of each cluster, by stretch of the pool; a `Work` for any executor."""
    rows, nearest = _opened(spec, resources), Nearest(spec.centroids, "cpu")
    for number, stretch in tasks:
        yield number, pass_sums(rows, nearest, stretch)


def assign_stretches(
    spec: PassSpec, resources: WorkerResources, tasks: Iterator[tuple[int, Stretch, np.ndarray]], progress: Progress | None
) -> Iterator[tuple[int, Assigned]]:
    """Assign every row to its nearest centroid, by stretch of the pool; a `Work` for any executor."""
    rows, assigner = _opened(spec, resources), Assigner(spec.centroids, "cpu")
    for number, stretch, keys in tasks:
        yield number, assign_stretch(rows, assigner, stretch, keys)


def _opened(spec: PassSpec, resources: WorkerResources) -> FeatureRows:
    set_threads(resources.threads)
    return open_features(spec.files, spec.space_id, spec.pool)


def worker_passes(
    run: RunContext, features: Features, rows: FeatureRows, n_clusters: int
) -> tuple[Passes, Assigning] | tuple[None, None]:
    """Who computes the passes of a fit, and the one that ends it: workers, or (None, None) where this process does better.

    That is with one worker, with few stretches for each, and where memory_limit has no room for what is on its way.
    """
    settings = run.settings
    cut = len(stretches(rows))
    if settings.workers == 1 or cut < STRETCHES_A_WORKER * settings.workers:
        return None, None
    block = int(np.diff(rows.starts).max())
    needed = peak_bytes(rows.n_rows, rows.dim, n_clusters, block_rows=block)
    needed += (settings.workers + 1) * 8 * n_clusters * rows.dim  # sums that wait for their turn
    if (sharers := sharing(settings, cut)) > 1:
        needed += sharers * pass_bytes(rows.dim, n_clusters, block_rows=block)
    if needed > run.memory_limit:
        return None, None
    spec = partial(PassSpec, run.root.files, features.space_id, features.pool.select("segment", "row"))
    return partial(_passes, spec, settings), partial(_assigning, spec, settings)


def _passes(spec: Any, settings: Settings, centroids: np.ndarray, cut: Sequence[Stretch]) -> Iterator[StretchSums]:
    if cut:
        yield from in_order(partitioned(sum_stretches, spec(centroids), list(enumerate(cut)), settings, needs_model=False))


def _assigning(
    spec: Any, settings: Settings, centroids: np.ndarray, tasks: Sequence[tuple[Stretch, np.ndarray]]
) -> Iterator[tuple[int, Assigned]]:
    numbered = [(number, *task) for number, task in enumerate(tasks)]
    yield from partitioned(assign_stretches, spec(centroids), numbered, settings, needs_model=False)


def in_order(found: Iterator[tuple[int, StretchSums]]) -> Iterator[StretchSums]:
    """Sums of stretches as they finish -> in order.

    What waits for a slow stretch is joined with its neighbours: stored features are float16, so that their sums are exact in any
    grouping, and no more wait than there are stretches under way.
    """
    waiting: dict[int, StretchSums] = {}  # by their first stretch
    due = 0
    for number, part in found:
        first, after = number, waiting.pop(number + 1, None)
        if after is not None:
            part = part + after
        before = next((start for start, run in waiting.items() if start + len(run.inertia) == number), None)
        if before is not None:
            first, part = before, waiting.pop(before) + part
        if first == due:
            due += len(part.inertia)
            yield part
        else:
            waiting[first] = part
    assert not waiting, "partitioned gives every stretch once"
