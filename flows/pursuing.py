"""The pursuit in one cluster: the part of the selection that a worker runs. It needs the root's address and cluster numbers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from flows.partitions import Progress, Seat
from storage import clustered
from storage.files import Files
from tagcos_stream.pursuit.omp import Pursuit, omp_select


@dataclass(frozen=True)
class PursuitSpec:
    files: Files
    clustering_id: str
    parts: tuple[int, ...]  # committed
    ridge: float
    tol: float
    memory_limit: int  # bytes


@dataclass(frozen=True)
class ClusterTask:
    cluster: int
    budget: int


@dataclass(frozen=True)
class Pursued:
    task: ClusterTask
    pursuit: Pursuit
    seconds: float


def pursue(spec: PursuitSpec, seat: Seat, tasks: Iterator[ClusterTask], progress: Progress | None) -> Iterator[Pursued]:
    """One pursuit a task; `progress` gets the number of rows chosen by all of them so far."""
    reader = clustered.open_clustering(spec.files, spec.clustering_id, spec.parts)
    before = 0
    for task in tasks:
        start = time.perf_counter()
        pursuit = omp_select(
            reader.cluster(task.cluster),
            reader.means[task.cluster],
            task.budget,
            ridge=spec.ridge,
            tol=spec.tol,
            memory_limit=spec.memory_limit,
            threads=seat.threads,
            progress=None if progress is None else lambda chosen, of, before=before: progress(before + chosen),  # type: ignore[misc]
        )
        before += task.budget
        yield Pursued(task, pursuit, time.perf_counter() - start)
