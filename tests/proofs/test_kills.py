"""The small version of tests/proofs/kills.py. Kills of runs in the suite: tests/flows/test_kill.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.flows.conftest import model_folder  # noqa: F401
from tests.proofs.kills import Proof


@pytest.mark.process
def test_kills__of_a_command_that_migrates(model_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(model_folder, tmp_path / "model")
    proof = Proof(tmp_path)
    proof.go_on(2, ["migrate"], "KILL")
    proof.go_on(1, ["migrate"], "TERM")
    assert "| `migrate` |" in proof.table()
