"""Partitions on a Ray cluster: the one that RAY_ADDRESS names, or one on this machine that ends with the process.

Actors, not tasks: a worker opens its model once. The driver feeds each worker, so that it knows what a lost one had in hand and
gives it to another. Ray's own calls, not prefect-ray's: under Prefect's Ray runner a task costs a hundred times as much
(docs/scaling.md), and the command line needs the same code without a server.
"""

from __future__ import annotations

import itertools
import os
import queue
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# before Ray is imported: nothing is reported to anybody, and a worker without a GPU keeps its variables
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

from flows.context import versions
from flows.workers.work import Done, Progress, Work, WorkerResources, send_results
from tagcos_stream.config import Settings
from tagcos_stream.types import UserError

LOSSES = 3  # workers lost without a result in between: then the next would be lost, too
ANSWER_SECONDS = 10.0  # for a cluster to answer; Ray itself would try for a quarter of an hour
OF_THE_DRIVER = ("python", "prefect", "duckdb")  # Ray compares Python's version; the catalog and the flow are the driver's
LAST_WORDS = 5.0  # seconds for the streams of killed workers to end


@dataclass(frozen=True)
class Ready:
    """A worker's sign that it is there, with the versions of what it computes with."""

    versions: Mapping[str, str]
    node: str


class RayWorker:
    """Does tasks as they are given; `results` begins with a sign that the worker is there."""

    def __init__(self, work: Work, spec: Any, resources: WorkerResources, folder: str) -> None:
        """`folder`: of the driver, where this machine has it: relative paths in settings lead to the same files."""
        if os.path.isdir(folder):
            os.chdir(folder)
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
        """Yield `Ready`, then each result, and a `Done` now and then; last the error that ended the work, if there is one."""
        yield Ready(versions(), socket.gethostname())
        tasks = self._tasks()
        first = next(tasks, None)
        if first is None:  # it came when all was done: it loads no model
            return
        found: queue.Queue[tuple[Any, ...]] = queue.Queue()

        def do() -> None:
            given = itertools.chain([first], tasks)
            send_results(self._work, self._spec, self._resources, given, lambda result: found.put((result,)))
            found.put(())

        threading.Thread(target=do, daemon=True).start()  # so that progress is told while the work computes
        while result := found.get():
            yield result[0]


@dataclass(frozen=True)
class _Ended:
    """The stream of a worker's results came to its end; `error`: what Ray says of the reason, if anything."""

    error: Exception | None


@dataclass(eq=False)
class _Worker:
    actor: Any
    in_hand: deque[Any] = field(default_factory=deque)  # given, no result yet; results come in this order
    given: int = 0
    closed: bool = False  # it gets no more tasks, and ends after those in hand
    amount: float = 0.0  # what it told of its progress
    settled: float = 0.0  # of it, before its last result


def on_ray(
    work: Work, spec: Any, tasks: Sequence[Any], settings: Settings, ahead: int, progress: Progress | None
) -> Iterator[Any]:
    """See flows.workers.executor.partitioned. A lost worker is replaced, and what it had in hand is done again."""
    ray = _connected()
    needs = {"num_cpus": settings.threads or 1, "num_gpus": settings.gpus_per_worker}
    _check_fits(ray, needs)
    device = "cpu" if settings.device == "auto" and not settings.gpus_per_worker else settings.device
    resources = WorkerResources(device, settings.threads or 1)
    shared = ray.put(spec)  # once a machine, not once a worker
    todo, losses, before = deque(tasks), 0, 0.0
    workers: dict[_Worker, threading.Thread] = {}
    events: queue.SimpleQueue[tuple[_Worker, Any]] = queue.SimpleQueue()

    def start() -> None:
        actor = ray.remote(RayWorker).options(max_concurrency=2, **needs).remote(work, shared, resources, os.getcwd())
        worker = _Worker(actor)
        stream = actor.results.options(num_returns="streaming").remote()
        # A thread of its own: this one would wait within Ray, which drops what the handler of a signal raises.
        workers[worker] = threading.Thread(target=_listen, args=(ray, worker, stream, events), daemon=True)
        workers[worker].start()

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
            worker, found = events.get()
            if isinstance(found, Exception):
                raise found
            if isinstance(found, Ready):
                _check_versions(found)
                feed(worker)
            elif isinstance(found, Done):
                worker.amount = found.amount
                if progress is not None:
                    progress(before + sum(each.amount for each in workers))
            elif not isinstance(found, _Ended):
                worker.in_hand.popleft()
                expected, losses, worker.settled = expected - 1, 0, worker.amount
                feed(worker)
                yield found
            else:
                del workers[worker]
                before += worker.settled
                ray.kill(worker.actor)  # else it may live as long as `worker` names it, and hold what its successor needs
                if found.error is None and worker.closed and not worker.in_hand:
                    continue
                # lost, however its stream ends: the stream of a killed worker may end without an error
                losses += 1
                if losses >= LOSSES:
                    raise _too_many(losses, found.error)
                todo.extendleft(reversed(worker.in_hand))
                if todo:
                    start()
    finally:
        for worker in workers:
            ray.kill(worker.actor)
        for listener in workers.values():
            listener.join(LAST_WORDS)


def _listen(ray: Any, worker: _Worker, stream: Any, events: queue.SimpleQueue[tuple[_Worker, Any]]) -> None:
    """Pass on what a worker yields, and last `_Ended`; an error other than the loss of a worker is for the driver to raise."""
    error: Exception | None = None
    try:
        for result in stream:
            events.put((worker, ray.get(result)))
    except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as lost:  # the machine with its results is gone, too
        error = lost
    except Exception as other:  # for the driver, which raises it: nobody joins this thread for its errors
        events.put((worker, other))
    events.put((worker, _Ended(error)))


def _check_versions(ready: Ready) -> None:
    """Refuse a worker whose results might differ from those of other machines."""
    here = versions()
    different = [
        f"{name} {version}, not {here[name]}"
        for name, version in ready.versions.items()
        if name not in OF_THE_DRIVER and _public(version) != _public(here[name])
    ]
    if different:
        raise UserError(
            f"the Ray worker on {ready.node} has {'; '.join(different)} as on this machine: install the same versions on all "
            "machines of the cluster (pip install with the same constraints.txt)"
        )


def _public(version: str) -> str:
    """A version without the kind of its build: torch 2.13.0+cpu computes what 2.13.0+cu130 does."""
    return version.partition("+")[0]


def _too_many(losses: int, error: Exception | None) -> UserError:
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()] or ["ended with tasks in hand"]
    if getattr(error, "actor_init_failed", False):
        return UserError(
            f"Ray workers cannot start ({lines[-1]}): install tagcos-stream with the same constraints.txt and Python on all "
            "machines of the cluster"
        )
    return UserError(
        f"{losses} Ray workers were lost one after the other ({lines[0]}); if for memory, lower --batch-tokens or ask for more "
        "CPUs a worker with --threads; run the same command again to go on"
    )


def cluster_address() -> str:
    """Return the address of the cluster to join, or local, without joining it.

    Raises
    ------
    UserError
        Ray is not installed, the address is for Ray's client, which has no streams, or nobody listens there.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise UserError("run_on ray needs the package ray: pip install 'tagcos-stream[ray]'") from error
    address = os.environ.get("RAY_ADDRESS") or "local"  # not Ray's default, which joins any cluster that this machine has
    _check_answers(address)
    return address


def _connected() -> Any:
    address = cluster_address()
    import ray

    if ray.is_initialized():
        return ray
    own: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
    handler = signal.getsignal(signal.SIGTERM)  # which Ray replaces: a run that is ended by it would not say so
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error.__cause__ or error).strip()
        reason = reason.splitlines()[-1] if "Traceback" in reason else " ".join(reason.split())
        raise UserError(f"no Ray cluster can be used at RAY_ADDRESS {address}: {reason}") from error
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    return ray


def _check_answers(address: str) -> None:
    if address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS {address} is for Ray's client, which cannot stream results: run on a machine of the cluster, with its "
            "head's HOST:PORT (6379 by default) or auto as RAY_ADDRESS"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"the Ray cluster at RAY_ADDRESS {address} does not answer ({error}): start it, or unset RAY_ADDRESS to start one on "
            "this machine"
        ) from error


def _check_fits(ray: Any, needs: dict[str, float]) -> None:
    """Refuse what Ray does not take, and what no node has: Ray would wait for it for ever."""
    wanted = {"CPU": needs["num_cpus"], "GPU": needs["num_gpus"]}
    if wanted["GPU"] > 1 and wanted["GPU"] % 1:
        raise UserError(f"gpus_per_worker {wanted['GPU']:g}: Ray shares one GPU, but no two: use a whole number, or one below 1")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
        has = "; ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise UserError(
            f"a Ray worker asks for {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs, but the cluster's nodes have {has}: lower "
            "--threads or --gpus-per-worker, or add nodes"
        )
