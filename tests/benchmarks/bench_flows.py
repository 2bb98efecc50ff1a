"""What flows and partitions cost beside the work: python -m tests.benchmarks.bench_flows (overhead|partitions)

overhead: the same run of a tiny model plain and as a flow on a Prefect server that is started for it, with few blocks and with
many; what Prefect takes is the difference, what planning and catalog take is measured within the run.
partitions: seconds a partition that does nothing costs on threads, processes and Ray, and as a task of Prefect's runners.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flows.workers.executor import partitioned
from flows.workers.work import Progress, WorkerResources
from tagcos_stream.config import Settings
from tests.flows.conftest import TOPICS, conversation
from tests.models import tiny_model, tiny_tokenizer

PARTITIONS = 200


def nothing(spec: int, resources: WorkerResources, tasks: Iterator[int], progress: Progress | None) -> Iterator[int]:
    yield from tasks


def seconds_each(settings: Settings, count: int = PARTITIONS) -> tuple[float, float]:
    """(seconds until the first result, seconds a further one)."""
    start = time.perf_counter()
    results = partitioned(nothing, 0, list(range(count)), settings, ahead=3)
    next(results)
    first = time.perf_counter() - start
    list(results)
    return first, (time.perf_counter() - start - first) / (count - 1)


def partitions() -> None:
    print(f"{'place':<28}{'first (s)':>12}{'each (ms)':>12}   of {PARTITIONS} partitions that do nothing, 2 workers")
    for name, settings in {
        "threads": Settings(run_on="threads"),
        "processes": Settings(run_on="processes", workers=2),
        "ray, cluster started": Settings(run_on="ray", workers=2),
        "ray, cluster there": Settings(run_on="ray", workers=2),
    }.items():
        first, each = seconds_each(settings)
        print(f"{name:<28}{first:12.3f}{1000 * each:12.2f}", flush=True)


PREFECT = """
import sys, time
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.testing.utilities import prefect_test_harness
@task(cache_policy=NO_CACHE, persist_result=False)
def nothing(i): return i
runner = ThreadPoolTaskRunner(max_workers=2)
if sys.argv[1] == "ray":
    from prefect_ray import RayTaskRunner
    runner = RayTaskRunner(init_kwargs={"num_cpus": 2, "include_dashboard": False, "_node_ip_address": "127.0.0.1"})
@flow(task_runner=runner)
def many(n):
    nothing.submit(0).result()
    start = time.perf_counter()
    [f.result() for f in nothing.map(range(n))]
    return time.perf_counter() - start
with prefect_test_harness(server_startup_timeout=120):
    n = int(sys.argv[2])
    print("EACH", many(n) / n)
"""


def prefect_tasks() -> None:
    for runner, count in (("threads", PARTITIONS), ("ray", 40)):
        done = subprocess.run([sys.executable, "-c", PREFECT, runner, str(count)], capture_output=True, text=True, check=False)
        each = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("EACH")]
        text = f"{1000 * each[0]:12.2f}" if each else f"  failed: {done.stderr.strip().splitlines()[-1][:80]}"
        print(f"{f'Prefect tasks, {runner}':<28}{'':>12}{text}", flush=True)


RUN = """
import json, sys, time
from contextlib import contextmanager
began = time.perf_counter()
values, flow = json.loads(sys.argv[1]), sys.argv[2] == "flow"
from flows import pipeline
from storage.database import Catalog
from tagcos_stream.config import load_settings
inside = [0.0, 0]
def timed(name):
    plain = getattr(Catalog, name)
    @contextmanager
    def method(self):
        start = time.perf_counter()
        with plain(self) as connection:
            yield connection
        inside[0] += time.perf_counter() - start
        inside[1] += 1
    setattr(Catalog, name, method)
timed("reading")
timed("transaction")
settings = load_settings(values)
if flow:
    from flows.prefect_flow import run_flow
    run_id = run_flow(settings)
else:
    run_id = pipeline.run(settings).run_id
whole = time.perf_counter() - began
from storage.root import open_root
from storage.catalog.runs import run_status
stages = run_status(open_root(settings.root).catalog, run_id).stages["seconds"].sum()
print("SECONDS", whole, inside[0], inside[1], stages)
"""


def one_run(values: dict[str, Any], kind: str, environment: dict[str, str]) -> dict[str, float]:
    """wall: seconds from the first import to the end. catalog: of them within the catalog, which is what planning asks, too.
    stages: seconds within stages."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(values), kind], capture_output=True, text=True, env=environment, check=False
    )
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("SECONDS")]
    assert found, done.stdout[-2000:] + done.stderr[-3000:]
    return dict(zip(("wall", "catalog", "transactions", "stages"), map(float, found[0][1:]), strict=True))


def overhead(rounds: int) -> None:
    from tests.flows.server import Prefect, documented

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = folder / "model"
        tiny_model("llama").save_pretrained(model)
        tiny_tokenizer().save_pretrained(model)
        (folder / "served").mkdir()
        server = Prefect(folder / "served", model)
        server.start(documented()[0])
        try:
            server.await_answer("/health")
            print("seconds, median of", rounds, "rounds in turn")
            heads = ("plain", "as a flow", "Prefect", "stages plain", "as tasks", "catalog", "opened")
            widths = (10, 12, 10, 14, 10, 10, 8)
            print(f"{'blocks':>8}" + "".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
            for block_rows in (150, 5):
                found: dict[str, list[dict[str, float]]] = {"plain": [], "flow": []}
                for number in range(rounds):
                    for kind in found:
                        pool = write_pool(folder / f"pool-{block_rows}-{number}-{kind}")
                        values = {
                            "sources": [str(pool)],
                            "root": str(folder / f"root-{block_rows}-{number}-{kind}"),
                            "model": str(model),
                            "block_rows": block_rows,
                            "dim": 256,
                            "max_length": 96,
                            "warmup_examples": 16,
                            "batch_tokens": 512,
                        }
                        kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
                        own = server.environment if kind == "flow" else kept | {"OMP_NUM_THREADS": "1"}
                        found[kind].append(one_run(values, kind, own))
                middle: Callable[[str, str], float] = lambda kind, key: statistics.median(r[key] for r in found[kind])  # noqa: B023, E731
                plain, flow = middle("plain", "wall"), middle("flow", "wall")
                print(
                    f"{300 // block_rows:>8}{plain:10.2f}{flow:12.2f}{flow - plain:10.2f}"
                    f"{middle('plain', 'stages'):14.2f}{middle('flow', 'stages'):10.2f}"
                    f"{middle('plain', 'catalog'):10.2f}{middle('plain', 'transactions'):8.0f}",
                    flush=True,
                )
        finally:
            for command in list(server.running):
                server.stop(command)


def write_pool(folder: Path) -> Path:
    folder.mkdir()
    for topic in TOPICS:
        lines = [json.dumps({"messages": conversation(topic, n)}) for n in range(100)]
        (folder / f"{topic}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["overhead", "partitions"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "partitions":
        partitions()
        prefect_tasks()
    else:
        overhead(arguments.rounds)
