"""Elements of a report before it is rendered: sections with text, tables and plots; and how values are formatted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from flows.report.plot_parts import Plot

Kind = Literal["text", "count", "share", "number", "seconds", "bytes"]
NO_NAME = "(no name)"
MAX_ROWS = 400  # of a table: the rest is a query away


@dataclass(frozen=True)
class Column:
    """A column of a table: its key in the rows, its heading and how values are written."""

    key: str
    label: str
    kind: Kind = "text"


@dataclass(frozen=True)
class Table:
    """Rows may hold `s` and `c`, by which the page filters. `more` says how many rows are not shown, and how to get them."""

    id: str
    caption: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]
    more: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """`missing`: why there is nothing to show, where there is not."""

    id: str
    title: str
    lead: str = ""
    missing: str = ""
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Example:
    """An example as the page shows it."""

    example_id: str
    dataset: str
    s: int
    group_id: int | None
    heading: str
    reason: str
    stands: str  # what it stands for, or what stands for it
    near: list[str]  # the first words of some that it stands for
    facts: str
    messages: list[Any]  # role, content, left_out
    turns: int


@dataclass(frozen=True)
class Group:
    """Examples side by side: what was chosen from a group and what was nearly."""

    group_id: int
    title: str
    chosen: list[Example]
    missed: list[Example]


class Datasets:
    """The datasets by size: the first ones have filters and colours of their own, the others share one."""

    def __init__(self, names: Iterable[str | None], apart: int = 40) -> None:
        ordered = list(names)
        self.apart = min(apart, len(ordered))
        self._place = {name: place for place, name in enumerate(ordered[:apart])}
        self.names = [named(name) for name in ordered[:apart]] + ["other datasets"] * (len(ordered) > apart)

    def place(self, name: str | None) -> int:
        """Return the color index of a dataset; names beyond the palette share the last one."""
        return self._place.get(name, self.apart)

    def name(self, place: int) -> str:
        """Return the dataset, or the group of small datasets, of a color index."""
        return self.names[place]


def named(name: str | None) -> str:
    """Return the name of a dataset, or the label of rows without one."""
    return NO_NAME if name is None or not name.strip() else name


def written(value: Any, kind: Kind) -> str:
    """Format a value for readers; an empty string for a missing one."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "share":
        return f"{value:.2%}"
    if kind == "number":
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if kind == "seconds":
        return f"{value:,.1f}"
    if kind == "bytes":
        units = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
        return next((f"{value / size:,.2f} {unit}" for size, unit in units if value >= size / 4), f"{value:,} bytes")
    return str(value)


def first_rows(rows: list[dict[str, Any]], query: str) -> tuple[list[dict[str, Any]], str]:
    """Return the rows to show, and a sentence on the others."""
    if len(rows) <= MAX_ROWS:
        return rows, ""
    return rows[:MAX_ROWS], f"The first {MAX_ROWS:,} of {len(rows):,}; all: {query}"


def snippet(text: str, most: int = 110) -> str:
    """One line of at most so many characters."""
    line = " ".join(visible(text).split())
    return line if len(line) <= most else line[:most] + "…"


def isolated(text: str) -> str:
    """For a name within a line of others: its direction of writing ends where it ends."""
    return "\N{FIRST STRONG ISOLATE}" + re.sub(r"[\u202a-\u202e\u2066-\u2069]", "", text) + "\N{POP DIRECTIONAL ISOLATE}"


def visible(text: str) -> str:
    """Control characters, which HTML cannot hold, become the replacement character."""
    return re.sub(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n").replace("\r", "\n")
    )


@dataclass(frozen=True)
class Report:
    """Everything the template shows. word: what shared the budget; clusters: those of them that the page can be filtered by."""

    run_id: str
    subtitle: str
    notes: list[str]
    figures: list[tuple[str, str, str, Any]]  # id, words, value as written, value
    datasets: Datasets
    sections: list[Section]
    groups: list[Group]
    changed: list[Example]
    word: str
    clusters: list[int]
