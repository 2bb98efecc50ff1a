"""What the catalog knows of a run that is about to start, in one place for plans. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from storage.database import Catalog


def file_progress(catalog: Catalog, file_ids: Sequence[str]) -> pl.DataFrame:
    """file_id, rows_done, complete of those file versions that were met before."""
    return catalog.read(
        "SELECT file_id, rows_done, complete FROM files WHERE list_contains(?::VARCHAR[], file_id)", [list(file_ids)]
    )


def examples(catalog: Catalog) -> pl.DataFrame:
    """example_id, segment, row, heldout (or forgotten: in no pool) of every example ever met, in order of segment and row."""
    return catalog.read(
        """SELECT e.example_id, e.segment, e.row, s.heldout OR e.example_id IN (SELECT example_id FROM forgotten) AS heldout
        FROM examples e JOIN segments s USING (segment)
        ORDER BY e.segment, e.row"""
    )


def occurring(catalog: Catalog, file_ids: Sequence[str]) -> pl.Series:
    """Ids of the examples that occur in these file versions, each once."""
    return catalog.read(
        "SELECT DISTINCT example_id FROM occurrences WHERE list_contains(?::VARCHAR[], file_id)", [list(file_ids)]
    )["example_id"]


def wanted(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """example_id, segment, row of what a run needs features of: its pool and its target, in order of segment and row."""
    return catalog.read("FROM wanted_of(?) ORDER BY segment, row", [run_id])


def blocks(catalog: Catalog, space_id: str | None, pool: pl.DataFrame, block_rows: int) -> pl.DataFrame:
    """The blocks in which the pool (segment, row) has a row: segment, block, rows, complete.

    rows counts all rows of the block. A segment that is not in the space yet would get blocks of `block_rows`.
    """
    with catalog.reading() as connection:
        connection.register("wanted", pool.select("segment", "row").to_arrow())
        return connection.sql(
            """WITH sizes AS (
                SELECT p.segment, sum(p.rows)::BIGINT AS rows, coalesce(any_value(f.block_rows), $block) AS block_rows
                FROM parts p SEMI JOIN wanted USING (segment)
                LEFT JOIN feature_segments f ON f.segment = p.segment AND f.space_id = $space GROUP BY p.segment
            ), touched AS (
                SELECT DISTINCT w.segment, (w.row // s.block_rows)::INTEGER AS block FROM wanted w JOIN sizes s USING (segment)
            )
            SELECT t.segment, t.block, least(s.block_rows, s.rows - t.block * s.block_rows)::BIGINT AS rows,
                b.block IS NOT NULL AS complete
            FROM touched t JOIN sizes s USING (segment)
            LEFT JOIN blocks b ON b.space_id = $space AND b.segment = t.segment AND b.block = t.block
            ORDER BY t.segment, t.block""",
            params={"space": space_id, "block": block_rows},
        ).pl()


def segment_rows(catalog: Catalog, pool: pl.DataFrame) -> int:
    """Rows of all segments in which the pool has a row."""
    with catalog.reading() as connection:
        connection.register("wanted", pool.select("segment").unique().to_arrow())
        found = connection.execute("SELECT coalesce(sum(rows), 0)::BIGINT FROM parts SEMI JOIN wanted USING (segment)").fetchall()
    return int(found[0][0])


def with_features(catalog: Catalog, space_id: str, pool: pl.DataFrame) -> pl.DataFrame:
    """Return the pool's rows (segment, row) that have a feature in the space, in order of segment and row.

    Columns: example_id, segment, row, dataset, tokens, target_tokens.
    """
    with catalog.reading() as connection:
        connection.register("wanted", pool.select("segment", "row").to_arrow())
        return connection.sql(
            """SELECT e.example_id, w.segment, w.row, e.dataset, r.tokens, r.target_tokens
            FROM wanted w JOIN examples e USING (segment, row) JOIN feature_rows r USING (segment, row)
            WHERE r.space_id = $space AND r.status = 'ok' ORDER BY w.segment, w.row""",
            params={"space": space_id},
        ).pl()


def unclustered(catalog: Catalog, clustering_id: str, pool: pl.DataFrame) -> int:
    """How many rows of the pool (segment, row) the clustering does not have."""
    with catalog.reading() as connection:
        connection.register("wanted", pool.select("segment", "row").to_arrow())
        found = connection.execute(
            """SELECT count(*) FROM wanted ANTI JOIN (SELECT segment, row FROM assignments WHERE clustering_id = ?) known
            USING (segment, row)""",
            [clustering_id],
        ).fetchall()
    return int(found[0][0])


def labels(catalog: Catalog, clustering_id: str, pool: pl.DataFrame) -> tuple[pl.Series, int]:
    """(the cluster of every row of the pool (segment, row), which the clustering must have; the number of its clusters)."""
    with catalog.reading() as connection:
        connection.register("wanted", pool.select("segment", "row").to_arrow())
        found = connection.sql(
            """SELECT a.cluster FROM wanted w JOIN assignments a USING (segment, row) WHERE a.clustering_id = $id
            ORDER BY w.segment, w.row""",
            params={"id": clustering_id},
        ).pl()["cluster"]
        n = connection.execute("SELECT n_clusters FROM clusterings WHERE clustering_id = ?", [clustering_id]).fetchall()
    return found, int(n[0][0])


def known_choices(catalog: Catalog, inputs: Mapping[int, str]) -> dict[int, str]:
    """Of groups with these inputs, those that a run chose from: group -> the newest such run."""
    asked = pl.DataFrame({"group_id": list(inputs), "inputs": list(inputs.values())}, {"group_id": pl.Int32, "inputs": pl.String})
    with catalog.reading() as connection:
        connection.register("asked", asked.to_arrow())
        found = connection.execute(
            "SELECT k.group_id, max(k.run_id) FROM run_groups k JOIN asked USING (group_id, inputs) GROUP BY k.group_id"
        ).fetchall()
    return {int(group): str(run_id) for group, run_id in found}


def features_elsewhere(catalog: Catalog, run_id: str) -> dict[str, Any] | None:
    """How much of a run's pool has features in the space of the newest complete run, before others one of the same name.

    Parameters
    ----------
    catalog
        Where the runs are recorded.
    run_id
        A run whose pool is known.

    Returns
    -------
    dict or None
        run_id (the newest complete run that read sources), examples (of the pool, with a feature in its space), seconds (that
        they took, from the blocks' own times). None if there is no such run or example.
    """
    found = catalog.read(
        """WITH newest AS (
                SELECT run_id, space_id FROM runs WHERE status = 'complete' AND reselects IS NULL AND space_id IS NOT NULL
                ORDER BY name IS NOT DISTINCT FROM (SELECT m.name FROM runs m WHERE m.run_id = $run) DESC,
                    finished_at DESC, run_id DESC
                LIMIT 1
            ),
            speed AS (SELECT sum(seconds) / sum(rows) AS seconds FROM blocks WHERE space_id = (SELECT space_id FROM newest))
        SELECT any_value(n.run_id) AS run_id, count(*) AS examples, count(*) * (SELECT seconds FROM speed) AS seconds
        FROM pool_of($run) p JOIN newest n ON true
        JOIN feature_rows r ON r.space_id = n.space_id AND r.segment = p.segment AND r.row = p.row AND r.status = 'ok'""",
        {"run": run_id},
    ).row(0, named=True)
    return found if found["examples"] else None


def unfinished_run(catalog: Catalog, config_hash: str, name: str | None) -> str | None:
    """The run that would be resumed: with this configuration and name."""
    found = catalog.read(
        """SELECT run_id FROM runs
        WHERE config_hash = ? AND name IS NOT DISTINCT FROM ?::VARCHAR AND status <> 'complete'
        ORDER BY started_at DESC, run_id DESC LIMIT 1""",
        [config_hash, name],
    )["run_id"]
    return None if found.is_empty() else str(found[0])


def newest_config(catalog: Catalog, name: str, besides: str | None) -> dict[str, Any] | None:
    """run_id and config (as JSON text) of the newest run that read sources, before others one of this name, without `besides`."""
    found = catalog.read(
        """SELECT run_id, config::VARCHAR AS config FROM runs WHERE reselects IS NULL AND run_id IS DISTINCT FROM ?::VARCHAR
        ORDER BY name IS NOT DISTINCT FROM ? DESC, started_at DESC, run_id DESC LIMIT 1""",
        [besides, name],
    ).to_dicts()
    return found[0] if found else None
