"""What came into the sources of a run and what went, by source and by file, against an earlier run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from storage.database import Catalog


def earlier_run(catalog: Catalog, run_id: str, reads: Mapping[str, Any]) -> str | None:
    """Find the newest other complete run of the same name that read the same sources in the same way.

    Parameters
    ----------
    catalog
        Where the runs are recorded.
    run_id
        The run that compares.
    reads
        What identifies the sources, as the stage ingest records it under `reads` in its detail.

    Returns
    -------
    str or None
        Its id.
    """
    found = catalog.read(
        """SELECT r.run_id, s.detail->>'reads' AS reads FROM runs r JOIN stages s ON s.run_id = r.run_id AND s.stage = 'ingest'
        WHERE r.status = 'complete' AND r.run_id <> $run
            AND r.name IS NOT DISTINCT FROM (SELECT m.name FROM runs m WHERE m.run_id = $run)
        ORDER BY r.finished_at DESC, r.run_id DESC""",
        {"run": run_id},
    )
    for name, recorded in found.iter_rows():
        if recorded is not None and json.loads(recorded) == reads:
            return str(name)
    return None


def compared_with(catalog: Catalog, run_id: str) -> str | None:
    """Return the run that a run's sources are compared with: the one ingest recorded, else the base of its refresh.

    None where there is none, or it was dropped.
    """
    found = catalog.read(
        """SELECT run_id FROM runs WHERE run_id = coalesce(
            (SELECT detail->>'since' FROM stages WHERE run_id = $run AND stage = 'ingest'),
            (SELECT base_run FROM refreshes WHERE run_id = $run))""",
        {"run": run_id},
    )
    return None if found.is_empty() else str(found["run_id"][0])


def by_source(catalog: Catalog, run_id: str, base: str | None) -> pl.DataFrame:
    """Count the changes of each source.

    Parameters
    ----------
    catalog
        Where both runs are recorded.
    run_id
        The later run.
    base
        The earlier run; None: everything is new.

    Returns
    -------
    pl.DataFrame
        The columns of the macro `source_changes`, in order of source.
    """
    return catalog.read("FROM source_changes(?, ?) ORDER BY source", [base, run_id])


def by_file(catalog: Catalog, run_id: str, base: str | None) -> pl.DataFrame:
    """List the files that differ between two runs.

    Returns
    -------
    pl.DataFrame
        The columns of the macro `file_changes`; files that lost most examples first.
    """
    return catalog.read("FROM file_changes(?, ?) ORDER BY retired DESC, url", [base, run_id])


def totals(catalog: Catalog, run_id: str, base: str | None) -> dict[str, int]:
    """Count the examples that are new, returned and retired, each once whatever the number of its sources."""
    found = catalog.read(
        "SELECT change, count(DISTINCT example_id) AS n FROM example_changes(?, ?) GROUP BY change", [base, run_id]
    )
    return {"new": 0, "returned": 0, "retired": 0} | dict(found.iter_rows())


def rejected(catalog: Catalog, run_id: str) -> int:
    """Count the rows of a run's files that are not examples."""
    found = catalog.read(
        """SELECT coalesce(sum(rows), 0)::BIGINT AS n FROM rejects
        WHERE stage = 'ingest' AND file_id IN (SELECT file_id FROM run_files WHERE run_id = ?)""",
        [run_id],
    )
    return int(found["n"][0])


def reject_reasons(catalog: Catalog, run_id: str) -> dict[str, int]:
    """Count the rejects of a run by reason, the most frequent first."""
    found = catalog.read(
        "SELECT reason, sum(rows)::BIGINT AS n FROM rejects_of(?) GROUP BY reason ORDER BY n DESC, reason", [run_id]
    )
    return dict(found.iter_rows())


def first_reject(catalog: Catalog, run_id: str) -> str | None:
    """Return the detail of the first reject of a run that has one."""
    found = catalog.read("SELECT detail FROM rejects_of(?) WHERE detail IS NOT NULL ORDER BY file_id, row LIMIT 1", [run_id])
    return None if found.is_empty() else str(found.item())


def ended_early(catalog: Catalog, run_id: str, base: str | None) -> list[tuple[str, str]]:
    """List files of a run, new or changed since `base`, whose end is missing or was not read.

    Returns
    -------
    list of (str, str)
        URL, and the reason of the reject that says so, in order of URL.
    """
    found = catalog.read(
        """SELECT url, ended_early FROM file_changes(?, ?) JOIN files USING (url, file_id) WHERE ended_early IS NOT NULL
        ORDER BY url""",
        [base, run_id],
    )
    return found.rows()


def outcome(catalog: Catalog, run_id: str) -> dict[str, Any]:
    """Return what a run selected, and what changed since the run before.

    The number selected and of how many examples, the churn (None where it has no earlier selection), the run that it selects from
    again, and the summary of its sources if ingest compared them with an earlier run.
    """
    found = catalog.read(
        """SELECT (SELECT reselects FROM runs WHERE run_id = $run) AS reselects,
            (SELECT detail->>'changes' FROM stages
                WHERE run_id = $run AND stage = 'ingest' AND detail->>'since' IS NOT NULL) AS changes,
            coalesce(sum(pool), 0)::BIGINT AS usable, coalesce(sum(selected), 0)::BIGINT AS selected,
            (SELECT churn FROM churn WHERE run_id = $run) AS churn FROM run_sizes WHERE run_id = $run""",
        {"run": run_id},
    )
    return dict(found.to_dicts()[0])
