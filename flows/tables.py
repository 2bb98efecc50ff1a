"""What commands print: frames as tables, and the summary of a run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import polars as pl

    from storage.catalog import Catalog

BY_CLUSTER = """
    WITH counted AS (SELECT cluster, dataset, count(*) AS n FROM selection_of($run) GROUP BY ALL),
        named AS (
            SELECT cluster, string_agg(dataset || ' ' || n, ', ' ORDER BY n DESC, dataset) AS selected_from
            FROM counted GROUP BY cluster
        )
    SELECT cluster, size, selected, residual, selected_from
    FROM coverage_of($run) LEFT JOIN named USING (cluster) ORDER BY cluster
"""


def print_summary(catalog: Catalog, run_id: str) -> None:
    """What was selected, by dataset and by cluster (or other group), and how near it comes to the pool's mean."""
    by_dataset = catalog.read(
        "SELECT dataset, pool, selected, selected / pool AS share FROM by_source(?) ORDER BY dataset", [run_id]
    )
    by_cluster = catalog.read(BY_CLUSTER, {"run": run_id})
    usable, chosen, found = int(by_cluster["size"].sum()), int(by_cluster["selected"].sum()), int(by_dataset["pool"].sum())
    unusable = f"; {found - usable} more have no gradient (see rejects_by_reason)" if found > usable else ""
    aside = catalog.read("SELECT count(*) AS n FROM heldout_of(?)", [run_id])["n"][0]
    heldout = f"; {aside} more are held out" if aside else ""
    print(f"\nrun {run_id}: {chosen} of {usable} examples selected ({chosen / usable:.1%}){unusable}{heldout}\n")
    print_frame(by_dataset)
    print()
    print_frame(by_cluster)
    match = catalog.read("SELECT error_plain, error_weighted FROM match_of(?) WHERE cluster IS NULL", [run_id])
    for plain, weighted in match.iter_rows():
        print(f"\nerror of the pool's mean feature, on dimensions seen: {plain:.3f} counted alike, {weighted:.3f} weighted")
    _tell_changes(catalog, run_id)


def _tell_changes(catalog: Catalog, run_id: str) -> None:
    """What changed since the run before, where there was one."""
    for row in catalog.read(
        "SELECT d.*, c.* EXCLUDE (run_id) FROM drift d LEFT JOIN churn c USING (run_id) WHERE run_id = ?", [run_id]
    ).to_dicts():
        clusters = "; clusters made anew" if row["refitted"] else "; clusters kept" if row["clustering_id"] else ""
        print(f"\nsince {row['base_run']}: {row['added']} new, {row['returned']} back, {row['retired']} retired{clusters}")
        if row["churn"] is not None:
            sticky = f" ({row['churn_without_sticky']:.1%} without sticky)" if row["kept_by_sticky"] else ""
            print(f"{row['left_it']} of the {row['earlier']} chosen before left, {row['churn']:.1%}{sticky}")
        measures = {
            name: row[name] for name in ("share", "distance_shift", "movement", "loss_shift", "unseen") if row[name] is not None
        }
        if measures:
            print("drift: " + ", ".join(f"{name} {value:.2f}" for name, value in measures.items()) + f": {row['advice']}")
        if row["why"]:
            print(f"  {row['why']}" + ("" if "warm up" not in row["advice"] else "; for another warm-up, change --feature-seed"))


def print_frame(frame: pl.DataFrame) -> None:
    table = Table(*frame.columns, box=None, header_style="bold")
    for row in frame.iter_rows():
        table.add_row(*("" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    console().print(table)


def console() -> Console:
    # where output is no terminal, one line a row, whatever its length
    return Console(width=None if sys.stdout.isatty() else 10_000, markup=False, highlight=False)
