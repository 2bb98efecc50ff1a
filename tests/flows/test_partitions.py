"""Threads, processes and a Ray cluster select the same; what a lost worker had in hand is done again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial, reduce
from operator import add
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

from flows import models, pipeline
from flows.context import RunContext, versions
from flows.progress import SilentReporter
from flows.stages import answers
from flows.stages.gradients import features_of
from flows.workers import executor
from flows.workers import kmeans as passing
from flows.workers.executor import partitioned, sharing
from flows.workers.kmeans import worker_passes
from flows.workers.work import WorkerResources
from storage.arrays.segments import open_features
from storage.catalog import clusterings, runs, selections
from storage.root import open_root
from tagcos_stream.clustering import assign, exact_pass, kmeans, stream
from tagcos_stream.config import Settings, load_settings
from tagcos_stream.memory import GIB
from tagcos_stream.types import UserError
from tests.flows.partition_work import Unreadable, deadly, echo, folders, outlived, quits, slow, squares
from tests.flows.server import CHECKOUT, free_port

Maker = Callable[..., dict[str, Any]]
HAVE_RAY = True
try:
    import ray
except ImportError:
    HAVE_RAY = False
needs_ray = pytest.mark.skipif(not HAVE_RAY, reason="ray is not installed: pip install 'tagcos-stream[ray]'")
# while Ray waits it drops what the handler of a signal raises, so that a test that hangs would hang for ever
most_time = pytest.mark.timeout(method="thread")


@pytest.fixture(scope="module")
def cluster(s3_server: str) -> Iterator[None]:
    """A local Ray cluster of two processors; its workers inherit the way to the S3 server."""
    from flows.workers import ray_executor

    assert ray_executor.os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


def select(values: dict[str, Any]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The clusters of all rows, and the selection."""
    run_id = pipeline.run(load_settings(values), SilentReporter()).run_id
    catalog = open_root(values["root"], create=False).catalog
    clustering = clusterings.assignments(catalog, runs.run_status(catalog, run_id).run["clustering_id"])
    return clustering, selections.selection(catalog, run_id).drop("run_id").sort("cluster", "rank")


def answer_losses(root: str) -> pl.DataFrame:
    """The losses of all answers behind an empty prompt."""
    found = open_root(root, create=False).catalog.read("SELECT segment, row, loss FROM answer_losses ORDER BY ALL")
    assert found["loss"].count() > 100
    return found


def feature_files(root: str) -> list[bytes]:
    """The chunks of all stored features."""
    found = sorted(file.read_bytes() for file in Path(root, "spaces").rglob("c.*") if "features" in file.parts)
    assert len(found) > 3
    return found


@pytest.fixture
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over 120 rows is then cut into as many stretches as there are blocks, and workers pay; one pass is enough."""
    monkeypatch.setattr(stream, "batch_rows", lambda dim: 1)
    monkeypatch.setattr(stream, "STRETCH_BATCHES", 1)
    monkeypatch.setattr(kmeans, "fit", partial(kmeans.fit, max_passes=1))
    monkeypatch.setattr(passing, "STRETCHES_A_WORKER", 2)


def leave_passes_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stretch that this process computes is then an error; workers import the code anew."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a stretch was computed on the driver")

    monkeypatch.setattr(exact_pass, "pass_sums", refuse)
    monkeypatch.setattr(assign, "assign_stretch", refuse)


@pytest.mark.parametrize(
    ("settings", "lanes"),
    [({"run_on": "threads"}, 1), ({"run_on": "threads"}, 3), ({"run_on": "processes"}, 1), ({"workers": 3}, 1)],
)
def test_partitioned__every_task_once(settings: dict[str, Any], lanes: int) -> None:
    found = sorted(partitioned(squares, 3, list(range(20)), Settings(**settings), lanes=lanes))
    assert found == [(task, 3 * task * task) for task in range(20)]


def test_partitioned__counts_devices_only_for_work_that_runs_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it, which takes seconds, would fail
    settings = Settings(workers=2)
    assert sorted(partitioned(squares, 3, [1, 2], settings, needs_model=False)) == [(1, 3), (2, 12)]
    with pytest.raises(ImportError, match="torch"):
        list(partitioned(squares, 3, [1, 2], settings))


def test_partitioned__a_worker_s_mistake_reaches_the_driver() -> None:
    for settings, lanes in ((Settings(), 1), (Settings(), 2), (Settings(run_on="processes"), 1)):
        with pytest.raises(UserError, match="task -1 is below 0"):
            list(partitioned(squares, 3, [1, -1, 2], settings, lanes=lanes))


def test_partitioned__lanes_tell_what_they_did_and_end_with_their_driver() -> None:
    told: list[float] = []
    found = partitioned(slow, 3.0, [0, 1, *range(10, 200)], Settings(), lanes=2, progress=told.append)
    assert next(found) in (0, 1)
    assert told == sorted(told)
    assert 0 < told[0] < 1
    assert 1 < told[-1] < 2  # of both
    found.close()  # type: ignore[attr-defined]
    assert not [thread.name for thread in threading.enumerate() if "(lane)" in thread.name]


def test_partitioned__a_mistake_ends_the_driver_with_thousands_of_tasks_left() -> None:
    """More than a pipe holds: a driver that waited, at its end, until somebody takes them would never end."""
    code = (
        "from flows.workers.executor import partitioned; from tagcos_stream.config import Settings; "
        "from tests.flows.partition_work import squares; "
        "list(partitioned(squares, 3, [-1, *(10**400 + n for n in range(3000))], Settings(run_on='processes', workers=2)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "task -1 is below 0" in ended.stderr


def test_partitioned__a_killed_process_is_named() -> None:
    with pytest.raises(UserError, match="exit code -9"):
        list(partitioned(deadly, "", [1, 2, 3], Settings(run_on="processes")))


def test_partitioned__processes_end_with_a_driver_that_was_killed() -> None:
    code = (
        "from flows.workers.executor import partitioned; from tagcos_stream.config import Settings; "
        "from tests.flows.partition_work import slow; "
        "found = partitioned(slow, 0.1, [0] * 10_000, Settings(run_on='processes', workers=2)); "
        "[print(next(found), flush=True) for _ in range(3)]; next(found for found in found if found)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "0\n"
        workers = [child for child in psutil.Process(driver.pid).children() if "spawn_main" in " ".join(child.cmdline())]
        driver.kill()
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=30)[1] == []  # none alive


def test_partitioned__processes_tell_what_they_did_within_tasks() -> None:
    told: list[float] = []
    found = partitioned(slow, 3.0, [0, 1], Settings(run_on="processes", workers=2), progress=told.append)
    assert next(found) in (0, 1)
    before = list(told)
    assert before == sorted(before)
    assert 0 < before[0] < 1
    assert 1 < before[-1] < 2  # of both processes
    assert len(list(found)) == 1


def test_partitioned__a_killed_process_is_named_while_others_tell_their_progress() -> None:
    found = partitioned(slow, 1.5, [3, *range(10, 20)], Settings(run_on="processes", workers=2), progress=lambda amount: None)
    done: list[Any] = []
    with pytest.raises(UserError, match="exit code -9"):
        done.extend(found)
    assert len(done) < 10


def test_partitioned__processes_that_end_with_tasks_left_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="all workers ended with 3 of their tasks not done"):
        list(partitioned(quits, "", [1, 2, 3], Settings(run_on="processes", workers=2)))


def test_settings__refuse_places_that_contradict() -> None:
    for wrong, words in (({"run_on": "threads", "workers": 2}, "one worker"), ({"gpus_per_worker": 1}, "run_on to ray")):
        with pytest.raises(UserError, match=words):
            load_settings(wrong)


def test_in_order__joins_what_waits() -> None:
    r = np.random.default_rng(0)
    for n in (1, 2, 3, 10, 50):
        parts = [
            exact_pass.StretchSums(r.integers(0, 9, (3, 2)).astype(float), r.integers(0, 9, 3), (float(i),)) for i in range(n)
        ]
        for _ in range(20):
            found = list(passing.in_order((int(i), parts[i]) for i in r.permutation(n)))
            whole, ref = reduce(add, found), reduce(add, parts)
            assert whole.inertia == ref.inertia
            np.testing.assert_array_equal(whole.sums, ref.sums)
            np.testing.assert_array_equal(whole.sizes, ref.sizes)
    late = [(1, parts[1]), (3, parts[3]), (2, parts[2]), (0, parts[0])]
    assert [part.inertia for part in passing.in_order(iter(late))] == [(0.0, 1.0, 2.0, 3.0)]


@pytest.mark.usefixtures("short_stretches")
def test_run__processes_select_the_same_as_threads(
    small_settings: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradient blocks and pursuits, with a process of its own for the single worker, too; with two, passes of k-means.

    Losses of answers are computed with the gradients, so that each process loads the model once.
    """
    monkeypatch.delattr(answers, "partitioned")  # which would give them to other processes
    settings = small_settings(root=str(tmp_path / "one"), threads=1, ifd=True)
    one = select(settings)
    root = open_root(settings["root"], create=False)
    run_id, space_id = root.catalog.read("SELECT run_id, space_id FROM runs").row(0)

    def leaves_to_workers(**changes: Any) -> bool:
        run = RunContext(settings=load_settings(settings | changes), run_id=run_id, root=root, reporter=SilentReporter())
        features = features_of(run, space_id, {})
        return worker_passes(run, features, open_features(root.files, space_id, features.pool), 4) != (None, None)

    assert not leaves_to_workers(run_on="processes", workers=1)
    assert not leaves_to_workers(run_on="ray", workers=3)  # four stretches: too few for each
    assert not leaves_to_workers(workers=2, memory_limit=0.1)
    assert leaves_to_workers(run_on="ray", workers=2)
    for workers in (1, 2):
        if workers == 2:
            leave_passes_to_workers(monkeypatch)
        root_of = str(tmp_path / f"processes-{workers}")
        found = select(small_settings(root=root_of, threads=1, run_on="processes", workers=workers, ifd=True))
        assert all(a.equals(b) for a, b in zip(found, one, strict=True))
        assert answer_losses(root_of).equals(answer_losses(settings["root"]))
        assert feature_files(root_of) == feature_files(settings["root"])


def test_run__clusters_side_by_side_give_the_same_selection(
    small_settings: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as memory_limit allows; one after the other on all threads where it does not."""
    lanes: list[int] = []
    in_lanes = executor._in_lanes

    def counted(*given: Any) -> Iterator[Any]:
        lanes.append(given[4])
        return in_lanes(*given)

    monkeypatch.setattr(executor, "_in_lanes", counted)
    settings = small_settings(threads=2)
    pipeline.run(load_settings(settings), SilentReporter())
    assert lanes == [2]
    found = []
    for name, changes in (("two", {"threads": 2}), ("one", {"threads": 1}), ("small", {"threads": 2, "memory_limit": 0.05})):
        root = str(tmp_path / name)
        shutil.copytree(settings["root"], root)
        run_id = pipeline.reselect(root, None, SilentReporter(), fraction=0.3, **changes).run_id
        found.append(selections.selection(open_root(root, create=False).catalog, run_id).drop("run_id").sort("cluster", "rank"))
    assert lanes == [2, 2]
    assert len(found[0]) > 30
    assert all(other.equals(found[0]) for other in found[1:])


@needs_ray
@most_time
@pytest.mark.usefixtures("short_stretches")
def test_run__ray_with_its_root_in_an_object_store_selects_the_same_as_threads(
    small_settings: Maker, cluster: None, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "XDG_DATA_HOME", str(tmp_path / "data")
    )  # where the catalog of such a root lies: workers do not look there
    one = select(small_settings(threads=1))
    leave_passes_to_workers(monkeypatch)
    there = select(small_settings(root=bucket, threads=1, run_on="ray", workers=2))
    assert all(a.equals(b) for a, b in zip(there, one, strict=True))


@needs_ray
@most_time
def test_ray__every_task_once_and_mistakes_reach_the_driver(cluster: None) -> None:
    settings = Settings(run_on="ray", workers=2)
    for ahead in (1, 3):
        found = sorted(partitioned(squares, 3, list(range(50)), settings, ahead=ahead))
        assert found == [(task, 3 * task * task) for task in range(50)]
    assert sorted(partitioned(echo, None, [1, 2, 3], settings)) == [1, 2, 3]
    with pytest.raises(UserError, match="task -1 is below 0"):
        list(partitioned(squares, 3, [1, -1, 2], settings))


@needs_ray
@most_time
def test_ray__what_a_lost_worker_had_in_hand_is_done_again(cluster: None, tmp_path: Path) -> None:
    settings = Settings(run_on="ray", workers=2)
    assert sorted(partitioned(deadly, str(tmp_path / "died"), list(range(12)), settings, ahead=3)) == list(range(12))
    with pytest.raises(UserError, match="3 Ray workers were lost"):
        list(partitioned(deadly, "", [3], settings))


@needs_ray
@most_time
def test_ray__a_worker_that_ends_with_tasks_in_hand_is_lost(cluster: None, tmp_path: Path) -> None:
    for workers in (1, 2):
        settings = Settings(run_on="ray", workers=workers)
        assert sorted(partitioned(quits, str(tmp_path / f"{workers}"), list(range(9)), settings, ahead=3)) == list(range(9))
    with pytest.raises(UserError, match=r"3 Ray workers were lost one after the other \(ended with tasks in hand\)"):
        list(partitioned(quits, "", [1, 2], Settings(run_on="ray", workers=1)))


@needs_ray
@most_time
def test_ray__a_lost_worker_leaves_its_processors_to_the_next(cluster: None, tmp_path: Path) -> None:
    settings = Settings(run_on="ray", workers=1, threads=2)  # all that there are
    assert sorted(partitioned(quits, str(tmp_path / "once"), list(range(9)), settings, ahead=3)) == list(range(9))


def test_ray__a_worker_takes_tasks_in_the_order_of_their_numbers() -> None:
    from flows.workers.ray_executor import RayWorker, Ready

    worker = RayWorker(echo, None, WorkerResources("cpu", 1), os.getcwd())
    for number in (2, 0, 3, 1):
        worker.give(number, None if number == 3 else 10 * number)
    ready, *results = worker.results()
    assert isinstance(ready, Ready)
    assert results == [0, 10, 20]


def test_ray__a_worker_that_comes_too_late_does_no_work() -> None:
    """It would load the model for nothing, beside workers that compute."""
    from flows.workers.ray_executor import RayWorker

    def never(*given: Any) -> Iterator[int]:
        raise AssertionError("it was called")

    worker = RayWorker(never, None, WorkerResources("cpu", 1), os.getcwd())
    worker.give(0, None)
    assert len(list(worker.results())) == 1


def test_ray__a_worker_with_other_versions_is_refused() -> None:
    from flows.workers.ray_executor import Ready, _check_versions

    here = versions()
    _check_versions(Ready(here | {"torch": here["torch"].partition("+")[0] + "+cu130", "prefect": "1"}, "node7"))
    with pytest.raises(UserError, match=rf"worker on node7 has transformers 4.0, not {here['transformers']} as on this machine"):
        _check_versions(Ready(here | {"transformers": "4.0"}, "node7"))


@needs_ray
def test_ray__an_address_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address, says in (
        ("ray://head:10001", r"ray://head:10001 is for Ray's client, which cannot stream results"),
        (f"127.0.0.1:{free_port()}", r"the Ray cluster at RAY_ADDRESS \S+ does not answer \(.*refused\): start it"),
        ("nonsense", r"no Ray cluster can be used at RAY_ADDRESS nonsense: Invalid address format: nonsense"),
    ):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(UserError, match=says):
            list(partitioned(squares, 3, [1], Settings(run_on="ray")))
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UserError, match=r"ray://head:10001 is for Ray's client"):
        pipeline.dry_run(Settings(sources=("nowhere",), run_on="ray"))  # before any work


@needs_ray
def test_ray__says_why_a_cluster_takes_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        cause = RuntimeError("no GCS: Traceback (most recent call last):\n  File ray.py\nAuthenticationError: no token\n\n")
        raise ConnectionError("Failed to connect") from cause

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(UserError, match=r"no Ray cluster can be used at RAY_ADDRESS auto: AuthenticationError: no token$"):
        list(partitioned(squares, 3, [1], Settings(run_on="ray")))


def test_sharing__ray_workers_of_no_named_cluster_share_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert sharing(Settings(run_on="ray", workers=4), 3) == 3
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert sharing(Settings(run_on="ray", workers=4), 3) == 1


@needs_ray
def test_ray__ends_at_once_by_what_the_handler_of_a_signal_raises() -> None:
    """Ray drops it while it waits, and replaces the handler of SIGTERM: an end would be recorded as something else."""
    code = (
        "import signal, sys; from flows.workers.executor import partitioned; from tagcos_stream.config import Settings; "
        "from tests.flows.partition_work import slow; "
        "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143)); "
        "list(partitioned(slow, 10.0, [0], Settings(run_on='ray'), progress=lambda done: print(done, flush=True)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as driver:
        assert driver.stdout is not None
        assert float(driver.stdout.readline()) == 0.2
        driver.terminate()
    assert driver.returncode == 143


@needs_ray
@most_time
def test_ray__workers_tell_what_they_did_within_tasks(cluster: None) -> None:
    told: list[float] = []
    found = partitioned(slow, 3.0, [0, 1], Settings(run_on="ray", workers=2), progress=told.append)
    assert next(found) in (0, 1)
    assert 0 < told[0] < 1
    assert 1 < told[-1] <= 2  # of both workers
    assert len(list(found)) == 1
    assert told == sorted(told)


@needs_ray
@most_time
def test_ray__relative_paths_lead_where_they_lead_on_the_driver(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(partitioned(folders, None, [1], Settings(run_on="ray"))) == [str(tmp_path)]


@needs_ray
@most_time
def test_ray__workers_that_cannot_start_say_why(cluster: None) -> None:
    with pytest.raises(UserError, match=r"Ray workers cannot start \(.*no number.*\): install tagcos-stream with the same"):
        list(partitioned(squares, Unreadable(), [1], Settings(run_on="ray")))


@needs_ray
@most_time
def test_ray__a_task_given_back_goes_to_a_new_worker(cluster: None, tmp_path: Path) -> None:
    """Not to one that was already closed: it would end with the task in hand."""
    assert sorted(partitioned(outlived, str(tmp_path / "died"), [0, 1], Settings(run_on="ray", workers=2))) == [0, 1]


@needs_ray
@most_time
def test_ray__a_request_that_no_node_meets_is_refused(cluster: None) -> None:
    with pytest.raises(UserError, match=r"asks for 1 CPUs and 4 GPUs, but the cluster's nodes have 2 CPUs and 0 GPUs"):
        list(partitioned(squares, 3, [1], Settings(run_on="ray", gpus_per_worker=4)))
    with pytest.raises(UserError, match=r"gpus_per_worker 1.5: Ray shares one GPU"):
        list(partitioned(squares, 3, [1], Settings(run_on="ray", gpus_per_worker=1.5)))


@pytest.mark.parametrize(
    ("changes", "processes", "gpus", "sharers"),
    [
        ({}, 1, 1, 1),
        ({"workers": 4}, 4, 1, 4),
        ({"workers": 4}, 4, 4, 1),
        ({"workers": 5, "device": "cuda"}, 5, 2, 3),
        ({"workers": 3, "device": "cuda:1"}, 3, 2, 3),  # all on the one that is named
        ({"run_on": "ray", "workers": 4, "gpus_per_worker": 0.25}, 1, 1, 4),  # a cluster: its workers are not counted
        ({"run_on": "ray", "workers": 2, "gpus_per_worker": 1}, 2, 1, 1),  # Ray shows each its own
        ({"run_on": "ray", "workers": 2, "gpus_per_worker": 2}, 2, 2, 1),
    ],
)
def test_workers_on_gpu__by_placement(changes: dict[str, Any], processes: int, gpus: int, sharers: int) -> None:
    assert models.workers_on_gpu(Settings(**changes), processes, gpus) == sharers


def test_token_budget__is_for_a_share_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 GiB for four, 20 GiB less the 4 GiB of the model, although 70 GiB are free as long as the others load."""
    for name, value in {
        "mem_get_info": (70 * GIB, 80 * GIB),
        "memory_reserved": 6 * GIB,
        "memory_allocated": 4 * GIB,
        "device_count": 1,
    }.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *given, value=value: value)
    loaded: Any = SimpleNamespace(device="cuda:0")
    needs: list[int] = []

    def need(tokens: int) -> int:
        needs.append(tokens)
        return tokens * GIB // 256

    assert models.token_budget(Settings(max_length=512), loaded, "a stage", need) == 8192
    assert models.token_budget(Settings(max_length=512, workers=4), loaded, "a stage", need, 4) == 4096
    with pytest.raises(UserError, match=r"cuda:0 has 16\.0 GiB for each of 4 processes"):
        models.token_budget(Settings(max_length=512, batch_tokens=8192, workers=4), loaded, "a stage", need, 4)
