"""Real processes: killed at any moment, a store ends as one never killed; of two writers one waits or is refused."""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage.catalog import runs, selections
from storage.check import check
from storage.gc import orphans, sweep
from storage.root import LOCK, Root, open_root
from tagcos_stream.types import UserError
from tests.storage import tiny

STEPS = 21  # commits and file writes that tiny.run announces for 300 examples, before "finished"


def start(url: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.storage.tiny", url, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def counts(root: Root) -> dict[str, int]:
    tables = (
        "examples",
        "occurrences",
        "rejects",
        "blocks",
        "feature_rows",
        "assignments",
        "run_groups",
        "selections",
        "candidates",
    )
    return {table: root.catalog.read(f"SELECT count(*) AS n FROM {table}")["n"][0] for table in tables}


def agree(root: Root, whole: Root) -> None:
    """The same selection to the bit, the same rows, nothing damaged, nothing read that was not committed."""
    ours, theirs = (
        r.catalog.read("SELECT * EXCLUDE (run_id) FROM latest_selection ORDER BY cluster, rank") for r in (root, whole)
    )
    assert ours.equals(theirs)
    assert counts(root) == counts(whole)
    assert [finding for finding in check(root) if finding.damage] == []


@pytest.mark.process  # some seconds
def test_interrupt__after_every_commit_and_before_it(filled: Root, make_root: Callable[[str], Root]) -> None:
    """One root, stopped after each commit, and once between each file's write and the commit that would name it."""
    root = make_root("stopped")
    committed: list[str] = []
    tried: set[tuple[str, int]] = set()

    class Stopped(BaseException):
        pass

    def step(name: str) -> None:
        before_commit = (name, len(committed))
        if name in ("segment", "written", "regrouped") and before_commit not in tried:
            tried.add(before_commit)
            raise Stopped
        if name in ("ingest", "space", "block", "clustering", "cluster"):
            committed.append(name)
            raise Stopped

    while True:
        try:
            tiny.run(root, step=step)
            break
        except Stopped:
            assert len(committed) + len(tried) < 60
    assert committed.count("block") == tiny.BLOCKS
    agree(root, filled)


@pytest.mark.process
def test_kill__minus_nine_at_random_moments(filled: Root, make_root: Callable[[str], Root]) -> None:
    root = make_root("killed")
    generator = np.random.default_rng(1)
    killed, computed = 0, 0
    while True:
        by_step = killed % 2 == 0  # in turn: at a step it announces, and at a moment from outside
        process = start(root.url, *(["--die-at", str(generator.integers(2, 5))] if by_step and killed < 8 else []))
        said = ""
        if not by_step and killed < 8:  # in milliseconds after it said something: a fast machine is not done before it is killed
            assert process.stdout is not None
            said = "".join(process.stdout.readline() for _ in range(generator.integers(1, 3)))
            time.sleep(generator.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        code, rest, err = finish(process)
        out = said + rest
        computed += out.count("block\n")
        if code == 0 or "finished\n" in out:  # killed after its last commit, it was a whole run
            break
        assert code == -signal.SIGKILL, err
        killed += 1
        assert killed < 60
    assert killed >= 3
    assert computed <= tiny.BLOCKS  # a block whose commit was announced is not computed again
    agree(root, filled)
    with root.writer():
        sweep(root, orphans(root))
    assert check(root) == []


@pytest.mark.process
@pytest.mark.slow
def test_kill__minus_nine_at_each_step_in_a_process_of_its_own(filled: Root, make_root: Callable[[str], Root]) -> None:
    """python -m pytest -m slow tests/storage/test_processes.py: over 40 kills, the same command after each."""
    for number in range(2, STEPS + 1):
        root = make_root(f"killed-{number}")
        code, out, _ = finish(start(root.url, "--die-at", str(number)))
        assert code == -signal.SIGKILL, number
        code, again, err = finish(start(root.url))
        assert code == 0, err
        assert out.count("block\n") + again.count("block\n") == tiny.BLOCKS
        agree(root, filled)
    generator = np.random.default_rng(3)
    for number in range(24):
        root = make_root(f"random-{number}")
        process = start(root.url)
        time.sleep(generator.uniform(0.3, 2.5))
        process.send_signal(signal.SIGKILL)
        if "finished\n" not in finish(process)[1]:
            assert finish(start(root.url))[0] == 0
        agree(root, filled)


@pytest.mark.process
def test_writers__the_second_waits_and_both_are_right(make_root: Callable[[str], Root]) -> None:
    root = make_root("root")
    processes = [start(root.url, "--examples", n, "--wait", "100") for n in ("300", "300", "340")]
    ended = [finish(process) for process in processes]
    assert [code for code, _, _ in ended] == [0, 0, 0], ended
    said = [err for _, _, err in ended if "is being written by process" in err]
    assert said, "nobody had to wait"
    assert any(f"process {process.pid} on" in err for err in said for process in processes)
    whole = make_root("whole")
    expected = {n: tiny.run(whole, examples=n).selection for n in (300, 340)}
    for run in runs.list_runs(root.catalog).iter_rows(named=True):
        assert run["status"] == "complete"
        examples = int(root.catalog.read("SELECT config_hash FROM runs WHERE run_id = ?", [run["run_id"]])["config_hash"][0])
        got = selections.selection(root.catalog, run["run_id"]).drop("run_id")
        assert (
            got.select("example_id", "cluster", "rank")
            .sort("example_id")
            .equals(expected[examples].select("example_id", "cluster", "rank").sort("example_id"))
        )
    assert check(root) == []


@pytest.mark.process
def test_root__begun_by_two_at_once_is_one(tmp_path: Path) -> None:
    code = (
        "import sys; from storage.root import open_root\n"
        "for url in sys.stdin:\n    print(open_root(url.strip()).store_id, flush=True)\n"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ExitStack() as stack:
        both = [stack.enter_context(subprocess.Popen([sys.executable, "-c", code], **pipes, text=True)) for _ in range(2)]
        for number in range(30):
            for process in both:
                assert process.stdin is not None
                process.stdin.write(f"{tmp_path / str(number)}\n")
                process.stdin.flush()
            identities = [process.stdout.readline() for process in both if process.stdout is not None]
            assert identities[0] == identities[1] != "", number


def test_writers__a_look_at_the_lock_refuses_nobody(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    with root.writer():
        pass
    looks = os.open(root.catalog_path.with_name(LOCK), os.O_RDONLY)
    fcntl.flock(looks, fcntl.LOCK_SH)  # as `written_by` does for a moment
    monkeypatch.setattr(time, "sleep", lambda seconds: os.close(looks))
    with replace(root, wait_seconds=0.0).writer():
        assert root.written_by() == (platform.node(), os.getpid())


@pytest.mark.process
def test_writers__the_second_is_refused_with_process_and_start(root: Root) -> None:
    code = (
        "import sys, time; from storage.root import open_root\n"
        "with open_root(sys.argv[1]).writer():\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, root.url], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        said: list[str] = []
        second = open_root(root.url, wait_seconds=0.4, on_wait=said.append)
        year = time.strftime("%Y", time.gmtime())
        with (
            pytest.raises(UserError, match=rf"being written by process {first.pid} on .*, which began at {year}-.*waited 0\.4 s"),
            second.writer(),
        ):
            pass
        assert len(said) == 1
        os.kill(first.pid, signal.SIGKILL)  # a killed holder holds nothing
        first.wait()
        with second.writer():
            pass
