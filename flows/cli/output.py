"""What commands print: frames as tables that fit, JSON, and the summary of a run."""

from __future__ import annotations

import csv
import json
import math
import re
import signal
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import polars as pl

    from storage.database import Catalog

MOST_ROWS = 1000  # in a terminal
NARROWEST = 12  # characters that a column of text may be folded to
LONGEST_WORD = 40  # characters of a word that is never folded: an id has 32
MOST_PADDING = 200  # characters that a column is padded to where output is not a terminal
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
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
CLUSTERS = "SELECT cluster FROM clusters WHERE clustering_id = (SELECT clustering_id FROM runs WHERE run_id = ?)"


def summary(catalog: Catalog, run_id: str) -> dict[str, Any]:
    """What a run selected, as plain data: counts, by dataset, cluster (or other group) and source, its match, what changed."""
    from flows.changes import sentence
    from storage.catalog import changes as catalog_changes

    by_dataset = catalog.read(
        "SELECT dataset, pool, selected, selected / pool AS share FROM by_dataset(?) ORDER BY dataset", [run_id]
    )
    by_cluster = catalog.read(BY_CLUSTER, {"run": run_id})
    since = catalog_changes.compared_with(catalog, run_id)
    changes = "SELECT d.*, c.* EXCLUDE (run_id) FROM drift d LEFT JOIN churn c USING (run_id) WHERE run_id = ?"
    excluded = catalog.read("SELECT reason, count(*) AS examples FROM exclusions WHERE run_id = ? GROUP BY reason", [run_id])
    usable = int(by_cluster["size"].sum()) + int(excluded["examples"].sum())
    return {
        "run_id": run_id,
        "sentence": sentence(catalog, run_id),
        "selected": int(by_cluster["selected"].sum()),
        "usable": usable,
        "without_gradient": max(0, int(by_dataset["pool"].sum()) - usable),
        "excluded": dict(excluded.iter_rows()),
        "heldout": int(catalog.read("SELECT count(*) AS n FROM heldout_of(?)", [run_id])["n"][0]),
        "by_dataset": by_dataset.to_dicts(),
        "by_cluster": by_cluster.to_dicts(),
        "by_source": catalog_changes.by_source(catalog, run_id, since).to_dicts(),
        "match": catalog.read("SELECT error_plain, error_weighted FROM match_of(?) WHERE cluster IS NULL", [run_id]).to_dicts(),
        "changes": catalog.read(changes, [run_id]).to_dicts(),
    }


def print_summary(catalog: Catalog, run_id: str) -> None:
    """What was selected, by dataset and by cluster (or other group), how near it comes to the pool's mean, what changed."""
    import polars as pl

    found = summary(catalog, run_id)
    chosen, usable, lacking = found["selected"], found["usable"], found["without_gradient"]
    unusable = f"; {lacking} more have no feature (see rejects_by_reason)" if lacking else ""
    excluded = sum(found["excluded"].values())
    barred = f"; {excluded} of them might not be chosen (see exclusions_by_reason)" if excluded else ""
    heldout = f"; {found['heldout']} more are held out" if found["heldout"] else ""
    print(f"\nrun {run_id}: {found['sentence']} ({chosen / usable:.1%}){barred}{unusable}{heldout}\n")
    print_frame(pl.DataFrame(found["by_dataset"]))
    print()
    print_frame(_by_group(catalog, run_id, pl.DataFrame(found["by_cluster"])))
    for match in found["match"]:
        if match["error_plain"] is None:
            continue  # the mean is zero, and no error relative to it
        errors = f"{match['error_plain']:.3f} with equal weights, {match['error_weighted']:.3f} with the fitted weights"
        print(f"\nerror of the pool's mean feature, on dimensions seen: {errors}")
    for row in found["changes"]:
        _tell_changes(row)
        print_frame(pl.DataFrame(found["by_source"]))


def _by_group(catalog: Catalog, run_id: str, groups: pl.DataFrame) -> pl.DataFrame:
    """The groups under the name of what they are, such as cluster."""
    from flows.group_words import group_word

    clusters = catalog.read(CLUSTERS, [run_id])["cluster"].to_list()
    method = catalog.read("SELECT method FROM runs WHERE run_id = ?", [run_id])["method"][0]
    return groups.drop("cluster").rename({"group_id": group_word(method, groups["group_id"].to_list(), clusters)})


def _tell_changes(row: dict[str, Any]) -> None:
    """What changed since the run before, where there was one."""
    clusters = "; clusters fitted again" if row["refitted"] else "; clusters kept" if row["clustering_id"] else ""
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
        print(f"  {row['why']}" + ("" if "warm-up" not in row["advice"] else "; for another warm-up, change --feature-seed"))


def print_json(value: Any) -> None:
    """One JSON value on standard output: numbers as numbers, null for what is not finite, times and the like as text."""
    print(json.dumps(_plain(value), default=str, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def print_csv(frame: pl.DataFrame) -> None:
    """With a header; lists and structs as JSON, nothing for null and for what is not finite."""
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(frame.columns)
    for row in frame.iter_rows():
        cells = [_plain(value) for value in row]
        out.writerow(
            [json.dumps(cell, default=str, ensure_ascii=False) if isinstance(cell, list | dict) else cell for cell in cells]
        )


def print_frame(frame: pl.DataFrame, *, exact: bool = False) -> None:
    """A table.

    In a terminal it fits: long texts are folded, and where even so its columns do not fit, there is a line for each field that
    is not empty. Elsewhere every row is one line, whatever its length, and all rows are printed. Line breaks
    and other control characters are shown escaped. `exact`: numbers in full precision.
    """
    import polars as pl

    shown = frame.head(MOST_ROWS if in_terminal() else len(frame))
    if exact:  # the shortest text that is the same number again
        single = [name for name, kind in shown.schema.items() if kind == pl.Float32]
        shown = shown.with_columns(
            pl.Series(name, [None if v is None else float(str(np.float32(v))) for v in shown[name]]) for name in single
        )
    cells = [[_cell(value, exact) for value in row] for row in shown.iter_rows()]
    numeric = [kind.is_numeric() for kind in frame.dtypes]
    widest = [max([cell_len(name), *(cell_len(row[i]) for row in cells)]) for i, name in enumerate(frame.columns)]
    if not in_terminal():
        for line in [list(frame.columns), *cells]:
            print(_line(line, widest, numeric))
        return
    _print_fitting(frame.columns, cells, numeric, widest)
    if len(cells) < len(frame):
        print(f"{len(frame) - len(cells)} more rows: add a LIMIT to see others, or --json for all")


def _line(cells: list[str], widest: list[int], numeric: list[bool]) -> str:
    padded = []
    for cell, width, number in zip(cells, widest, numeric, strict=True):
        room = " " * (min(width, MOST_PADDING) - cell_len(cell))
        padded.append(room + cell if number else cell + room)
    return "  ".join(padded).rstrip()


def _print_fitting(names: list[str], cells: list[list[str]], numeric: list[bool], widest: list[int]) -> None:
    screen = console()
    whole = [number or _unbroken(names[i], [row[i] for row in cells]) for i, number in enumerate(numeric)]
    least = [width if keep else min(width, NARROWEST) for width, keep in zip(widest, whole, strict=True)]
    if sum(least) + 2 * (len(least) - 1) <= screen.width or not cells:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for name, width, number, keep in zip(names, least, numeric, whole, strict=True):
            justify: Literal["right", "left"] = "right" if number else "left"
            table.add_column(name, justify=justify, min_width=width, overflow="fold", no_wrap=keep or width < NARROWEST)
        for row in cells:
            table.add_row(*row)
        screen.print(table)
        return
    name_width = max(map(cell_len, names))
    for i, row in enumerate(cells, start=1):
        screen.print(f"-- {i} " + "-" * 20)
        for name, cell in zip(names, row, strict=True):
            if cell:
                screen.print(f"{name:<{name_width}}  {cell}", soft_wrap=_unbroken("", [cell]))


def _unbroken(name: str, cells: list[str]) -> bool:
    """Whether a column holds ids and other words, which nobody can copy once they are folded."""
    return all(len(cell) <= LONGEST_WORD and " " not in cell for cell in (name, *cells))


def _cell(value: Any, exact: bool = False) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and not exact:
        return f"{value:.4g}"
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), str(value))


def ask(question: str) -> bool:
    """Ask on standard error, and read the answer from standard input; no answer is a no. Ctrl-C raises KeyboardInterrupt."""
    signal.siginterrupt(signal.SIGINT, True)  # with the handler that polars sets, Ctrl-C would wait for the end of the line
    while True:
        print(f"{question} [y/N]: ", end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline().strip().lower()
        if answer in ("y", "yes", "n", "no", ""):
            return answer in ("y", "yes")


def in_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout.isatty()


def console() -> Console:
    """Return a console that prints text as it is, without markup or highlighting."""
    return Console(markup=False, highlight=False)
