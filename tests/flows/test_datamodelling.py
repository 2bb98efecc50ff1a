"""The linear datamodelling score, from files to its table, with a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import pytest

from tests.benchmarks.datamodelling import VARIANTS, main
from tests.flows.conftest import conversation


def test_datamodelling__trains_every_half_once_and_scores_every_variant(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = tmp_path / "mix"
    mix.mkdir()
    for topic in ("sums", "colours"):
        pl.DataFrame({"messages": [conversation(topic, n) for n in range(12)]}).write_parquet(mix / f"{topic}.parquet")
    asked = ["--examples", "16", "--queries", "4", "--halves", "4", "--batch-size", "4", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["", str(mix), str(tmp_path / "work"), "--model", str(model_folder), *asked])
    main()
    first = capsys.readouterr().out
    assert first.count("mean loss") == 4
    assert "4 halves, 4 queries" in first
    scores = {row.split("|")[1].strip(" `"): float(row.split("|")[2].split()[0]) for row in first.splitlines() if "±" in row}
    assert set(scores) == {*VARIANTS, "sgd, not scaled", "rows of its dataset", "target tokens"}
    assert all(-1 <= score <= 1 for score in scores.values())
    main()
    again = capsys.readouterr().out
    assert "mean loss" not in again
    assert again.splitlines()[-len(scores) :] == first.splitlines()[-len(scores) :]
