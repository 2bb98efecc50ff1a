"""What an executor runs: the form of a work function, and the resources of the worker that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WorkerResources:
    """Device and threads of one worker."""

    device: str  # of torch
    threads: int | None  # None: as many as the process has


Progress = Callable[[float], None]
# (spec, resources, tasks, progress) -> one result for each task, in order
Work = Callable[[Any, WorkerResources, Iterator[Any], Progress | None], Iterator[Any]]
