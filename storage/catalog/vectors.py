"""Vectors of the user's own: the examples that their files name, and which of them a feature space holds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import polars as pl

from storage.catalog.spaces import Space, spaces_of
from storage.database import Catalog
from storage.tables import require

# a row of the space whose example the files have another vector for; 0 is the digest of one that no feature can be made of
_CHANGED = """SELECT count(*) FROM vector_rows v JOIN examples e USING (segment, row) JOIN given g USING (example_id)
    WHERE v.space_id = ? AND v.digest <> g.digest AND v.digest <> 0"""


def files_of(catalog: Catalog, run_id: str | None) -> pl.DataFrame:
    """List the source files whose rows may be named.

    Parameters
    ----------
    catalog, run_id
        A run, whose files come first; or None.

    Returns
    -------
    pl.DataFrame
        file_id, url, own (whether the run reads it): of several versions of a file the run's own, else the newest.
    """
    return catalog.read(
        """SELECT f.file_id, f.url, r.run_id IS NOT NULL AS own
        FROM files f LEFT JOIN run_files r ON r.file_id = f.file_id AND r.run_id = ?
        QUALIFY row_number() OVER (PARTITION BY f.url ORDER BY r.run_id IS NOT NULL DESC, f.added_at DESC) = 1""",
        [run_id],
    )


def occurrences(catalog: Catalog, file_ids: Sequence[str]) -> pl.DataFrame:
    """Return the examples of source files.

    Parameters
    ----------
    catalog, file_ids
        Versions of files.

    Returns
    -------
    pl.DataFrame
        file_id, row, example_id.
    """
    return catalog.read(
        "SELECT file_id, row, example_id FROM occurrences WHERE file_id IN (SELECT unnest(?::VARCHAR[]))", [list(file_ids)]
    )


def known(catalog: Catalog, ids: pl.Series) -> pl.Series:
    """Return those ids that examples of the root have.

    Parameters
    ----------
    catalog, ids
        Any texts.

    Returns
    -------
    pl.Series
        In any order.
    """
    with catalog.reading() as connection:
        connection.register("asked", ids.unique().drop_nulls().to_frame("example_id").to_arrow())
        return connection.sql("SELECT DISTINCT example_id FROM examples SEMI JOIN asked USING (example_id)").pl()["example_id"]


def has_space(catalog: Catalog, recipe: str) -> bool:
    """Return whether the root has a space of this recipe.

    Parameters
    ----------
    catalog, recipe
        The root, and the recipe.

    Returns
    -------
    bool
        Whether there is one, whatever its vectors.
    """
    return bool(spaces_of(catalog, recipe))


def find_space(catalog: Catalog, recipe: str, width: int, given: pl.DataFrame) -> Space | None:
    """Find the space that vectors can be added to.

    Parameters
    ----------
    catalog, recipe
        Spaces that were made by this recipe are considered.
    width
        Of the vectors.
    given
        example_id, digest of the vectors.

    Returns
    -------
    Space or None
        The space that has no other vector for any of these examples; of several the one that a run used last, then the newest.
    """
    used = dict(
        catalog.read("SELECT space_id, max(started_at) FROM runs WHERE space_id IS NOT NULL GROUP BY space_id").iter_rows()
    )
    for space in sorted(spaces_of(catalog, recipe), key=lambda space: used.get(space.space_id, datetime.min), reverse=True):
        if space.fingerprint["vectors"]["width"] == width:
            with catalog.reading() as connection:
                connection.register("given", require(given, ["example_id", "digest"]).to_arrow())
                changed = connection.execute(_CHANGED, [space.space_id]).fetchall()[0][0]
            if not changed:
                return space
    return None


def late(catalog: Catalog, run_id: str, space_id: str, given: pl.DataFrame) -> dict[str, list[int]]:
    """Find complete blocks with examples of a run that had no vector of use and now have one.

    Parameters
    ----------
    catalog, run_id, space_id
        The run and its space.
    given
        example_id, digest of the vectors.

    Returns
    -------
    dict
        Blocks by segment.
    """
    with catalog.reading("wanted_of") as connection:
        connection.register("given", given.filter(pl.col("digest") != 0).select("example_id").to_arrow())
        found = connection.sql(
            """SELECT DISTINCT w.segment, b.block FROM wanted_of($run) w SEMI JOIN given g USING (example_id)
            JOIN feature_segments s ON s.space_id = $space AND s.segment = w.segment
            JOIN blocks b ON b.space_id = $space AND b.segment = w.segment AND b.block = w.row // s.block_rows
            ANTI JOIN (SELECT segment, row FROM vector_rows WHERE space_id = $space AND digest <> 0) v
                ON v.segment = w.segment AND v.row = w.row
            ORDER BY w.segment, b.block""",
            params={"run": run_id, "space": space_id},
        ).pl()
    return {str(segment): part["block"].to_list() for (segment,), part in found.group_by("segment", maintain_order=True)}


def examples_of(catalog: Catalog, segments: Sequence[str]) -> pl.DataFrame:
    """Return segment, row and example_id of all examples of segments, in order of segment and row."""
    return catalog.read(
        "SELECT segment, row, example_id FROM examples WHERE segment IN (SELECT unnest(?::VARCHAR[])) ORDER BY segment, row",
        [list(segments)],
    )


def block_state(catalog: Catalog, space_id: str, segment: str, start: int, stop: int) -> pl.DataFrame:
    """Return what a space has of rows of a segment.

    Parameters
    ----------
    catalog, space_id, segment
        The space and the segment.
    start, stop
        Rows from `start` to `stop`, exclusive.

    Returns
    -------
    pl.DataFrame
        row, tokens, target_tokens, loss, norm, status, digest (null where the feature is of no vector), in order of row; without
        rows that are in no complete block.
    """
    return catalog.read(
        """SELECT r.row, r.tokens, r.target_tokens, r.loss, r.norm, r.status, v.digest FROM feature_rows r
        LEFT JOIN vector_rows v ON v.space_id = r.space_id AND v.segment = r.segment AND v.row = r.row
        WHERE r.space_id = ? AND r.segment = ? AND r.row >= ? AND r.row < ? ORDER BY r.row""",
        [space_id, segment, start, stop],
    )


def needed_again(catalog: Catalog, space_id: str, segment: str, block: int) -> pl.Series:
    """Return the examples whose vectors a block was made of, where it was taken back and has to be made again.

    Parameters
    ----------
    catalog, space_id, segment, block
        The block.

    Returns
    -------
    pl.Series
        Their ids.
    """
    return catalog.read(
        """SELECT e.example_id FROM vector_rows v JOIN examples e USING (segment, row)
        JOIN feature_segments f ON f.space_id = v.space_id AND f.segment = v.segment
        WHERE v.space_id = ? AND v.segment = ? AND v.row // f.block_rows = ? AND v.digest <> 0""",
        [space_id, segment, block],
    )["example_id"]


def share_answer_losses(catalog: Catalog, space_id: str, to: str) -> None:
    """Record the losses of answers of one space in another one, for the rows that the other lacks.

    Parameters
    ----------
    catalog, space_id, to
        The space that has them, and a space of the same run.
    """
    with catalog.transaction() as connection:
        connection.execute(
            """INSERT INTO answer_losses BY NAME SELECT $to AS space_id, l.segment, l.row, l.loss FROM answer_losses l
            WHERE l.space_id = $space AND (l.segment, l.row) NOT IN (
                SELECT (k.segment, k.row) FROM answer_losses k WHERE k.space_id = $to)""",
            {"space": space_id, "to": to},
        )
