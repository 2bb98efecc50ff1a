"""What a complete run selected, in a few tables: what the command line prints when it ends."""

from __future__ import annotations

from typing import Any

from storage.catalog import changes, refreshes, selections
from storage.database import Catalog

BY_CLUSTER = """
    WITH counted AS (SELECT group_id, dataset, count(*) AS n FROM selection_of($run) GROUP BY ALL),
        named AS (
            SELECT group_id,
                string_agg(coalesce(dataset, '(no name)') || ' ' || n, ', ' ORDER BY n DESC, dataset) AS selected_from
            FROM counted GROUP BY group_id
        )
    SELECT group_id, size, selected, residual, selected_from, group_id AS cluster
    FROM coverage_of($run) LEFT JOIN named USING (group_id) ORDER BY group_id
"""


def summary(catalog: Catalog, run_id: str) -> dict[str, Any]:
    """Sum up a run.

    Parameters
    ----------
    catalog, run_id
        The run, which is complete.

    Returns
    -------
    dict
        Plain data: selected, usable (examples with a feature), without_gradient, excluded (examples by reason), heldout;
        by_dataset, by_cluster (or other group), by_source, match (the pool's mean), changes: lists of rows.
    """
    by_dataset = selections.by_dataset(catalog, run_id)
    by_dataset = by_dataset.select("dataset", "pool", "selected", share=by_dataset["selected"] / by_dataset["pool"])
    by_cluster = catalog.read(BY_CLUSTER, {"run": run_id})
    since = changes.compared_with(catalog, run_id)
    compared = refreshes.with_churn(catalog, run_id)
    excluded = catalog.read("SELECT reason, count(*) AS examples FROM exclusions WHERE run_id = ? GROUP BY reason", [run_id])
    usable = int(by_cluster["size"].sum()) + int(excluded["examples"].sum())
    match = catalog.read("SELECT error_plain, error_weighted FROM match_of(?) WHERE cluster IS NULL", [run_id])
    return {
        "selected": int(by_cluster["selected"].sum()),
        "usable": usable,
        "without_gradient": max(0, int(by_dataset["pool"].sum()) - usable),
        "excluded": dict(excluded.iter_rows()),
        "heldout": int(catalog.read("SELECT count(*) AS n FROM heldout_of(?)", [run_id])["n"][0]),
        "by_dataset": by_dataset.to_dicts(),
        "by_cluster": by_cluster.to_dicts(),
        "by_source": changes.by_source(catalog, run_id, since).to_dicts(),
        "match": match.to_dicts(),
        "changes": [] if compared is None else [compared],
    }


def clusters(catalog: Catalog, run_id: str) -> list[int]:
    """Return the numbers of the clusters that a run selected from, none where it needed no clustering."""
    query = "SELECT cluster FROM clusters WHERE clustering_id = (SELECT clustering_id FROM runs WHERE run_id = ?)"
    found: list[int] = catalog.read(query, [run_id])["cluster"].to_list()
    return found
