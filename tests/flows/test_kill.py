"""Killed at any moment, a run resumes with the same command and ends with the same selection, bit for bit.

The long versions (`python -m pytest -m slow tests/flows/test_kill.py`) kill in every stage, the short ones twice.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows import pipeline
from flows.progress import SilentReporter
from storage import check, gc
from storage.catalog import selections
from storage.database import Catalog
from storage.root import Root, open_root
from tagcos_stream.config import load_settings
from tagcos_stream.types import UserError
from tests.flows.conftest import TOPICS, conversation
from tests.flows.processes import ended, start
from tests.stages import STAGES

NEWEST = "SELECT run_id FROM runs ORDER BY started_at DESC, run_id DESC LIMIT 1"
CHECKOUT = Path(__file__).parents[2]
Maker = Callable[..., dict[str, Any]]


def arguments(values: dict[str, Any]) -> list[str]:
    return [
        "run",
        *values["sources"],
        *(f"--{name.replace('_', '-')}={value}" for name, value in values.items() if name != "sources"),
    ]


def finish(values: dict[str, Any], log: Path) -> None:
    assert ended(start(arguments(values), log)) == 0, log.read_text(encoding="utf-8")[-3000:]


def selection(root: Root) -> pl.DataFrame:
    run_id = root.catalog.read(NEWEST).item()
    return selections.selection(root.catalog, run_id).drop("run_id")


def readable(root: Path) -> Catalog | None:
    """The catalog, or None where there is none yet: no file, or one whose schema a killed process had only begun."""
    try:
        catalog = open_root(str(root), create=False).catalog
        catalog.read("SELECT 1 AS one")
    except UserError:
        return None
    return catalog


def committed(root: Path) -> set[tuple[Any, ...]]:
    if (catalog := readable(root)) is None:
        return set()
    return set(catalog.read("SELECT segment, block, committed_at, checksum FROM blocks").rows())


def is_complete(root: Path, run: int = 1) -> bool:
    """Whether the root's `run`th run is."""
    catalog = readable(root)
    return catalog is not None and catalog.read("SELECT status FROM runs")["status"].to_list() == ["complete"] * run


def stage_reached(root: Path, run: int = 1) -> str:
    """The stage that was at work when the process died."""
    if (catalog := readable(root)) is None or len(catalog.read("FROM runs")) < run:
        return next(iter(STAGES))
    done = catalog.read(f"SELECT stage FROM stages WHERE run_id = ({NEWEST})")["stage"].to_list()
    return next((stage for stage in STAGES if stage not in done), "end")


# what a process has written to its log when a stage begins
REFRESH_BEGINS = {"ingest": "", "gradients": "loading model", "cluster": "gradients: ", "select": "regroup:"}
BEGINS = {"ingest": "", "warm-up": "ingest:", "gradients": "warm-up: 8/8", "cluster": "gradients: ", "select": "regroup:"}


def await_stage(process: BaseProcess, mark: str, root: Path, log: Path) -> None:
    """Wait until the process has said this, or has ended."""
    while process.exitcode is None and not (mark in log.read_text(encoding="utf-8") and (root / "catalog.duckdb").is_file()):
        time.sleep(0.002)


def kill_often(
    values: dict[str, Any], folder: Path, kills: int, seed: int, begun: Path | None = None, begins: dict[str, str] = BEGINS
) -> Counter[str]:
    """Run to the end in fresh roots, killing `kills` times at random moments of random stages; returns how often in which.

    begun: a root with a complete run, of which every root is a copy.
    """
    rng = random.Random(seed)
    run = 1 if begun is None else 2

    def fresh(name: str) -> Path:
        if begun is not None:
            shutil.copytree(begun, folder / name)
        return folder / name

    reference_values = values | {"root": str(fresh("reference"))}
    finish(reference_values, folder / "log")
    opened = open_root(reference_values["root"], create=False)
    reference = selection(opened)
    seconds = dict(opened.catalog.read(f"SELECT stage, seconds FROM stages WHERE run_id = ({NEWEST})").rows())
    killed: Counter[str] = Counter()
    attempt = 0
    while sum(killed.values()) < kills:
        attempt += 1
        root = fresh(f"root-{attempt}")
        mine = values | {"root": str(root)}
        while not is_complete(root, run):
            before, first = committed(root), stage_reached(root, run)
            log = folder / f"log-{attempt}-{sum(killed.values())}"
            process = start(arguments(mine), log)
            ahead = [stage for stage in begins if list(STAGES).index(stage) >= list(STAGES).index(first)]
            stage = min(begins, key=lambda name: killed[name])  # every stage in turn; one that is past waits for a fresh root
            if stage in ahead and sum(killed.values()) < kills:
                await_stage(process, "ingest:" if stage == first != "ingest" else begins[stage], root, log)
                time.sleep(rng.uniform(0, 1) * seconds[stage])
                process.kill()
            code = ended(process)
            assert code in (0, -signal.SIGKILL), log.read_text(encoding="utf-8")[-3000:]
            if code == -signal.SIGKILL:
                killed[stage_reached(root, run)] += 1
            assert before <= committed(root), "a committed block was computed again"
        opened = open_root(str(root), create=False)
        assert selection(opened).equals(reference)
        gc.sweep(opened, gc.orphans(opened))  # a kill after the run was complete may leave a part of its snapshot
        assert check.check(opened) == []
    return killed


def longer_settings(small_settings: Maker, folder: Path, per_topic: int, **changes: Any) -> dict[str, Any]:
    """A pool with enough blocks and clusters that a kill finds every stage at work."""
    folder.mkdir()
    for topic in TOPICS:
        write(folder / f"{topic}.jsonl", topic, range(per_topic))
    return small_settings(sources=(str(folder),), block_rows=16, **changes)


def write(path: Path, topic: str, numbers: range) -> None:
    path.write_text("".join(json.dumps({"messages": conversation(topic, n)}) + "\n" for n in numbers), encoding="utf-8")


def test_run__killed_and_resumed_equals_uninterrupted(small_settings: Maker, tmp_path: Path) -> None:
    values = longer_settings(small_settings, tmp_path / "longer", 120, clusters=12, warmup_examples=64)
    begins = {stage: BEGINS[stage] for stage in ("gradients", "select")}
    killed = kill_often(values, tmp_path, kills=2, seed=1, begins=begins)
    assert sum(killed.values()) == 2


@pytest.mark.parametrize(
    ("kills", "stages"), [(2, ["gradients", "cluster"]), pytest.param(12, [*REFRESH_BEGINS], marks=pytest.mark.slow)]
)
def test_refresh__killed_and_resumed_equals_uninterrupted(
    small_settings: Maker, tmp_path: Path, kills: int, stages: list[str]
) -> None:
    folder = tmp_path / "longer"
    values = longer_settings(small_settings, folder, 100, clusters=8, refit="never")
    pipeline.run(load_settings(values), SilentReporter())
    for topic in TOPICS:
        write(folder / f"more-{topic}.jsonl", topic, range(200, 240))
    (tmp_path / "kills").mkdir()
    begins = {stage: REFRESH_BEGINS[stage] for stage in stages}
    killed = kill_often(values, tmp_path / "kills", kills=kills, seed=5, begun=Path(values["root"]), begins=begins)
    assert sum(killed.values()) == kills


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_run__killed_forty_times_in_every_stage(small_settings: Maker, tmp_path: Path) -> None:
    values = longer_settings(small_settings, tmp_path / "longer", 250, clusters=12, warmup_examples=64)
    killed = kill_often(values, tmp_path, kills=40, seed=2)
    print(f"kills by stage: {dict(killed)}")
    assert sum(killed.values()) >= 40
    assert set(killed) >= {"ingest", "warm-up", "gradients", "cluster", "select"}


def test_run__interrupted_by_ctrl_c_says_how_to_go_on(small_settings: Maker, tmp_path: Path) -> None:
    values = longer_settings(small_settings, tmp_path / "longer", 120)
    log, root = tmp_path / "log", Path(values["root"])
    command = [sys.executable, "-m", "flows.cli.main", *arguments(values)]
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 400
    while not committed(root) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "Go on with the same command:\n  tagcos run" in log.read_text(encoding="utf-8")
    before = committed(root)
    assert open_root(str(root), create=False).catalog.read("SELECT status FROM runs")["status"].to_list() == ["interrupted"]
    finish(values, log)
    assert before
    assert before <= committed(root)
    assert len(selection(open_root(str(root), create=False))) == 36
