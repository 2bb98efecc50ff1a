"""Small work functions for the tests of executors. A worker imports this module, and no other of the tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from flows.workers.work import Progress, WorkerResources
from tagcos_stream.types import UserError


def squares(spec: int, resources: WorkerResources, tasks: Iterator[int], progress: Progress | None) -> Iterator[tuple[int, int]]:
    """Some work: task, its square times spec."""
    for task in tasks:
        if task < 0:
            raise UserError(f"task {task} is below 0")
        yield task, spec * task * task


def echo(spec: None, resources: WorkerResources, tasks: Iterator[int], progress: Progress | None) -> Iterator[int]:
    yield from tasks


def folders(spec: None, resources: WorkerResources, tasks: Iterator[int], progress: Progress | None) -> Iterator[str]:
    """Where a relative path begins."""
    for _ in tasks:
        yield os.getcwd()


class Unreadable:
    """A spec that no worker can read, as where another version of a package is installed."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return int, ("no number",)


def slow(spec: float, resources: WorkerResources, tasks: Iterator[int], progress: Progress | None) -> Iterator[int]:
    """Each task takes `spec` seconds, in five parts that are told one by one; task 3 kills its worker."""
    done = 0.0
    for task in tasks:
        if task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(5):
            time.sleep(spec / 5)
            done += 0.2
            if progress is not None:
                progress(done)
        yield task


def deadly(spec: str, resources: WorkerResources, tasks: Iterator[int], progress: Progress | None) -> Iterator[int]:
    """Dies at task 3: once, where `spec` names a file that it can make, else each time."""
    for task in tasks:
        if task == 3 and (not spec or not os.path.exists(spec)):
            if spec:
                Path(spec).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        yield task


def quits(spec: str, resources: WorkerResources, tasks: Iterator[int], progress: Progress | None) -> Iterator[int]:
    """Ends without an error after the first of its tasks: once, where `spec` names a file that it can make, else each time."""
    for task in tasks:
        if spec:
            yield task
        if not spec or not os.path.exists(spec):
            if spec:
                Path(spec).touch()
            return


def outlived(spec: str, resources: WorkerResources, tasks: Iterator[int], progress: Progress | None) -> Iterator[int]:
    """Task 1 kills its first worker; task 0 ends shortly after that."""
    for task in tasks:
        if task == 1 and not os.path.exists(spec):
            Path(spec).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        while task == 0 and not os.path.exists(spec):
            time.sleep(0.05)
        time.sleep(0.5)
        yield task
