"""The small version of tests/proofs/rows.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.data import mutations
from tests.data.tools import Read, read
from tests.proofs.rows import Proof, rows_of


def lost(path: Path, **options: int) -> Read:
    """A reader that loses the last reject of a file."""
    got = read(path, **options)  # type: ignore[arg-type]
    *blocks, last = got.blocks
    return Read([*blocks, replace(last, rejects=last.rejects.head(-1))])


@pytest.mark.process
def test_rows__goes_on_where_it_was_and_fails_on_a_lost_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Proof(tmp_path).go_on(1_000)
    proof = Proof(tmp_path)
    first = proof.trials()
    proof.go_on(2_000)
    trials = proof.trials()
    assert trials[: len(first)] == first
    assert [trial["number"] for trial in trials] == list(range(len(trials)))
    assert 2_000 <= sum(map(rows_of, trials)) < 2_200
    assert f"| all | {len(trials)} |" in proof.table()
    monkeypatch.setattr(mutations, "read", lost)
    with pytest.raises(AssertionError):
        proof.go_on(3_000)
