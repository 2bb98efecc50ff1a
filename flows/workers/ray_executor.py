"""Partitions on a Ray cluster: the one that RAY_ADDRESS names, or one on this machine that ends with the process.

Actors, not tasks: a worker opens its model once. The driver feeds each worker, so that it knows what a lost one had in hand and
gives it to another. Ray's own calls, not prefect-ray's: under Prefect's Ray runner a task costs a hundred times as much
(docs/scaling.md), and the command line needs the same code without a server.
"""

from __future__ import annotations

import itertools
import os
import queue
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

# before Ray is imported: nothing is reported to anybody, and a worker without a GPU keeps its variables
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from flows.workers.work import Work, WorkerResources
from tagcos_stream.config import Settings
from tagcos_stream.types import UserError

LOSSES = 3  # workers lost without a result in between: then the next would be lost, too


class RayWorker:
    """Does tasks as they are given; `results` begins with a sign that the worker is there."""

    def __init__(self, work: Work, spec: Any, resources: WorkerResources) -> None:
        self._work, self._spec, self._resources = work, spec, resources
        self._todo: queue.Queue[tuple[int, Any]] = queue.Queue()

    def give(self, number: int, task: Any) -> None:
        """Number n from 0, since calls of an actor with several threads may overtake each other; None: there is no more."""
        self._todo.put((number, task))

    def _tasks(self) -> Iterator[Any]:
        """Tasks in the order of their numbers."""
        early: dict[int, Any] = {}
        for number in itertools.count():
            while number not in early:
                early.update([self._todo.get()])
            task = early.pop(number)
            if task is None:
                return
            yield task

    def results(self) -> Iterator[Any]:
        """Yield None once the worker is ready, then each result; last the error that ended the work, if there is one."""
        yield None
        try:
            # not "yield from": Ray sends into its generators, and what it sends would reach an iterator that takes nothing
            for result in self._work(self._spec, self._resources, self._tasks(), None):  # noqa: UP028
                yield result
        except Exception as error:  # as it is: Ray would wrap it
            yield error


@dataclass
class _Worker:
    actor: Any
    in_hand: deque[Any] = field(default_factory=deque)  # given, no result yet; results come in this order
    given: int = 0
    closed: bool = False  # it gets no more tasks, and ends after those in hand


def on_ray(work: Work, spec: Any, tasks: Sequence[Any], settings: Settings, ahead: int) -> Iterator[Any]:
    """See flows.workers.executor.partitioned. A lost worker is replaced, and what it had in hand is done again."""
    ray = _connected()
    needs = {"num_cpus": settings.threads or 1, "num_gpus": settings.gpus_per_worker}
    _check_fits(ray, needs)
    device = "cpu" if settings.device == "auto" and not settings.gpus_per_worker else settings.device
    resources = WorkerResources(device, settings.threads or 1)
    shared = ray.put(spec)  # once a machine, not once a worker
    todo, workers, losses = deque(tasks), {}, 0

    def start() -> None:
        actor = ray.remote(RayWorker).options(max_concurrency=2, **needs).remote(work, shared, resources)
        workers[actor.results.options(num_returns="streaming").remote()] = _Worker(actor)

    def give(worker: _Worker, task: Any) -> None:
        worker.actor.give.remote(worker.given, task)
        worker.given += 1

    def feed(worker: _Worker) -> None:
        while todo and not worker.closed and len(worker.in_hand) < ahead:
            worker.in_hand.append(todo.popleft())
            give(worker, worker.in_hand[-1])
        if not todo and not worker.closed:
            worker.closed = True
            give(worker, None)

    for _ in range(min(settings.workers, len(tasks))):
        start()
    expected = len(tasks)  # always in `todo` or in the hands of a worker, so that there is a worker to wait for
    try:
        while expected:
            (stream,), _ = ray.wait(list(workers), num_returns=1)
            worker = workers[stream]
            try:
                result = ray.get(next(stream))
            except (StopIteration, ray.exceptions.RayActorError) as error:
                del workers[stream]
                ray.kill(worker.actor)  # else it may live as long as `worker` names it, and hold what its successor needs
                if isinstance(error, StopIteration) and worker.closed and not worker.in_hand:
                    continue
                # lost, however its stream ends: the stream of a killed worker may end without an error
                losses += 1
                if losses >= LOSSES:
                    reason = str(error).splitlines()[0] if str(error) else "ended with tasks in hand"
                    raise UserError(
                        f"{losses} Ray workers were lost one after the other ({reason}); if for memory, "
                        "lower --batch-tokens or ask for more CPUs a worker with --threads; run the same command again to go on"
                    ) from error
                todo.extendleft(reversed(worker.in_hand))
                if todo:
                    start()
                continue
            if isinstance(result, Exception):
                raise result
            if worker.in_hand and result is not None:
                worker.in_hand.popleft()
                expected, losses = expected - 1, 0
            feed(worker)
            if result is not None:
                yield result
    finally:
        for worker in workers.values():
            ray.kill(worker.actor)


def _connected() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError("run_on ray needs the package ray: pip install 'tagcos-stream[ray]'") from error
    if not ray.is_initialized():
        quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    return ray


def _check_fits(ray: Any, needs: dict[str, float]) -> None:
    """Ray would wait for ever for what no node has."""
    wanted = {"CPU": needs["num_cpus"], "GPU": needs["num_gpus"]}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        has = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise UserError(
            f"a Ray worker asks for {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs, but the cluster's nodes have {has}: lower "
            "--threads or --gpus-per-worker, or add nodes"
        )
