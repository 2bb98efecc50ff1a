"""Runs that are dropped by age or name (`tagcos gc`), and what then is used by no run: feature spaces, clusterings, reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import duckdb

from storage import snapshot
from storage.database import Catalog
from storage.gc import orphans, sweep
from storage.root import Root
from storage.tables import utc_now
from tagcos_stream.types import UserError

# tables with a row or more for a run, by run_id
OF_A_RUN = (
    "stages", "stage_attempts", "run_files", "run_groups", "budget_steps", "selections", "candidates", "refreshes",
    "diagnostics", "promotions", "check_results",
    "target_nearest", "selection_targets", "exclusions", "pins", "alignments", "runs",
)  # fmt: skip
LONGEST_DAYS = 36_500  # longer ago than any run; the calendar ends some time before
OF_A_SPACE = ("checkpoints", "feature_segments", "blocks", "feature_rows", "vector_rows", "answer_losses", "feature_spaces")
OF_A_CLUSTERING = ("clusters", "cluster_parts", "assignments", "clusterings")

# Kept whatever is asked: what another name refers to; what an evaluation was made of; the run that decided what is held out.
DROPPED = """WITH first AS (
        SELECT run_id FROM runs WHERE run_id IN (SELECT run_id FROM segments) ORDER BY started_at, run_id LIMIT 1
    )
    SELECT run_id FROM runs
    WHERE ($before::TIMESTAMP IS NULL OR coalesce(finished_at, updated_at) < $before::TIMESTAMP)
        AND (($names::VARCHAR[] = [] AND NOT $unnamed) OR list_contains($names::VARCHAR[], name) OR ($unnamed AND name IS NULL))
        AND run_id NOT IN (SELECT run_id FROM names WHERE NOT list_contains($names::VARCHAR[], name))
        AND run_id NOT IN (SELECT run_id FROM evaluations) AND run_id NOT IN (FROM first)
    ORDER BY started_at, run_id"""
# a space that no run selected by may still be of a variant computed with another: it has the same adapter, or none, as vectors
# and hidden states, and a run named it
SPACES = """WITH kept AS (FROM runs WHERE run_id NOT IN (SELECT unnest($runs::VARCHAR[]))),
    used AS (SELECT space_id FROM kept WHERE space_id IS NOT NULL)
    SELECT space_id FROM feature_spaces WHERE space_id NOT IN (FROM used) AND space_id NOT IN (
        SELECT c.space_id FROM checkpoints c JOIN checkpoints k ON k.digest = c.digest WHERE k.space_id IN (FROM used))
        AND NOT (variant IN ('vectors', 'hidden') AND EXISTS (
            FROM kept WHERE config->>'$.also_gradients' LIKE '%"' || variant || '"%'))
    ORDER BY space_id"""
CLUSTERINGS = """SELECT clustering_id FROM clusterings WHERE clustering_id NOT IN (
        SELECT clustering_id FROM runs WHERE run_id NOT IN (SELECT unnest($runs::VARCHAR[])) AND clustering_id IS NOT NULL)
    ORDER BY clustering_id"""


@dataclass(frozen=True)
class Dropped:
    """Runs to drop, and what no other run uses."""

    runs: list[str]
    spaces: list[str]
    clusterings: list[str]
    reports: list[str]  # keys
    bytes: int  # of the files of all these


def to_drop(root: Root, *, days: float | None = None, names: Sequence[str] = (), unnamed: bool = False) -> Dropped:
    """Find the runs that are to be dropped. Nothing is changed.

    Parameters
    ----------
    root
        The root.
    days
        Only runs that completed, or gave their last sign of life, longer ago than this.
    names
        Only runs of these names, including those that the names refer to.
    unnamed
        Also, or only, runs without a name.

    Returns
    -------
    Dropped
        Without runs that another name refers to, that were evaluated, and the first one, which decided what is held out.
    """
    before = None if days is None else utc_now() - timedelta(days=min(days, LONGEST_DAYS))
    with root.catalog.reading(DROPPED) as connection:

        def found(query: str, **values: object) -> list[str]:
            return [str(row[0]) for row in connection.execute(query, values).fetchall()]

        runs = found(DROPPED, before=before, names=list(names), unnamed=unnamed)
        spaces, clusterings = (found(query, runs=runs) if runs else [] for query in (SPACES, CLUSTERINGS))
    folders = [f"spaces/{space}/" for space in spaces] + [f"clusterings/{name}.zarr/" for name in clusterings]
    folders += [f"{folder}/{run}/" for run in runs for folder in ("work", "snapshots")]
    wanted = {f"reports/{run}.html" for run in runs}
    size, reports = 0, []
    for folder in ("spaces", "clusterings", "work", "snapshots", "reports"):
        for key, count in root.files.list(folder):
            reports += [key] if key in wanted else []
            size += count if key in wanted or key.startswith(tuple(folders)) else 0
    return Dropped(runs, spaces, clusterings, sorted(reports), size)


def drop(root: Root, dropped: Dropped) -> None:
    """Drop runs with what only they used. The caller must hold the writer lock, also while `to_drop` looked.

    Examples stay, as do the rejects of files. An evaluation keeps its results without the runs that made its selections.
    """
    for key in dropped.reports:  # before the catalog forgets whose they are
        root.files.delete(key)
    with root.catalog.transaction() as connection:
        _hand_on_candidates(connection, dropped.runs)
        for tables, column, gone in (
            (OF_A_RUN, "run_id", dropped.runs),
            (OF_A_SPACE, "space_id", dropped.spaces),
            (OF_A_CLUSTERING, "clustering_id", dropped.clusterings),
        ):
            for table in tables:
                connection.execute(f"DELETE FROM {table} WHERE {column} IN (SELECT unnest(?::VARCHAR[]))", [gone])
        # what changed since a run that is gone cannot be told any more
        connection.execute("UPDATE refreshes SET base_run = NULL WHERE list_contains(?::VARCHAR[], base_run)", [dropped.runs])
        connection.execute("DELETE FROM rejects WHERE space_id IN (SELECT unnest(?::VARCHAR[]))", [dropped.spaces])
        connection.execute(
            "DELETE FROM rejects WHERE stage = 'near-duplicates' AND run_id IN (SELECT unnest(?::VARCHAR[]))", [dropped.runs]
        )
    sweep(root, orphans(root))
    root.catalog.compact()
    snapshot.republish(root)


def unfinished(root: Root) -> bool:
    """Whether the published copy still has runs that the catalog has not: a drop was interrupted before it published again."""
    copy = snapshot.snapshot_path(root)
    if not copy.exists():
        return False
    try:
        published = Catalog(copy).read("SELECT run_id FROM runs")["run_id"]
    except UserError:  # of an older version: published before, and to be published again
        return True
    return not published.is_in(root.catalog.read("SELECT run_id FROM runs")["run_id"].to_list()).all()


def _hand_on_candidates(connection: duckdb.DuckDBPyConnection, runs: Sequence[str]) -> None:
    """Of choices that were copied from a run that goes, the candidates go to the first of the runs that copied them."""
    heirs = connection.execute(
        """SELECT copied_from, group_id, min(run_id) FROM run_groups WHERE list_contains(?::VARCHAR[], copied_from)
            AND NOT list_contains(?::VARCHAR[], run_id) GROUP BY ALL""",
        [list(runs), list(runs)],
    ).fetchall()
    for source, group, heir in heirs:
        named = {"source": source, "group": group, "heir": heir}
        connection.execute("UPDATE candidates SET run_id = $heir WHERE run_id = $source AND group_id = $group", named)
        connection.execute(
            """UPDATE run_groups SET copied_from = CASE WHEN run_id = $heir THEN NULL ELSE $heir END
            WHERE copied_from = $source AND group_id = $group""",
            named,
        )
