"""The choice from one group of the pool, by any method, and which chosen row stands for which: what a worker runs.

A worker needs the root's address, the method's name and settings, and of each group where its rows lie or what is known of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from flows.workers.work import Progress, WorkerResources
from storage.arrays import grouped_reader
from storage.arrays.segments import open_features
from storage.files.base import Files
from tagcos_stream.selection.methods import METHODS, Choice, Group, Limits
from tagcos_stream.selection.stands import Stands, affordable, stands_for
from tagcos_stream.selection.targets import TargetRows
from tagcos_stream.selection.tokens import choose_within
from tagcos_stream.types import RowBlocks


@dataclass(frozen=True)
class SelectSpec:
    """What all groups of a selection share; plain data that travels to other processes."""

    files: Files
    method: str
    settings: dict[str, Any]  # those that the method reads
    space_id: str
    clustering_id: str | None  # of methods within clusters
    parts: tuple[int, ...]  # of the clustering, committed
    memory_limit: int  # bytes
    wanted: TargetRows | None = None  # of a method that needs a target set


@dataclass(frozen=True)
class GroupTask:
    """A group of n rows to choose from."""

    group: int
    budget: int
    columns: dict[str, np.ndarray]  # (n,) each: those that the method reads
    positions: np.ndarray | None = None  # (n,) int64: where the rows lie in the clustering
    locations: pl.DataFrame | None = None  # or in the space: segment, row
    mean: np.ndarray | None = None  # (D,) of the features, where it is known; or of the target in the group
    earlier: np.ndarray | None = None  # int64: those that the selection before has, where they are to be kept
    costs: np.ndarray | None = None  # (n,) int64 tokens, where the budget is in tokens
    first_rows: int | None = None  # rows to ask for at first, where the budget is in tokens
    pinned: np.ndarray | None = None  # (p,) int64: those that must be chosen; None where there are none


@dataclass(frozen=True)
class GroupChoice:
    """What was chosen from a group, which chosen row stands for which, and how long both took."""

    group: int
    choice: Choice
    stands: Stands | None  # None where it would take too long, or nothing was chosen
    seconds: float
    stands_seconds: float


def choose_groups(
    spec: SelectSpec, resources: WorkerResources, tasks: Iterator[GroupTask], progress: Progress | None
) -> Iterator[GroupChoice]:
    """One choice a task; `progress` gets the number of rows chosen by all of them so far."""
    method = METHODS[spec.method]
    clustered = None
    if spec.clustering_id is not None:
        clustered = grouped_reader.ClusteringReader(spec.files, spec.clustering_id, spec.parts)
    before = 0
    for task in tasks:
        start = time.perf_counter()
        features: RowBlocks
        if clustered is not None and task.positions is not None:
            features = clustered.rows(task.positions)
        else:
            assert task.locations is not None
            features = open_features(spec.files, spec.space_id, task.locations)

        def within(chosen: int, of: int, before: int = before) -> None:
            if progress is not None:
                progress(before + chosen)

        rows = features if method.features else None
        group = Group(
            task.columns,
            rows,
            task.mean,
            spec.wanted,
            task.earlier,
            task.costs,
            task.first_rows,
            task.pinned,
            resources.threads,
        )
        limits = Limits(spec.memory_limit, resources.threads, within)
        choice = choose_within(method, group, task.budget, spec.settings, limits)
        before += task.budget
        chosen = time.perf_counter()
        stands = None
        if len(choice.indices) and affordable(features.n_rows, len(choice.indices), features.dim):
            stands = stands_for(features, choice.indices, memory_limit=spec.memory_limit, threads=resources.threads)
        yield GroupChoice(task.group, choice, stands, chosen - start, time.perf_counter() - chosen)
