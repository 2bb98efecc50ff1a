"""Changes since the previous run and the decisions made about them: one row per run in `refreshes`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from storage.database import Catalog
from storage.tables import insert_row, utc_now


def base_run(catalog: Catalog, run_id: str, space_id: str) -> str | None:
    """Find the run that a run is compared with: its selection is the earlier one, for churn, drift and `sticky`.

    Parameters
    ----------
    catalog
        Where runs are recorded.
    run_id
        The new run.
    space_id
        Its feature space.

    Returns
    -------
    str or None
        Of the complete runs with the same space and method, the one that the run's name referred to last; of a run without a
        name, the run that it selects from again. None if there is none.
    """
    found = catalog.read(
        """WITH mine AS (SELECT name, method, reselects FROM runs WHERE run_id = $run),
            earlier AS (
                SELECT n.run_id, n.since FROM named_runs n JOIN mine USING (name)
                UNION ALL SELECT reselects, NULL FROM mine WHERE name IS NULL
            )
        SELECT run_id FROM earlier JOIN runs r USING (run_id)
        WHERE r.status = 'complete' AND r.space_id = $space AND r.method = (SELECT method FROM mine) AND run_id <> $run
        ORDER BY since DESC NULLS LAST, run_id DESC LIMIT 1""",
        {"run": run_id, "space": space_id},
    )
    return None if found.is_empty() else str(found["run_id"][0])


def changes(catalog: Catalog, run_id: str, base: str) -> dict[str, int]:
    """Count the examples by which two pools differ.

    Parameters
    ----------
    catalog
        Where both runs are recorded.
    run_id
        The new run.
    base
        The run to compare with.

    Returns
    -------
    dict
        `added` and `returned`: in the run's pool but not in that of `base`, ingested after or before `base` started;
        `retired`: in the pool of `base` only.
    """
    found = catalog.read(
        """WITH mine AS (FROM pool_of($run)), theirs AS (FROM pool_of($base)),
            began AS (SELECT started_at FROM runs WHERE run_id = $base),
            came AS (
                SELECT m.example_id, s.added_at FROM mine m ANTI JOIN theirs USING (example_id) JOIN segments s USING (segment)
            )
        SELECT (SELECT count(*) FROM came WHERE added_at > (FROM began)) AS added,
            (SELECT count(*) FROM came WHERE added_at <= (FROM began)) AS returned,
            (SELECT count(*) FROM theirs ANTI JOIN mine USING (example_id)) AS retired""",
        {"run": run_id, "base": base},
    )
    return dict(found.to_dicts()[0])


def warm_up_view(catalog: Catalog, run_id: str, space_id: str) -> pl.DataFrame:
    """Return the pool's losses by whether the warm-up could draw from the rows.

    Parameters
    ----------
    catalog, run_id
        The run whose pool it is.
    space_id
        Feature space.

    Returns
    -------
    pl.DataFrame
        Columns seen, n, loss (mean) and std.
    """
    return catalog.read(
        """SELECT s.added_at <= f.added_at AS seen, count(*) AS n, avg(r.loss) AS loss, coalesce(stddev_samp(r.loss), 0) AS std
        FROM pool_of($run) p JOIN segments s USING (segment)
        JOIN feature_rows r ON r.space_id = $space AND r.segment = p.segment AND r.row = p.row AND r.status = 'ok'
        JOIN feature_spaces f ON f.space_id = $space GROUP BY 1""",
        {"run": run_id, "space": space_id},
    )


def record(catalog: Catalog, run_id: str, values: Mapping[str, Any], thresholds: Mapping[str, float] | None = None) -> None:
    """Record the decision of a run. Only the first call is recorded, so a resumed run keeps its decision.

    Parameters
    ----------
    catalog
        Where to record it.
    run_id
        The run that decided.
    values
        Columns of `refreshes`.
    thresholds
        The limits that were compared with, if any.
    """
    with catalog.transaction() as connection:
        if not connection.execute("SELECT 1 FROM refreshes WHERE run_id = ?", [run_id]).fetchall():
            insert_row(
                connection,
                "refreshes",
                run_id=run_id,
                thresholds=json.dumps(thresholds) if thresholds else None,
                decided_at=utc_now(),
                **values,
            )


def recorded(catalog: Catalog, run_id: str) -> dict[str, Any] | None:
    """Return the decision that a run recorded.

    Parameters
    ----------
    catalog, run_id
        The run that may have decided.

    Returns
    -------
    dict or None
        Its row of `refreshes`.
    """
    found = catalog.read("SELECT * FROM refreshes WHERE run_id = ?", [run_id]).to_dicts()
    return found[0] if found else None


def with_churn(catalog: Catalog, run_id: str) -> dict[str, Any] | None:
    """Return what changed since the earlier run that a run was compared with.

    Parameters
    ----------
    catalog, run_id
        The run that may have been compared.

    Returns
    -------
    dict or None
        Its row of the views drift and churn; None where it was not compared with an earlier run.
    """
    query = "SELECT d.*, c.* EXCLUDE (run_id) FROM drift d LEFT JOIN churn c USING (run_id) WHERE run_id = ?"
    found = catalog.read(query, [run_id]).to_dicts()
    return found[0] if found else None
