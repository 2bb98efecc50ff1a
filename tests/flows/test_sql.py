"""`tagcos sql`: where a query comes from, how its answer is printed, and what it may touch."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from flows.cli import output
from storage.root import Root
from tagcos_stream.types import UserError
from tests.flows.conftest import Call

NUMBERS = "SELECT sum(7) AS total, 1.50::DECIMAL(9, 2) AS price, 'nan'::DOUBLE AS lost, [1, 2] AS few, 0.1 + 0.2::DOUBLE AS exact"


@pytest.fixture
def ask(filled: Root, tagcos: Call) -> Call:
    """Exit code, standard output and standard error of `tagcos sql` with these arguments."""
    return lambda *arguments: tagcos("sql", "--root", filled.path, *arguments)


def test_sql__reads_the_query_from_an_argument_a_file_or_standard_input(
    ask: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "query.sql").write_text("SELECT 42 AS n")
    assert ask("SELECT 42 AS n") == ask("--file", str(tmp_path / "query.sql")) == (0, " n\n42\n", "")
    for arguments in ([], ["-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 42 AS n"))
        assert ask(*arguments)[1] == " n\n42\n"
    code, _, err = ask("SELECT 1", "--file", str(tmp_path / "query.sql"))
    assert (code, "exclude each other" in err) == (2, True)
    code, _, err = ask("--file", str(tmp_path / "none.sql"))
    assert (code, "cannot read the query from" in err) == (2, True)


def test_sql__numbers_are_numbers_in_json(ask: Call) -> None:
    (row,) = json.loads(ask(NUMBERS, "--json")[1])
    assert row == {"total": 7, "price": 1.5, "lost": None, "few": [1, 2], "exact": 0.1 + 0.2}
    assert type(row["total"]) is int


def test_sql__what_python_cannot_hold_is_text_or_null(ask: Call) -> None:
    query = "SELECT [INTERVAL 1 DAY] AS waits, 'infinity'::TIMESTAMP AS never, '-infinity'::DATE AS day, union_value(a := 1) AS u"
    for arguments in ([], ["--csv"]):
        assert ask(query, *arguments)[0] == 0
    (row,) = json.loads(ask(query, "--json")[1])
    assert row == {"waits": "[1 day]", "never": None, "day": None, "u": "1"}
    (row,) = json.loads(ask("SELECT TIMESTAMP '2026-01-01 10:00:00' AS now, finished_at IS NULL AS none FROM runs", "--json")[1])
    assert row["now"].startswith("2026-01-01")


def test_sql__a_comment_may_follow_the_query(ask: Call) -> None:
    for query in ("SELECT INTERVAL 1 DAY AS waits; -- done", "SELECT 'ä;' AS waits /* ; */ ;; -- done\n;"):
        for arguments in ([], ["--limit", "1"]):
            assert ask(query, *arguments, "--csv")[1].startswith("waits\n")


def test_sql__csv(ask: Call) -> None:
    told = ask(NUMBERS + ", 'a,\"b\"' AS text", "--csv")[1]
    assert told == 'total,price,lost,few,exact,text\n7,1.5,,"[1, 2]",0.30000000000000004,"a,""b"""\n'
    assert ask("SELECT 1", "--csv", "--json")[0] == 2


def test_sql__limit(ask: Call) -> None:
    assert ask("FROM range(100)", "--limit", "2")[1] == "range\n    0\n    1\n"


def test_sql__a_pipe_gets_one_line_a_row_in_full_precision(ask: Call) -> None:
    told = ask("SELECT 1 / 3 AS third, E'two\\nlines\\t' AS text, repeat('x ', 9000) AS long")[1].splitlines()
    assert len(told) == 2
    assert told[1].startswith("0.3333333333333333  two\\nlines\\t")
    assert told[1].endswith(("x " * 9000).strip())


def test_print_frame__ids_are_never_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    identity = "0123456789abcdef" * 2
    frame = pl.DataFrame({"example_id": [identity] * 2, "text": ["many words " * 20] * 2, "more": ["words and words " * 9] * 2})
    for width in (60, 90):
        out = io.StringIO()
        monkeypatch.setattr(output, "in_terminal", lambda: True)
        monkeypatch.setattr(output, "console", lambda out=out, width=width: Console(width=width, file=out))
        output.print_frame(frame)
        assert out.getvalue().count(identity) == 2


def test_sql__safe_asks_and_does_nothing_else(ask: Call, filled: Root, tmp_path: Path) -> None:
    out, secret = tmp_path / "out.csv", tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    assert ask(f"FROM read_csv('{secret}')")[1] == "a\n1\n"  # documented: without --safe a query may read files
    for query in (
        f"COPY (SELECT 1) TO '{out}'",
        f"FROM read_csv('{secret}')",
        f"ATTACH '{tmp_path / 'other.duckdb'}'",
        "INSTALL httpfs",
        "SET threads = 1",
        "SELECT 1; PRAGMA database_list",
        f"SELECT 1; COPY (SELECT 1) TO '{filled.path}/examples/x.csv'",
    ):
        code, _, err = ask(query, "--safe")
        assert code == 2, (query, err)
    assert not out.exists()
    assert not (Path(str(filled.path)) / "examples" / "x.csv").exists()
    assert "SELECT or FROM" in ask("SET threads = 1", "--safe")[2]
    assert ask("SELECT count(*) > 0 AS any FROM texts((SELECT run_id FROM latest_run))", "--safe")[1] == "any\nTrue\n"


def test_texts__are_those_of_the_selection_wherever_one_asks(filled: Root, tmp_path: Path) -> None:
    places = filled.files.place("examples/*/*.parquet")
    found = filled.catalog.ask("FROM texts((SELECT run_id FROM latest_run)) ORDER BY cluster, rank", examples=places)
    chosen = filled.catalog.read("SELECT example_id FROM latest_selection ORDER BY cluster, rank")
    assert found["example_id"].to_list() == chosen["example_id"].to_list()
    for row in found.iter_rows(named=True):
        assert row["first_turn"].replace("question", "answer") == row["last_answer"] == row["messages"][-1]["content"]
    code = "import duckdb; c = duckdb.connect('catalog.duckdb', read_only=True); " + (
        "print(c.sql('SELECT count(*) FROM texts((SELECT run_id FROM latest_run))').fetchall()[0][0])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=str(filled.path), env=dict(os.environ), capture_output=True, text=True, check=True
    )
    assert int(told.stdout) == len(chosen)


def test_catalog__our_own_connections_open_no_other_file(filled: Root, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match=r"has SQL that opens other files .*x.csv"):
        filled.catalog.read(f"FROM read_csv('{tmp_path / 'x.csv'}')")
    with pytest.raises(UserError, match=r"has SQL that opens other files .*y.csv"), filled.catalog.transaction() as connection:
        connection.execute(f"COPY (SELECT 1) TO '{tmp_path / 'y.csv'}'")
    settings = filled.catalog.read(
        "SELECT current_setting('autoinstall_known_extensions') AS install, current_setting('autoload_known_extensions') AS load"
    )
    assert settings.rows() == [(False, False)]
    with pytest.raises(UserError, match="--safe allows no"):
        filled.catalog.ask("SET threads = 2", safe=True)
