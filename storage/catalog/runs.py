"""Runs in the catalog: start or resume, find, report, finish."""

from __future__ import annotations

import json
import os
import platform
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from storage.catalog.stages import close_attempts
from storage.connections import NO_EXTENSIONS, close_off
from storage.database import Catalog
from storage.tables import fetch, insert_row, utc_now
from storage.views import create, named_in
from tagcos_stream.types import UserError

LATEST = "latest"  # the run that MAIN refers to
MAIN = "main"  # name of runs that read sources, unless another is given


@dataclass(frozen=True)
class OpenRun:
    """A run in progress. `stages` holds what is finished already: stage -> its detail."""

    run_id: str
    resumed: bool
    stages: dict[str, dict[str, Any]]
    space_id: str | None
    clustering_id: str | None


def open_run(
    catalog: Catalog,
    *,
    config: Mapping[str, Any],
    config_hash: str,
    versions: Mapping[str, Any],
    seeds: Mapping[str, Any],
    label: str = "run",
    reselects: str | None = None,
    name: str | None = None,
) -> OpenRun:
    """Resume the newest unfinished run with this config_hash and name, or begin one. Call it as the root's writer.

    Then an unfinished run is one that nobody works on.

    Parameters
    ----------
    catalog
        Where runs are recorded.
    config, config_hash, versions, seeds
        What the run depends on.
    label
        The id of a new run is label-date-time.
    reselects
        Run whose pool it selects from again.
    name
        Series that the run belongs to; None for an exploration.
    """
    now = utc_now()
    here = [platform.node(), os.getpid(), now]
    with catalog.transaction() as connection:
        found = connection.execute(
            """SELECT run_id, space_id, clustering_id FROM runs
            WHERE config_hash = ? AND name IS NOT DISTINCT FROM ?::VARCHAR AND status <> 'complete'
            ORDER BY started_at DESC, run_id DESC LIMIT 1""",
            [config_hash, name],
        ).fetchall()
        if found:
            run_id = found[0][0]
            close_attempts(connection, run_id, "killed")
            connection.execute(
                "UPDATE runs SET status = 'running', attempts = attempts + 1, host = ?, pid = ?, updated_at = ? WHERE run_id = ?",
                [*here, run_id],
            )
            stages = connection.execute("SELECT stage, detail FROM stages WHERE run_id = ?", [run_id]).fetchall()
            return OpenRun(run_id, True, {stage: json.loads(detail) for stage, detail in stages}, *found[0][1:])
        run_id = _free_name(connection, f"{label}-{now:%Y%m%d-%H%M%S}")
        insert_row(
            connection,
            "runs",
            run_id=run_id,
            status="running",
            config=json.dumps(config),
            config_hash=config_hash,
            method=config.get("method"),
            versions=json.dumps(versions),
            seeds=json.dumps(seeds),
            attempts=1,
            host=here[0],
            pid=here[1],
            started_at=now,
            updated_at=now,
            reselects=reselects,
            name=name,
        )
    return OpenRun(run_id, False, {}, None, None)


def _free_name(connection: duckdb.DuckDBPyConnection, name: str) -> str:
    taken = {row[0] for row in connection.execute("SELECT run_id FROM runs WHERE starts_with(run_id, ?)", [name]).fetchall()}
    return next(candidate for candidate in (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))) if candidate not in taken)


def find_run(catalog: Catalog, name: str = LATEST) -> str:
    """Find the run that a word means.

    Parameters
    ----------
    catalog
        Where runs are recorded.
    name
        `latest` (what the name main refers to), a name of runs, a run id, or the first characters of just one id.

    Returns
    -------
    str
        Id of the run; of a name, the complete run that it refers to.

    Raises
    ------
    UserError
        No run or several are meant.
    """
    named = dict(catalog.read("SELECT name, run_id FROM names").iter_rows())
    if name == LATEST and MAIN not in named:
        if not named:
            raise UserError(f"no run in {catalog.path} is complete yet: `tagcos status` shows how far they are")
        raise UserError(
            f"no complete run is named {MAIN}, but {', '.join(sorted(named))}: give one of these names, or choose what `latest` "
            "means by `tagcos promote RUN`"
        )
    if name == LATEST or name in named:
        return str(named[MAIN if name == LATEST else name])
    found = catalog.read("SELECT run_id FROM runs WHERE starts_with(run_id, ?) ORDER BY started_at DESC, run_id", [name])
    ids = found["run_id"].to_list()
    if name in ids or len(ids) == 1:
        return name if name in ids else str(ids[0])
    if not ids:
        known = f"; names are {', '.join(sorted(named))}" if named else ""
        raise UserError(f"there is no run {name} in {catalog.path}: `tagcos status` lists them{known}")
    shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
    raise UserError(f"{name} may be any of {shown}: give more of the id")


def completions(copy: Path, beginning: str) -> list[str]:
    """Return the words that may stand for a complete run, for a shell that completes what was typed.

    Parameters
    ----------
    copy
        A published copy of the catalog: nobody writes to it, so that nobody waits.
    beginning
        What was typed.

    Returns
    -------
    list of str
        Those that begin so: ids, the newest first; names; `latest`. None of them where the copy is missing or cannot be read.
    """
    try:
        with duckdb.connect(str(copy), read_only=True, config=NO_EXTENSIONS) as connection:
            close_off(connection)
            for view in named_in("names"):  # this package's, whatever the copy has
                connection.execute(create(view, temporary=True))
            found = connection.execute(
                "SELECT run_id FROM runs WHERE status = 'complete' AND starts_with(run_id, ?) ORDER BY run_id DESC", [beginning]
            ).fetchall()
            found += connection.execute("SELECT name FROM names WHERE starts_with(name, ?) ORDER BY name", [beginning]).fetchall()
    except duckdb.Error:  # a message would disturb the line typed
        return []
    return [row[0] for row in found] + [LATEST] * LATEST.startswith(beginning)


def newest_clustered(catalog: Catalog) -> str | None:
    """Return the id of the newest complete run with a clustering, None where no run has one."""
    found = catalog.read(
        """SELECT run_id FROM runs WHERE status = 'complete' AND clustering_id IS NOT NULL
        ORDER BY finished_at DESC, run_id DESC LIMIT 1"""
    )
    return str(found["run_id"][0]) if len(found) else None


def run_row(catalog: Catalog, run_id: str) -> dict[str, Any]:
    """Return a run's row of `runs`, complete or not. UserError where there is none."""
    found = catalog.read("SELECT * FROM runs WHERE run_id = ?", [run_id]).to_dicts()
    if not found:
        raise UserError(f"there is no run {run_id} in {catalog.path}: `tagcos status` lists them")
    return found[0]


def complete_run(catalog: Catalog, name: str | None = None) -> dict[str, Any]:
    """Return a complete run's row of `runs`.

    Parameters
    ----------
    catalog
        Where runs are recorded.
    name
        As for `find_run`; None means `latest`.

    Returns
    -------
    dict
        All columns of `runs`.

    Raises
    ------
    UserError
        There is none, or the run is unknown or not complete.
    """
    run = run_row(catalog, find_run(catalog, name or LATEST))
    if run["status"] != "complete":
        raise UserError(f"run {run['run_id']} is {run['status']}, not complete: start the same command again to finish it")
    return run


def promote(catalog: Catalog, run_id: str, name: str = MAIN) -> None:
    """Let a name refer to a complete run, until a later run of this name completes or another one is promoted.

    Parameters
    ----------
    catalog
        Where to record it.
    run_id
        A complete run.
    name
        A valid name of runs (`tagcos_stream.config.check_run_name`).
    """
    with catalog.transaction() as connection:
        insert_row(connection, "promotions", name=name, run_id=run_id, promoted_at=_after_all(connection))


def find_complete(catalog: Catalog, config_hash: str) -> str | None:
    """The newest complete run with this configuration hash."""
    found = catalog.read(
        "SELECT run_id FROM runs WHERE config_hash = ? AND status = 'complete' ORDER BY finished_at DESC, run_id DESC LIMIT 1",
        [config_hash],
    )
    return None if found.is_empty() else str(found["run_id"][0])


def set_run(catalog: Catalog, run_id: str, *, space_id: str | None = None, clustering_id: str | None = None) -> None:
    """Note what the run works with; None leaves it as it is."""
    with catalog.transaction() as connection:
        connection.execute(
            """UPDATE runs SET space_id = coalesce(?, space_id), clustering_id = coalesce(?, clustering_id), updated_at = ?
            WHERE run_id = ?""",
            [space_id, clustering_id, utc_now(), run_id],
        )


def stop_run(catalog: Catalog, run_id: str, status: str, error: str) -> None:
    """'failed' or 'interrupted': it can be resumed by the same command."""
    if status not in ("failed", "interrupted"):
        raise ValueError(f"a run stops as failed or interrupted, not {status!r}")
    now = utc_now()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
    with catalog.transaction() as connection:
        close_attempts(connection, run_id, status, peak, now)
        connection.execute("UPDATE runs SET status = ?, error = ?, updated_at = ? WHERE run_id = ?", [status, error, now, run_id])


def finish_run(catalog: Catalog, run_id: str) -> None:
    """From this transaction on the run's selection is the latest."""
    with catalog.transaction() as connection:
        connection.execute(
            "UPDATE runs SET status = 'complete', error = NULL, updated_at = ?, finished_at = ? WHERE run_id = ?",
            [utc_now(), _after_all(connection), run_id],
        )


def _after_all(connection: duckdb.DuckDBPyConnection) -> datetime:
    """Now; where the clock was set back, just after the newest completion or promotion: their order decides what `latest` is."""
    query = "SELECT max(t) FROM (SELECT finished_at AS t FROM runs UNION ALL SELECT promoted_at FROM promotions)"
    newest = fetch(connection, query).item()
    now = utc_now()
    return now if newest is None or newest < now else newest + timedelta(microseconds=1)


def list_runs(catalog: Catalog) -> pl.DataFrame:
    """Return all runs, newest first, in order of completion or last sign of life.

    Columns: run_id, name, names (that refer to it), method, fraction (asked for, or selected / pool), status, started_at,
    finished_at, attempts, pool, heldout, selected, seconds, error.
    """
    return catalog.read("""
        SELECT r.run_id, r.name, n.names, r.method,
            CASE WHEN r.status = 'complete' THEN c.selected / c.pool
                ELSE TRY_CAST(r.config->>'fraction' AS DOUBLE) END AS fraction,
            r.status, r.started_at, r.finished_at, r.attempts, c.pool, h.heldout, c.selected, s.seconds, r.space_id,
            r.clustering_id, r.error
        FROM runs r
        LEFT JOIN run_sizes c USING (run_id)
        LEFT JOIN (SELECT run_id, list(name ORDER BY name) AS names FROM names GROUP BY run_id) n USING (run_id)
        LEFT JOIN (SELECT run_id, sum(seconds) AS seconds FROM stages GROUP BY run_id) s USING (run_id)
        LEFT JOIN (
            SELECT f.run_id, count(DISTINCT e.example_id) AS heldout
            FROM segments g JOIN examples e USING (segment) JOIN occurrences o USING (example_id) JOIN run_files f USING (file_id)
            WHERE g.heldout GROUP BY f.run_id
        ) h USING (run_id)
        ORDER BY coalesce(r.finished_at, r.updated_at) DESC, r.run_id DESC""")


@dataclass(frozen=True)
class RunStatus:
    """A run's row, its finished stages, and counts of its pool and selection."""

    run: dict[str, Any]
    stages: pl.DataFrame
    examples: int
    heldout: int
    rejects: int
    selected: int


def run_status(catalog: Catalog, run_id: str | None = None) -> RunStatus:
    """Of one run, or of the newest. UserError where there is none."""
    with catalog.reading("pool_of, heldout_of, rejects_of") as connection:

        def one(query: str, *parameters: Any) -> dict[str, Any]:
            rows = connection.sql(query, params=list(parameters)).pl().to_dicts()
            return rows[0] if rows else {}

        run = one(
            "SELECT * FROM runs WHERE ?::VARCHAR IS NULL OR run_id = ? ORDER BY started_at DESC, run_id DESC LIMIT 1",
            run_id,
            run_id,
        )
        if not run:
            raise UserError(
                f"there is no run {run_id or 'yet'} in {catalog.path}: `tagcos status` lists them, `tagcos run` makes one"
            )
        name = run["run_id"]
        return RunStatus(
            run=run,
            stages=connection.sql("SELECT * FROM stages WHERE run_id = ? ORDER BY finished_at", params=[name]).pl(),
            examples=one("SELECT count(*) AS n FROM pool_of(?)", name)["n"],
            heldout=one("SELECT count(*) AS n FROM heldout_of(?)", name)["n"],
            rejects=one("SELECT coalesce(sum(rows), 0)::BIGINT AS n FROM rejects_of(?)", name)["n"],
            selected=one("SELECT coalesce(sum(selected), 0)::BIGINT AS n FROM run_groups WHERE run_id = ?", name)["n"],
        )
