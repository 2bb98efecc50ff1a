"""Clusterings in the catalog: what was clustered, how large the clusters are, and the cluster of every row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import duckdb
import polars as pl

from storage.arrays.grouped import PartInfo
from storage.database import Catalog
from storage.tables import insert, insert_row, require, utc_now

ASSIGNMENT_COLUMNS = ["segment", "row", "cluster", "distance"]
CLUSTER_COLUMNS = ["cluster", "size", "inertia"]


def add_clustering(
    catalog: Catalog,
    run_id: str,
    clustering_id: str,
    space_id: str,
    *,
    clusters: pl.DataFrame,
    rows: pl.DataFrame,
    part: PartInfo | None,
    config: Mapping[str, Any],
    recipe: str | None = None,
    parent: str | None = None,
) -> None:
    """After its files are written: clusters (cluster, size, inertia) as fitted and rows (segment, row, cluster, distance).

    A later run finds the clustering by its recipe. Without a part (and rows) it is centroids that wait for rows. Also notes the
    clustering at the run. What `forget_files` left of one of this id is replaced.
    """
    with catalog.transaction() as connection:
        without_files = "clustering_id = ? AND recipe IS NULL AND clustering_id NOT IN (SELECT clustering_id FROM cluster_parts)"
        query = f"SELECT clustering_id FROM clusterings WHERE {without_files}"
        replaced = bool(connection.execute(query, [clustering_id]).fetchall())
        if replaced:
            connection.execute("DELETE FROM assignments WHERE clustering_id = ?", [clustering_id])
            connection.execute("DELETE FROM clusters WHERE clustering_id = ? AND cluster >= ?", [clustering_id, len(clusters)])
        insert_row(
            connection,
            "clusterings",
            replace=replaced,
            clustering_id=clustering_id,
            space_id=space_id,
            run_id=run_id,
            recipe=recipe,
            parent=parent,
            n_clusters=len(clusters),
            config=json.dumps(config),
            added_at=utc_now(),
        )
        insert(
            connection,
            "clusters",
            require(clusters, CLUSTER_COLUMNS).with_columns(clustering_id=pl.lit(clustering_id)),
            replace=replaced,
        )
        if part is not None:
            _add(connection, clustering_id, rows, part)
        connection.execute(
            "UPDATE runs SET clustering_id = ?, updated_at = ? WHERE run_id = ?", [clustering_id, utc_now(), run_id]
        )


def add_rows(catalog: Catalog, clustering_id: str, *, rows: pl.DataFrame, part: PartInfo) -> None:
    """New rows (segment, row, cluster, distance) join, with their part. What was clustered before stays as it is recorded."""
    with catalog.transaction() as connection:
        _add(connection, clustering_id, rows, part)


def _add(connection: duckdb.DuckDBPyConnection, clustering_id: str, rows: pl.DataFrame, part: PartInfo) -> None:
    if len(rows) != part.rows:
        raise ValueError(f"{len(rows)} rows were assigned, {part.rows} regrouped")
    insert(connection, "assignments", require(rows, ASSIGNMENT_COLUMNS).with_columns(clustering_id=pl.lit(clustering_id)))
    _put_part(connection, clustering_id, part)


def _put_part(connection: duckdb.DuckDBPyConnection, clustering_id: str, part: PartInfo) -> None:
    insert_row(connection, "cluster_parts", replace=True, clustering_id=clustering_id, **asdict(part))


def replace_part(catalog: Catalog, clustering_id: str, part: PartInfo) -> None:
    """Replace the record of a damaged part that was regrouped again."""
    with catalog.transaction() as connection:
        _put_part(connection, clustering_id, part)


def forget_files(catalog: Catalog, clustering_id: str) -> None:
    """Note that the files of a clustering are lost: no run uses it any more, and the next one clusters again.

    Which cluster a row was in, and what runs chose from it, stays on record.
    """
    with catalog.transaction() as connection:
        connection.execute("UPDATE clusterings SET recipe = NULL WHERE clustering_id = ?", [clustering_id])
        connection.execute("DELETE FROM cluster_parts WHERE clustering_id = ?", [clustering_id])


def parts(catalog: Catalog, clustering_id: str) -> list[int]:
    """The committed parts, for ClusteringReader."""
    return catalog.read("SELECT part FROM cluster_parts WHERE clustering_id = ? ORDER BY part", [clustering_id])["part"].to_list()


def find_clustering(catalog: Catalog, recipe: str, pool: pl.DataFrame) -> str | None:
    """Of the clusterings made by this recipe, the one that knows most of the pool (segment, row); of equals the newest."""
    with catalog.reading() as connection:
        connection.register("wanted", pool.select("segment", "row").to_arrow())
        found = connection.execute(
            """SELECT c.clustering_id FROM clusterings c LEFT JOIN (
                SELECT clustering_id, count(*) AS known FROM assignments SEMI JOIN wanted USING (segment, row)
                GROUP BY clustering_id
            ) a USING (clustering_id)
            WHERE c.recipe = ? ORDER BY coalesce(a.known, 0) DESC, c.added_at DESC, c.clustering_id DESC LIMIT 1""",
            [recipe],
        ).fetchall()
    return str(found[0][0]) if found else None


def exists(catalog: Catalog, clustering_id: str) -> bool:
    """Return whether the catalog has this clustering, for runs to use: one without a recipe has no files."""
    query = "SELECT 1 AS one FROM clusterings WHERE clustering_id = ? AND recipe IS NOT NULL"
    return len(catalog.read(query, [clustering_id])) > 0


def find_covering(catalog: Catalog, run_id: str, space_id: str) -> str | None:
    """The newest clustering with files that has a cluster for every example of the run's pool that has a feature."""
    found = catalog.read(
        """WITH wanted AS (
            SELECT p.segment, p.row FROM pool_of($run) p JOIN feature_rows r ON r.segment = p.segment AND r.row = p.row
            WHERE r.space_id = $space AND r.status = 'ok'
        )
        SELECT c.clustering_id FROM clusterings c JOIN assignments a USING (clustering_id)
        JOIN wanted w ON w.segment = a.segment AND w.row = a.row
        WHERE c.space_id = $space AND c.clustering_id IN (SELECT p.clustering_id FROM cluster_parts p)
        GROUP BY c.clustering_id, c.added_at HAVING count(*) = (SELECT count(*) FROM wanted)
        ORDER BY c.added_at DESC, c.clustering_id DESC LIMIT 1""",
        {"run": run_id, "space": space_id},
    )
    return None if found.is_empty() else str(found["clustering_id"][0])


def clusters(catalog: Catalog, clustering_id: str) -> pl.DataFrame:
    """cluster, size, inertia, as fitted."""
    return catalog.read("SELECT cluster, size, inertia FROM clusters WHERE clustering_id = ? ORDER BY cluster", [clustering_id])


def assignments(catalog: Catalog, clustering_id: str) -> pl.DataFrame:
    """segment, row, cluster, distance of every row, in order of segment and row."""
    return catalog.read(
        "SELECT segment, row, cluster, distance FROM assignments WHERE clustering_id = ? ORDER BY segment, row", [clustering_id]
    )
