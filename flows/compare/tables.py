"""An evaluation as a table for the terminal, and as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from storage.catalog import evaluations

if TYPE_CHECKING:
    from storage.database import Catalog

TITLES = {
    "steps": "same number of steps for all ({steps} of {batch_size} examples)",
    "epochs": "same number of passes for all ({epochs:g} over their own examples)",
}


def report(catalog: Catalog, evaluation_id: str, against: str) -> dict[str, Any]:
    """The evaluation with its units, the rows of evaluation_of (those of single datasets included), and the tests."""
    return {
        **evaluations.described(catalog, evaluation_id),
        "units": evaluations.finished_units(catalog, evaluation_id).to_dicts(),
        "results": evaluations.results(catalog, evaluation_id).to_dicts(),
        "comparisons": tested(catalog, evaluation_id, against).to_dicts(),
    }


def tested(catalog: Catalog, evaluation_id: str, against: str) -> pl.DataFrame:
    """`comparisons` of the loss with one method; of the first measure by name where no loss was measured."""
    from tagcos_stream.evaluation.statistics import comparisons

    scores = evaluations.scores(catalog, evaluation_id)
    measure = "loss" if "loss" in scores["measure"] else scores["measure"].min()
    return pl.DataFrame() if scores.is_empty() else comparisons(scores, against, str(measure))


def title(regime: str, config: dict[str, Any]) -> str:
    """What the regime holds equal, in words."""
    return TITLES[regime].format(**config)


def named(row: dict[str, Any]) -> str:
    """A unit's method, with variant, setting and weights where there are any."""
    words = (row["method"], row["gradient"], row["setting"], "weighted" if row["weighted"] else "")
    return " ".join(str(word) for word in words if word)


def compact(results: pl.DataFrame) -> pl.DataFrame:
    """One row a method and fraction, two columns a measure, as text; the best of the first measure first within a fraction."""
    measures = results["measure"].unique(maintain_order=True).to_list()
    first = "loss" if "loss" in measures else measures[0]
    sign = 1 if first.endswith("loss") else -1
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
        over = scores.get("dataset_loss")
        if over is not None:
            row["median dataset vs random"] = _with_error(over["median_vs_random"], over["median_vs_random_se"], "+")
            row["datasets ahead"] = "" if over["datasets"] is None else f"{over['datasets_ahead']}/{over['datasets']}"
        rows.append((fraction, sign * scores[first]["value"] if first in scores else 0.0, row))
    return pl.DataFrame([row for *_, row in sorted(rows, key=lambda item: item[:2])])


def intervals(differences: pl.DataFrame) -> pl.DataFrame:
    """The rows of `comparisons` as text: one row a method and fraction."""
    rows = []
    for row in differences.iter_rows(named=True):
        line = {"fraction": row["fraction"], "method": named(row), "pairs": row["pairs"]}
        line["difference"] = _interval(row, "difference", "low", "high")
        line["p (Holm)"] = "" if row["p_holm"] is None else f"{row['p_holm']:.3f}"
        line["detectable (80%)"] = "" if row["detectable"] is None else f"{row['detectable']:.4f}"
        if row.get("median_dataset") is not None:
            line["median dataset"] = _interval(row, *(f"median_dataset{end}" for end in ("", "_low", "_high")))
            without = _interval(row, *(f"worst_without{end}" for end in ("", "_low", "_high")))
            line["worst mean without a dataset"] = f"{without} ({row['worst_without_dataset']})"
        rows.append(line)
    return pl.DataFrame(rows)


def _interval(row: dict[str, Any], mean: str, low: str, high: str) -> str:
    return f"{row[mean]:+.4f}" + ("" if row[low] is None else f" [{row[low]:+.4f}, {row[high]:+.4f}]")


def _with_error(value: float | None, error: float | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.4f}" + ("" if error is None else f" ± {error:.4f}")
