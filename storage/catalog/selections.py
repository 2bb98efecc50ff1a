"""What runs chose, group by group, and what they left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from storage.database import Catalog, insert, insert_row, require, utc_now
from storage.examples import example_reader
from storage.root import Root
from tagcos_stream.types import UserError

SELECTION_COLUMNS = ["example_id", "rank", "round", "score", "residual_after", "weight"]
CANDIDATE_COLUMNS = ["segment", "row", "margin", "representative", "cosine"]


def commit_group(
    catalog: Catalog,
    run_id: str,
    group: int,
    *,
    budget: int,
    residual: float | None,
    seconds: float,
    stats: Mapping[str, Any],
    selection: pl.DataFrame,
    candidates: pl.DataFrame,
    inertia: float | None = None,
    inputs: str | None = None,
    kept: int | None = None,
) -> None:
    """A finished group (cluster, stratum or the whole pool), in one transaction. selection: example_id, rank, round,
    score, residual_after, weight (the last four may be null; weights are of all or of none). candidates: segment, row,
    margin, representative (rank of the chosen example nearest to it) and cosine to that (all may be null) of every row it could
    choose from, chosen ones too. inertia: of clusters. inputs: hash of all that the
    choice depends on, by which a later run copies it. kept: choices that only `sticky` kept."""
    run, number = pl.lit(run_id).alias("run_id"), pl.lit(group, pl.Int32).alias("group_id")
    with catalog.transaction() as connection:
        insert_row(
            connection,
            "run_groups",
            run_id=run_id,
            group_id=group,
            size=len(candidates),
            budget=budget,
            selected=len(selection),
            residual=residual,
            seconds=seconds,
            stats=json.dumps(stats),
            inertia=inertia,
            inputs=inputs,
            kept=kept,
        )
        insert(connection, "selections", require(selection, SELECTION_COLUMNS).with_columns(run, number))
        insert(connection, "candidates", require(candidates, CANDIDATE_COLUMNS).with_columns(run, number))
        connection.execute("UPDATE runs SET updated_at = ? WHERE run_id = ?", [utc_now(), run_id])


def copy_unchanged(catalog: Catalog, run_id: str, inputs: Mapping[int, str]) -> set[int]:
    """Take over the choice of every group whose inputs an earlier run had, in one transaction; returns the groups.

    Candidates stay where they are: run_groups.copied_from says whose they are.
    """
    asked = pl.DataFrame({"group_id": list(inputs), "inputs": list(inputs.values())}, {"group_id": pl.Int32, "inputs": pl.String})
    with catalog.transaction() as connection:
        connection.register("asked", asked.to_arrow())
        connection.execute(
            """CREATE TEMP TABLE unchanged AS
            SELECT DISTINCT ON (k.group_id) k.* FROM run_groups k JOIN asked USING (group_id, inputs)
            WHERE k.run_id <> $run AND k.group_id NOT IN (SELECT d.group_id FROM run_groups d WHERE d.run_id = $run)
            ORDER BY k.group_id, k.copied_from IS NOT NULL, k.run_id""",
            {"run": run_id},
        )
        connection.execute(
            """INSERT INTO selections BY NAME SELECT s.* REPLACE ($run AS run_id)
            FROM selections s JOIN unchanged u ON s.run_id = u.run_id AND s.group_id = u.group_id""",
            {"run": run_id},
        )
        connection.execute(
            """INSERT INTO run_groups BY NAME
            SELECT u.* REPLACE ($run AS run_id, 0 AS seconds, coalesce(u.copied_from, u.run_id) AS copied_from)
            FROM unchanged u""",
            {"run": run_id},
        )
        copied = {row[0] for row in connection.execute("SELECT group_id FROM unchanged").fetchall()}
        connection.execute("DROP TABLE unchanged")
    return copied


def chosen_by(catalog: Catalog, run_id: str) -> set[str]:
    """Ids of a run's selection."""
    return set(catalog.read("SELECT example_id FROM selections WHERE run_id = ?", [run_id])["example_id"])


def groups_done(catalog: Catalog, run_id: str) -> set[int]:
    return set(catalog.read("SELECT group_id FROM run_groups WHERE run_id = ?", [run_id])["group_id"].to_list())


def selection(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """The columns of the macro selection_of, in order of group and rank. UserError where the run is unknown or not complete."""
    status = catalog.read("SELECT status FROM runs WHERE run_id = ?", [run_id])["status"].to_list()
    if not status:
        raise UserError(f"there is no run {run_id}: `tagcos status` lists them")
    if status != ["complete"]:
        raise UserError(f"run {run_id} is {status[0]}, not complete: start the same `tagcos run` again to finish it")
    return catalog.read("FROM selection_of(?) ORDER BY group_id, rank", [run_id])


def selected_with_text(root: Root, run_id: str) -> Iterator[pl.DataFrame]:
    """The selection with messages, tools and template_kwargs, a part of examples at a time, by segment and row: for exports."""
    yield from example_reader(root).iterate(selection(root.catalog, run_id))
