"""Statistics of a comparison by training: paired differences with Student t intervals, Holm's correction, robustness, power.

Units of one seed share their noise (adapter, order of examples), so that two methods are compared by the differences of equal
seeds. S seeds, M methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from tagcos_stream.evaluation.config import BASE, FULL

if TYPE_CHECKING:
    import polars as pl

CONFIDENCE = 0.95
POWER = 0.8
COMPARED = ("regime", "fraction", "method", "gradient", "setting", "weighted")


@dataclass(frozen=True)
class Paired:
    """A mean of paired differences; the interval, p and detectable are None where one pair says nothing of the spread."""

    pairs: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    detectable: float | None = None


def paired(differences: Sequence[float] | np.ndarray) -> Paired:
    """Mean of paired differences with its two-sided Student t interval and test against zero.

    Parameters
    ----------
    differences : array_like, shape (S,)
        One difference a seed, in the unit of the measure.

    Returns
    -------
    Paired
        `low`, `high`: bounds at `CONFIDENCE`. `p`: two-sided p-value of a mean of zero. `detectable`: smallest true difference
        that a test of this size finds with probability `POWER`, at the observed spread.

    Raises
    ------
    ValueError
        No difference is given, or one is not finite.

    References
    ----------
    Student, "The probable error of a mean", Biometrika 6 (1908); power from the noncentral t distribution, as in Cohen,
    "Statistical Power Analysis for the Behavioral Sciences" (1988), chapter 2.
    """
    values = np.asarray(differences, np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"differences must be finite and at least one, got {values!r}")
    n, mean = len(values), float(values.mean())
    if n < 2:
        return Paired(n, mean)
    error = float(values.std(ddof=1)) / np.sqrt(n)
    critical = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    if error == 0:
        return Paired(n, mean, mean, mean, 1.0 if mean == 0 else 0.0, 0.0)
    p = float(2 * special.stdtr(n - 1, -abs(mean / error)))
    return Paired(n, mean, mean - critical * error, mean + critical * error, p, _noncentrality(n - 1, critical) * error)


def _noncentrality(degrees: int, critical: float) -> float:
    """Noncentrality at which |t| exceeds `critical` with probability POWER, by bisection: the probability grows with it."""
    low, high = 0.0, 1.0

    def power(delta: float) -> float:
        opposite = np.nan_to_num(special.nctdtr(degrees, delta, -critical))  # SciPy's is NaN at places where it is next to 0
        return float(1 - special.nctdtr(degrees, delta, critical) + opposite)

    while power(high) < POWER:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return high


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjusted p-values that control the family-wise error rate over M comparisons.

    Parameters
    ----------
    p_values : sequence of float, length M

    Returns
    -------
    ndarray, shape (M,), float64
        At most 1, never smaller than the p-value, in the same order.

    References
    ----------
    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def comparisons(scores: pl.DataFrame, against: str, measure: str = "loss") -> pl.DataFrame:
    """Every method of an evaluation against one of them, by the differences of equal seeds.

    Parameters
    ----------
    scores : DataFrame
        One row a unit, measure and part: regime, fraction, method, gradient, setting, weighted, seed, measure, part (a dataset,
        or null for all), value.
    against : str
        Reference method, such as `random` or `balanced`; its unweighted units are taken, of several gradient variants and of
        several settings those of the first by name, which is the run's own setting where that is among them.
    measure : str
        The measure that is compared: of losses the lower is better, of scores the higher.

    Returns
    -------
    DataFrame
        One row a regime, fraction, method, gradient, setting and weighting other than the reference, best difference first:
        measure, against (the reference in words), pairs, difference, low, high, p, p_holm (over the methods of the regime and
        fraction), detectable; median_dataset with _low and _high (mean over seeds of the median over datasets of the
        difference); worst_without with _low, _high and _dataset (the dataset without which the mean over datasets of the
        difference is worst). The whole pool is compared at every fraction. Empty where nothing can be compared.
    """
    import polars as pl  # `paired` and `holm` are used where there is no Polars

    mine = scores.filter(pl.col("measure") == measure, pl.col("method") != BASE)
    reference = mine.filter(pl.col("method") == against, ~pl.col("weighted"))
    for name in ("gradient", "setting"):  # of several, one
        reference = reference.filter(pl.col(name) == pl.col(name).min())
    others = mine.join(reference, on=[*COMPARED, "seed", "part"], how="anti", nulls_equal=True)
    whole_pool = pl.col("method") == FULL
    everywhere = others.filter(whole_pool).drop("fraction").join(reference.select("regime", "fraction").unique(), on="regime")
    others = pl.concat([others.filter(~whole_pool), everywhere.select(others.columns)])
    pairs = others.join(
        reference.select("regime", "fraction", "seed", "part", reference="value"),
        on=["regime", "fraction", "seed", "part"],
        nulls_equal=True,
    ).with_columns(difference=pl.col("value") - pl.col("reference"))
    sign = 1 if measure.endswith("loss") else -1
    rows = []
    for key, found in pairs.sort(*COMPARED, "seed", "part", nulls_last=True).group_by(*COMPARED, maintain_order=True):
        whole = found.filter(pl.col("part").is_null())
        if whole.is_empty():
            continue
        words = " ".join(filter(None, reference.select("method", "gradient", "setting").row(0)))
        row = dict(zip(COMPARED, key, strict=True)) | {"measure": measure, "against": words}
        row |= _columns("", paired(whole["difference"].to_numpy()))
        by_dataset = found.filter(pl.col("part").is_not_null())
        rows.append(row | _robust(by_dataset, sign))
    if not rows:
        return pl.DataFrame()
    table = pl.DataFrame(rows, infer_schema_length=None)
    return pl.concat(_with_holm(part, sign) for part in table.partition_by("regime", "fraction", maintain_order=True))


def _columns(name: str, found: Paired) -> dict[str, float | int | None]:
    if name:
        return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    return {
        "pairs": found.pairs,
        "difference": found.mean,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "detectable": found.detectable,
    }


def _robust(by_dataset: pl.DataFrame, sign: int) -> dict[str, float | str | None]:
    """The difference of the median dataset, and of the mean over datasets without the one on which it rests most.

    `sign` is 1 where a lower value is better, and -1 where a higher one is.
    """
    import polars as pl

    names: list[str] = by_dataset["part"].unique().sort().to_list()
    if len(names) < 2:
        return {}
    numbered = by_dataset.with_columns(part=pl.col("part").rank("dense").cast(pl.String))  # a dataset may have any name
    wide = numbered.pivot(on="part", index="seed", values="difference", sort_columns=False).drop_nulls()  # S rows
    values = wide.select(str(n) for n in range(1, len(names) + 1)).to_numpy()
    without = (values.sum(axis=1, keepdims=True) - values) / (len(names) - 1)  # (S, datasets): mean without each
    worst = int(np.argmax(sign * without.mean(axis=0)))
    return (
        _columns("median_dataset", paired(np.median(values, axis=1)))
        | _columns("worst_without", paired(without[:, worst]))
        | {"worst_without_dataset": names[worst]}
    )


def _with_holm(part: pl.DataFrame, sign: int) -> pl.DataFrame:
    import polars as pl

    tested = part["p"].is_not_null().to_numpy()
    adjusted = np.full(len(part), np.nan)
    if tested.any():
        adjusted[tested] = holm(part["p"].drop_nulls().to_list())
    return part.with_columns(p_holm=pl.Series(adjusted, nan_to_null=True)).sort(sign * pl.col("difference"))
