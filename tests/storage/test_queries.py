"""Functions of storage/catalog that answer one question each: completions, lists of examples, units, the user's checks."""

from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl
import pytest

from storage.catalog import check_results, evaluations, runs, signals
from storage.catalog.evaluations import Setup, Training, UnitKey
from storage.root import Root
from storage.snapshot import publish, snapshot_path
from tagcos_stream.types import UserError


def latest(root: Root) -> str:
    return str(runs.complete_run(root.catalog)["run_id"])


def test_completions__are_complete_runs_names_and_latest(filled: Root, tmp_path: Path) -> None:
    run_id, copy = latest(filled), snapshot_path(filled)
    assert runs.completions(copy, "") == []  # nothing is published yet
    runs.promote(filled.catalog, run_id, "prod")
    runs.open_run(filled.catalog, config={}, config_hash="h", versions={}, seeds={})  # which is not complete
    publish(filled, run_id)
    assert runs.completions(copy, "") == [run_id, "main", "prod", "latest"]
    assert runs.completions(copy, run_id[:5]) == [run_id]
    assert runs.completions(copy, "pr") == ["prod"]
    assert runs.completions(copy, "la") == ["latest"]
    assert runs.completions(copy, "' OR 1 = 1 --") == []
    (tmp_path / "other").write_text("no catalog")
    assert runs.completions(tmp_path / "other", "") == []
    secret = tmp_path / "secret"
    secret.write_text("words of a file outside")
    with duckdb.connect(str(tmp_path / "planted.duckdb")) as connection:
        connection.execute(f"CREATE VIEW runs AS SELECT content AS run_id, 'complete' AS status FROM read_text('{secret}')")
        connection.execute("CREATE TABLE names (name VARCHAR)")
    assert runs.completions(tmp_path / "planted.duckdb", "") == []


def test_excluded_and_pinned__by_run_and_reason(filled: Root) -> None:
    catalog, run_id = filled.catalog, latest(filled)
    rows = catalog.read("SELECT segment, row, example_id FROM pool_of(?) ORDER BY segment, row LIMIT 5", [run_id])
    ids = rows["example_id"].to_list()
    reasons = ["exclude bad.txt", "exclude bad.txt", "loss < 1", "exclude worse.txt"]
    signals.record_exclusions(catalog, run_id, rows[:4].select("segment", "row", reason=pl.Series(reasons)))
    signals.record_exclusions(catalog, "other", rows[4:].select("segment", "row", reason=pl.lit("exclude bad.txt")))
    assert signals.excluded_ids(catalog, run_id, "exclude bad.txt") == set(ids[:2])
    assert signals.excluded_ids(catalog, run_id, "exclude None") == set()
    assert signals.pinned_ids(catalog, run_id) == set()
    signals.record_pins(catalog, run_id, rows[1:3].select("segment", "row"))
    signals.record_pins(catalog, "other", rows[4:].select("segment", "row"))
    assert signals.pinned_ids(catalog, run_id) == set(ids[1:3])


def test_finished_units__of_one_evaluation_in_order(root: Root) -> None:
    scores = pl.DataFrame({"measure": ["loss"], "part": [None], "value": [1.0], "sd": [0.0], "items": [1]})
    training = Training(None, 3, 2, 1.0, 30, 0.5, 1.0, 1.0)
    for name in ("one", "other"):
        evaluations.begin(root.catalog, name, Setup("run", "model", "print", 1, None, {}, {}))
    order = [("one", "random"), ("other", "random"), ("one", "base"), ("one", "longest")]
    for name, method in order:
        evaluations.commit(root.catalog, name, UnitKey(method, "", "", 0.1, 0, "steps", False), training, scores)
    found = evaluations.finished_units(root.catalog, "one")
    assert found["method"].to_list() == ["random", "base", "longest"]
    assert "evaluation_id" not in found.columns
    assert found["tokens"].to_list() == [30] * 3
    assert evaluations.finished_units(root.catalog, "none").is_empty()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT $run AS run",
        "SELECT $run AS run;",
        "SELECT $run AS run; -- done",
        "-- head\nSELECT $run AS run -- one row\n;\n\n-- what it means\n/* is said here */\n",
        "SELECT $run AS run -- no semicolon; done",
        "/* ; */ SELECT $run AS run, ';-- no comment' AS text;;\n",
        "-- où\nSELECT 'é漢' AS name, $run AS run; -- où",
    ],
)
def test_failing_rows__comments_may_stand_anywhere(filled: Root, query: str) -> None:
    found = check_results.failing_rows(filled.catalog, query, {"run": "a", "since": None})
    assert found["run"].to_list() == ["a"]
    if "text" in found.columns:
        assert found["text"].to_list() == [";-- no comment"]


@pytest.mark.parametrize("query", ["", "-- nothing", "SELECT 1; -- and\nSELECT 2"])
def test_failing_rows__are_of_one_query(filled: Root, query: str) -> None:
    with pytest.raises(UserError, match="a check is one SELECT statement"):
        check_results.failing_rows(filled.catalog, query, {})
