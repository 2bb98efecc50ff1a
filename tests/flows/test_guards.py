"""What a repeated run says of its sources, and what stops it before anything is selected."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import changes, pipeline
from flows.progress import LineReporter, SilentReporter
from storage.catalog import runs
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
    again = pipeline.run(load_settings(values), SilentReporter())
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
            pipeline.run(load_settings(values), SilentReporter())
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
    assert "sources unchanged" in pipeline.run(load_settings(values | {"max_retired": 0}), SilentReporter()).sentence
    # a source that the user no longer names is no loss
    fewer = pipeline.run(load_settings(values | {"sources": values["sources"][:1]}), SilentReporter())
    assert "-38 retired (chat.jsonl gone)" in fewer.sentence
