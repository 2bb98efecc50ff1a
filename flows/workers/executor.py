"""Where partitions run: threads of this process, processes of this machine, or a Ray cluster; one interface for all stages.

A stage passes a function `work(spec, resources, tasks, progress)`, a generator of one result a task, in order. It is found by
name in the process that runs it, and gets plain data: where the root is, settings, partition numbers. A partition depends on
nothing but itself, so that the result does not depend on the worker (on a CPU, up to the order of additions, which follows the
number of threads). The driver gets results as they finish, and alone writes to the catalog.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from threadpoolctl import threadpool_limits

from flows.workers.work import Done, Progress, Work, WorkerResources, send_results
from tagcos_stream.config import Settings
from tagcos_stream.machine import available_cpus, set_environment_defaults
from tagcos_stream.types import UserError


def place_of(settings: Settings) -> str:
    """threads, processes or ray."""
    return settings.run_on or ("processes" if settings.workers > 1 else "threads")


def threads_of(settings: Settings) -> int:
    """Threads of this process: as the settings say, or one for each core."""
    return settings.threads or available_cpus()


def sharing(settings: Settings, tasks: int) -> int:
    """Workers that share this machine's memory: processes, and Ray workers where no cluster is named."""
    place = place_of(settings)
    here = place == "processes" or (place == "ray" and not os.environ.get("RAY_ADDRESS"))
    return min(settings.workers, max(1, tasks)) if here else 1


def devices_of(device: str, workers: int) -> list[str]:
    """A device per worker: "auto" and "cuda" with several workers are spread over the GPUs there are."""
    if device not in ("auto", "cuda") or workers == 1:
        return [device] * workers
    import torch

    gpus = torch.cuda.device_count()
    if gpus == 0 and device == "cuda":
        raise UserError("device cuda: no GPU is visible; use --device cpu or check the driver")
    return [f"cuda:{i % gpus}" if gpus else "cpu" for i in range(workers)]


def partitioned(
    work: Work,
    spec: Any,
    tasks: Sequence[Any],
    settings: Settings,
    *,
    ahead: int = 1,
    lanes: int = 1,
    progress: Progress | None = None,
    needs_model: bool = True,
) -> Iterator[Any]:
    """Do all tasks; in order on threads with one lane, else in the order in which they finish.

    `ahead` is how many tasks `work` takes before it yields the first one's result; `lanes` how many tasks this process does at
    the same time where they run on threads, each on its share of the threads; `progress` gets the work done by all workers
    so far, within tasks too. `needs_model`: whether `work` runs the model, on the device of the settings;
    otherwise processes get no device, and torch is not imported to count them.
    """
    place = place_of(settings)
    if place == "threads" and lanes > 1:
        yield from _in_lanes(work, spec, tasks, settings, lanes, progress)
    elif place == "threads":
        yield from work(spec, WorkerResources(settings.device, settings.threads), iter(tasks), progress)
    elif place == "processes":
        yield from _in_processes(work, spec, tasks, settings, settings.device if needs_model else "cpu", progress)
    else:
        from flows.workers.ray_executor import on_ray

        yield from on_ray(work, spec, tasks, settings, ahead, progress)


class _Stopped(BaseException):
    """Ends a lane that nobody waits for any more; not an `Exception`, which would be sent to the driver."""


def _in_lanes(
    work: Work, spec: Any, tasks: Sequence[Any], settings: Settings, lanes: int, progress: Progress | None
) -> Iterator[Any]:
    """Tasks side by side in this process: what a task does on one thread then leaves no core waiting."""
    resources = WorkerResources(settings.device, max(1, threads_of(settings) // lanes))
    todo = deque(tasks)
    done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    stopped = threading.Event()

    def due() -> Iterator[Any]:
        with suppress(IndexError):  # there is no more
            while not stopped.is_set():
                yield todo.popleft()

    def lane(number: int) -> None:
        def send(found: Any) -> None:
            if stopped.is_set():
                raise _Stopped
            done.put((number, found))

        with suppress(_Stopped):
            send_results(work, spec, resources, due(), send)

    threads = [threading.Thread(target=lane, args=(number,), daemon=True) for number in range(lanes)]
    amounts: dict[int, float] = {}
    left = len(tasks)
    # one limit for all: each lane sets and restores its own, and one that ended would give its cores back to another's products
    with threadpool_limits(1, user_api="blas"):
        for thread in threads:
            thread.start()
        try:
            while left:
                number, result = done.get()
                if not _told(number, result, amounts, progress):
                    left -= 1
                    yield result
        finally:
            stopped.set()
            for thread in threads:
                thread.join()


def _in_processes(
    work: Work, spec: Any, tasks: Sequence[Any], settings: Settings, device: str, progress: Progress | None
) -> Iterator[Any]:
    devices = devices_of(device, min(settings.workers, len(tasks)))
    threads = settings.threads or max(1, available_cpus() // max(1, len(devices)))
    set_environment_defaults()  # the processes inherit them
    # spawned, not forked: a forked process cannot use CUDA, nor trust the locks of its parent's threads
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    todo.cancel_join_thread()  # workers that ended take nothing more: this process must not wait, at its end, until they do
    for task in tasks:
        todo.put(task)
    for _ in devices:
        todo.put(None)
    processes = [
        context.Process(target=_worker, args=(n, work, spec, WorkerResources(device, threads), todo, done), daemon=True)
        for n, device in enumerate(devices)
    ]
    # A terminal sends Ctrl-C to every process. It is for the driver, which stops the workers; they start with it blocked.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        for process in processes:
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield from _collect(processes, done, len(tasks), progress)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _worker(number: int, work: Work, spec: Any, resources: WorkerResources, todo: Any, done: Any) -> None:
    threading.Thread(target=_end_with_driver, daemon=True).start()
    send_results(work, spec, resources, iter(todo.get, None), lambda found: done.put((number, found)))


def _end_with_driver() -> None:
    """End this process when its driver was killed: it would go on for nobody, beside the workers of the command that goes on."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    multiprocessing.connection.wait([driver.sentinel])
    os._exit(1)


def _collect(processes: Sequence[Any], done: Any, expected: int, progress: Progress | None) -> Iterator[Any]:
    amounts: dict[int, float] = {}
    while expected:
        all_ended = all(process.exitcode == 0 for process in processes)  # then what they did is there
        try:
            number, result = done.get(timeout=1.0)
        except queue.Empty:
            if all_ended:
                raise RuntimeError(f"all workers ended with {expected} of their tasks not done") from None
        else:
            if not _told(number, result, amounts, progress):
                expected -= 1
                yield result
                continue
        lost = [process for process in processes if process.exitcode not in (None, 0)]
        if lost:
            raise UserError(
                f"a worker ended with exit code {lost[0].exitcode} (-9 often means out of memory): lower --workers or "
                "--batch-tokens; run the same command again to go on"
            )


def _told(number: int, message: Any, amounts: dict[int, float], progress: Progress | None) -> bool:
    """Whether a worker's message is news about its work, not a result: an error is raised, its progress added to the others'."""
    if isinstance(message, Exception):
        raise message
    if not isinstance(message, Done):
        return False
    amounts[number] = message.amount
    if progress is not None:
        progress(sum(amounts.values()))
    return True
