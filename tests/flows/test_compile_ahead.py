"""Kernels are compiled by a process of its own, and it leaves none of them to the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tagcos_stream.compile_ahead import MODULES, PACKAGE, compiling_ahead, marker

# signatures of every kernel after `compile_all`, then those that a run adds
SCRIPT = """
import importlib, json, sys
from flows import pipeline
from flows.progress import SilentReporter
from tagcos_stream.compile_ahead import MODULES, compile_all
from tagcos_stream.config import load_settings

modules = [importlib.import_module("tagcos_stream." + name) for name in MODULES]
kernels = {n: k for m in modules for n, k in vars(m).items() if hasattr(k, "signatures") and n not in sys.argv[2:]}
compile_all()
before = {name: set(kernel.signatures) for name, kernel in kernels.items()}
lacking = [name for name in kernels if not before[name] and not name.startswith("_")]  # helpers are within those that call them
assert not lacking, lacking
pipeline.run(load_settings(json.loads(sys.argv[1])), SilentReporter())
added = {name: str(set(kernel.signatures) - before[name]) for name, kernel in kernels.items()}
print(json.dumps({name: text for name, text in added.items() if text != str(set())}))
"""
# the dense projection, which is not the default, and a helper that is compiled into others
OPTIONAL = ("rademacher_rows", "splitmix64")


def test_compile_all__leaves_no_kernel_to_a_run(small_settings: Any) -> None:
    settings = json.dumps(small_settings(workers=1), default=str)
    command = [sys.executable, "-c", SCRIPT, settings, *OPTIONAL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {}


def test_compiling_ahead__ends_with_the_run_and_starts_only_where_the_cache_lacks_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    with compiling_ahead() as process:
        assert process is not None
    assert process.returncode is not None
    marker().touch()
    with compiling_ahead() as process:
        assert process is None


def test_marker__belongs_to_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert marker().parent == tmp_path
    before = marker()
    monkeypatch.setattr("tagcos_stream.compile_ahead.MODULES", MODULES[:-1])
    assert marker() != before
