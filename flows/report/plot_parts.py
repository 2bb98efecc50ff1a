"""What the report's plots share: the form of a plot, colours, and pieces of Vega-Lite specifications."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Rows = list[dict[str, Any]]
POOL, CHOSEN = "#8a94a6", "#e0762f"
# Okabe and Ito's colours, which colour-blind readers can distinguish, and three more
DATASETS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a900", "#7b61c4", "#8c564b")
OTHER = "#9aa0a6"
LOW_TO_HIGH = ["#2f7ed8", "#e0762f"]


@dataclass(frozen=True)
class Plot:
    """`label` says what is seen, for those who do not see it. kind: how the page's filters change the rows."""

    id: str
    title: str
    label: str
    spec: dict[str, Any]
    rows: Rows
    kind: Literal["rows", "parts", "histogram"] = "rows"
    overall: Rows = field(default_factory=list)  # a second set of rows, shown while no cluster is chosen
    step: int = 0  # pixels for each different `name`, where bars lie


def axis(title: str | None, **more: Any) -> dict[str, Any]:
    """Return a Vega-Lite axis."""
    return {"title": title, **more}


def tooltip(*fields: tuple[str, str, str | None]) -> list[dict[str, Any]]:
    """Return the entries of a tooltip, given as (field, words, number format)."""
    return [{"field": name, "title": words} | ({"format": form} if form else {}) for name, words, form in fields]


def chart(height: int | None, **more: Any) -> dict[str, Any]:
    """height: None where it follows from the number of bars (Plot.step)."""
    fixed = {"data": {"name": "rows"}, "width": "container", "autosize": {"type": "fit", "contains": "padding"}} | more
    return fixed if height is None else fixed | {"height": height}


def quantity(name: str, title: str, **more: Any) -> dict[str, Any]:
    """Return the encoding of a number, with about six ticks."""
    scale = more.pop("scale", {})
    return {"field": name, "type": "quantitative", "axis": axis(title, tickCount=6, **more), "scale": scale}


def nominal_names() -> dict[str, Any]:
    """Return the encoding of names in the order of the data."""
    return {"field": "name", "type": "nominal", "sort": None, "axis": axis(None, labelLimit=150)}


def legend(title: str | None = None, columns: int = 2) -> dict[str, Any]:
    """Return a legend above the plot."""
    return {"title": title, "orient": "top", "columns": columns, "labelLimit": 150, "symbolOpacity": 1}


def before_after() -> dict[str, Any]:
    """Return the colors of pool (before) and selection (after)."""
    scale = {"domain": ["pool", "selection"], "range": [POOL, CHOSEN]}
    return {"field": "who", "type": "nominal", "scale": scale, "legend": legend()}
