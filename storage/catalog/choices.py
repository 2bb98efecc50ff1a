"""Catalog records of a selection as it is made: the choice from each group, and what the division of the budget settled on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from storage.database import Catalog
from storage.tables import insert, insert_row, require, utc_now

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
    target_share: float | None = None,
) -> None:
    """Record the choice from one group (cluster, stratum or the whole pool) in one transaction.

    Parameters
    ----------
    catalog
        Where to record.
    run_id
        The run.
    group
        Number of the group.
    budget
        Examples that were to be chosen.
    residual
        Relative residual of the match; None if the method has none.
    seconds
        Wall time of the choice.
    stats
        Counts of the work done; recorded as JSON.
    selection
        SELECTION_COLUMNS of the chosen examples. The last four may be null; either all examples have a weight or none.
    candidates
        CANDIDATE_COLUMNS of all rows that could be chosen, including the chosen ones: margin, representative (rank of the
        nearest chosen example) and cosine (to that example) may be null.
    inertia
        Sum of squared distances to the mean; only for clusters.
    inputs
        Hash of everything that the choice depends on; a later run with the same hash copies the choice.
    kept
        Number of earlier choices that were kept only because of `sticky`.
    target_share
        Share of the target set in the group; None if the choice follows none.
    """
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
            target_share=target_share,
        )
        insert(connection, "selections", require(selection, SELECTION_COLUMNS).with_columns(run, number))
        insert(connection, "candidates", require(candidates, CANDIDATE_COLUMNS).with_columns(run, number))
        connection.execute("UPDATE runs SET updated_at = ? WHERE run_id = ?", [utc_now(), run_id])


def drop_all(catalog: Catalog, run_id: str) -> None:
    """Delete what an unfinished run decided on and chose, in one transaction: its pool is another one now.

    Parameters
    ----------
    catalog
        Where it is recorded.
    run_id
        The run, which no other copied from: only complete runs are.
    """
    with catalog.transaction() as connection:
        for table in ("selections", "candidates", "run_groups", "budget_steps", "refreshes"):
            connection.execute(f"DELETE FROM {table} WHERE run_id = ?", [run_id])
        connection.execute("DELETE FROM stages WHERE run_id = ? AND stage IN ('cluster', 'select', 'publish')", [run_id])


def drop_changed(catalog: Catalog, run_id: str, inputs: Mapping[int, str]) -> None:
    """Delete the choices of a run that depend on something that changed since an earlier round or attempt, in one transaction.

    Parameters
    ----------
    catalog
        Where the choices are recorded.
    run_id
        The run.
    inputs
        Hash of everything that the choice depends on, by group, as it is now; choices with others are deleted.
    """
    kept = pl.DataFrame({"group_id": list(inputs), "inputs": list(inputs.values())}, {"group_id": pl.Int32, "inputs": pl.String})
    with catalog.transaction() as connection:
        connection.register("kept", kept.to_arrow())
        changed = connection.execute(
            "SELECT group_id FROM run_groups ANTI JOIN kept USING (group_id, inputs) WHERE run_id = ?", [run_id]
        ).fetchall()
        for table in ("selections", "candidates", "run_groups"):
            connection.execute(
                f"DELETE FROM {table} WHERE run_id = ? AND group_id IN (SELECT unnest(?::INTEGER[]))",
                [run_id, [row[0] for row in changed]],
            )


def budget_steps(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """Return what a run's selection settled on so far.

    Parameters
    ----------
    catalog
        Where it is recorded.
    run_id
        The run.

    Returns
    -------
    pl.DataFrame
        step, dataset or group_id, and amount, in order of step.
    """
    query = "SELECT step, dataset, group_id, amount FROM budget_steps WHERE run_id = ? ORDER BY step, dataset, group_id"
    return catalog.read(query, [run_id])


def add_budget_steps(catalog: Catalog, run_id: str, step: int, found: pl.DataFrame) -> None:
    """Record what a selection settled on after a round of choice.

    Parameters
    ----------
    catalog, run_id
        The run.
    step
        Number of the round, from 1.
    found
        dataset (String or null), group_id (Int32 or null) and amount (Int64).
    """
    with catalog.transaction() as connection:
        insert(connection, "budget_steps", found.with_columns(run_id=pl.lit(run_id), step=pl.lit(step, pl.Int32)))


def spent(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """Return what the groups of a run chose.

    Parameters
    ----------
    catalog, run_id
        The run.

    Returns
    -------
    pl.DataFrame
        group_id, budget, selected, tokens and next_tokens, in order of group: the last two are null unless the budget is in
        tokens, and next_tokens also where every row was chosen.
    """
    query = """SELECT group_id, budget, selected,
        (stats->>'tokens')::BIGINT AS tokens, (stats->>'next_tokens')::BIGINT AS next_tokens
        FROM run_groups WHERE run_id = ? ORDER BY group_id"""
    return catalog.read(query, [run_id])


def copy_unchanged(catalog: Catalog, run_id: str, inputs: Mapping[int, str]) -> set[int]:
    """Copy the choices of groups whose inputs are those of an earlier complete run, in one transaction.

    Candidates are not copied: run_groups.copied_from names the run that has them.

    Parameters
    ----------
    catalog
        Where the choices are recorded.
    run_id
        The run to copy to.
    inputs
        Hash of everything that the choice depends on, by group.

    Returns
    -------
    set of int
        The groups that were copied.
    """
    asked = pl.DataFrame({"group_id": list(inputs), "inputs": list(inputs.values())}, {"group_id": pl.Int32, "inputs": pl.String})
    with catalog.transaction() as connection:
        connection.register("asked", asked.to_arrow())
        connection.execute(
            """CREATE TEMP TABLE unchanged AS
            SELECT DISTINCT ON (k.group_id) k.* FROM run_groups k JOIN asked USING (group_id, inputs)
            WHERE k.group_id NOT IN (SELECT d.group_id FROM run_groups d WHERE d.run_id = $run)
                AND k.run_id IN (SELECT r.run_id FROM runs r WHERE r.status = 'complete')  -- others may yet drop the choice
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


def groups_done(catalog: Catalog, run_id: str) -> set[int]:
    """Return the groups of a run whose choice is recorded.

    Parameters
    ----------
    catalog, run_id
        A run, complete or not.

    Returns
    -------
    set of int
        Their numbers.
    """
    return set(catalog.read("SELECT group_id FROM run_groups WHERE run_id = ?", [run_id])["group_id"].to_list())
