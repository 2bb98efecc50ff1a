"""What commands print: frames as tables that fit, CSV and JSON; and the question that they ask."""

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


MAX_ROWS = 1000  # in a terminal
NARROWEST = 12  # characters that a column of text may be folded to
LONGEST_WORD = 40  # characters of a word that is never folded: an id has 32
MAX_PADDING = 200  # characters that a column is padded to where output is not a terminal
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def print_json(value: Any) -> None:
    """One JSON value on standard output: numbers as numbers, null for what is not finite, times and the like as text."""
    escaped = not sys.stdout.encoding.lower().startswith("utf")
    print(json.dumps(_plain(value), default=str, ensure_ascii=escaped, allow_nan=False))


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

    shown = frame.head(MAX_ROWS if in_terminal() else len(frame))
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
        room = " " * (min(width, MAX_PADDING) - cell_len(cell))
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
