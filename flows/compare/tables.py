"""An evaluation as a table for the terminal, and as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from flows.cli.output import print_frame
from storage.catalog import evaluations

if TYPE_CHECKING:
    from storage.database import Catalog

TITLES = {
    "steps": "same number of steps for all ({steps} of {batch_size} examples)",
    "epochs": "same number of passes for all ({epochs:g} over their own examples)",
}


def report(catalog: Catalog, evaluation_id: str) -> dict[str, Any]:
    """Everything there is: the evaluation, its units, and the rows of evaluation_of, those of single datasets too."""
    units = catalog.read(
        "SELECT * EXCLUDE (evaluation_id) FROM evaluation_units WHERE evaluation_id = ? ORDER BY finished_at", [evaluation_id]
    )
    return {
        **evaluations.described(catalog, evaluation_id),
        "units": units.to_dicts(),
        "results": evaluations.results(catalog, evaluation_id).to_dicts(),
    }


def print_results(catalog: Catalog, evaluation_id: str) -> None:
    """A table a regime: of every measure the mean over seeds with its standard error, and the difference from random."""
    found = evaluations.described(catalog, evaluation_id)
    results = evaluations.results(catalog, evaluation_id).filter(pl.col("part").is_null())
    print(
        f"\nevaluation {evaluation_id}: {found['model']} on the pool of {found['run_id']}, {found['heldout_examples']} held-out "
        "examples; mean over seeds ± its standard error; vs random: mean of the differences of equal seeds"
    )
    for (regime,), mine in results.group_by("regime", maintain_order=True):
        print(f"\n{title(str(regime), found['config'])}\n")
        print_frame(compact(mine))


def title(regime: str, config: dict[str, Any]) -> str:
    """What the regime holds equal, in words."""
    return TITLES[regime].format(**config)


def named(row: dict[str, Any]) -> str:
    """A unit's method, with variant, setting and weights where there are any."""
    words = (row["method"], row["gradient"], row["setting"], "weighted" if row["weighted"] else "")
    return " ".join(str(word) for word in words if word)


def compact(results: pl.DataFrame) -> pl.DataFrame:
    """One row a method and fraction, two columns a measure, as text; best loss first within a fraction."""
    measures = results["measure"].unique(maintain_order=True).to_list()
    first = "loss" if "loss" in measures else measures[0]
    by_unit = results.group_by("fraction", "method", "gradient", "setting", "weighted", maintain_order=True)
    rows = []
    for (fraction, *_), mine in by_unit:
        scores = {row["measure"]: row for row in mine.iter_rows(named=True)}
        row: dict[str, Any] = {
            "fraction": fraction,
            "method": named(mine.row(0, named=True)),
            "seeds": mine["seeds"][0],
            "examples": mine["examples"][0],
            "steps": mine["steps"][0],
        }
        for measure in measures:
            score = scores.get(measure)
            row[measure] = "" if score is None else _with_error(score["value"], score["se"])
            row[f"{measure} vs random"] = "" if score is None else _with_error(score["vs_random"], score["vs_random_se"], "+")
        by_source = scores.get("source_loss")
        if by_source is not None:
            row["median source vs random"] = _with_error(by_source["median_vs_random"], by_source["median_vs_random_se"], "+")
            row["sources ahead"] = "" if by_source["sources"] is None else f"{by_source['sources_ahead']}/{by_source['sources']}"
        rows.append((fraction, scores[first]["value"] if first in scores else 0.0, row))
    return pl.DataFrame([row for *_, row in sorted(rows, key=lambda item: item[:2])])


def _with_error(value: float | None, error: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")
