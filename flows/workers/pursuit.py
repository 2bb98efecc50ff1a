"""The pursuit in one cluster: the part of the selection that a worker runs. It needs the root's address and its rows' places."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flows.workers.executor import Progress, Seat
from storage.arrays import grouped_reader
from storage.files.base import Files
from tagcos_stream.selection.keep_earlier import Kept, hold_on
from tagcos_stream.selection.pursuit.omp import Pursuit, omp_select


@dataclass(frozen=True)
class PursuitSpec:
    files: Files
    clustering_id: str
    parts: tuple[int, ...]  # committed
    ridge: float
    tol: float
    sticky: float | None
    memory_limit: int  # bytes


@dataclass(frozen=True)
class ClusterTask:
    """n rows of a cluster."""

    cluster: int
    positions: np.ndarray  # (n,) int64: where they lie in the clustering
    mean: np.ndarray  # (D,) float32: what to aim at
    budget: int
    earlier: np.ndarray  # of the n rows those that the run before chose, where they are to keep their place


@dataclass(frozen=True)
class Pursued:
    cluster: int
    pursuit: Pursuit
    held: Kept | None  # where earlier choices kept their place
    seconds: float


def pursue(spec: PursuitSpec, seat: Seat, tasks: Iterator[ClusterTask], progress: Progress | None) -> Iterator[Pursued]:
    """One pursuit a task; `progress` gets the number of rows chosen by all of them so far."""
    reader = grouped_reader.open_clustering(spec.files, spec.clustering_id, spec.parts)
    before = 0
    for task in tasks:
        start = time.perf_counter()
        rows = reader.rows(task.positions)
        pursuit = omp_select(
            rows,
            task.mean,
            task.budget,
            ridge=spec.ridge,
            tol=spec.tol,
            memory_limit=spec.memory_limit,
            threads=seat.threads,
            progress=None if progress is None else lambda chosen, of, before=before: progress(before + chosen),  # type: ignore[misc]
        )
        held = None
        if spec.sticky is not None:
            held = hold_on(
                rows,
                task.mean,
                pursuit.indices,
                pursuit.margins,
                pursuit.residual,
                task.earlier,
                margin=spec.sticky,
                ridge=spec.ridge,
            )
        before += task.budget
        yield Pursued(task.cluster, pursuit, held, time.perf_counter() - start)
