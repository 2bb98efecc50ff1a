"""What an executor runs: the form of a work function, the resources of its worker, and how its results reach the driver."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

TELL_EVERY = 1.0  # seconds between two messages of a worker about its progress


@dataclass(frozen=True)
class WorkerResources:
    """Device and threads of one worker."""

    device: str  # of torch
    threads: int | None  # None: as many as the process has


Progress = Callable[[float], None]
# (spec, resources, tasks, progress) -> one result for each task, in order
Work = Callable[[Any, WorkerResources, Iterator[Any], Progress | None], Iterator[Any]]


def set_threads(threads: int | None) -> None:
    """Limit torch in this process to so many threads, which k-means keeps to as well; None changes nothing."""
    if threads is not None:
        import torch  # takes seconds

        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Done:
    """How much a worker has done so far, in the unit of the work's progress."""

    amount: float


def send_results(work: Work, spec: Any, resources: WorkerResources, tasks: Iterator[Any], send: Callable[[Any], object]) -> None:
    """Do the work in a worker of its own.

    Parameters
    ----------
    work, spec, resources, tasks
        The work and what it is called with.
    send
        Gets each result, from time to time a `Done`, and last the error that ended the work, if there is one.
    """
    told = -math.inf

    def tell(amount: float) -> None:
        nonlocal told
        if time.monotonic() - told >= TELL_EVERY:
            told = time.monotonic()
            send(Done(amount))

    try:
        for result in work(spec, resources, tasks, tell):
            send(result)
    except Exception as error:  # for the driver, which raises it: nobody sees this process's standard error
        send(error)
