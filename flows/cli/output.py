"""What commands print: frames as tables that fit, JSON, and the summary of a run."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import polars as pl

    from storage.database import Catalog

MOST_ROWS = 1000  # in a terminal
NARROWEST = 12  # characters that a column of text may be folded to
BY_CLUSTER = """
    WITH counted AS (SELECT cluster, dataset, count(*) AS n FROM selection_of($run) GROUP BY ALL),
        named AS (
            SELECT cluster, string_agg(dataset || ' ' || n, ', ' ORDER BY n DESC, dataset) AS selected_from
            FROM counted GROUP BY cluster
        )
    SELECT cluster, size, selected, residual, selected_from
    FROM coverage_of($run) LEFT JOIN named USING (cluster) ORDER BY cluster
"""


def summary(catalog: Catalog, run_id: str) -> dict[str, Any]:
    """What a run selected, as plain data: counts, by dataset, by cluster (or other group), its match, what changed."""
    by_dataset = catalog.read(
        "SELECT dataset, pool, selected, selected / pool AS share FROM by_source(?) ORDER BY dataset", [run_id]
    )
    by_cluster = catalog.read(BY_CLUSTER, {"run": run_id})
    changes = "SELECT d.*, c.* EXCLUDE (run_id) FROM drift d LEFT JOIN churn c USING (run_id) WHERE run_id = ?"
    usable = int(by_cluster["size"].sum())
    return {
        "run_id": run_id,
        "selected": int(by_cluster["selected"].sum()),
        "usable": usable,
        "without_gradient": max(0, int(by_dataset["pool"].sum()) - usable),
        "heldout": int(catalog.read("SELECT count(*) AS n FROM heldout_of(?)", [run_id])["n"][0]),
        "by_dataset": by_dataset.to_dicts(),
        "by_cluster": by_cluster.to_dicts(),
        "match": catalog.read("SELECT error_plain, error_weighted FROM match_of(?) WHERE cluster IS NULL", [run_id]).to_dicts(),
        "changes": catalog.read(changes, [run_id]).to_dicts(),
    }


def print_summary(catalog: Catalog, run_id: str) -> None:
    """What was selected, by dataset and by cluster (or other group), and how near it comes to the pool's mean."""
    import polars as pl

    found = summary(catalog, run_id)
    chosen, usable, lacking = found["selected"], found["usable"], found["without_gradient"]
    unusable = f"; {lacking} more have no gradient (see rejects_by_reason)" if lacking else ""
    heldout = f"; {found['heldout']} more are held out" if found["heldout"] else ""
    print(f"\nrun {run_id}: {chosen} of {usable} examples selected ({chosen / usable:.1%}){unusable}{heldout}\n")
    print_frame(pl.DataFrame(found["by_dataset"]))
    print()
    print_frame(pl.DataFrame(found["by_cluster"]))
    for match in found["match"]:
        told = f"{match['error_plain']:.3f} counted alike, {match['error_weighted']:.3f} weighted"
        print(f"\nerror of the pool's mean feature, on dimensions seen: {told}")
    for row in found["changes"]:
        _tell_changes(row)


def _tell_changes(row: dict[str, Any]) -> None:
    """What changed since the run before, where there was one."""
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


def print_json(value: Any) -> None:
    """One JSON value on standard output; times and the like as text."""
    print(json.dumps(value, default=str, ensure_ascii=False))


def print_frame(frame: pl.DataFrame) -> None:
    """A table that fits the terminal: long texts are folded, and where even so its columns do not fit, a line a
    field that is not empty.

    Where output is no terminal, a line a row, whatever its length, and all rows.
    """
    screen = console()
    shown = frame.head(MOST_ROWS) if sys.stdout.isatty() else frame
    cells = [[_cell(value) for value in row] for row in shown.iter_rows()]
    numeric = [kind.is_numeric() for kind in frame.dtypes]
    widest = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(frame.columns)]
    least = [width if number else min(width, NARROWEST) for width, number in zip(widest, numeric, strict=True)]
    if sum(least) + 2 * (len(least) - 1) <= screen.width or not cells:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name, width, number in zip(frame.columns, least, numeric, strict=True):
            table.add_column(
                name, justify="right" if number else "left", min_width=width, overflow="fold", no_wrap=number or width < NARROWEST
            )
        for row in cells:
            table.add_row(*row)
        screen.print(table)
    else:
        name_width = max(map(len, frame.columns))
        for i, row in enumerate(cells, start=1):
            screen.print(f"-- {i} " + "-" * 20)
            for name, cell in zip(frame.columns, row, strict=True):
                if cell:
                    screen.print(f"{name:<{name_width}}  {cell}")
    if len(shown) < len(frame):
        screen.print(f"{len(frame) - len(shown)} more rows: add a LIMIT to see others, or --json for all")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def console() -> Console:
    # where output is no terminal, one line a row, whatever its length
    return Console(width=None if sys.stdout.isatty() else 10_000, markup=False, highlight=False)
