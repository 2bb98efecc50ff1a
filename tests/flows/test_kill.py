"""Killed at any moment, a run resumes with the same command and ends with the same selection, bit for bit.

The long version (`python -m pytest -m slow tests/flows/test_kill.py`) kills 40 times, in every stage; the short one a few times.
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
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.pipeline import STAGES
from storage import check
from storage.catalog import selections
from storage.database import Catalog
from storage.root import Root, open_root
from tagcos_stream.types import UserError
from tests.flows.conftest import TOPICS, conversation

NEWEST = "SELECT run_id FROM runs ORDER BY started_at DESC, run_id DESC LIMIT 1"
CHECKOUT = Path(__file__).parents[2]
Maker = Callable[..., dict[str, Any]]


def start(values: dict[str, Any], log: Path) -> subprocess.Popen[bytes]:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if name != "sources"]
    command = [sys.executable, "-m", "flows.cli.main", "run", *values["sources"], *flags]
    with log.open("ab") as out:
        return subprocess.Popen(command, cwd=CHECKOUT, stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"})


def finish(values: dict[str, Any], log: Path) -> None:
    assert start(values, log).wait(timeout=300) == 0, log.read_text(encoding="utf-8")[-3000:]


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


def await_stage(process: subprocess.Popen[bytes], mark: str, root: Path, log: Path) -> None:
    """Wait until the process has said this, or has ended."""
    while process.poll() is None and not (mark in log.read_text(encoding="utf-8") and (root / "catalog.duckdb").is_file()):
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
            process = start(mine, log)
            ahead = [stage for stage in begins if list(STAGES).index(stage) >= list(STAGES).index(first)]
            stage = min(begins, key=lambda name: killed[name])  # every stage in turn; one that is past waits for a fresh root
            if stage in ahead and sum(killed.values()) < kills:
                await_stage(process, "ingest:" if stage == first != "ingest" else begins[stage], root, log)
                time.sleep(rng.uniform(0, 1) * seconds[stage])
                process.send_signal(signal.SIGKILL)
            process.wait(timeout=300)
            assert process.returncode in (0, -signal.SIGKILL), log.read_text(encoding="utf-8")[-3000:]
            if process.returncode == -signal.SIGKILL:
                killed[stage_reached(root, run)] += 1
            assert before <= committed(root), "a committed block was computed again"
        opened = open_root(str(root), create=False)
        assert selection(opened).equals(reference)
        assert check.check(opened) == []
    return killed


@pytest.fixture
def longer_settings(small_settings: Maker, tmp_path: Path) -> dict[str, Any]:
    """A pool with enough blocks and clusters that a kill finds every stage at work."""
    folder = tmp_path / "longer"
    folder.mkdir()
    for topic in TOPICS:
        lines = [json.dumps({"messages": conversation(topic, n)}) for n in range(250)]
        (folder / f"{topic}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return small_settings(sources=(str(folder),), block_rows=16, clusters=12, warmup_examples=64)


def test_run__killed_and_resumed_equals_uninterrupted(longer_settings: dict[str, Any], tmp_path: Path) -> None:
    begins = {stage: BEGINS[stage] for stage in ("gradients", "select")}
    killed = kill_often(longer_settings, tmp_path, kills=2, seed=1, begins=begins)
    assert sum(killed.values()) == 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_run__killed_forty_times_in_every_stage(longer_settings: dict[str, Any], tmp_path: Path) -> None:
    killed = kill_often(longer_settings, tmp_path, kills=40, seed=2)
    print(f"kills by stage: {dict(killed)}")
    assert sum(killed.values()) >= 40
    assert set(killed) >= {"ingest", "warm-up", "gradients", "cluster", "select"}


def test_run__interrupted_by_ctrl_c_says_how_to_go_on(longer_settings: dict[str, Any], tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(longer_settings, log)
    root = Path(longer_settings["root"])
    deadline = time.monotonic() + 120
    while not committed(root) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "Go on with the same command:\n  tagcos run" in log.read_text(encoding="utf-8")
    before = committed(root)
    assert open_root(str(root), create=False).catalog.read("SELECT status FROM runs")["status"].to_list() == ["interrupted"]
    finish(longer_settings, log)
    assert before
    assert before <= committed(root)
    assert len(selection(open_root(str(root), create=False))) == 75
