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
    print(f"\nrun {run_id}: {chosen} of {usable} examples selected ({chosen / usable:.1%}){unusable}\n")
    print_frame(by_dataset)
    print()
    print_frame(by_cluster)
    match = catalog.read("SELECT error_plain, error_weighted FROM match_of(?) WHERE cluster IS NULL", [run_id])
    for plain, weighted in match.iter_rows():
        print(f"\nerror of the pool's mean feature, on dimensions seen: {plain:.3f} counted alike, {weighted:.3f} weighted")


def print_frame(frame: pl.DataFrame) -> None:
    table = Table(*frame.columns, box=None, header_style="bold")
    for row in frame.iter_rows():
        table.add_row(*("" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value) for value in row))
    console().print(table)


def console() -> Console:
    # where output is no terminal, one line a row, whatever its length
    return Console(width=None if sys.stdout.isatty() else 10_000, markup=False, highlight=False)
