"""Numeric columns of the user's own: read alike from every container, no part of an example, rejected if no number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from storage.catalog.signals import COLUMNS
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.sources import score_names
from tagcos_stream.types import SIGNALS
from tests.data.tools import Read, read, write

OPTIONS = RowOptions(scores=("quality", "toxic"))
EXACT = RowOptions(scores=("quality", "toxic"), shape="prompt_completion")  # a shape by name is read row by row
VALUES: list[dict[str, Any]] = [
    {"quality": 4.5, "toxic": 0},
    {"quality": 3.0, "toxic": None},
    {"quality": -1e-3, "toxic": 2},
    {"quality": None, "toxic": None},
]
SCORED: list[dict[str, float] | None] = [{"quality": 4.5, "toxic": 0}, {"quality": 3}, {"quality": -0.001, "toxic": 2}, None]


def rows(values: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"prompt": f"q{n}", "completion": f"a{n}", **value} for n, value in enumerate(values)]


def scores_of(got: Read) -> list[dict[str, float] | None]:
    return [one and {score["name"]: score["value"] for score in one} for one in got.occurrences["scores"].to_list()]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_scores__every_container_gives_the_same_and_ids_are_those_without(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    frame = pl.DataFrame(rows(VALUES), schema_overrides={"quality": pl.Float32, "toxic": pl.Int8})
    if kind == "jsonl":
        write(path, rows(VALUES))
    elif kind == "json":
        path.write_text(json.dumps(rows(VALUES)))
    else:
        writers: dict[str, Callable[[Path], Any]] = {
            "csv": frame.write_csv,
            "parquet": frame.write_parquet,
            "arrow": frame.write_ipc,
        }
        writers[kind](path)
    plain = read(path)
    assert plain.occurrences["scores"].null_count() == 4
    for options in (OPTIONS, EXACT):
        for block_rows in (1, 8192):
            got = read(path, options=options, block_rows=block_rows)
            found = scores_of(got)
            assert [
                None if one is None else {name: pytest.approx(value) for name, value in one.items()} for one in found
            ] == SCORED
            assert got.occurrences.drop("scores").equals(plain.occurrences.drop("scores"))


def test_scores__what_is_no_number_rejects_its_row_by_name(tmp_path: Path) -> None:
    given: list[Any] = [1, "good", True, [1], {"a": 1}, "", " 2.5e1 ", "1_0", "nan", None, 10**400]
    path = write(
        tmp_path / "a.jsonl",
        [*rows([{"quality": value} for value in given]), b'{"prompt": "q", "completion": "a", "quality": NaN}'],
    )
    for options in (OPTIONS, EXACT):
        got = read(path, options=options)
        assert got.reasons == dict.fromkeys((1, 2, 3, 4, 7, 8, 10), "wrong_type")
        assert got.rejects["detail"][0] == "quality is 'good': the scores of a source are numbers"
        assert scores_of(got) == [{"quality": 1.0}, None, {"quality": 25.0}, None, None]
    pl.DataFrame(rows([{"quality": value} for value in ("3", "-.5", "x", "", None)])).write_csv(tmp_path / "a.csv")
    got = read(tmp_path / "a.csv", options=OPTIONS)
    assert (got.reasons, scores_of(got)) == ({2: "wrong_type"}, [{"quality": 3.0}, {"quality": -0.5}, None, None])
    table = rows([{"quality": float("nan")}, {"quality": 2.0}])
    pl.DataFrame(table).with_columns(toxic=pl.Series([[1], None])).write_parquet(tmp_path / "a.parquet")
    got = read(tmp_path / "a.parquet", options=OPTIONS)
    assert (got.reasons, scores_of(got)) == ({0: "wrong_type"}, [{"quality": 2.0}])


def test_scores__of_a_thread_are_those_of_its_last_message(tmp_path: Path) -> None:
    tree: list[dict[str, Any]] = [
        {"message_id": f"{n}{role}", "parent_id": f"{n}prompter" if role == "assistant" else None, "role": role, "text": "t"}
        | {"message_tree_id": str(n), "quality": score}
        for n, score in enumerate((1, "bad", 3, None))
        for role in ("prompter", "assistant")
    ]
    path = write(tmp_path / "a.jsonl", tree)
    for block_rows in (1, 100):
        got = read(path, options=OPTIONS, block_rows=block_rows)
        assert (got.reasons, scores_of(got)) == ({3: "wrong_type"}, [{"quality": 1.0}, {"quality": 3.0}, None])


def test_scores__names_of_lists(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        "[[source]]\npath='a'\nscores=['Quality', 'x']\n[[source]]\npath='b'\nscores=['quality', 'y']"
    )
    assert score_names(["pool/", str(tmp_path / "a.toml")]) == ["quality", "x", "y"]
    assert set(COLUMNS) == SIGNALS
