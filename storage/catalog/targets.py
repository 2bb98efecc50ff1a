"""Target sets: examples, in parts with weights, that selections stand for in place of their pool's mean.

A set is named by its content; its readable name means the newest set that was made under it. Which rows of the store repeat a
target example is recorded once for every row, and a run with a target leaves these rows out of its pool (the macro pool_of).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from storage.database import Catalog
from storage.tables import insert, insert_row, replace_of_run, require, utc_now
from tagcos_stream.types import UserError


@dataclass(frozen=True)
class TargetSet:
    """A target set in the catalog.

    Parameters
    ----------
    target_id
        Name by its content.
    name
        Name given by the user.
    """

    target_id: str
    name: str


def find(catalog: Catalog, name: str) -> TargetSet | None:
    """Find a target set.

    Parameters
    ----------
    catalog, name
        The set's name or its id, in a root.

    Returns
    -------
    TargetSet or None
        The newest set of this name; None if there is none.
    """
    found = catalog.read(
        "SELECT target_id, name FROM target_sets WHERE name = $name OR target_id = $name ORDER BY added_at DESC LIMIT 1",
        {"name": name},
    ).to_dicts()
    return TargetSet(**found[0]) if found else None


def known(catalog: Catalog, name: str) -> TargetSet:
    """Find a target set that must exist.

    Parameters
    ----------
    catalog, name
        As for `find`.

    Returns
    -------
    TargetSet
        The newest set of this name.

    Raises
    ------
    UserError
        There is none; the message lists the names that there are.
    """
    found = find(catalog, name)
    if found is None:
        names = catalog.read("SELECT DISTINCT name FROM target_sets ORDER BY name")["name"].to_list()
        there = f"there are {', '.join(names)}" if names else "there are none yet"
        raise UserError(f"target {name}: no target set has this name, {there}; `tagcos run --target FILE` makes one")
    return found


def of_run(catalog: Catalog, run_id: str) -> TargetSet | None:
    """Find the target set of a run.

    Parameters
    ----------
    catalog, run_id
        The run may have none.

    Returns
    -------
    TargetSet or None
        None if the run stands for its pool's mean.
    """
    query = "SELECT t.target_id, t.name FROM runs r JOIN target_sets t USING (target_id) WHERE r.run_id = ?"
    found = catalog.read(query, [run_id]).to_dicts()
    return TargetSet(**found[0]) if found else None


def set_of_run(catalog: Catalog, run_id: str, target_id: str | None) -> None:
    """Record which target set a run stands for.

    Parameters
    ----------
    catalog, run_id
        A run that is being written.
    target_id
        The set, or None for the pool's own mean.
    """
    with catalog.transaction() as connection:
        connection.execute("UPDATE runs SET target_id = ?, updated_at = ? WHERE run_id = ?", [target_id, utc_now(), run_id])


def add(catalog: Catalog, run_id: str, target_id: str, name: str, weights: Mapping[str, float]) -> int:
    """Record a target set of the examples in some files.

    Parameters
    ----------
    catalog
        Of a root whose writer the caller is; the files are read.
    run_id
        The run that makes the set.
    target_id
        Its name by content. A set that is there already only gets the new name.
    name
        Its readable name.
    weights
        Weight of the parts by file id. A part is a dataset of the files; its weight is that of the first file that has it.

    Returns
    -------
    int
        Number of its examples.
    """
    given = [float(weight) for weight in weights.values()]
    files = pl.DataFrame({"file_id": list(weights), "weight": given, "place": range(len(weights))})
    with catalog.transaction() as connection:
        insert_row(connection, "target_sets", replace=True, target_id=target_id, name=name, run_id=run_id, added_at=utc_now())
        connection.register("target_files", files.to_arrow())
        connection.execute(
            """INSERT OR IGNORE INTO target_examples BY NAME
            WITH found AS (
                SELECT coalesce(o.dataset, '') AS part, o.example_id, f.weight, f.place
                FROM occurrences o JOIN target_files f USING (file_id)
            ), parts AS (SELECT part, min_by(weight, place) AS weight FROM found GROUP BY part)
            SELECT DISTINCT ? AS target_id, f.part, f.example_id, p.weight FROM found f JOIN parts p USING (part)""",
            [target_id],
        )
        connection.unregister("target_files")
        count = connection.execute("SELECT count(*) FROM target_examples WHERE target_id = ?", [target_id]).fetchall()
    return int(count[0][0])


def examples(catalog: Catalog, target_id: str) -> pl.DataFrame:
    """List the examples of a target set.

    Parameters
    ----------
    catalog
        Of the root.
    target_id
        The set.

    Returns
    -------
    pl.DataFrame
        part, example_id, weight (of the part), segment, row, in order of part, segment and row; without those forgotten.
    """
    return catalog.read(
        """SELECT t.part, t.example_id, t.weight, e.segment, e.row FROM target_examples t JOIN examples e USING (example_id)
        WHERE t.target_id = ? AND t.example_id NOT IN (SELECT f.example_id FROM forgotten f)
        ORDER BY t.part, e.segment, e.row""",
        [target_id],
    )


def with_features(catalog: Catalog, target_id: str, space_id: str) -> pl.DataFrame:
    """List the examples of a target set that have a feature.

    Parameters
    ----------
    catalog, target_id
        The set.
    space_id
        The feature space.

    Returns
    -------
    pl.DataFrame
        As of `examples`.
    """
    return catalog.read(
        """SELECT t.part, t.example_id, t.weight, e.segment, e.row FROM target_examples t JOIN examples e USING (example_id)
        JOIN feature_rows r ON r.space_id = $space AND r.segment = e.segment AND r.row = e.row
        WHERE t.target_id = $target AND r.status = 'ok' AND t.example_id NOT IN (SELECT f.example_id FROM forgotten f)
        ORDER BY t.part, e.segment, e.row""",
        {"target": target_id, "space": space_id},
    )


def unscanned(catalog: Catalog, run_id: str, target_id: str) -> pl.DataFrame:
    """List the rows that were not compared with a target set yet, of all segments with an example of a run.

    Parameters
    ----------
    catalog
        Of the root.
    run_id
        The run; its sources are read.
    target_id
        The set.

    Returns
    -------
    pl.DataFrame
        segment, row, example_id.
    """
    return catalog.read(
        """SELECT e.segment, e.row, e.example_id FROM examples e
        LEFT JOIN target_scans s ON s.target_id = $target AND s.segment = e.segment
        WHERE e.row >= coalesce(s.rows, 0) AND e.segment IN (
            SELECT DISTINCT x.segment FROM examples x JOIN occurrences o USING (example_id) JOIN run_files f USING (file_id)
            WHERE f.run_id = $run)
        ORDER BY e.segment, e.row""",
        {"target": target_id, "run": run_id},
    )


def record_repeats(catalog: Catalog, target_id: str, scanned: pl.DataFrame, found: pl.DataFrame) -> None:
    """Record which rows repeat a target example, and which rows were compared.

    Parameters
    ----------
    catalog, target_id
        The set, in a root whose writer the caller is.
    scanned
        segment, row of the rows that were compared.
    found
        example_id of those that repeat one, like_id (the target example).
    """
    upto = scanned.group_by("segment").agg(rows=pl.col("row").max() + 1)
    with catalog.transaction() as connection:
        target = pl.lit(target_id).alias("target_id")
        insert(connection, "target_repeats", require(found, ["example_id", "like_id"]).with_columns(target), replace=True)
        insert(connection, "target_scans", upto.with_columns(target), replace=True)


def record_coverage(catalog: Catalog, run_id: str, *, wanted: pl.DataFrame, chosen: pl.DataFrame) -> None:
    """Record what is nearest to what between a target set and a selection. Replaces what the run had.

    Parameters
    ----------
    catalog
        Of a root whose writer the caller is.
    run_id
        The run.
    wanted
        Columns of the table target_nearest, one row for each target example.
    chosen
        Columns of the table selection_targets, one row for each chosen example.
    """
    with catalog.transaction() as connection:
        replace_of_run(connection, "target_nearest", run_id, wanted)
        replace_of_run(connection, "selection_targets", run_id, chosen)


def compared_pool(catalog: Catalog, run_id: str, space_id: str, target_id: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Find what the newest other run with the same target set and features knows of the pool's nearest examples.

    Parameters
    ----------
    catalog
        Of the root.
    run_id
        The run that asks.
    space_id
        Its feature space.
    target_id
        Its target set.

    Returns
    -------
    tuple of pl.DataFrame
        part, example_id, pool_id and pool_cosine of the target examples; and example_id of what the pool gained since they were
        compared with it. Both are empty if there is no such run.
    """
    query = """SELECT run_id FROM runs WHERE status = 'complete' AND run_id <> $run AND space_id = $space AND target_id = $target
            AND run_id IN (SELECT n.run_id FROM target_nearest n)
        ORDER BY finished_at DESC LIMIT 1"""
    found = catalog.read(query, {"run": run_id, "space": space_id, "target": target_id})["run_id"].to_list()
    base = found[0] if found else None
    known = catalog.read("SELECT part, example_id, pool_id, pool_cosine FROM target_nearest WHERE run_id = ?", [base])
    # of two large pools, the ids that are in one only: read whole, those of a million rows take 70 MB
    gained = "SELECT example_id FROM pool_of($run) ANTI JOIN pool_of($base) USING (example_id) WHERE $base IS NOT NULL"
    return known, catalog.read(gained, {"run": run_id, "base": base})


def repeats(catalog: Catalog, run_id: str) -> dict[str, int]:
    """Count the rows that a run leaves out because they repeat an example of its target set.

    Parameters
    ----------
    catalog
        Of the root.
    run_id
        The run.

    Returns
    -------
    dict
        Number by reason: `in the target`, `same words as in the target`.
    """
    found = catalog.read("SELECT reason, count(*) AS n FROM rejects_of(?) WHERE stage = 'target' GROUP BY reason", [run_id])
    return dict(found.iter_rows())
