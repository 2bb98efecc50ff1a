"""A disk that is full: every stage and command ends with one line, and the same command goes on after space was freed."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows import pipeline
from flows.context import RunContext, run_stage
from flows.progress import SilentReporter
from storage import check
from storage.catalog import selections
from storage.root import open_root
from tagcos_stream.config import load_settings
from tagcos_stream.types import UserError
from tests.flows.conftest import Call, First
from tests.stages import STAGES

MESSAGE = r"cannot write .*(disk or quota is full)"


def fill(disk: Path, left: int) -> None:
    """Up to so many bytes, in pieces: the catalog may take some or give some back in between."""
    with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while (free := _free(disk)) > left:
            ballast.write(b"x" * min(1 << 20, free - left))


def _free(disk: Path) -> int:
    free = os.statvfs(disk)
    return free.f_bavail * free.f_frsize


@pytest.mark.process
def test_full_disk__in_every_stage_and_command(
    small_settings: Callable[..., dict[str, Any]],
    first_run: First,
    small_disk: Callable[[str], Path],
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

    for full in STAGES:

        def do_stage(name: str, work: Any, run: RunContext, /, *given: Any, full: str = full) -> Any:
            if name == full:
                fill(disk, 8192)
            return run_stage(name, work, run, *given)

        with pytest.raises(UserError, match=MESSAGE):
            pipeline.run(settings, silent, do_stage=do_stage)
        (disk / "ballast").unlink()
    run_id = pipeline.run(settings, silent).run_id
    elsewhere = first_run(small_settings(heldout=0.1)).run_id
    roots = open_root(str(disk / "root"), create=False), open_root(str(tmp_path / "root"), create=False)
    found, expected = (
        selections.selection(root.catalog, run).drop("run_id") for root, run in zip(roots, (run_id, elsewhere), strict=True)
    )
    assert found.equals(expected)

    at = ("--root", roots[0].url)
    example = found["example_id"][0]
    for command in (
        ("select", *at, "--method", "random"),
        ("report", *at),
        ("export", *at, "--out", disk / "chosen.jsonl"),
        ("evaluate", *at, "--method", "random", "--seeds", "1", "--steps", "2", "--fraction", "0.1", "--regime", "steps"),
        ("diagnose", *at, "--method", "random", "--seeds", "1"),
        ("gc", *at, "--unnamed", "--yes"),
        ("forget", *at, "--yes", example),
    ):
        fill(disk, 0)
        code, _, err = tagcos(*command)
        assert (code, err.count(f"cannot write {disk}"), "Traceback" in err) == (2, 1, False), (command, err)
        (disk / "ballast").unlink()
        assert tagcos(*command)[0] == 0, command
    assert list(disk.rglob("*.tmp-*")) == []
    assert check.check(roots[0]) == []
