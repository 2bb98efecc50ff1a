"""The plots of a report as Vega-Lite specifications over plain rows; what is filtered in the page follows from the rows' fields.

A row may hold `s` (its dataset's place in the page's list) and `c` (its cluster): the page's filters look at these. `parts` are
[s, size, selected]: with a dataset chosen, the row's own size and selected become that dataset's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flows.report.plot_parts import (
    CHOSEN,
    DATASETS,
    LOW_TO_HIGH,
    OTHER,
    POOL,
    Plot,
    Rows,
    axis,
    before_after,
    chart,
    legend,
    nominal_names,
    quantity,
    tooltip,
)


def by_dataset(rows: Rows) -> Plot:
    """rows: name, who (pool or selection), examples, share, s."""
    spec = chart(
        None,
        mark={"type": "bar", "height": {"band": 1}},
        encoding={
            "y": nominal_names(),
            "yOffset": {"field": "who", "sort": ["pool", "selection"]},
            "x": quantity("share", "share of examples", format="%"),
            "color": before_after(),
            "tooltip": tooltip(
                ("name", "dataset", None), ("who", "of", None), ("examples", "examples", ","), ("share", "share", ".2%")
            ),
        },
    )
    return Plot(
        "datasets", "Share by dataset", "Bars: each dataset's share of the pool and of the selection.", spec, rows, step=28
    )


def example_map(rows: Rows, names: Sequence[str], shares: Sequence[float], word: str) -> Plot:
    """rows: kind "example" (x, y, s, c, dataset, main, chosen, example, tokens, loss) or "outline" (x, y, cluster, order).

    c is what the filter filters by, and may be missing: such rows are always shown.
    """
    domain = [*names[: len(DATASETS)], *(["other datasets"] if len(names) > len(DATASETS) else [])]
    colours = [*DATASETS[: len(domain)], *([OTHER] if len(names) > len(DATASETS) else [])]
    place = {
        axis: quantity(
            axis,
            f"{words} component, {share:.0%} of the spread",
            labels=False,
            ticks=False,
            grid=False,
            scale={"zero": False, "padding": 16},
        )
        for axis, words, share in zip(("x", "y"), ("first", "second"), shares, strict=True)
    }
    colour = {
        "field": "main",
        "type": "nominal",
        "scale": {"domain": domain, "range": colours},
        "legend": legend("dataset", 3),
    }
    tips = tooltip(
        ("dataset", "dataset", None),
        ("chosen", "chosen", None),
        *([("c", word, None)] if any("c" in row for row in rows) else []),
        ("tokens", "tokens", ","),
        ("loss", "loss", ".3f"),
        ("example", "example", None),
    )
    marked = {"color": colour, "tooltip": tips}
    spec = chart(
        420,
        encoding=place,
        layer=[
            {
                "transform": [{"filter": "datum.kind === 'outline'"}],
                "mark": {"type": "line", "color": POOL, "strokeWidth": 1, "opacity": 0.7},
                "encoding": {"detail": {"field": "cluster"}, "order": {"field": "order"}},
            },
            {
                "transform": [{"filter": "datum.kind === 'example' && datum.chosen === 'no'"}],
                "mark": {"type": "circle", "size": 20, "opacity": 0.6},
                "encoding": marked,
            },
            {
                "transform": [{"filter": "datum.kind === 'example' && datum.chosen === 'yes'"}],
                "mark": {"type": "point", "shape": "diamond", "filled": True, "size": 60, "opacity": 1, "stroke": CHOSEN},
                "encoding": marked,
            },
        ],
    )
    label = "Points: examples in the plane of their features' two principal components, by dataset; diamonds are chosen."
    return Plot("map", "Examples", label, spec, rows)


def budget(rows: Rows, word: str) -> Plot:
    """rows: c, size, selected, share, residual (may be null), parts; in order of size."""
    measured = any(row["residual"] is not None for row in rows)
    colour: dict[str, Any] = {"value": CHOSEN}  # of a field without values, Vega-Lite draws no bar
    if measured:
        colour = {
            "field": "residual",
            "type": "quantitative",
            "scale": {"domain": [0, 1], "range": LOW_TO_HIGH, "interpolate": "rgb", "clamp": True},
            "legend": {"title": "residual", "orient": "top", "gradientLength": 120},
        }
    spec = chart(
        220,
        mark={"type": "bar", "minBandSize": 2},
        encoding={
            "x": {
                "field": "c",
                "type": "nominal",
                "sort": None,
                "axis": axis(f"{word}, by size", labelAngle=0, labelOverlap=True),
            },
            "y": quantity("selected", "examples chosen", tickMinStep=1),
            "color": colour,
            "tooltip": tooltip(
                ("c", word, None),
                ("size", "examples", ","),
                ("selected", "chosen", ","),
                ("share", "share chosen", ".2%"),
                *([("residual", "residual", ".4f")] if measured else []),
            ),
        },
    )
    return Plot("budget", f"Budget by {word}", f"Bars: examples chosen from each {word}.", spec, rows, kind="parts")


def curves(rows: Rows, overall: Rows, word: str) -> Plot:
    """rows: c, part (of its budget), chosen, residual. overall: part, low, residual, high."""
    most = max([1.0, *(row["residual"] for row in rows)])
    y = {"scale": {"domain": [0, most]}}  # that of all: a chosen cluster does not change it
    x = quantity("part", f"part of the {word}'s budget", format="%", scale={"domain": [0, 1]})
    tips = tooltip(("c", word, None), ("chosen", "chosen", ","), ("residual", "residual", ".4f"))
    whole = tooltip(
        ("part", "part of the budget", ".0%"),
        ("residual", "median", ".4f"),
        ("low", "10% below", ".4f"),
        ("high", "10% above", ".4f"),
    )
    spec = chart(
        240,
        encoding={"x": x},
        layer=[
            {
                "mark": {
                    "type": "line",
                    "opacity": 0.45,
                    "strokeWidth": 1,
                    "color": POOL,
                    "point": {"size": 12, "opacity": 0.45, "color": POOL},
                },
                "encoding": {
                    "y": quantity("residual", "residual") | y,
                    "detail": {"field": "c"},
                    "order": {"field": "chosen"},
                    "tooltip": tips,
                },
            },
            {
                "data": {"name": "overall"},
                "mark": {"type": "area", "opacity": 0.18, "color": CHOSEN},
                "encoding": {"y": quantity("low", "residual") | y, "y2": {"field": "high"}, "tooltip": whole},
            },
            {
                "data": {"name": "overall"},
                "mark": {"type": "line", "color": CHOSEN, "strokeWidth": 2.5},
                "encoding": {"y": quantity("residual", "residual") | y, "tooltip": whole},
            },
        ],
    )
    label = f"Lines: the residual after each choice, by {word}; the thick one is the median over all."
    return Plot("curves", "Residual as the budget is spent", label, spec, rows, overall=overall)


def residual_by_budget(rows: Rows, word: str) -> Plot:
    """rows: c, size, selected, residual."""
    most = max((row["selected"] for row in rows), default=0)
    scale: dict[str, Any] = {"type": "symlog"} if most > 50 else {}
    spec = chart(
        220,
        mark={"type": "circle", "opacity": 0.7, "color": CHOSEN},
        encoding={
            "x": quantity("selected", "examples chosen", scale=scale, tickMinStep=1),
            "y": quantity("residual", "residual at the end", scale={"zero": True}),
            "size": {"field": "size", "type": "quantitative", "legend": None, "scale": {"range": [20, 300]}},
            "tooltip": tooltip(
                ("c", word, None), ("selected", "chosen", ","), ("size", "examples", ","), ("residual", "residual", ".4f")
            ),
        },
    )
    return Plot(
        "residuals", f"Residual against budget, by {word}", f"Circles: each {word}'s budget and final residual.", spec, rows
    )


def errors(id: str, title: str, rows: Rows) -> Plot:
    """rows: fraction, error, who (what the line is of), selected."""
    spec = chart(
        240,
        mark={"type": "line", "point": {"size": 45}},
        encoding={
            "x": quantity(
                "fraction", "share of the pool selected", format=".2~%", scale={"type": "log", "nice": False, "padding": 8}
            ),
            "y": quantity("error", "relative error", scale={"zero": True}),
            "color": {
                "field": "who",
                "type": "nominal",
                "legend": legend(),
                "scale": {"range": [*DATASETS, OTHER, POOL, CHOSEN]},
            },
            "tooltip": tooltip(
                ("who", "of", None), ("fraction", "share", ".2%"), ("selected", "examples", ","), ("error", "error", ".4f")
            ),
        },
    )
    return Plot(id, title, "Lines: relative error of the pool's mean feature, by share selected.", spec, rows)


def histogram(measure: str, unit: str, rows: Rows) -> Plot:
    """rows: low, high, s, pool, selected; the page sums them over datasets and makes shares."""
    widths = [row["high"] - row["low"] for row in rows]
    scale = {
        "type": "symlog" if max(widths) > 4 * min(widths) else "linear",
        "domain": [min(row["low"] for row in rows), max(row["high"] for row in rows)],
        "zero": False,
        "nice": False,
    }
    spec = chart(
        150,
        mark={"type": "bar", "opacity": 0.6, "binSpacing": 0},
        encoding={
            "x": quantity("low", unit, scale=scale, labelOverlap=True) | {"bin": "binned"},
            "x2": {"field": "high"},
            "y": quantity("share", "share of examples", format="%") | {"stack": None},
            "color": before_after(),
            "tooltip": tooltip(
                ("who", "of", None),
                ("low", "from", ",.4~g"),
                ("high", "to below", ",.4~g"),
                ("count", "examples", ","),
                ("share", "share", ".2%"),
            ),
        },
    )
    label = f"Overlaid bars: {measure} of the pool's and of the chosen examples."
    return Plot(f"sizes-{measure.replace(' ', '-')}", measure.capitalize(), label, spec, rows, kind="histogram")


def bars(
    id: str, title: str, label: str, rows: Rows, *, words: str, form: str, colour: str | None = None, rule: float | None = None
) -> Plot:
    """rows: name, value, and `colour`'s field; words and form: of the value; rule: a line to hold the bars against."""
    encoding: dict[str, Any] = {
        "y": nominal_names(),
        "x": quantity("value", words, format=form, **({"tickMinStep": 1} if form == ",d" else {})),
        "tooltip": tooltip(("name", " ", None), ("value", words, form), *([(colour, colour, None)] if colour else [])),
    }
    if colour:
        encoding["color"] = {
            "field": colour,
            "type": "nominal",
            "legend": legend(None, 3),
            "scale": {"range": [CHOSEN, POOL, *DATASETS]},
        }
    layers: Rows = [{"mark": {"type": "bar"} | ({} if colour else {"color": CHOSEN}), "encoding": encoding}]
    if rule is not None:
        layers.append(
            {
                "mark": {"type": "rule", "strokeDash": [4, 3], "color": POOL},
                "encoding": {"x": {"datum": rule, "type": "quantitative"}},
            }
        )
    return Plot(id, title, label, chart(None, layer=layers), rows, step=22)
