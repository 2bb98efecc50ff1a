"""Bounds and weights of datasets, and budgets in tokens: what is asked for is met exactly, or refused with the numbers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagcos_stream.config import Settings, load_settings
from tagcos_stream.selection.budget import allocate, fill
from tagcos_stream.selection.division import divide_budget, grants, weighted
from tagcos_stream.selection.groups import by_label
from tagcos_stream.selection.methods import METHODS, Choice, Group, Limits
from tagcos_stream.selection.pursuit.omp import omp_select
from tagcos_stream.selection.ridge import nonnegative_ridge
from tagcos_stream.selection.shares import Amount, Bounds, Share, bounds_of, fix, parse_share, parse_shares, parse_tokens
from tagcos_stream.selection.tokens import choose_within, first_rows, most_rows, prefix
from tagcos_stream.types import ArrayRows, UserError
from tests import naive

NAMES = "abcdef"


def test_parse_share__reads_shares_counts_and_weights() -> None:
    assert parse_share("code=0.1:0.3") == (
        "code",
        Share(Amount(Fraction(1, 10), True), Amount(Fraction(3, 10), True)),
    )
    assert parse_share("a=b=:500") == ("a=b", Share(None, Amount(Fraction(500), False)))
    assert parse_share("chat=20%") == ("chat", Share(Amount(Fraction(1, 5), True), Amount(Fraction(1, 5), True)))
    assert parse_share("x=::2.5") == ("x", Share(weight=2.5))
    for wrong in ("code", "=1:2", "code=", "code=:", "code=1:2:3:4", "code=many", "code=-1", "code=1.5:", "code=::0", "code=::x"):
        with pytest.raises(ValueError):
            parse_share(wrong)
    with pytest.raises(ValueError, match="dataset a is named twice"):
        parse_shares(["a=1", "a=:2"])


def test_parse_tokens__reads_thousands_and_millions() -> None:
    assert [parse_tokens(text) for text in ("500000", "500k", "5M", "1.5 M", "2G")] == [
        500_000,
        500_000,
        5_000_000,
        1_500_000,
        2 * 10**9,
    ]
    for wrong in ("0", "-5", "5T", "1.0005k", "five"):
        with pytest.raises(ValueError, match="not a number of tokens"):
            parse_tokens(wrong)


def test_settings__take_shares_as_tables_and_one_kind_of_budget() -> None:
    tables = {"code": {"minimum": 0.1, "maximum": 500}, "chat": {"weight": 2}}
    assert load_settings({"share": tables}).share == ("code=0.1:500:", "chat=::2")
    assert load_settings({"tokens": "5M"}, preset="published").tokens == "5000000"
    assert load_settings({"tokens": 700}).tokens == "700"
    for wrong, said in (
        ({"tokens": "5M", "count": 3}, "give one of fraction, count and tokens"),
        ({"tokens": "5M", "sticky": 0.1}, "sticky keeps a number of examples"),
        ({"share": {"code": {"most": 3}}}, "dataset code has most; a share has minimum, maximum and weight"),
        ({"share": ("code=a lot",)}, "'a lot' is not an amount"),
    ):
        with pytest.raises(UserError, match=said):
            load_settings(wrong)


def test_bounds__round_minima_up_and_maxima_down_or_enclose_the_share() -> None:
    there = {"a": 100, "b": 100, "c": 100}
    found = bounds_of(parse_shares(["a=0.1:0.25", "b=30%", "c=:9"]), 18, there)
    assert found == {"a": Bounds(2, 4), "b": Bounds(5, 6), "c": Bounds(0, 9)}
    # 0.1 of 30 is 3, not 3.0000000000000004
    assert bounds_of(parse_shares(["a=0.1:"]), 30, there)["a"].low == 3


def test_bounds__that_cannot_be_met_are_refused_with_the_numbers() -> None:
    there = {"a": 10, "b": 20}
    for shares, said in (
        (["c=0.1"], "share of dataset c: the pool has no such dataset of which rows may be chosen, but a, b"),
        (["a=12:"], "its minimum is 12 examples, and the pool has 10 of it"),
        (["a=0.5:0.2"], r"its minimum 9 is above its maximum 3.6 examples"),
        (["a=10:", "b=9:"], "the minima of the datasets add up to 19 examples, more than the budget of 18"),
        (["a=:5", "b=:5"], "the datasets may give 10 examples at most, less than the budget of 18"),
    ):
        with pytest.raises(UserError, match=said):
            bounds_of(parse_shares(shares), 18, there)


@st.composite
def pools(draw: st.DrawFn) -> tuple[dict[str, int], dict[str, Bounds], int, int]:
    """What datasets have, feasible bounds, a budget, and a seed."""
    there = {name: draw(st.integers(1, 20)) for name in NAMES[: draw(st.integers(1, 6))]}
    bounds = {}
    for name, has in there.items():
        low = draw(st.integers(0, has))
        bounds[name] = Bounds(low, draw(st.integers(low, has)))
    total = draw(st.integers(sum(b.low for b in bounds.values()), sum(b.high for b in bounds.values())))
    return there, bounds, total, draw(st.integers(0, 99))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(pools())
def test_fix__any_method_ends_within_all_bounds_in_as_many_rounds_as_datasets(
    pool: tuple[dict[str, int], dict[str, Bounds], int, int],
) -> None:
    there, bounds, total, seed = pool

    def choose(free: dict[str, int], budget: int) -> dict[str, int]:
        """A method of whims: another order of examples for every set of datasets."""
        everything = [name for name, has in free.items() for _ in range(has)]
        r = np.random.default_rng([seed, len(free)])
        taken = [everything[i] for i in r.permutation(len(everything))[:budget]]
        assert len(taken) == budget, "what is left of the budget can be spent"
        return {name: taken.count(name) for name in free}

    fixed: dict[str, int] = {}
    for _ in range(len(there) + 1):
        chosen = choose({name: has for name, has in there.items() if name not in fixed}, total - sum(fixed.values()))
        found = fix(bounds, chosen, fixed)
        if not found:
            break
        fixed |= found
    amounts = fixed | chosen
    assert sum(amounts.values()) == total
    assert all(bounds[name].low <= amounts[name] <= bounds[name].high for name in there)
    pairs = {name: (b.low, b.high) for name, b in bounds.items()}
    assert amounts == naive.naive_shares(choose, there, pairs, total)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(pools(), st.lists(st.sampled_from([0.25, 1.0, 1.0, 3.0]), min_size=6, max_size=6))
def test_fill__keeps_bounds_and_is_nearest_to_the_weights(
    pool: tuple[dict[str, int], dict[str, Bounds], int, int], weights: list[float]
) -> None:
    there, bounds, total, _ = pool
    low, high = (np.array([getattr(bounds[name], end) for name in there]) for end in ("low", "high"))
    w = np.array(weights[: len(there)])
    shares = fill(high, total, w, low)
    assert shares.sum() == total
    assert ((low <= shares) & (shares <= high)).all()
    # in real numbers the shares are clamp(scale * weight) with the scale that spends the budget; ours are within one of them
    small, large = 0.0, 1e3
    for _ in range(100):
        middle = (small + large) / 2
        small, large = (middle, large) if np.clip(middle * w, low, high).sum() < total else (small, middle)
    assert (abs(shares - np.clip(large * w, low, high)) < 1 + 1e-6).all()
    assert sum(weighted(total, there, bounds, dict(zip(there, weights, strict=False))).values()) == total


def test_allocate__of_many_tokens_does_not_overflow() -> None:
    sizes = np.array([6 * 10**10, 3 * 10**10, 10**10])
    assert allocate(sizes, 10**9).tolist() == [6 * 10**8, 3 * 10**8, 10**8]


def test_divide__without_bounds_changes_nothing_and_with_them_parts_every_group() -> None:
    r = np.random.default_rng(0)
    labels, datasets = r.integers(0, 4, 200), np.array(list("abc"))[r.integers(0, 3, 200)]
    groups = by_label(labels, 4)
    same = divide_budget(groups, datasets, 50, {})
    assert same.groups is groups
    assert same.budgets.tolist() == allocate(groups.sizes, 50).tolist()
    made = divide_budget(groups, datasets, 50, {"b": 20, "a": 3})
    assert len(made.budgets) == 12
    assert made.budgets.reshape(3, 4).sum(axis=1).tolist() == [27, 3, 20]
    for g in range(12):
        members = made.groups.members(g)
        assert set(labels[members]) <= {g % 4}
        assert set(datasets[members]) <= [{"c"}, {"a"}, {"b"}][g // 4]
        assert made.dataset_of(g) == [None, "a", "b"][g // 4]
    assert made.groups.sizes.sum() == 200


# --- tokens


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6), st.sampled_from(["random", "longest", "herding", "kcenter", "log-det", "spice", "facility-location"])
)
def test_tokens__a_ranking_gives_the_prefix_that_fits(seed: int, name: str) -> None:
    r = np.random.default_rng(seed)
    n, method = int(r.integers(2, 40)), METHODS[name]
    costs = r.integers(1, 30, n)
    rows = r.standard_normal((n, 8)).astype(np.float16)
    columns = {"draw": r.random(n), "target_tokens": costs}
    group = Group({c: columns[c] for c in method.columns}, rows if method.features else None)
    budget = int(r.integers(costs.min(), costs.sum() + 5))
    order = method.choose(group, n, {}, Limits()).indices.tolist()
    in_tokens = Group(group.columns, group.features, costs=costs)
    choice = choose_within(method, in_tokens, budget, {}, Limits())
    expected = naive.naive_prefix(costs.tolist(), order, budget)
    assert choice.indices.tolist() == expected
    assert choice.stats["tokens"] == costs[expected].sum() <= budget
    if len(expected) < n:
        assert choice.stats["tokens"] + choice.stats["next_tokens"] > budget
        assert choice.stats["next_tokens"] == costs[order[len(expected)]]
    else:
        assert choice.stats["next_tokens"] is None


@pytest.mark.parametrize("gain_per", ["row", "token"])
@pytest.mark.parametrize("name", ["tagcos", "omp", "shuffled"])
def test_tokens__the_pursuit_gives_a_prefix_with_weights_of_just_its_rows(name: str, gain_per: str) -> None:
    for seed in range(6):
        r = np.random.default_rng(seed)
        n, method = 150, METHODS[name]
        costs = r.integers(1, 60, n)
        rows = r.standard_normal((n, 24)).astype(np.float16)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        draw = r.random(n)
        owner = np.argsort(-draw, kind="stable") if name == "shuffled" else np.arange(n)
        group = Group({"draw": draw}, ArrayRows(rows, 40), costs=costs)
        budget = int(costs.sum() * 0.2)
        settings = {"ridge": 0.1, "tol": 1e-4, "sticky": None, "gain_per": gain_per}
        read = {key: settings[key] for key in method.settings}
        choice = method.choose(group, budget, read, Limits())
        own = costs[owner]  # of the row that has a feature
        scale = np.sqrt(own.mean() / own) if gain_per == "token" else np.ones(n)
        scaled = (rows.astype(np.float32) * scale.astype(np.float32)[:, None]) if gain_per == "token" else rows
        order = omp_select(scaled, group.target, first_rows(costs, budget), ridge=0.1).indices
        while own[order].sum() <= budget:
            order = omp_select(scaled, group.target, min(2 * len(order), n), ridge=0.1).indices
        expected = np.array(naive.naive_prefix(own.tolist(), order.tolist(), budget))
        assert choice.indices.tolist() == owner[expected].tolist(), f"seed {seed}"
        chosen = rows[expected].astype(np.float64)
        weights = nonnegative_ridge(chosen @ chosen.T, chosen @ group.target, 0.1)
        assert choice.weights is not None
        np.testing.assert_allclose(choice.weights, weights, atol=1e-7)
        assert choice.residual == pytest.approx(
            np.linalg.norm(group.target - weights @ chosen) / np.linalg.norm(group.target), rel=1e-6
        )
        assert costs[choice.indices].sum() <= budget < costs[choice.indices].sum() + choice.stats["next_tokens"]


def test_tokens__a_budget_of_all_tokens_chooses_all() -> None:
    r = np.random.default_rng(1)
    costs = r.integers(1, 60, 30)
    group = Group({"draw": r.random(30)}, r.standard_normal((30, 8)).astype(np.float16), costs=costs)
    settings = {"ridge": 1.0, "tol": 1e-4, "gain_per": "row"}
    for name in ("random", "omp"):
        method = METHODS[name]
        choice: Choice = choose_within(method, group, int(costs.sum()), {k: settings[k] for k in method.settings}, Limits())
        assert sorted(choice.indices.tolist()) == list(range(30))


def test_grants__go_to_those_who_left_most_and_keep_to_the_budget() -> None:
    budgets, spent, following = {0: 10, 1: 10, 2: 10}, {0: 9, 1: 4, 2: 7}, {0: 5, 1: 8, 2: 3}
    assert grants(budgets, spent, following, 30, {}, {}) == {1: 12}
    assert grants(budgets, spent, following, 31, {}, {}) == {1: 12, 2: 10}
    assert grants(budgets, spent, following, 31, {1: "a"}, {"a": 7}) == {2: 10, 0: 14}
    assert grants(budgets, spent, following | {1: None}, 25, {}, {}) == {2: 10}
    assert grants(budgets, spent, following, 22, {}, {}) == {}


def test_settings__of_a_budget_in_tokens_estimate_examples() -> None:
    assert Settings(tokens="10k").budget(1000, 50.0) == 200
    assert Settings(tokens="10k").budget(100, 50.0) == 100


@pytest.mark.parametrize("seed", range(20))
def test_most_rows__no_order_asks_for_more(seed: int) -> None:
    """The cheapest rows first ask for the most, here for more than twice what was asked at first."""
    rng = np.random.default_rng(seed)
    costs = np.where(rng.random(400) < 0.5, rng.integers(0, 4, 400), rng.integers(50, 200, 400))
    budget = int(rng.integers(1, costs.sum()))
    first = first_rows(costs, budget)
    bound = most_rows(costs, budget, first)
    asked = []
    for order in (np.argsort(costs, kind="stable"), np.argsort(-costs), rng.permutation(400)):
        found: list[int] = []

        def rows(count: int, order: np.ndarray = order, found: list[int] = found) -> tuple[np.ndarray, None]:
            found.append(count)
            return order[:count], None

        prefix(costs, budget, first, rows)
        asked.append(max(found))
    assert asked[0] == bound
    assert max(asked) <= bound


def test_most_rows__may_double_more_than_once() -> None:
    costs = np.repeat([1, 1000], 500)
    first = first_rows(costs, 20_000)
    assert most_rows(costs, 20_000, first) > 4 * first
