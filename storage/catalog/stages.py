"""Stages of runs in the catalog: attempts at them, and what all attempts at one add up to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import duckdb
import polars as pl

from storage.database import Catalog
from storage.tables import utc_now

COUNTS = ("truncated", "halvings")  # in a stage's detail: what only the attempt itself knows


def begun(catalog: Catalog, run_id: str, stage: str) -> None:
    """Record that an attempt at a stage starts. One that was never closed counts as killed.

    Parameters
    ----------
    catalog, run_id
        The run.
    stage
        Name of the stage.
    """
    now = utc_now()
    with catalog.transaction() as connection:
        close_attempts(connection, run_id, "killed")
        connection.execute(
            """INSERT INTO stage_attempts (run_id, stage, attempt, started_at)
            SELECT $run, $stage, 1 + count(*), $now::TIMESTAMP FROM stage_attempts WHERE run_id = $run AND stage = $stage""",
            {"run": run_id, "stage": stage, "now": now},
        )
        connection.execute("UPDATE runs SET updated_at = ? WHERE run_id = ?", [now, run_id])


def done(catalog: Catalog, run_id: str, stage: str, *, seconds: float, peak_bytes: int | None, detail: Mapping[str, Any]) -> None:
    """Close the attempt at a stage, or record one that was not announced, and sum up all attempts at it.

    What an earlier attempt says is kept where this one says nothing, and where this one found everything made (`reused`); the
    counts of COUNTS are of one attempt each and add up.

    Parameters
    ----------
    catalog, run_id
        The run.
    stage
        Name of the stage.
    seconds
        Wall time of the attempt.
    peak_bytes
        Peak memory of the process so far; None where it is not known.
    detail
        What the stage reports; recorded as JSON.
    """
    ended = {"run": run_id, "stage": stage, "seconds": seconds, "peak": peak_bytes, "now": utc_now()}
    with catalog.transaction() as connection:
        known = connection.execute("SELECT detail FROM stages WHERE run_id = ? AND stage = ?", [run_id, stage]).fetchall()
        earlier = json.loads(known[0][0]) if known else {}
        made_earlier = earlier.get("reused") is False and detail.get("reused") is True
        merged = {**detail, **earlier} if made_earlier else {**earlier, **detail}
        merged |= {name: earlier[name] + detail[name] for name in COUNTS if name in earlier and name in detail}
        connection.execute(
            """INSERT OR REPLACE INTO stage_attempts
            SELECT $run, $stage, coalesce(max(attempt) FILTER (WHERE outcome IS NULL), 1 + count(*)),
                coalesce(max(started_at) FILTER (WHERE outcome IS NULL), $now::TIMESTAMP), $seconds, $peak, 'complete'
            FROM stage_attempts WHERE run_id = $run AND stage = $stage""",
            ended,
        )
        connection.execute(
            """INSERT OR REPLACE INTO stages (run_id, stage, seconds, peak_bytes, detail, finished_at)
            SELECT $run, $stage, sum(seconds), max(peak_bytes), $detail, $now::TIMESTAMP FROM stage_attempts
            WHERE run_id = $run AND stage = $stage""",
            {
                "run": run_id,
                "stage": stage,
                "detail": json.dumps(merged),
                "now": ended["now"],
            },
        )
        connection.execute("UPDATE runs SET updated_at = ? WHERE run_id = ?", [utc_now(), run_id])


def detail_of(catalog: Catalog, run_id: str, stage: str) -> dict[str, Any] | None:
    """Return what a run's stage reported.

    Parameters
    ----------
    catalog, run_id
        The run.
    stage
        Name of the stage.

    Returns
    -------
    dict or None
        The details of all attempts that came to an end, merged as `done` says; None where there is none.
    """
    found = catalog.read("SELECT detail FROM stages WHERE run_id = ? AND stage = ?", [run_id, stage])
    return None if found.is_empty() else dict(json.loads(found.item()))


def finished(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """Return the stages that a run finished.

    Parameters
    ----------
    catalog, run_id
        The run.

    Returns
    -------
    pl.DataFrame
        The columns of the table `stages`, with detail as JSON text, in order of completion.
    """
    return catalog.read("SELECT * FROM stages WHERE run_id = ? ORDER BY finished_at", [run_id])


def close_attempts(
    connection: duckdb.DuckDBPyConnection, run_id: str, outcome: str, peak_bytes: int | None = None, now: datetime | None = None
) -> None:
    """Close the attempt that is under way.

    Parameters
    ----------
    connection
        In a transaction of the run's writer.
    run_id
        The run.
    outcome
        How the attempt ended: killed, failed or interrupted.
    peak_bytes
        Peak memory of the process; None where it is not known.
    now
        When it ended, UTC; None for the run's last sign of life.
    """
    connection.execute(
        """UPDATE stage_attempts SET outcome = $outcome, peak_bytes = $peak, seconds = greatest(
            0, epoch(coalesce($now::TIMESTAMP, (SELECT updated_at FROM runs WHERE run_id = $run)) - started_at))
        WHERE run_id = $run AND outcome IS NULL""",
        {"run": run_id, "outcome": outcome, "peak": peak_bytes, "now": now},
    )
