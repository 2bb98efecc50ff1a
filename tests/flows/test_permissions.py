"""A root that cannot be written any more: every stage and command ends with one line, and the same command goes on afterwards."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

MESSAGE = r"^cannot write \S+/denied\S*: .*not writable: choose another --root or mend the permissions\. "
PASSING = 1 << 1 | 1 << 2  # bits of the capabilities by which root writes and reads where permissions deny it


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """As any account, also where tests run as root: this thread, and those it starts, give up these capabilities for the body."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version 3, this thread; see capset(2)
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] = before & ~PASSING
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(header, sets) == 0


def deny(root: Path, files: bool) -> None:
    """Take write permission away from all folders, and from files too."""
    for path in (root, *root.rglob("*")):
        if files or path.is_dir():
            path.chmod(0o555 if path.is_dir() else 0o444)


def permit(root: Path) -> None:
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_permission__taken_away_in_stages_and_commands(
    small_settings: Callable[..., dict[str, Any]], first_run: First, tmp_path: Path, tagcos: Call
) -> None:
    root = tmp_path / "denied"
    settings, silent = load_settings(small_settings(root=str(root))), SilentReporter()
    for denied, files in (("gradients", False), ("select", True), ("publish", False)):

        def do_stage(name: str, work: Any, run: RunContext, /, *given: Any, denied: str = denied, files: bool = files) -> Any:
            if name == denied:
                deny(root, files)
            return run_stage(name, work, run, *given)

        with bound_by_permissions(), pytest.raises(UserError, match=MESSAGE) as stopped:
            pipeline.run(settings, silent, do_stage=do_stage)
        assert "\n" not in str(stopped.value)
        permit(root)
    run_id = pipeline.run(settings, silent).run_id
    elsewhere = first_run(small_settings()).run_id
    roots = open_root(str(root), create=False), open_root(str(tmp_path / "root"), create=False)
    found, expected = (
        selections.selection(opened.catalog, run).drop("run_id") for opened, run in zip(roots, (run_id, elsewhere), strict=True)
    )
    assert found.equals(expected)

    at = ("--root", roots[0].url)
    for command in (
        ("select", *at, "--method", "random"),
        ("export", *at, "--out", root / "exports" / "chosen.jsonl"),
        ("forget", *at, "--yes", found["example_id"][0]),
    ):
        deny(root, files=False)
        with bound_by_permissions():
            code, _, err = tagcos(*command)
        permit(root)
        assert (code, err.count("cannot write"), "Traceback" in err) == (2, 1, False), (command, err)
        assert tagcos(*command)[0] == 0, command
    assert check.check(roots[0]) == []
