"""How far a run is that is not complete."""

from __future__ import annotations

from typing import Any

from storage.database import Catalog

FILES = """SELECT count(*) FILTER (f.complete) AS done, count(*) AS total FROM run_files r JOIN files f USING (file_id)
    WHERE r.run_id = $run"""
BLOCKS = """SELECT (SELECT count(*) FROM blocks b JOIN runs r USING (space_id) WHERE r.run_id = $run) AS done,
        coalesce(sum(ceil(f.rows / f.block_rows)), 0)::BIGINT AS total
    FROM feature_segments f JOIN runs r USING (space_id) WHERE r.run_id = $run"""
# stage -> (unit, query of done and total); of the others nothing is committed before their end
MEASURED = {"ingest": ("files", FILES), "gradients": ("blocks", BLOCKS)}
GROUPS = "SELECT count(*) AS done, coalesce(sum(selected), 0)::BIGINT AS selected FROM run_groups WHERE run_id = ?"


def under_way(catalog: Catalog, run_id: str) -> dict[str, Any] | None:
    """Return the stage that a run is in, or was in when it stopped.

    Parameters
    ----------
    catalog
        Where the run is recorded.
    run_id
        A run that is not complete.

    Returns
    -------
    dict or None
        stage, attempt, started_at (UTC), outcome (None while it is under way), and what is committed of it: done, total, unit;
        total is None where it is not known. None if no stage has begun.
    """
    found = catalog.read(
        """SELECT stage, attempt, started_at, outcome FROM stage_attempts WHERE run_id = ?
        ORDER BY started_at DESC, outcome IS NULL DESC LIMIT 1""",
        [run_id],
    ).to_dicts()
    if not found:
        return None
    row: dict[str, Any] = found[0] | {"done": None, "total": None, "unit": None}
    if row["stage"] in MEASURED:
        unit, query = MEASURED[row["stage"]]
        counts = catalog.read(query, {"run": run_id}).row(0, named=True)
        row |= {"done": counts["done"], "total": counts["total"], "unit": unit}
    elif row["stage"] == "select":
        row |= {"done": catalog.read(GROUPS, [run_id])["done"].item(), "unit": "groups"}
    return row
