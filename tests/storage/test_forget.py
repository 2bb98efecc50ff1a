"""A forgotten text is in no file of the root any more: searched for as bytes, and in every value of what is compressed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from storage import check, forget, snapshot
from storage.catalog import pool, runs, selections
from storage.exports import write as exports
from storage.root import Root
from tagcos_stream.types import IngestBlock, UserError
from tests.storage import tiny


def holders(folder: Path | None, text: str) -> set[str]:
    """The files in a folder that hold a text: as bytes, in a cell of a Parquet file, in a value of a DuckDB file."""
    assert folder is not None
    found = set()
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        name = str(path.relative_to(folder))
        if text.encode() in path.read_bytes():
            found.add(name)
        if path.suffix == ".parquet" and path.name != "bad.parquet":
            cells = pl.read_parquet(path)
            if any(text in str(value) for row in cells.iter_rows() for value in row):
                found.add(name)
        if path.suffix == ".duckdb":
            with duckdb.connect(str(path), read_only=True) as connection:
                for (table,) in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall():
                    if any(text in str(value) for row in connection.execute(f"FROM {table}").fetchall() for value in row):
                        found.add(name)
    return found


def message_text(number: int) -> str:
    """What example `number` says: nothing that compression shortens, and nothing that another one says."""
    return f"answer {number}: {hashlib.blake2b(str(number).encode()).hexdigest()}"


@pytest.fixture
def secret(root: Root, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Root, str, int]:
    """(root, its run, the number of a selected example): its text is also in a snippet, an error, exports and a report."""
    made = tiny.ingest_block

    def block(first: int, numbers: list[int], **options: Any) -> IngestBlock:
        found = made(first, numbers, **options)
        talks = [
            [row[0], row[1] | {"content": message_text(n)}] for row, n in zip(found.occurrences["messages"], numbers, strict=True)
        ]
        occurrences = found.occurrences.with_columns(messages=pl.Series(talks, dtype=found.occurrences.schema["messages"]))
        return replace(found, occurrences=occurrences)

    monkeypatch.setattr(tiny, "ingest_block", block)
    run_id = tiny.run(root, examples=150).run_id
    number = next(n for n in range(1, 150) if tiny.example_id(n) in selections.chosen_by(root.catalog, run_id))
    with root.catalog.transaction() as connection:
        connection.execute(
            "UPDATE rejects SET snippet = ? WHERE stage = 'ingest' AND row % 2 = 0", ['{"x": "' + message_text(number)[:60]]
        )
    runs.stop_run(root.catalog, run_id, "failed", f"cannot render {message_text(number)!r}")
    runs.finish_run(root.catalog, run_id)
    with root.catalog.transaction() as connection:
        connection.execute("UPDATE runs SET error = ?", [f"cannot render {message_text(number)!r}"])
    snapshot.publish(root, run_id)
    assert root.path is not None
    written: list[tuple[str, dict[str, Any]]] = [("a.jsonl", {}), ("a.parquet", {}), ("folder", {"format": "datasets"})]
    for name, options in written:
        exports.export(root, run_id, root.path / "exports" / name, **options)
        exports.export(root, run_id, tmp_path / "elsewhere" / name, **options)
    for key, rest in (("reports/a.html", message_text(number)), ("reports/b.html", "nothing")):
        root.files.write(key, f"<p>{tiny.example_id(number) if key.endswith('a.html') else ''} {rest}</p>".encode())
    return root, run_id, number


@pytest.mark.process  # some seconds
def test_forget__leaves_the_text_nowhere(secret: tuple[Root, str, int], tmp_path: Path) -> None:
    root, run_id, number = secret
    gone, other = tiny.example_id(number), next(iter(selections.chosen_by(root.catalog, run_id) - {tiny.example_id(number)}))
    text, elsewhere = message_text(number)[:40], tmp_path / "elsewhere"
    before = holders(root.path, text)
    assert {"catalog.duckdb", "catalog-snapshot.duckdb", "exports/a.jsonl", "exports/a.parquet", "reports/a.html"} <= before
    assert {"exports/folder/tagcos.parquet", f"snapshots/{run_id}/rejects.parquet"} <= before
    assert any(name.startswith("examples/") for name in before)
    assert len(holders(elsewhere, text)) == 3
    pool_before, chosen = len(pool.pool(root.catalog, run_id)), len(selections.chosen_by(root.catalog, run_id))
    files = [elsewhere / "a.jsonl", elsewhere / "a.parquet", elsewhere / "folder"]
    with root.writer():
        done = forget.forget(root, [gone[:20]], files)
    assert holders(root.path, text) == holders(elsewhere, text) == set()
    assert (done.example_ids, done.parts) == ([gone], 1)
    assert (
        done.snippets == root.catalog.read("SELECT count(*) FROM rejects WHERE stage = 'ingest' AND snippet IS NULL").item() > 0
    )
    assert sorted(done.files.values()) == [0, 1, 1, 1, 1, 1, 1]
    # the hash and what was chosen stay, and all else is as it was
    assert gone in selections.chosen_by(root.catalog, run_id)
    assert len(selections.chosen_by(root.catalog, run_id)) == chosen
    assert len(pool.pool(root.catalog, run_id)) == pool_before - 1
    assert root.catalog.read("SELECT reason FROM why(?, run := ?)", [gone, run_id]).item().startswith("chosen by")
    assert check.check(root) == []
    assert holders(root.path, other) > {"exports/a.jsonl"}
    mark = json.loads((elsewhere / "folder" / "tagcos-export.json").read_text(encoding="utf-8"))
    assert (mark["rows"], mark["forgotten_rows"]) == (chosen - 1, 1)
    assert root.catalog.read(
        "SELECT comment FROM duckdb_columns() WHERE table_name = 'forgotten' AND column_name = 'example_id'"
    ).item()
    # an export made from now on leaves it out and says so; no source brings the text back
    again = exports.export(root, run_id, tmp_path / "again.jsonl")
    assert (again.rows, again.examples) == (chosen - 1, chosen - 1)
    weights = [json.loads(line)["weight"] for line in (tmp_path / "again.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(weights) == pytest.approx(chosen - 1)
    assert list(again.notes) == ["selected examples were forgotten: they have no text"]
    tiny.run(root, examples=160)
    assert holders(root.path, text) == set()
    assert gone not in pool.pool(root.catalog, runs.find_run(root.catalog))["example_id"].to_list()
    # repeated, for example after it was interrupted, it has nothing left to do
    with root.writer():
        assert forget.forget(root, [gone]).files == {}
    assert check.check(root) == []


def test_forget__goes_on_where_a_file_cannot_be_read_and_names_it(secret: tuple[Root, str, int]) -> None:
    root, _, number = secret
    assert root.path is not None
    (root.path / "exports" / "bad.parquet").write_bytes(b"PAR1 and nothing else")
    with root.writer():
        done = forget.forget(root, [tiny.example_id(number)])
    assert holders(root.path, message_text(number)[:40]) == set()
    (unread,) = done.unread
    assert unread.startswith(f"{root.path / 'exports' / 'bad.parquet'}: ")


def test_forget__follows_links_that_it_is_given(secret: tuple[Root, str, int], tmp_path: Path) -> None:
    root, _, number = secret
    text, elsewhere, links = message_text(number)[:40], tmp_path / "elsewhere", tmp_path / "links"
    (links / "folder").mkdir(parents=True)
    (elsewhere / "page.html").write_text(f"<p>{tiny.example_id(number)} {text}</p>", encoding="utf-8")
    for link, real in (
        ("a.jsonl", "a.jsonl"),
        ("folder/other.parquet", "a.parquet"),
        ("whole", "folder"),
        ("page.html", "page.html"),
    ):
        (links / link).symlink_to(elsewhere / real)
    assert len(holders(elsewhere, text)) == 4
    given = [links / "a.jsonl", links / "folder", links / "whole", links / "page.html", elsewhere / "page.html"]
    with root.writer():
        done = forget.forget(root, [tiny.example_id(number)], given)
    assert holders(elsewhere, text) == set()
    assert (links / "a.jsonl").is_symlink()
    assert not (links / "page.html").is_symlink()
    assert not (elsewhere / "page.html").exists()
    assert done.unread == []
    assert {str(links / "a.jsonl"), str(links / "page.html")} <= set(done.files)


def test_forget__names_links_of_the_root_that_it_does_not_follow(secret: tuple[Root, str, int], tmp_path: Path) -> None:
    root, _, number = secret
    assert root.path is not None
    text, elsewhere, exports_folder = message_text(number)[:40], tmp_path / "elsewhere", root.path / "exports"
    (elsewhere / "page.html").write_text(f"<p>{tiny.example_id(number)} {text}</p>", encoding="utf-8")
    links = {
        exports_folder / "link.jsonl": elsewhere / "a.jsonl",
        exports_folder / "linked": elsewhere / "folder",
        root.path / "reports" / "page.html": elsewhere / "page.html",
    }
    for link, real in links.items():
        link.symlink_to(real)
    (exports_folder / "newest").symlink_to(exports_folder / "folder")
    (exports_folder / "newest.jsonl").symlink_to(exports_folder / "a.jsonl")
    (exports_folder / "gone.jsonl").symlink_to(elsewhere / "gone.jsonl")
    with root.writer():
        done = forget.forget(root, [tiny.example_id(number)])
        assert sorted(done.unread) == sorted(
            f"{link}: is a symbolic link, which is not followed here; name what it leads to with --file" for link in links
        )
        assert holders(elsewhere, text) == {"a.jsonl", "a.parquet", "folder/tagcos.parquet", "page.html"}
        again = forget.forget(root, [tiny.example_id(number)], [*links.values(), elsewhere / "a.parquet"])
        assert again.unread == forget.forget(root, [tiny.example_id(number)], [*links][:2]).unread == []
    assert holders(root.path, text) == holders(elsewhere, text) == set()


def test_export__of_which_every_example_was_forgotten_says_so(filled: Root, tmp_path: Path) -> None:
    run_id = runs.find_run(filled.catalog)
    chosen = selections.chosen_by(filled.catalog, run_id)
    with filled.writer():
        forget.forget(filled, sorted(chosen))
    with pytest.raises(UserError, match=f"nothing to export: {len(chosen)} selected examples were forgotten"):
        exports.export(filled, run_id, tmp_path / "none.jsonl")


def test_forget__names_what_it_cannot_find(filled: Root, tmp_path: Path) -> None:
    for word, problem in (("feed", "no example has"), ("", "several examples have")):
        with pytest.raises(UserError, match=f"{problem} the id '{word}'"):
            forget.forget(filled, [word])
    with pytest.raises(UserError, match=r"notes.txt is neither an export .* nor a report"):
        forget.forget(filled, [tiny.example_id(3)], [tmp_path / "notes.txt"])
