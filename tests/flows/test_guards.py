"""What a repeated run says of its sources, and what stops it before anything is selected."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import changes, pipeline
from flows.checks import Stage, load_checks, run_checks
from flows.context import RunContext
from flows.progress import LineReporter, SilentReporter
from storage.catalog import check_results, runs
from storage.catalog.changes import by_file, by_source
from storage.database import Catalog
from storage.root import open_root
from tagcos_stream.config import load_settings
from tagcos_stream.types import UserError
from tests.flows.conftest import SMALL, TOPICS, conversation

KEPT = ("source", "before", "pool", "new", "returned", "retired", "rejected")


def write(path: Path, topic: str, numbers: range, end: str = "") -> None:
    lines = [json.dumps({"messages": conversation(topic, n)}) + "\n" for n in numbers]
    path.write_text("".join(lines) + end, encoding="utf-8")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Path, dict[str, Any], str]:
    """A folder of two files and a file of its own, 40 conversations each, and a complete run of both; its tests follow the
    file's order."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "pool").mkdir()
    for topic in TOPICS[:2]:
        write(folder / "pool" / f"{topic}.jsonl", topic, range(40))
    write(folder / "chat.jsonl", "cities", range(40))
    sources = (str(folder / "pool"), str(folder / "chat.jsonl"))
    quick = {"method": "random", "dim": 64, "warmup_examples": 8}
    values = SMALL | quick | {"sources": sources, "root": str(folder / "root"), "model": str(model_folder)}
    return folder, values, pipeline.run(load_settings(values), SilentReporter()).run_id


def catalog_of(values: dict[str, Any]) -> Catalog:
    return open_root(values["root"], create=False).catalog


def test_run__says_by_source_what_came_went_and_was_rejected(first: tuple[Path, dict[str, Any], str]) -> None:
    folder, values, before = first
    catalog = catalog_of(values)
    assert changes.sentence(catalog, before) == "12 of 120 selected; first run of these sources"
    write(folder / "pool" / "sums.jsonl", "sums", range(43), end="not JSON\n")
    write(folder / "chat.jsonl", "cities", range(38))
    said: list[str] = []
    outcome = pipeline.run(load_settings(values), LineReporter(said.append))
    assert "source pool: +3 new, 1 row rejected; 80 -> 83 examples" in said
    assert "source chat: -2 retired (chat.jsonl shrank from 40 to 38 rows), 0 rows" not in "\n".join(said)
    assert "source chat: -2 retired (chat.jsonl shrank from 40 to 38 rows); 40 -> 38 examples" in said
    told = changes.sentence(catalog, outcome.run_id)
    assert told.startswith(
        "12 of 121 selected; +3 new, -2 retired (chat.jsonl shrank from 40 to 38 rows), 1 row rejected, churn "
    )
    assert told == outcome.sentence
    rows = by_source(catalog, outcome.run_id, before).select(KEPT).rows()
    assert rows == [("chat", 40, 38, 0, 0, 2, 0), ("pool", 80, 83, 3, 0, 0, 1)]
    assert {row["url"].rpartition("/")[2]: row["change"] for row in by_file(catalog, outcome.run_id, before).to_dicts()} == {
        "chat.jsonl": "changed",
        "sums.jsonl": "changed",
    }
    assert outcome.stages["ingest"]["since"] == before
    again = pipeline.run(load_settings(values | {"max_retired": 0}), SilentReporter())
    assert again.sentence == "12 of 121 selected; sources unchanged, 1 row rejected, churn 0%"


def gone(folder: Path) -> None:
    (folder / "pool" / "colours.jsonl").unlink()


def empty(folder: Path) -> None:
    (folder / "pool" / "colours.jsonl").write_text("")


def a_folder(folder: Path) -> None:
    (folder / "chat.jsonl").unlink()
    (folder / "chat.jsonl").mkdir()
    write(folder / "chat.jsonl" / "other.jsonl", "cities", range(100, 140))


def half_written(folder: Path) -> None:
    text = (folder / "chat.jsonl").read_text(encoding="utf-8")
    (folder / "chat.jsonl").write_text(text[:-20], encoding="utf-8")


def half_written_among_broken_rows(folder: Path) -> None:
    half_written(folder)
    text = (folder / "chat.jsonl").read_text(encoding="utf-8")
    (folder / "chat.jsonl").write_text("not JSON\n" * 1200 + text, encoding="utf-8")


def half_compressed(folder: Path) -> None:
    text = (folder / "pool" / "colours.jsonl").read_bytes()
    (folder / "pool" / "more.jsonl.gz").write_bytes(gzip.compress(text + text)[:-30])


def halved(folder: Path) -> None:
    write(folder / "chat.jsonl", "cities", range(19))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (gone, r"source pool: 40 of 83 examples are gone since run-.* \(48%: colours.jsonl gone\), max_retired is 0.1"),
        (empty, r"source pool: 40 of 83 .* \(48%: colours.jsonl empty\)"),
        (a_folder, r"source chat: 38 of 38 .* \(100%: chat.jsonl is a folder now\)"),
        (halved, r"source chat: 19 of 38 .* \(50%: chat.jsonl shrank from 38 to 19 rows\)"),
        (half_written, r"^chat.jsonl does not end in a whole row\. .*wait until the file is complete"),
        (half_written_among_broken_rows, r"^chat.jsonl does not end in a whole row\. "),
        (half_compressed, r"^more.jsonl.gz does not end in a whole row\. "),
    ],
    ids=lambda given: given.__name__ if callable(given) else "",
)
def test_guard__stops_before_anything_is_selected(
    first: tuple[Path, dict[str, Any], str], damage: Callable[[Path], None], says: str
) -> None:
    folder, values, _ = first
    catalog = catalog_of(values)
    complete = catalog.read("SELECT count(*) AS n FROM runs WHERE status = 'complete'").item()
    kept = {path: path.read_bytes() for path in (*(folder / "pool").iterdir(), folder / "chat.jsonl")}
    damage(folder)
    try:
        with pytest.raises(UserError, match=says) as stopped:
            pipeline.run(load_settings(values | {"max_rejects": 5000}), SilentReporter())
    finally:
        if (folder / "chat.jsonl").is_dir():
            (folder / "chat.jsonl" / "other.jsonl").unlink()
            (folder / "chat.jsonl").rmdir()
        for path in (folder / "pool").iterdir():
            path.unlink()
        for path, content in kept.items():
            path.write_bytes(content)
    assert "Nothing was selected or published" in str(stopped.value)
    assert "\n" not in str(stopped.value)
    newest = runs.list_runs(catalog).row(0, named=True)
    assert (newest["status"], newest["selected"]) == ("failed", None)
    assert catalog.read("SELECT count(*) AS n FROM runs WHERE status = 'complete'").item() == complete


def test_guard__a_loss_is_accepted_once_and_other_sources_are_no_loss(first: tuple[Path, dict[str, Any], str]) -> None:
    folder, values, _ = first
    gone(folder)
    with pytest.raises(UserError, match=r"accept the loss in one run with --max-retired 40 "):
        pipeline.run(load_settings(values), SilentReporter())
    with pytest.raises(UserError, match=r"max_retired is 39"):
        pipeline.run(load_settings(values | {"max_retired": 39}), SilentReporter())
    accepted = pipeline.run(load_settings(values | {"max_retired": 40}), SilentReporter())
    assert "-40 retired (colours.jsonl gone)" in accepted.sentence
    # a source that the user no longer names is no loss
    fewer = pipeline.run(load_settings(values | {"sources": values["sources"][:1]}), SilentReporter())
    assert "-38 retired (chat.jsonl gone)" in fewer.sentence


def checked(first: tuple[Path, dict[str, Any], str], folder: Path, stage: Stage) -> list[str]:
    """What the checks of a folder say of the first run."""
    said: list[str] = []
    root = open_root(first[1]["root"], create=False)
    run = RunContext(load_settings(first[1]), first[2], root, LineReporter(said.append))
    run_checks(run, load_checks(str(folder)), stage)
    return said


def test_checks__warn_stop_and_are_recorded(first: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    catalog = catalog_of(first[1])
    warn = (
        "-- Sources.\n-- severity: warn\n-- after: select\nSELECT source, pool FROM source_changes($since, $run) ORDER BY source"
    )
    (tmp_path / "few.sql").write_text(warn)
    (tmp_path / "none.sql").write_text("SELECT * FROM selection_of($run) WHERE rank < 0; -- ranks count from 0")
    said = checked(first, tmp_path, "select")
    assert said == ["check few (warn) after select: 2 rows, the first: source chat, pool 40", "checks after select: 2 run"]
    assert checked(first, tmp_path, "ingest") == ["checks after ingest: 1 run"]
    (tmp_path / "many.sql").write_text("FROM pool_of($run) CROSS JOIN range(100)")
    with pytest.raises(
        UserError, match=r"check many \(stop\) after ingest: more than 1,000 rows, .*Nothing was published: .*many.sql"
    ):
        checked(first, tmp_path, "ingest")
    rows = {(row["stage"], row["name"]): (row["severity"], row["rows"]) for row in check_results.of_run(catalog, first[2])}
    assert rows == {
        ("select", "few"): ("warn", 2),
        ("select", "none"): ("stop", 0),
        ("ingest", "none"): ("stop", 0),
        ("ingest", "many"): ("stop", 1001),
    }


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT 1 FROM nothing", r"Table with name nothing does not exist.*; correct the file"),
        ("SELECT $seed", r"unknown parameter \$seed; there are \$run, \$since"),
        ("SELECT 1; SELECT 2", r"a check is one SELECT statement"),
        ("DELETE FROM runs", r"a check is one SELECT statement"),
        ("COPY runs TO 'here.csv'", r"a check is one SELECT statement"),
        ("FROM read_csv('/etc/passwd')", r"disabled"),
        ("-- severity: loud\nSELECT 1", r"severity 'loud' is unknown; use stop or warn"),
        ("-- severity: warn (only tell)\nSELECT 1", r"severity 'warn \(only tell\)' is unknown; use stop or warn"),
        ("-- after: ingest and select\nSELECT 1", r"after 'ingest and select' is unknown; use ingest or select"),
    ],
)
def test_checks__may_only_ask_the_catalog(first: tuple[Path, dict[str, Any], str], tmp_path: Path, query: str, says: str) -> None:
    (tmp_path / "bad.sql").write_text(query)
    with pytest.raises(UserError, match=says) as error:
        checked(first, tmp_path, "ingest")
    assert "bad.sql" in str(error.value)
    assert "\n" not in str(error.value)


def test_checks__heads_are_read_however_they_are_written(tmp_path: Path) -> None:
    """A severity that is not read would be the one that stops a night."""
    heads = {
        "a": "\ufeff-- severity: warn",
        "b": "-- Severity: WARN\r\n-- AFTER: select",
        "c": "--severity:warn\n-- after: ingest, select",
    }
    for name, head in heads.items():
        (tmp_path / f"{name}.sql").write_text(f"{head}\nSELECT 1", encoding="utf-8", newline="")
    found = load_checks(str(tmp_path))
    assert [check.severity for check in found] == ["warn"] * 3
    assert [check.stages for check in found] == [("ingest", "select"), ("select",), ("ingest", "select")]
    assert not any("\ufeff" in check.query for check in found)


def test_checks__stop_a_run_before_it_selects(first: tuple[Path, dict[str, Any], str], tmp_path: Path) -> None:
    catalog = catalog_of(first[1])
    (tmp_path / "small.sql").write_text("-- after: ingest\nSELECT count(*) AS n FROM pool_of($run) HAVING n < 1000")
    with pytest.raises(UserError, match="check small"):
        pipeline.run(load_settings(first[1] | {"checks": str(tmp_path), "fraction": 0.2}), SilentReporter())
    newest = runs.list_runs(catalog).row(0, named=True)
    assert (newest["status"], newest["selected"]) == ("failed", None)
    assert newest["error"].startswith("check small (stop) after ingest: 1 row, the first: n ")
    with pytest.raises(UserError, match=r"checks: \S+nowhere is not a folder with \.sql files"):
        pipeline.run(load_settings(first[1] | {"checks": str(tmp_path / "nowhere")}), SilentReporter())
