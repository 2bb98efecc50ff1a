"""`tagcos forget`: the text of examples is erased from a root and from exports and reports; their ids stay.

An id is a hash of the text. It stays in the catalog, so that earlier selections remain countable and no source brings the text
back: the example is in no pool any more. Numbers made from the text stay, too: lengths, loss, its row of features.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from storage import gc, snapshot
from storage.database import Catalog
from storage.examples import PARQUET_GROUP_ROWS, example_reader
from storage.exports.files import sweep_partials, without_examples
from storage.root import Root
from storage.tables import insert, utc_now
from tagcos_stream.data.canonical import EXAMPLE_COLUMNS
from tagcos_stream.identity import content_digest
from tagcos_stream.types import UserError

SHORTEST = 12  # characters of a text that is searched for in snippets and errors; shorter ones are in too many
BEGINNING = 40  # of a text: snippets are cut
LINK = "is a symbolic link, which is not followed here; name what it leads to with --file"


@dataclass(frozen=True)
class Forgotten:
    """What was erased."""

    example_ids: list[str]
    parts: int  # files of examples written again
    snippets: int  # rejects whose snippet and detail were removed
    files: dict[str, int]  # exports (rows removed) and reports (deleted: 0), by path
    unread: list[str]  # files that may hold them, but cannot be read, each with the reason


def forget(root: Root, asked: Sequence[str], elsewhere: Sequence[Path] = ()) -> Forgotten:
    """Erase the text of examples. The caller must hold the writer lock; repeated after an interruption it finishes.

    Parameters
    ----------
    root
        The root; the files under its exports/ and reports/ are searched, too.
    asked
        Ids of examples, or their first characters.
    elsewhere
        Exports (files or folders) and report pages outside of the root. Symbolic links are followed to what they lead to.

    Returns
    -------
    Forgotten
        What was erased.

    Raises
    ------
    UserError
        An id is unknown or means several examples, or a file elsewhere is neither an export nor a report.
    """
    ids = _resolve(root.catalog, asked)
    places = [path for given in elsewhere for path in _data_files(given)]
    rows = root.catalog.read("SELECT example_id, segment, row FROM examples WHERE example_id IN (SELECT unnest(?))", [ids])
    texts = _texts(root, rows)
    parts = _rewrite_parts(root, rows)
    snippets = _commit(root.catalog, ids, texts, parts)
    gc.sweep(root, gc.orphans(root))
    root.catalog.compact()
    snapshot.republish(root, keep=1)
    files, links = _erase_reports(root, ids)
    own, own_links = _own_files(root)
    searched = {os.path.realpath(path) for path in (*elsewhere, *places, *own)}
    left = [link for link in (*links, *own_links) if link.exists() and os.path.realpath(link) not in searched]
    unread = [f"{link}: {LINK}" for link in left]
    for path in [*places, *own]:
        try:
            if path.exists() and _names(path, ids):  # a page may be gone with a link to it that was named before
                files[str(path)] = _erase_from(path, ids)
        except (OSError, ValueError, pl.exceptions.PolarsError, pa.ArrowException) as error:  # not an export, or a damaged one
            unread.append(f"{path}: {str(error).strip().splitlines()[0]}")
    return Forgotten(ids, len(parts), snippets, files, unread)


def _resolve(catalog: Catalog, asked: Sequence[str]) -> list[str]:
    ids = []
    for word in asked:
        query = "SELECT example_id FROM examples WHERE starts_with(example_id, lower(?)) ORDER BY example_id LIMIT 3"
        found = catalog.read(query, [word])["example_id"].to_list()
        if len(found) != 1 or not word:
            problem = "no example has" if not found else "several examples have"
            raise UserError(
                f"{problem} the id {word!r}: give ids as `tagcos sql` shows them, for example 'FROM latest_selection'"
            )
        ids += found
    return list(dict.fromkeys(ids))


def _texts(root: Root, rows: pl.DataFrame) -> list[str]:
    """Beginnings of what the examples say, to be searched for; nothing of those forgotten before."""
    found = set()
    for part in example_reader(root).iterate(rows):
        for example in part.iter_rows(named=True):
            for message in example["messages"]:
                found |= {
                    text[:BEGINNING] for text in (message["content"], message["reasoning"]) if text and len(text) >= SHORTEST
                }
    return sorted(found)


def _rewrite_parts(root: Root, rows: pl.DataFrame) -> list[tuple[str, int, str, int, str]]:
    """(segment, part, new path, bytes, digest) of every part that holds one: the same rows, these without messages."""
    reader, ids, written = example_reader(root), rows["example_id"].to_list(), []
    for part in reader.parts.iter_rows(named=True):
        inside = pl.col("row").is_between(part["first_row"], part["first_row"] + part["rows"], closed="left")
        if rows.filter(pl.col("segment") == part["segment"], inside).is_empty():
            continue
        frame = reader.read(part["segment"], part["first_row"], part["first_row"] + part["rows"]).select(EXAMPLE_COLUMNS)
        gone = pl.col("example_id").is_in(ids)
        frame = frame.with_columns(
            messages=pl.when(gone).then(pl.lit([], frame.schema["messages"])).otherwise(pl.col("messages")),
            tools=pl.when(~gone).then("tools"),
            template_kwargs=pl.when(~gone).then("template_kwargs"),
        )
        buffer = io.BytesIO()
        frame.write_parquet(buffer, compression="zstd", row_group_size=PARQUET_GROUP_ROWS)
        body = buffer.getvalue()
        digest = content_digest(body)
        path = f"examples/{part['segment']}/part-{part['part']:05d}-{digest[:8]}.parquet"
        root.files.write(path, body)
        written.append((part["segment"], part["part"], path, len(body), digest))
    return written


def _commit(catalog: Catalog, ids: Sequence[str], texts: Sequence[str], parts: Sequence[tuple[str, int, str, int, str]]) -> int:
    """One transaction; returns the number of rejects whose snippets were removed."""
    escaped = sorted(
        {*texts, *(json.dumps(text)[1:-1] for text in texts), *(json.dumps(text, ensure_ascii=False)[1:-1] for text in texts)}
    )
    with catalog.transaction() as connection:
        listed = pl.DataFrame({"example_id": list(ids)}, {"example_id": pl.String}).with_columns(forgotten_at=pl.lit(utc_now()))
        insert(connection, "forgotten", listed, replace=True)
        connection.execute(
            """UPDATE answer_keys SET key = 0 WHERE (segment, row) IN (
                SELECT (e.segment, e.row) FROM examples e WHERE e.example_id IN (SELECT unnest(?::VARCHAR[])))""",
            [list(ids)],
        )
        for segment, part, path, size, digest in parts:
            connection.execute(
                "UPDATE parts SET path = ?, bytes = ?, digest = ? WHERE segment = ? AND part = ?",
                [path, size, digest, segment, part],
            )
        holds = "EXISTS (SELECT 1 FROM (SELECT unnest($texts::VARCHAR[]) AS text) t WHERE contains({0}, t.text))"
        wanted = f"""example_id IN (SELECT unnest($ids::VARCHAR[])) OR {holds.format("coalesce(snippet, '')")}
            OR {holds.format("coalesce(detail, '')")}"""
        named = {"ids": list(ids), "texts": escaped}
        count = connection.execute(
            f"SELECT count(*) FROM rejects WHERE (snippet IS NOT NULL OR detail IS NOT NULL) AND ({wanted})", named
        ).fetchall()[0][0]
        connection.execute(f"UPDATE rejects SET snippet = NULL, detail = NULL WHERE {wanted}", named)
        connection.execute(
            f"UPDATE runs SET error = 'erased: it quoted a forgotten text' WHERE {holds.format('error')}", {"texts": escaped}
        )
        connection.execute(
            f"UPDATE check_results SET first_row = NULL WHERE {holds.format('first_row::VARCHAR')}", {"texts": escaped}
        )
    return int(count)


def _own_files(root: Root) -> tuple[list[Path], list[Path]]:
    """The root's own exports; and the symbolic links among them, which are not followed, since a root may be somebody else's."""
    if root.path is None:
        return [], []
    for folder in ((exports := root.path / "exports"), *exports.rglob("*/")):
        sweep_partials(folder)
    found = sorted(exports.rglob("*"))
    data = [path for path in found if path.suffix in (".jsonl", ".parquet")]
    folders = [path for path in found if path.is_symlink() and path.is_dir() and not _inside(exports, path)]
    return [path for path in data if not path.is_symlink()], folders + [path for path in data if path.is_symlink()]


def _inside(folder: Path, path: Path) -> bool:
    """Whether a file or folder lies in a folder, after symbolic links."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _data_files(given: Path) -> list[Path]:
    """The files of an export or report that a user names."""
    if given.is_dir():
        found = [path for path in given.iterdir() if path.suffix in (".jsonl", ".parquet")]
    else:
        found = [given] if given.is_file() and given.suffix in (".jsonl", ".parquet", ".html", ".htm") else []
    if not found:
        raise UserError(
            f"{given} is neither an export (.jsonl, .parquet or a folder with one) nor a report (.html): check the path"
        )
    return found


def _names(path: Path, ids: Collection[str]) -> bool:
    """Whether a file names one of the examples."""
    if path.suffix == ".parquet":
        scanned = pl.scan_parquet(path)
        if "example_id" not in scanned.collect_schema():
            return False
        return bool(scanned.filter(pl.col("example_id").is_in(list(ids))).select(pl.len()).collect().item())
    wanted = [identity.encode() for identity in ids]
    with path.open("rb") as file:
        return any(identity in line for line in file for identity in wanted)


def _erase_from(path: Path, ids: Collection[str]) -> int:
    """Rows removed from an export; 0 of a report, which is deleted: `tagcos report` writes it again."""
    real = path.resolve()  # a link that is replaced or removed would leave the text where it leads to
    if path.suffix in (".html", ".htm"):
        real.unlink()
        path.unlink(missing_ok=True)
        return 0
    if real.suffix != path.suffix:  # which says how it is read
        raise ValueError(f"is a symbolic link to {real}: give that file the suffix {path.suffix}, and name it with --file")
    return without_examples(real, set(ids))


def _erase_reports(root: Root, ids: Collection[str]) -> tuple[dict[str, int], list[Path]]:
    """Pages that were deleted; and symbolic links out of the folder, which are not followed."""
    found, links = {}, []
    for key, _ in list(root.files.list("reports")):
        if root.path is not None and (path := root.path / key).is_symlink():
            if not _inside(root.path / "reports", path):
                links.append(path)
                continue
            if not path.exists():  # what it led to was deleted
                continue
        body = root.files.read(key)
        if any(identity.encode() in body for identity in ids):
            root.files.delete(key)
            found[root.files.place(key)] = 0
    return found, links
