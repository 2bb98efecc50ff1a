"""The pool: which files a run reads, which examples occur in them, and the Parquet parts that hold the examples."""

from __future__ import annotations

import io
from dataclasses import dataclass

import duckdb
import polars as pl

from storage.catalog import heldout
from storage.database import Catalog
from storage.examples import PARQUET_GROUP_ROWS
from storage.files.base import Files
from storage.root import Root
from storage.tables import insert, insert_row, require, utc_now
from tagcos_stream.data.canonical import EXAMPLE_COLUMNS, KEPT
from tagcos_stream.identity import content_digest, file_id
from tagcos_stream.types import IngestBlock

LISTED_ALL = frozenset({"contaminated"})  # reasons whose rejects are all listed: that is what was asked for


@dataclass(frozen=True)
class IngestCounts:
    """rows = new + known + rejected; known counts repeats within the block, too."""

    rows: int
    new: int
    known: int
    rejected: int


def add_files(catalog: Catalog, run_id: str, files: pl.DataFrame, *, of_pool: bool = True) -> pl.DataFrame:
    """Record the run's files: source, url, digest, size, format, and optionally spec, weight and scores.

    spec is the text of the reading rules; scores are columns of the user's own that are read with the rows.
    of_pool: False for files of a target set, whose examples are not in the pool on their account.

    Returns one row a file version, in the order given: file_id, rows_done, complete, and the columns given. A version read
    before keeps its progress, so that an unchanged file costs nothing.
    """
    if "spec" not in files.columns:
        files = files.with_columns(spec=pl.lit(""))
    weights = files["weight"] if "weight" in files.columns else pl.repeat(1.0, len(files), dtype=pl.Float64, eager=True)
    given = require(files, ["source", "url", "digest", "size", "format", "spec"])
    ids = [file_id(row["url"], row["digest"], row["spec"]) for row in given.iter_rows(named=True)]
    given = given.insert_column(0, pl.Series("file_id", ids, pl.String)).with_columns(weight=weights)
    scores = files["scores"] if "scores" in files.columns else pl.repeat(None, len(files), dtype=pl.List(pl.String), eager=True)
    given = given.with_columns(scores=scores).unique("file_id", keep="first", maintain_order=True).with_row_index("place")
    with catalog.transaction() as connection:
        connection.register("given", given.to_arrow())
        connection.execute(
            """INSERT INTO files BY NAME
            SELECT g.* EXCLUDE (weight, place), 0 AS rows_done, false AS complete, ? AS first_run, ?::TIMESTAMP AS added_at
            FROM given g ANTI JOIN files USING (file_id)""",
            [run_id, utc_now()],
        )
        if of_pool:  # a run that was resumed reads its sources as they are now: a version that is gone is no longer of its pool
            connection.execute("DELETE FROM run_files WHERE run_id = ? AND file_id NOT IN (SELECT file_id FROM given)", [run_id])
            connection.execute(
                "INSERT OR REPLACE INTO run_files BY NAME SELECT ? AS run_id, file_id, source, weight, place FROM given", [run_id]
            )
        progress = connection.sql("SELECT file_id, rows_done, complete FROM files SEMI JOIN given USING (file_id)").pl()
    return given.join(progress, on="file_id", how="left", maintain_order="left")


def unknown_ids(connection: duckdb.DuckDBPyConnection, ids: pl.Series) -> pl.Series:
    """Those of `ids` that no example has, each once, in order of first occurrence."""
    incoming = (
        pl.DataFrame({"example_id": ids}).with_row_index("position").unique("example_id", keep="first", maintain_order=True)
    )
    connection.register("incoming", incoming.to_arrow())
    found = connection.sql("SELECT position, example_id FROM incoming ANTI JOIN examples USING (example_id)").pl()
    return found.sort("position")["example_id"]


@dataclass(frozen=True)
class _Part:
    """New examples of a block as the next part of the segment that takes them."""

    rows: pl.DataFrame
    segment: str
    heldout: bool
    target: bool
    is_new: bool
    first_row: int
    part: int

    @property
    def path(self) -> str:
        return f"examples/{self.segment}/part-{self.part:05d}.parquet"

    def write(self, files: Files) -> bytes:
        buffer = io.BytesIO()
        self.rows.select(EXAMPLE_COLUMNS).write_parquet(buffer, compression="zstd", row_group_size=PARQUET_GROUP_ROWS)
        body = buffer.getvalue()
        files.write(self.path, body)
        return body

    def insert(self, connection: duckdb.DuckDBPyConnection, run_id: str, body: bytes) -> None:
        if self.is_new:
            insert_row(
                connection,
                "segments",
                segment=self.segment,
                run_id=run_id,
                closed=False,
                added_at=utc_now(),
                heldout=self.heldout,
                target=self.target,
            )
        insert_row(
            connection,
            "parts",
            segment=self.segment,
            part=self.part,
            first_row=self.first_row,
            rows=len(self.rows),
            path=self.path,
            bytes=len(body),
            digest=content_digest(body),
        )
        lengths = [
            pl.element().struct.field(name).str.len_chars().fill_null(0) for name in ("content", "reasoning", "tool_calls")
        ]
        contents = pl.col("messages").list.eval(pl.sum_horizontal(lengths)).list.sum()
        insert(
            connection,
            "examples",
            self.rows.select(
                "example_id",
                "dataset",
                segment=pl.lit(self.segment),
                row=pl.int_range(self.first_row, self.first_row + len(self.rows), dtype=pl.Int64),
                turns=pl.col("messages").list.len(),
                chars=contents,
                first_run=pl.lit(run_id),
            ),
        )


def commit_ingest(
    root: Root, run_id: str, file_id: str, block: IngestBlock, heldout_share: float = 0.0, *, target: bool = False
) -> IngestCounts:
    """Make one block of one file true: its new examples' parts are written and flushed, then one transaction names it all.

    heldout_share: of every dataset's examples, how much goes to a segment that no pool sees (storage.catalog.heldout).
    target: the file is of a target set, whose new examples have segments of their own.
    """
    seen = block.occurrences
    parts = _new_parts(root.catalog, run_id, seen, heldout_share, target) if len(seen) else []
    new = sum(len(part.rows) for part in parts)
    bodies = [part.write(root.files) for part in parts]
    with root.catalog.transaction() as connection:
        for part, body in zip(parts, bodies, strict=True):
            part.insert(connection, run_id, body)
        if len(seen):
            columns = ("row", "example_id", "dataset", "source_id", "scores")
            insert(connection, "occurrences", seen.select(columns, file_id=pl.lit(file_id)))
        if len(block.rejects):
            _insert_rejects(connection, run_id, file_id, require(block.rejects, ["row", "reason", "detail", "snippet"]))
        connection.execute(
            """UPDATE files SET rows_done = ?, entries = entries + ?, complete = ?, ended_early = coalesce(ended_early, ?)
            WHERE file_id = ?""",
            [block.next_row, len(seen) + len(block.rejects), block.last, block.ended_early, file_id],
        )
        connection.execute("UPDATE runs SET updated_at = ? WHERE run_id = ?", [utc_now(), run_id])
    return IngestCounts(len(seen) + len(block.rejects), new, len(seen) - new, len(block.rejects))


def _new_parts(catalog: Catalog, run_id: str, seen: pl.DataFrame, heldout_share: float, target: bool) -> list[_Part]:
    """Examples of a block that no run has met, for the run's open segments: the pool's and the held-out ones."""
    with catalog.reading() as connection:
        new_ids = unknown_ids(connection, seen["example_id"])
        new = seen.unique("example_id", keep="first", maintain_order=True).filter(pl.col("example_id").is_in(new_ids.implode()))
        aside = heldout.choose(connection, new, heldout_share)
        parts: list[_Part] = []
        for rows, held in ((new.filter(~aside), False), (new.filter(aside), True)):
            if len(rows):
                begun = sum(part.is_new for part in parts)
                parts.append(_Part(rows, *_open_segment(connection, run_id, held, target, begun)))
    return parts


def _insert_rejects(connection: duckdb.DuckDBPyConnection, run_id: str, file_id: str, rejects: pl.DataFrame) -> None:
    """List the first KEPT rejects of each reason in the file; one more row of a reason counts the rest."""
    before = connection.sql(
        """SELECT reason, count(*) FILTER (NOT summary) AS listed, count(*) FILTER (summary) AS counted
        FROM rejects WHERE stage = 'ingest' AND file_id = ? GROUP BY reason""",
        params=[file_id],
    ).pl()
    place = pl.int_range(pl.len()).over("reason")
    rejects = rejects.join(before, on="reason", how="left", maintain_order="left").with_columns(
        beyond=(pl.col("listed").fill_null(0) + place >= KEPT) & ~pl.col("reason").is_in(list(LISTED_ALL))
    )
    common = {"run_id": pl.lit(run_id), "stage": pl.lit("ingest"), "file_id": pl.lit(file_id)}
    insert(connection, "rejects", rejects.filter(~pl.col("beyond")).select("row", "reason", "detail", "snippet", **common))
    more = rejects.filter("beyond").group_by("reason", maintain_order=True)
    further = more.agg(pl.col("row").min(), pl.len().cast(pl.Int64).alias("rows"), pl.col("counted").first().fill_null(0))
    for reason, rows in further.filter(pl.col("counted") > 0).select("reason", "rows").iter_rows():
        connection.execute(
            "UPDATE rejects SET rows = rows + ? WHERE stage = 'ingest' AND file_id = ? AND reason = ? AND summary",
            [rows, file_id, reason],
        )
    detail = f"further rows of this reason from here on, beyond the first {KEPT:,} that are listed"
    insert(
        connection,
        "rejects",
        further.filter(pl.col("counted") == 0).select(
            "row", "reason", "rows", detail=pl.lit(detail), summary=pl.lit(True), **common
        ),
    )


def _open_segment(
    connection: duckdb.DuckDBPyConnection, run_id: str, held: bool, target: bool, begun: int
) -> tuple[str, bool, bool, bool, int, int]:
    """Return the segments that take the run's new examples; the first `begun` new ones are not in the catalog yet.

    Each as (segment, are its rows held out, are they of a target set, is it new, its next row, its next part).
    """
    query = "SELECT segment FROM segments WHERE run_id = ? AND NOT closed AND heldout = ? AND coalesce(target, false) = ?"
    found = connection.execute(query, [run_id, held, target]).fetchall()
    if not found:
        count = connection.execute("SELECT count(*) FROM segments").fetchall()[0][0]
        return f"seg-{count + begun + 1:05d}", held, target, True, 0, 0
    rows, parts = connection.execute(
        "SELECT coalesce(sum(rows), 0)::BIGINT, count(*) FROM parts WHERE segment = ?", [found[0][0]]
    ).fetchall()[0]
    return found[0][0], held, target, False, rows, parts


def not_accepted(catalog: Catalog, file_ids: pl.Series) -> tuple[int, int]:
    """Count the rows that were read of files which no complete run has, in its pool or target, and the rejects among them."""
    found = catalog.read(
        """WITH mine AS (
            SELECT file_id, entries FROM files WHERE list_contains($files::VARCHAR[], file_id) AND file_id NOT IN (
                SELECT f.file_id FROM run_files f JOIN runs USING (run_id) WHERE status = 'complete'
                UNION SELECT o.file_id FROM occurrences o JOIN target_examples t USING (example_id) JOIN runs r USING (target_id)
                WHERE r.status = 'complete' AND list_contains($files::VARCHAR[], o.file_id)
                    AND o.file_id NOT IN (SELECT f.file_id FROM run_files f))  -- a source may have an example of a target, too
        )
        SELECT coalesce(sum(entries), 0)::BIGINT, (
            SELECT coalesce(sum(rows), 0)::BIGINT FROM rejects WHERE stage = 'ingest' AND file_id IN (SELECT file_id FROM mine)
        ) FROM mine""",
        {"files": file_ids.to_list()},
    )
    rows, rejected = found.row(0)
    return int(rows), int(rejected)


def pool(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """The run's examples: example_id, segment, row, dataset, turns, chars, in order of segment and row."""
    return catalog.read("FROM pool_of(?) ORDER BY segment, row", [run_id])


def read_by(catalog: Catalog, run_id: str) -> dict[str, int]:
    """What a run read from its sources, over all its attempts: new (examples that no run had met), rejected (rows)."""
    found = catalog.read(
        """SELECT (SELECT count(*) FROM examples WHERE first_run = $run) AS new,
            (SELECT coalesce(sum(rows), 0)::BIGINT FROM rejects WHERE run_id = $run AND stage = 'ingest'
                AND file_id IN (SELECT file_id FROM run_files WHERE run_id = $run)) AS rejected""",
        {"run": run_id},
    )
    return dict(found.to_dicts()[0])


def pool_digest(catalog: Catalog, run_id: str) -> str:
    """Tell a run's pool from others: its examples, and its files with their weights."""
    found = catalog.read(
        """SELECT printf('%d-%x-%x', (SELECT count(*) FROM pool_of($run)),
            (SELECT coalesce(bit_xor(hash(example_id)), 0) FROM pool_of($run)),
            (SELECT coalesce(bit_xor(hash(file_id, weight)), 0) FROM run_files WHERE run_id = $run))""",
        {"run": run_id},
    )
    return str(found.item())


def adopt_pool(catalog: Catalog, run_id: str, base: str) -> None:
    """Give a run the pool and the feature space of another: its file versions, without what it left out as near-duplicates."""
    named = {"run": run_id, "base": base}
    with catalog.transaction() as connection:
        connection.execute(
            """INSERT OR IGNORE INTO run_files BY NAME SELECT $run AS run_id, file_id, source, weight, place FROM run_files
            WHERE run_id = $base""",
            named,
        )
        connection.execute("DELETE FROM rejects WHERE run_id = ? AND stage = 'near-duplicates'", [run_id])
        connection.execute(
            """INSERT INTO rejects BY NAME SELECT * REPLACE ($run AS run_id) FROM rejects
            WHERE run_id = $base AND stage = 'near-duplicates'""",
            named,
        )
        connection.execute(
            "UPDATE runs SET space_id = (SELECT b.space_id FROM runs b WHERE b.run_id = $base) WHERE run_id = $run", named
        )


def dataset_weights(catalog: Catalog, run_id: str) -> dict[str, float]:
    """Weights of the datasets of a run's pool, from those of its sources; empty if all sources weigh the same.

    A dataset that several sources have weighs what its rows weigh on average.
    """
    if catalog.read("SELECT count(DISTINCT coalesce(weight, 1)) AS n FROM run_files WHERE run_id = ?", [run_id]).item() < 2:
        return {}
    found = catalog.read(
        """SELECT coalesce(e.dataset, '') AS dataset, avg(coalesce(f.weight, 1)) AS weight
        FROM run_files f JOIN occurrences o USING (file_id) JOIN examples e USING (example_id)
        WHERE f.run_id = ? GROUP BY e.dataset""",
        [run_id],
    )
    return dict(found.iter_rows())


def forget_near_duplicates(catalog: Catalog, run_id: str) -> None:
    """Take back what a run left out of its pool as near-duplicates."""
    with catalog.transaction() as connection:
        connection.execute("DELETE FROM rejects WHERE run_id = ? AND stage = 'near-duplicates'", [run_id])


def exclude_near_duplicates(catalog: Catalog, run_id: str, found: pl.DataFrame) -> None:
    """Leave these out of the run's pool; replaces an earlier list.

    Columns: segment, row, example_id, reason, detail, and like_id, likeness, kept_id.
    """
    found = require(found, ["segment", "row", "example_id", "reason", "detail", "like_id", "likeness", "kept_id"])
    with catalog.transaction() as connection:
        connection.execute("DELETE FROM rejects WHERE run_id = ? AND stage = 'near-duplicates'", [run_id])
        insert(connection, "rejects", found.with_columns(run_id=pl.lit(run_id), stage=pl.lit("near-duplicates")))


def pool_sample(catalog: Catalog, run_id: str, n: int, seed: int) -> pl.DataFrame:
    """Return n examples of the pool (all, where it has fewer) in random order.

    The order of md5, the same on every platform and version.
    """
    return catalog.read("FROM pool_of(?) ORDER BY md5(example_id || ?), example_id LIMIT ?", [run_id, f"/{seed}", n])
