"""Where blocks are computed: in this process, or in several, one a device."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from flows.engine import Done, Engine, EngineSpec, Task, load_adapted
from tagcos_stream.types import UserError


def devices_of(device: str, workers: int) -> list[str]:
    """A device per worker: "auto" and "cuda" with several workers are spread over the GPUs there are."""
    if device not in ("auto", "cuda") or workers == 1:
        return [device] * workers
    import torch

    gpus = torch.cuda.device_count()
    if gpus == 0 and device == "cuda":
        raise UserError("device cuda: no GPU is visible; use --device cpu or check the driver")
    return [f"cuda:{i % gpus}" if gpus else "cpu" for i in range(workers)]


def compute(
    spec: EngineSpec, tasks: Sequence[Task], workers: int, threads: int | None, progress: Callable[[float], None]
) -> Iterator[Done]:
    """Compute all tasks; with one worker here, in order, else in processes, in the order in which they finish.

    A block depends on nothing but itself, so that the result is the same whoever computes it (on a CPU, up to the order of
    additions, which follows the number of threads).
    """
    devices = devices_of(spec.device, min(workers, len(tasks)))
    if len(devices) == 1:
        try:
            yield from Engine(replace(spec, device=devices[0])).run(tasks, progress)
        finally:
            load_adapted.cache_clear()  # the stages to come need the memory, not the model
        return
    load_adapted.cache_clear()
    # spawned, not forked: a forked process cannot use CUDA, nor trust the locks of its parent's threads
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    for task in tasks:
        todo.put(task)
    for _ in devices:
        todo.put(None)
    processes = [
        context.Process(target=_work, args=(replace(spec, device=device), todo, done, threads, len(devices)), daemon=True)
        for device in devices
    ]
    for process in processes:
        process.start()
    try:
        yield from _collect(processes, done, len(tasks))
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _work(spec: EngineSpec, todo: Any, done: Any, threads: int | None, workers: int) -> None:
    import os

    import torch

    torch.set_num_threads(max(1, (threads or os.cpu_count() or 1) // workers))
    try:
        for result in Engine(spec).run(iter(todo.get, None)):
            done.put(result)
    except Exception as error:  # told to the driver, which raises it: nobody sees this process's standard error
        done.put(error)


def _collect(processes: Sequence[Any], done: Any, expected: int) -> Iterator[Done]:
    while expected:
        try:
            result = done.get(timeout=1.0)
        except queue.Empty:
            lost = [process for process in processes if process.exitcode not in (None, 0)]
            if lost:
                raise UserError(
                    f"a worker ended with exit code {lost[0].exitcode} (-9 often means out of memory): lower --workers or "
                    "--batch-tokens; run the same command again to go on"
                ) from None
            continue
        if isinstance(result, Exception):
            raise result
        expected -= 1
        yield result
