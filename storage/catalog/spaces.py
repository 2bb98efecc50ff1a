"""Feature spaces in the catalog, and the blocks of features that are complete."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import duckdb
import polars as pl

from storage.arrays.checkpoints import SavedFile, load_checkpoint
from storage.database import Catalog
from storage.files.base import Files
from storage.tables import insert, insert_row, require, utc_now
from tagcos_stream.types import Checkpoint


@dataclass(frozen=True)
class Space:
    """A feature space: what its features mean, and the checkpoints that they are averaged over."""

    space_id: str
    recipe: str
    variant: str
    dim: int
    fingerprint: dict[str, Any]
    checkpoints: pl.DataFrame  # step, weight, path, bytes, digest, in order of step


def find_space(catalog: Catalog, recipe: str) -> Space | None:
    """The newest space made by this recipe: a grown pool works in it."""
    return find_spaces(catalog, [recipe]).get(recipe)


def find_spaces(catalog: Catalog, recipes: Sequence[str]) -> dict[str, Space]:
    """The newest space of each recipe that has one, by recipe, in the order given."""
    found: dict[str, Space] = {}
    for space in _spaces(catalog, recipes):
        found.setdefault(space.recipe, space)
    return {recipe: found[recipe] for recipe in recipes if recipe in found}


def spaces_of(catalog: Catalog, recipe: str) -> list[Space]:
    """All spaces of a recipe, the newest first: those of the user's own vectors share one, whatever the vectors are."""
    return _spaces(catalog, [recipe])


def _spaces(catalog: Catalog, recipes: Sequence[str]) -> list[Space]:
    with catalog.reading() as connection:
        query = "SELECT * FROM feature_spaces WHERE recipe IN (SELECT unnest(?)) ORDER BY added_at DESC"
        found = connection.sql(query, params=[list(recipes)]).pl().to_dicts()
        query = """SELECT space_id, step, weight, path, bytes, digest FROM checkpoints WHERE space_id IN (SELECT unnest(?))
            ORDER BY step"""
        checkpoints = connection.sql(query, params=[[row["space_id"] for row in found]]).pl()
    return [
        Space(
            row["space_id"],
            row["recipe"],
            row["variant"],
            row["dim"],
            json.loads(row["fingerprint"]),
            checkpoints.filter(pl.col("space_id") == row["space_id"]).drop("space_id"),
        )
        for row in found
    ]


def load_checkpoints(files: Files, space: Space) -> list[Checkpoint]:
    """The checkpoints of a space, in order of step. DamagedStore where one is missing or is not what was written."""
    return [
        load_checkpoint(files, space.space_id, row["step"], weight=row["weight"], digest=row["digest"])
        for row in space.checkpoints.iter_rows(named=True)
    ]


def add_space(
    catalog: Catalog,
    run_id: str,
    space_id: str,
    *,
    recipe: str,
    variant: str,
    dim: int,
    fingerprint: Mapping[str, Any],
    checkpoints: Sequence[tuple[Checkpoint, SavedFile]],
) -> None:
    """After its files are written. checkpoints: each with what save_checkpoint returned. Notes the space at the run."""
    with catalog.transaction() as connection:
        insert_row(
            connection,
            "feature_spaces",
            replace=True,
            space_id=space_id,
            recipe=recipe,
            variant=variant,
            dim=dim,
            fingerprint=json.dumps(fingerprint),
            run_id=run_id,
            added_at=utc_now(),
        )
        for checkpoint, saved in checkpoints:
            row = {"space_id": space_id, "step": checkpoint.step, "weight": checkpoint.weight, **asdict(saved)}
            insert_row(connection, "checkpoints", replace=True, **row)
        connection.execute("UPDATE runs SET space_id = ?, updated_at = ? WHERE run_id = ?", [space_id, utc_now(), run_id])


def plan_segments(catalog: Catalog, run_id: str, space_id: str, *, dim: int, block_rows: int) -> pl.DataFrame:
    """The segments of the run's pool and target: segment, rows, block_rows, sealed; unknown ones are registered in the space.

    They take no more examples from here on. A segment keeps the block_rows it was begun with.
    """
    wanted = catalog.read("SELECT DISTINCT segment FROM wanted_of(?) ORDER BY segment", [run_id])
    with catalog.transaction() as connection:
        connection.register("wanted", wanted.to_arrow())
        connection.execute("UPDATE segments SET closed = true WHERE NOT closed AND segment IN (SELECT segment FROM wanted)")
        connection.execute(
            """INSERT OR IGNORE INTO feature_segments
            SELECT ?, segment, sum(rows), ?, ?, false FROM parts SEMI JOIN wanted USING (segment) GROUP BY segment""",
            [space_id, dim, block_rows],
        )
        query = """SELECT segment, rows, block_rows, sealed FROM feature_segments SEMI JOIN wanted USING (segment)
            WHERE space_id = ? ORDER BY segment"""
        planned = connection.sql(query, params=[space_id]).pl()
        connection.unregister("wanted")
    return planned


def segment_ids(catalog: Catalog, segment: str) -> pl.Series:
    """The example ids of a segment, in row order: for create_segment."""
    return catalog.read("SELECT example_id FROM examples WHERE segment = ? ORDER BY row", [segment])["example_id"]


def missing(catalog: Catalog, space_id: str, run_id: str | None = None) -> dict[str, list[int]]:
    """Return the blocks that are not complete, by segment; with a run, only those in which its pool or target has a row.

    One query for all segments: a pool that grows daily has many.
    """
    found = catalog.read(
        """WITH wanted AS (
            SELECT DISTINCT segment, e.row // s.block_rows AS block FROM feature_segments s JOIN examples e USING (segment)
            WHERE s.space_id = $space AND NOT s.sealed
                AND ($run::VARCHAR IS NULL OR e.example_id IN (SELECT p.example_id FROM wanted_of($run) p))
        )
        SELECT segment, block FROM wanted
        ANTI JOIN (SELECT b.segment, b.block FROM blocks b WHERE b.space_id = $space) USING (segment, block)
        ORDER BY segment, block""",
        {"space": space_id, "run": run_id},
    )
    return {str(segment): part["block"].to_list() for (segment,), part in found.group_by("segment", maintain_order=True)}


ROW_COLUMNS = ["row", "tokens", "target_tokens", "loss", "norm", "status"]


def commit_block(
    catalog: Catalog,
    run_id: str,
    space_id: str,
    segment: str,
    block: int,
    rows: pl.DataFrame,
    *,
    checksum: int,
    seconds: float,
    rejects: pl.DataFrame | None = None,
    digests: pl.DataFrame | None = None,
) -> None:
    """After write_block: from this transaction on the block exists, and with the last one the segment is sealed.

    rows: every row of the block (row in the segment, tokens, target_tokens, loss, norm, status 'ok' or the reject's reason).
    rejects: row, reason, detail, snippet of those that are not 'ok'; made from rows where not given.
    digests: row, digest of the rows made from a vector of the user's own. A block of these may be written a second time, with
        vectors for more rows: what the catalog has of it is replaced.
    """
    rows = require(rows, ROW_COLUMNS)
    bad = rows.filter(pl.col("status") != "ok")
    if rejects is None:
        rejects = bad.select("row", reason="status", detail=pl.lit(None, pl.String), snippet=pl.lit(None, pl.String))
    if set(rejects["row"]) != set(bad["row"]):
        raise ValueError(
            f"block {block} of {segment}: rejects name rows {sorted(rejects['row'])[:5]}, status {sorted(bad['row'])[:5]}"
        )
    with catalog.transaction() as connection:
        if digests is not None:
            _forget_block(connection, space_id, segment, block, digests=True)
            connection.register("given_vectors", require(digests, ["row", "digest"]).to_arrow())
            connection.execute(
                "INSERT INTO vector_rows BY NAME SELECT ? AS space_id, ? AS segment, row, digest FROM given_vectors",
                [space_id, segment],
            )
        insert_row(
            connection,
            "blocks",
            space_id=space_id,
            segment=segment,
            block=block,
            rows=len(rows),
            rejected=len(bad),
            tokens=int(rows["tokens"].sum()),
            seconds=seconds,
            checksum=checksum,
            run_id=run_id,
            committed_at=utc_now(),
        )
        insert(connection, "feature_rows", rows.with_columns(space_id=pl.lit(space_id), segment=pl.lit(segment)))
        if len(rejects):
            connection.register("turned_down", require(rejects, ["row", "reason", "detail", "snippet"]).to_arrow())
            connection.execute(
                """INSERT INTO rejects BY NAME
                SELECT t.*, e.example_id, $segment AS segment, $run AS run_id, $space AS space_id, 'gradients' AS stage
                FROM turned_down t JOIN examples e ON e.segment = $segment AND e.row = t.row""",
                {"segment": segment, "run": run_id, "space": space_id},
            )
        connection.execute(
            """UPDATE feature_segments SET sealed = true WHERE space_id = $space AND segment = $segment
                AND rows = (SELECT sum(b.rows) FROM blocks b WHERE b.space_id = $space AND b.segment = $segment)""",
            {"space": space_id, "segment": segment},
        )


def forget_block(catalog: Catalog, space_id: str, segment: str, block: int) -> None:
    """Take a damaged block back: `missing` names it, and the next run computes it again. Its vectors' digests stay known."""
    with catalog.transaction() as connection:
        _forget_block(connection, space_id, segment, block)


def _forget_block(
    connection: duckdb.DuckDBPyConnection, space_id: str, segment: str, block: int, *, digests: bool = False
) -> None:
    named = {"space": space_id, "segment": segment, "block": block}
    inside = """space_id = $space AND segment = $segment AND row // (
        SELECT f.block_rows FROM feature_segments f WHERE f.space_id = $space AND f.segment = $segment) = $block"""
    connection.execute("DELETE FROM blocks WHERE space_id = $space AND segment = $segment AND block = $block", named)
    connection.execute(f"DELETE FROM feature_rows WHERE {inside}", named)
    if digests:
        connection.execute(f"DELETE FROM vector_rows WHERE {inside}", named)
    connection.execute(f"DELETE FROM rejects WHERE stage = 'gradients' AND {inside}", named)
    connection.execute(
        "UPDATE feature_segments SET sealed = false WHERE space_id = $space AND segment = $segment",
        {"space": space_id, "segment": segment},
    )


def feature_status(catalog: Catalog, run_id: str, space_id: str) -> pl.DataFrame:
    """How many of the run's examples have a feature, or why not: status, rows, detail (of one of this run's rejects, or null)."""
    return catalog.read(
        """SELECT r.status, count(*) AS rows,
            (SELECT min(detail) FROM rejects WHERE run_id = $run AND stage = 'gradients' AND reason = r.status) AS detail
        FROM pool_of($run) p JOIN feature_rows r ON r.segment = p.segment AND r.row = p.row
        WHERE r.space_id = $space GROUP BY r.status ORDER BY rows DESC, r.status""",
        {"run": run_id, "space": space_id},
    )


def features_pool(catalog: Catalog, run_id: str, space_id: str) -> pl.DataFrame:
    """Return the run's examples that have a feature, in order of segment and row.

    Columns: example_id, segment, row, dataset, turns, chars, tokens, target_tokens, loss, norm, ifd (null where it was not
    computed). Only rows of complete blocks: an orphan is never read.
    """
    return catalog.read(
        """SELECT p.*, r.tokens, r.target_tokens, r.loss, r.norm, r.loss / l.loss AS ifd FROM pool_of($run) p
        JOIN feature_rows r ON r.segment = p.segment AND r.row = p.row
        LEFT JOIN answer_losses l ON l.space_id = r.space_id AND l.segment = r.segment AND l.row = r.row
        WHERE r.space_id = $space AND r.status = 'ok' ORDER BY p.segment, p.row""",
        {"run": run_id, "space": space_id},
    )


def looked_at(catalog: Catalog, run_id: str, space_id: str) -> int:
    """Count the run's examples that a space has computed, whether they have a feature or are rejects."""
    query = "SELECT count(*) FROM pool_of(?) p JOIN feature_rows r USING (segment, row) WHERE r.space_id = ?"
    return int(catalog.read(query, [run_id, space_id]).item())


def computed_by(catalog: Catalog, run_id: str, space_ids: Sequence[str]) -> dict[str, int]:
    """Return what a run computed over all its attempts: computed (rows), tokens through the model, rejected (rows).

    A block that was computed for several spaces in one pass counts once.
    """
    found = catalog.read(
        """SELECT coalesce(sum(rows), 0)::BIGINT AS computed, coalesce(sum(tokens), 0)::BIGINT AS tokens,
            coalesce(sum(rejected), 0)::BIGINT AS rejected
        FROM (
            SELECT max(rows) AS rows, max(tokens) AS tokens, max(rejected) AS rejected FROM blocks
            WHERE run_id = ? AND space_id IN (SELECT unnest(?)) GROUP BY segment, block
        )""",
        [run_id, list(space_ids)],
    )
    return dict(found.to_dicts()[0])
