"""A disk that is full: every stage and command ends with one line, and the same command goes on after space was freed."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from flows import pipeline
from flows.context import RunContext, run_stage
from flows.progress import SilentReporter
from storage import check
from storage.catalog import runs, selections
from storage.root import Root, open_root
from tagcos_stream.config import Settings, load_settings
from tagcos_stream.types import UserError
from tests.flows.conftest import Call, First, conversation
from tests.flows.test_old_root import OLD
from tests.stages import STAGES

SIZE = r"[\d.]+ (bytes|kB|MB)"
BYTES = rf"cannot write .*: this file needs ({SIZE}, {SIZE} are free|more than the {SIZE} that are free); "
MESSAGE = f"{BYTES}the disk or quota is full"


def fill(disk: Path, left: int) -> None:
    """Up to so many bytes, in pieces: the catalog may take some or give some back in between."""
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while (free := _free(disk)) > left:
            ballast.write(b"x" * min(1 << 20, free - left))


def _free(disk: Path) -> int:
    free = os.statvfs(disk)
    return free.f_bavail * free.f_frsize


def stop_in_each(stages: Sequence[str], settings: Settings, disk: Path) -> None:
    for full in stages:

        def do_stage(name: str, work: Any, run: RunContext, /, *given: Any, full: str = full) -> Any:
            if name == full:
                fill(disk, 8192)
            return run_stage(name, work, run, *given)

        with pytest.raises(UserError, match=MESSAGE):
            pipeline.run(settings, SilentReporter(), do_stage=do_stage)
        (disk / "ballast").unlink()


def stop(tagcos: Call, disk: Path, *command: object, left: int = 0) -> None:
    """A command, by the full disk."""
    fill(disk, left)
    code, _, err = tagcos(*command)
    assert (code, err.count(f"cannot write {disk}"), "Traceback" in err) == (2, 1, False), (command, err)
    assert re.search(BYTES, err), (command, err)
    (disk / "ballast").unlink()


def damage(root: Root) -> dict[str, bytes]:
    """Cut a segment's metadata and a file of regrouped features; what they were."""
    keys = [key for key, _ in root.files.list("")]
    cut = [
        next(key for key in keys if re.search(part, key)) for part in (r"seg-\d+\.zarr/zarr\.json", r"part-00000/features/c\.")
    ]
    whole = {key: root.files.read(key) for key in cut}
    for key, body in whole.items():
        root.files.write(key, body[:-7])
    return whole


@pytest.mark.process
def test_full_disk__in_every_stage_and_command(
    small_settings: Callable[..., dict[str, Any]],
    first_run: First,
    small_disk: Callable[[str], Path],
    pool_folder: Path,
    tmp_path: Path,
    tagcos: Call,
) -> None:
    disk = small_disk("size=64m")
    settings, silent = load_settings(small_settings(root=str(disk / "root"), heldout=0.1)), SilentReporter()
    for left in (0, 65536):  # no room for the lock, and for the lock but not for the catalog
        fill(disk, left)
        with pytest.raises(UserError, match=MESSAGE):
            pipeline.run(settings, silent)
        (disk / "ballast").unlink()
    twin = small_settings(heldout=0.1)
    first_run(twin)
    roots = [open_root(url, create=False) for url in (settings.root, twin["root"])]

    def chosen() -> pl.DataFrame:
        """By the last run, on both."""
        found, expected = (
            selections.selection(root.catalog, runs.list_runs(root.catalog)["run_id"][0]).drop("run_id") for root in roots
        )
        assert found.equals(expected)
        return found

    stop_in_each(STAGES, settings, disk)
    pipeline.run(settings, silent)
    chosen()
    # a refresh: new rows, some gone
    lines = [json.dumps({"messages": conversation("sums", n)}) for n in range(2, 60)]
    (pool_folder / "sums.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    stop_in_each(("ingest", "gradients", "publish"), settings, disk)
    for values in (settings, load_settings(twin)):
        pipeline.run(values, silent)
    found = chosen()

    at = ("--root", roots[0].url)
    example = found["example_id"][0]
    whole = damage(roots[0])
    for command in (
        ("check", *at, "--repair"),
        ("select", *at, "--method", "random"),
        ("report", *at),
        ("export", *at, "--out", disk / "chosen.jsonl"),
        ("evaluate", *at, "--method", "random", "--seeds", "1", "--steps", "2", "--fraction", "0.1", "--regime", "steps"),
        ("diagnose", *at, "--method", "random", "--seeds", "1"),
        ("gc", *at, "--unnamed", "--yes"),
        ("forget", *at, "--yes", example),
    ):
        stop(tagcos, disk, *command)
        assert tagcos(*command)[0] == 0, command
        if "--repair" in command:
            assert {key: roots[0].files.read(key) for key in whole} == whole
    assert list(disk.rglob("*.tmp-*")) == []
    assert check.check(roots[0]) == []


@pytest.mark.process
def test_full_disk__in_a_migration(small_disk: Callable[[str], Path], tmp_path: Path, tagcos: Call) -> None:
    """Of a root of an earlier version: before the first step, in the middle of them, and later."""
    roots = []
    for folder in (small_disk("size=64m"), tmp_path):
        with tarfile.open(OLD) as archive:
            archive.extractall(folder, filter="data")
        roots.append(open_root(str(folder / "root"), create=False))
    disk = tmp_path / "disk"
    versions: list[int] = []
    for left in (0, 4096, 65536):
        stop(tagcos, disk, "select", "--root", roots[0].url, "--method", "random", left=left)
        with duckdb.connect(str(roots[0].catalog_path), read_only=True) as connection:
            versions += connection.execute("SELECT max(version) FROM migrations").fetchall()[0]
    assert versions[0] == 8 < versions[1] <= versions[2]
    states: list[dict[str, pl.DataFrame]] = []
    for root in roots:
        assert tagcos("select", "--root", root.url, "--method", "random")[0] == 0
        assert check.check(root) == []
        newest = runs.list_runs(root.catalog)["run_id"][0]
        tables = root.catalog.read("SELECT table_name FROM duckdb_tables()")["table_name"].to_list()
        frames = {name: root.catalog.read(f"FROM {name} ORDER BY ALL").drop("applied_at", strict=False) for name in tables}
        mine = {name: frame for name, frame in frames.items() if "run_id" in frame.columns}
        states.append(frames | {name: frame.filter(pl.col("run_id") != newest) for name, frame in mine.items()})
        states[-1]["chosen"] = selections.selection(root.catalog, newest).drop("run_id")
    assert states[0].keys() == states[1].keys()
    for name, found in states[0].items():
        assert found.equals(states[1][name]), name
