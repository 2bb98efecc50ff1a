"""Statistics of comparisons against SciPy's tests and definitions written out."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tagcos_stream.evaluation.statistics import CONFIDENCE, POWER, comparisons, holm, paired
from tests import naive


@pytest.mark.parametrize("n", [2, 4, 9])
def test_paired__is_the_one_sample_t_test(n: int) -> None:
    values = np.random.default_rng(n).normal(-0.02, 0.01, n)
    found, test = paired(values), stats.ttest_1samp(values, 0)
    assert (found.pairs, found.mean, found.p) == (n, pytest.approx(values.mean()), pytest.approx(test.pvalue))
    interval = test.confidence_interval(CONFIDENCE)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_paired__a_difference_that_is_detectable_is_found_as_often_as_promised(n: int) -> None:
    """Simulated: of 20,000 experiments with the true difference `detectable` and the spread that it was computed for."""
    rng = np.random.default_rng(0)
    unit = rng.normal(size=n)
    unit = (unit - unit.mean()) / unit.std(ddof=1)  # an observed spread of exactly one
    detectable = paired(unit).detectable
    assert detectable is not None
    draws = rng.normal(detectable, 1, (20_000, n))
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 1 - CONFIDENCE
    assert found.mean() == pytest.approx(POWER, abs=0.01)


def test_paired__one_seed_says_nothing_of_the_spread() -> None:
    found = paired([0.25])
    assert (found.pairs, found.mean, found.low, found.p, found.detectable) == (1, 0.25, None, None, None)
    with pytest.raises(ValueError, match="finite"):
        paired([float("nan"), 1.0])
    with pytest.raises(ValueError, match="at least one"):
        paired([])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_holm__equals_the_definition(p: list[float]) -> None:
    adjusted = holm(p)
    assert adjusted == pytest.approx(naive.naive_holm(p))
    assert (adjusted >= np.array(p) - 1e-15).all()
    assert (adjusted <= 1).all()


def _scores(values: dict[str, np.ndarray]) -> pl.DataFrame:
    """Units from (S seeds, datasets) losses by method, with the mean over datasets as the whole."""
    rows = []
    for method, losses in values.items():
        for seed, by_dataset in enumerate(losses):
            parts = {None: by_dataset.mean()} | {f"d{i}": value for i, value in enumerate(by_dataset)}
            for part, value in parts.items():
                rows.append(
                    {
                        "regime": "steps", "fraction": 0.05, "method": method, "gradient": "", "setting": "", "weighted": False,
                        "seed": seed, "measure": "loss", "part": part, "value": float(value),
                    }
                )  # fmt: skip
    return pl.DataFrame(rows, schema_overrides={"part": pl.String})


def test_comparisons__pair_seeds_and_leave_out_the_dataset_that_carries_the_mean() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(2, 0.1, (4, 3))
    carried = base + rng.normal(0, 0.001, (4, 3))
    carried[:, 2] -= 0.3  # all of the gain is in one dataset
    table = comparisons(_scores({"random": base, "tagcos": carried, "longest": base + 0.2}), "random")
    assert table["method"].to_list() == ["tagcos", "longest"]
    row = table.row(0, named=True)
    apart = carried - base
    assert row["difference"] == pytest.approx(apart.mean())
    assert row["p"] == pytest.approx(stats.ttest_1samp(apart.mean(axis=1), 0).pvalue)
    assert table["p_holm"].to_list() == pytest.approx(naive.naive_holm(table["p"].to_list()))
    assert row["median_dataset"] == pytest.approx(np.median(apart, axis=1).mean())
    assert row["worst_without_dataset"] == "d2"
    assert row["worst_without"] == pytest.approx(apart[:, :2].mean())
    assert abs(row["worst_without"]) < 0.01 < abs(row["difference"])


def test_comparisons__hold_all_against_one_variant_of_the_reference() -> None:
    base = np.random.default_rng(2).normal(2, 0.1, (4, 3))
    found = {"tagcos": base, "random": base + 0.1}
    scores = _scores(found).with_columns(
        gradient=pl.when(pl.col("method") == "tagcos").then(pl.lit("adam")).otherwise("gradient")
    )
    other = _scores({"tagcos": base - 0.1}).with_columns(gradient=pl.lit("sgd"))
    table = comparisons(pl.concat([scores, other]), "tagcos")
    assert table.select("method", "gradient", "pairs").rows() == [("tagcos", "sgd", 4), ("random", "", 4)]
    assert table["difference"].to_list() == pytest.approx([-0.1, 0.1])


def test_comparisons__datasets_may_have_any_name() -> None:
    base = np.random.default_rng(3).normal(2, 0.1, (4, 3))
    names = {"d0": "seed", "d1": "", "d2": "part"}
    scores = _scores({"random": base, "tagcos": base - np.array([0.1, 0.2, 0.6])})
    plain, renamed = (comparisons(given, "random") for given in (scores, scores.with_columns(pl.col("part").replace(names))))
    assert renamed["worst_without_dataset"].to_list() == ["part"]
    assert renamed.drop("worst_without_dataset").equals(plain.drop("worst_without_dataset"))


def test_comparisons__use_only_seeds_that_both_have_and_need_a_reference() -> None:
    base = np.full((3, 2), 2.0)
    scores = _scores({"random": base, "omp": base - 0.1}).filter(~((pl.col("method") == "random") & (pl.col("seed") == 2)))
    assert comparisons(scores, "random")["pairs"].to_list() == [2]
    assert comparisons(scores, "balanced").is_empty()


def test_comparisons__of_several_settings_of_the_reference_take_the_first_which_is_the_runs_own() -> None:
    base = np.random.default_rng(4).normal(2, 0.1, (3, 3))
    filtered = _scores({"random": base + 0.2, "tagcos": base - 0.1}).with_columns(setting=pl.lit("where=loss < 4"))
    alone = comparisons(filtered, "random")
    assert alone.select("method", "against", "pairs").rows() == [("tagcos", "random where=loss < 4", 3)]
    assert alone["difference"].to_list() == pytest.approx([-0.3])
    table = comparisons(pl.concat([_scores({"random": base}), filtered]), "random")
    assert table.select("method", "setting", "against", "pairs").rows() == [
        ("tagcos", "where=loss < 4", "random", 3),
        ("random", "where=loss < 4", "random", 3),
    ]
    assert table["difference"].to_list() == pytest.approx([-0.1, 0.2])


def test_comparisons__the_whole_pool_is_compared_at_every_fraction() -> None:
    base = np.random.default_rng(5).normal(2, 0.1, (3, 2))
    small = _scores({"random": base, "omp": base - 0.1})
    large = _scores({"random": base - 0.2}).with_columns(fraction=pl.lit(0.1))
    full = _scores({"full": base - 0.3, "base": base + 1}).with_columns(fraction=pl.lit(1.0))
    table = comparisons(pl.concat([small, large, full]), "random")
    assert table.select("fraction", "method").rows() == [(0.05, "full"), (0.05, "omp"), (0.1, "full")]
    assert table["difference"].to_list() == pytest.approx([-0.3, -0.1, -0.1])


def test_comparisons__of_scores_the_higher_is_better() -> None:
    """What turns every sign turns nothing else: the order, and the part on which the mean rests most."""
    base = np.random.default_rng(6).normal(0.5, 0.1, (4, 3))
    scores = _scores({"random": base, "tagcos": base + np.array([0.0, 0.1, 0.3]), "omp": base - 0.1})
    losses = scores.with_columns(value=-pl.col("value"))
    found, turned = comparisons(scores.with_columns(measure=pl.lit("mmlu")), "random", "mmlu"), comparisons(losses, "random")
    assert found["measure"].unique().to_list() == ["mmlu"]
    for name in ("method", "worst_without_dataset", "p_holm"):
        assert found[name].to_list() == turned[name].to_list()
    assert found["worst_without"].to_list() == pytest.approx([0.05, -0.1])
