"""The pools of the experiments: drawn as stated, the same by the same seed, and bad in the ways that are named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr

from tests.benchmarks.datamodelling import half, score
from tests.benchmarks.pools import CANNED, WAYS, draw, main, shares, single_exchanges, spoil, write_rows


def conversations(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": f"The number {n} in five words"},
            ]
        }
        for n in range(count)
    ]


def answer(row: dict[str, Any]) -> str:
    return str(row["messages"][-1]["content"])


def test_draw__is_in_proportion_seeded_and_in_order() -> None:
    assert shares({"a": 900, "b": 100}, 50) == {"a": 45, "b": 5}
    frame = pl.DataFrame({"n": range(200)})
    drawn = draw(frame, "a", 40, seed=0)["n"].to_list()
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 40
    assert drawn == draw(frame, "a", 40, seed=0)["n"].to_list()
    assert drawn != draw(frame, "b", 40, seed=0)["n"].to_list()
    assert len(draw(frame, "a", 500, seed=0)) == 200


def test_spoil__a_share_of_the_answers_in_the_ways_that_are_named() -> None:
    rows = conversations(100)
    made = spoil(rows, "a", 0.3, seed=0)
    assert made == spoil(rows, "a", 0.3, seed=0)
    assert Counter(row["made_bad"] for row in made) == {None: 70} | dict.fromkeys(WAYS, 10)
    answers = set(map(answer, rows))
    for before, after in zip(rows, made, strict=True):
        assert after["messages"][:-1] == before["messages"][:-1]
        match after["made_bad"]:
            case None:
                assert answer(after) == answer(before)
            case "exchanged":
                assert answer(after) in answers - {answer(before)}
            case "canned":
                assert answer(after) in CANNED
            case "shuffled":
                assert sorted(answer(after).split()) == sorted(answer(before).split())


def test_single_exchanges__short_ones_without_repeats(tmp_path: Path) -> None:
    rows = conversations(40)
    long = {"messages": [rows[2]["messages"][0], {"role": "assistant", "content": "x " * 99}]}
    rows += [rows[0], {"messages": rows[1]["messages"] * 2}, long]
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    found = single_exchanges(tmp_path / "a.parquet", 100, 80)
    assert len(found) == 40
    assert single_exchanges(tmp_path / "a.parquet", 7, 80) == found[:7]
    write_rows(tmp_path / "out" / "a.jsonl", "a", spoil(found, "a", 0.5, 0))
    written = pl.read_ndjson(tmp_path / "out" / "a.jsonl")
    assert written["id"].str.contains("a/clean/").sum() == 20
    before = (tmp_path / "out" / "a.jsonl").read_bytes()
    write_rows(tmp_path / "out" / "a.jsonl", "a", [])
    assert (tmp_path / "out" / "a.jsonl").read_bytes() == before


def test_score__one_for_what_predicts_and_none_for_chance() -> None:
    rng = np.random.default_rng(0)
    effects = rng.standard_normal((6, 80))  # of 80 examples on 6 queries
    halves = np.array([half(80, number) for number in range(50)])
    assert all(len(set(chosen)) == 40 for chosen in halves.tolist())
    gains = effects[:, halves].sum(axis=2)
    assert score(3 * gains + 5, gains) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
    assert score(-gains, gains)[0] == pytest.approx(-1)
    noisy = gains + gains.std() * rng.standard_normal(gains.shape)
    mean, error = score(noisy, gains)
    assert mean == pytest.approx(np.mean([spearmanr(a, b).statistic for a, b in zip(noisy, gains, strict=True)]))
    chance, spread = score(rng.standard_normal(gains.shape), gains)
    assert abs(chance) < 4 * spread
    assert 0.3 < mean < 0.9
    assert 0 < error < 0.2


def test_main__held_out_rows_are_not_in_the_pool_and_stay_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all").mkdir()
    pl.DataFrame(conversations(60)).write_parquet(tmp_path / "all" / "a.parquet")
    pl.DataFrame(conversations(12)).write_parquet(tmp_path / "all" / "b.parquet")  # fewer than are asked for
    held = {}
    for name, bad in {"clean": "0", "dirty": "0.3"}.items():
        rows = ["--each", "10", "--bad", bad, "--held", str(tmp_path / name / "held"), "--held-rows", "4"]
        monkeypatch.setattr("sys.argv", ["pools", str(tmp_path / "all"), str(tmp_path / name), *rows])
        main()
        held[name] = {file.stem: pl.read_parquet(file) for file in (tmp_path / name / "held").iterdir()}
        for file, drawn in held[name].items():
            pool = pl.read_parquet(tmp_path / name / f"{file}.parquet")
            questions = [{row["messages"][0]["content"] for row in part.to_dicts()} for part in (pool, drawn)]
            assert not questions[0] & questions[1]
            assert (pool["made_bad"].null_count() == 10) == (name == "clean")
    assert {file: len(drawn) for file, drawn in held["clean"].items()} == {"a": 4, "b": 2}
    for file, drawn in held["clean"].items():
        assert drawn.equals(held["dirty"][file])
