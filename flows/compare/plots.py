"""Pictures of what commands print as tables, by matplotlib, which is an extra: an evaluation, and the curves of a diagnosis."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.compare.tables import named, title
from storage.catalog import evaluations
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from storage.database import Catalog

SUFFIXES = (".png", ".svg")
MISSING = (
    "no plot: it needs matplotlib (pip install 'tagcos-stream[plot]'; then the same command draws it). The table says the same"
)
ERRORS = ("error_plain", "error_weighted", "error_fitted")


def drawer(path: Path | None) -> Callable[[Callable[[Path], None]], None]:
    """Return the function that draws to `path` when the work is done; it does nothing without a path or without matplotlib.

    Raises
    ------
    UserError
        No image format has the name's suffix; raised before hours of work rather than after.
    """
    if path is None:
        return lambda draw: None
    if path.suffix not in SUFFIXES:
        raise UserError(f"cannot plot to {path}: the name must end in {' or '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        return lambda draw: print(MISSING, file=sys.stderr)
    return lambda draw: draw(path)


def plot_evaluation(catalog: Catalog, evaluation_id: str, path: Path) -> None:
    """Plot each method's mean over seeds and its standard error, a panel a regime and fraction.

    The measure is the loss, or else the first one there is.
    """
    results = evaluations.results(catalog, evaluation_id).filter(pl.col("part").is_null())
    measure = "loss" if "loss" in results["measure"] else results["measure"][0]
    panels = results.filter(pl.col("measure") == measure).partition_by("regime", "fraction", maintain_order=True)
    config = evaluations.described(catalog, evaluation_id)["config"]

    def draw(axes: Any, panel: pl.DataFrame) -> None:
        worst_first = panel.sort("value", descending=measure.endswith("loss")).to_dicts()
        for place, row in enumerate(worst_first):
            colour = "tab:gray" if row["method"] in ("base", "full") else "tab:red" if row["method"] == "random" else "tab:blue"
            axes.errorbar(row["value"], place, xerr=row["se"] or 0, fmt="o", capsize=3, color=colour)
            if row["method"] == "random":
                axes.axvline(row["value"], color=colour, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(worst_first)), [named(row) for row in worst_first])
        axes.set_xlabel(f"{measure}, mean over seeds ± standard error")
        axes.set_title(f"{panel['fraction'][0]:.3g} of the pool\n{title(str(panel['regime'][0]), config)}", fontsize=8)

    _draw(path, panels, draw, height=1.4 + 0.32 * max(map(len, panels)), salt=evaluation_id)


def plot_diagnosis(comparison: pl.DataFrame, path: Path) -> None:
    """Diminishing returns: the error on reserved dimensions against the share selected, a panel an error, a line a method."""

    def draw(axes: Any, error: str) -> None:
        for n, ((method,), mine) in enumerate(comparison.sort("fraction", "method").group_by("method", maintain_order=True)):
            style = "-" if n < 10 else "--"  # matplotlib has ten colours
            axes.plot(mine["fraction"] * 100, mine[error], style, marker="o", markersize=3, linewidth=1, label=str(method))
        axes.set_xscale("log")
        ticks = (comparison["fraction"].unique().sort() * 100).to_list()
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("% of the pool selected")
        axes.set_title(error, fontsize=9)
        if error == ERRORS[-1]:
            axes.legend(fontsize=7)

    _draw(path, ERRORS, draw, height=4.5, salt="diagnosis")


def _draw(path: Path, panels: Any, draw: Callable[[Any, Any], None], *, height: float, salt: str) -> None:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": salt}):  # the same numbers make the same file
        figure = Figure(figsize=(6 * len(panels), height), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            draw(axes, panel)
            axes.grid(linewidth=0.3)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another --plot") from error
