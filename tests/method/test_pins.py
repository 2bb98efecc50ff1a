"""Pinned rows: always chosen, paid for by the budget, and accounted for by the pursuit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagcos_stream.config import Settings
from tagcos_stream.rows.blocks import Subset
from tagcos_stream.selection.groups import Groups, by_label, share_budget
from tagcos_stream.selection.methods import METHODS, Choice, Group, Limits, Method, Words
from tagcos_stream.selection.shares import Bounds, bounds_with_pins
from tagcos_stream.selection.targets import TargetRows
from tagcos_stream.selection.tokens import choose_within
from tagcos_stream.types import ArrayRows, UserError
from tests import naive

N, DIM = 60, 16


def draw_group(seed: int, **changes: object) -> Group:
    r = np.random.default_rng(seed)
    rows = r.normal(size=(N, DIM)).astype(np.float32)
    columns = {
        "draw": r.random(N),
        "target_tokens": r.integers(1, 90, N),
        "loss": r.random(N),
        "norm": r.random(N),
        "ifd": 2 * r.random(N),
        "distance": r.random(N),
        "reference": r.random(N) < 0.5,
    }
    wanted = TargetRows(rows[:5] + 0.1, np.array([0, 0, 1, 1, 1]), np.full(5, 0.2))
    return Group(columns, ArrayRows(rows, 7), rows.mean(axis=0).astype(np.float64), wanted, **changes)  # type: ignore[arg-type]


def choose(name: str, group: Group, budget: int) -> Choice:
    method, values = METHODS[name], Settings()
    given_ = replace(
        group,
        columns={column: group.columns[column] for column in method.columns} or {"draw": group.columns["draw"]},
        features=group.features if method.features else None,
        mean=group.mean if method.features else None,
        wanted=group.wanted if method.needs_target else None,
    )
    return choose_within(method, given_, budget, {name: getattr(values, name) for name in method.settings}, Limits())


@pytest.mark.parametrize("name", list(METHODS))
def test_pins__every_method_chooses_them_and_fills_the_budget(name: str) -> None:
    pinned = np.array([3, 17, 58])
    choice = choose(name, draw_group(0, pinned=pinned), 12)
    assert choice.indices[:3].tolist() == [3, 17, 58]
    assert np.isnan(choice.scores[:3]).all()
    assert len(set(choice.indices.tolist())) == len(choice.indices) == 12
    assert len(choice.margins) == N
    assert (choice.weights is None) or (len(choice.weights) == 12 and bool((choice.weights >= 0).all()))
    only = choose(name, draw_group(0, pinned=pinned), 3)
    assert only.indices.tolist() == [3, 17, 58]
    everything = choose(name, draw_group(0, pinned=np.arange(N)), N)
    assert everything.indices.tolist() == list(range(N))
    if not METHODS[name].accounts_for_pins:
        rest = np.setdiff1d(np.arange(N), pinned)
        whole = draw_group(0)
        assert isinstance(whole.features, ArrayRows)
        alone = replace(whole, columns={c: v[rest] for c, v in whole.columns.items()}, features=Subset(whole.features, rest))
        assert choice.indices[3:].tolist() == rest[choose(name, alone, 9).indices].tolist()


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].begins_with_pins])
@pytest.mark.parametrize("pinned", [[3], [58, 3, 17, 40]])
def test_pins__methods_that_begin_with_them_equal_naive(name: str, pinned: list[int]) -> None:
    group = draw_group(3, pinned=np.array(pinned))
    assert isinstance(group.features, ArrayRows)
    rows = np.concatenate([group.features.read(b) for b in range(len(group.features.starts) - 1)])
    known = {"features": rows, "target": group.mean, "draw": group.columns["draw"].tolist(), "begin": pinned}
    found = choose(name, group, 14)
    assert found.indices.tolist() == getattr(naive, "choose_" + name.replace("-", "_"))(known, 14)
    free = choose(name, draw_group(3), 14)
    assert found.indices.tolist() != free.indices.tolist()
    # rows that it would begin with anyway change nothing
    same = choose(name, draw_group(3, pinned=free.indices[:5]), 14)
    assert same.indices.tolist() == free.indices.tolist()
    np.testing.assert_allclose(same.margins, free.margins, atol=1e-6)


@pytest.mark.parametrize("name", list(METHODS))
def test_pins__tokens_are_never_exceeded(name: str) -> None:
    costs = np.random.default_rng(4).integers(1, 90, N)
    pinned = np.array([8, 9, 40])
    for budget in (int(costs[pinned].sum()), int(costs[pinned].sum()) + 400):
        choice = choose(name, draw_group(1, pinned=pinned, costs=costs), budget)
        assert choice.indices[:3].tolist() == [8, 9, 40]
        assert choice.stats["tokens"] == costs[choice.indices].sum() <= budget
        assert choice.stats["next_tokens"] is None or choice.stats["tokens"] + choice.stats["next_tokens"] > budget


@pytest.mark.parametrize("seed", range(4))
def test_pins__the_pursuit_matches_what_they_leave_unexplained(seed: int) -> None:
    pinned = np.sort(np.random.default_rng(seed).permutation(N)[: 1 + 3 * seed])
    group = draw_group(seed, pinned=pinned)
    choice = choose("omp", group, 20)
    assert isinstance(group.features, ArrayRows)
    assert group.mean is not None
    rows = np.concatenate([group.features.read(b) for b in range(len(group.features.starts) - 1)]).astype(np.float64)
    ref = naive.naive_pursuit_beyond(rows, group.mean, pinned.tolist(), 20, Settings().ridge)
    assert choice.rounds is not None
    assert choice.weights is not None
    assert choice.residuals is not None
    assert list(zip(choice.indices.tolist(), choice.rounds.tolist(), strict=True)) == ref
    left = group.mean - choice.weights @ rows[choice.indices]
    assert choice.residual == pytest.approx(np.linalg.norm(left) / np.linalg.norm(group.mean), rel=1e-6)
    np.testing.assert_allclose(choice.margins, rows @ left, atol=1e-5)
    # the weights are a fit by all chosen rows together: none can be changed to match better
    slope = rows[choice.indices] @ left - Settings().ridge * choice.weights
    assert np.abs(slope[choice.weights > 1e-9]).max() < 1e-6
    assert slope.max() < 1e-6


def test_pins__sticky_gives_up_newcomers_but_no_pin() -> None:
    pinned, earlier = np.array([2, 50]), np.arange(20, 32)
    group = draw_group(2, pinned=pinned, earlier=earlier)
    method = METHODS["tagcos"]
    values = {"ridge": 1.0, "tol": 1e-4, "sticky": 1e6, "gain_per": "token"}  # any residual will do
    choice = method.choose(group, 10, values, Limits())
    assert set(pinned) <= set(choice.indices.tolist()) <= set(pinned) | set(earlier.tolist())
    assert len(choice.indices) == 10


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.data())
def test_share_budget__pays_for_pins(sizes: list[int], data: st.DataObject) -> None:
    least = [data.draw(st.integers(0, size)) for size in sizes]
    total = data.draw(st.integers(sum(least), sum(sizes)))
    groups = by_label(np.repeat(np.arange(len(sizes)), sizes), len(sizes))
    pinned = np.concatenate([np.arange(size) < low for size, low in zip(sizes, least, strict=True)])
    found = share_budget(groups, total, None, pinned).tolist()
    assert found == naive.naive_pins(sizes, total, least)
    assert sum(found) == total
    assert all(low <= n <= size for low, n, size in zip(least, found, sizes, strict=True))
    free = share_budget(groups, total).tolist()
    if all(low <= n for low, n in zip(least, free, strict=True)):
        assert found == free


@pytest.mark.parametrize(
    ("indices", "changes", "says"),
    [
        ([4, 9, 4], {}, "chose a row of a group twice"),
        ([4, 9], {}, "chose 2 of 60 rows, and was asked for 3"),
        ([4, 9, 5], {"pinned": np.array([4, 8])}, "left out rows of Group.pinned"),
        ([4, 9], {"costs": np.full(N, 2)}, "spent 4 tokens, and the budget is 3"),
    ],
)
def test_choose_within__refuses_what_a_faulty_method_chose(indices: list[int], changes: dict, says: str) -> None:
    """A method with weights that ignores what docs/extending.md says of it."""

    def faulty(group: Group, budget: int, settings: object, limits: Limits) -> Choice:
        return Choice(np.array(indices), np.zeros(len(indices)), np.zeros(N), weights=np.ones(len(indices)))

    method = Method("faulty", "pool", faulty, Words("score {:.4g}"), weights=True)
    with pytest.raises(ValueError, match=f"method faulty {says}"):
        choose_within(method, draw_group(0, **changes), 3, {}, Limits())


def test_share_budget__pays_for_pins_where_the_target_has_nothing() -> None:
    groups = Groups(np.arange(30), np.array([0, 10, 20, 30]), target=np.array([1.0, 0.0, 0.0]))
    pinned = np.zeros(30, bool)
    pinned[[0, 12, 13]] = True
    assert share_budget(groups, 8, None, pinned).tolist() == [6, 2, 0]
    pinned[:10] = True
    assert share_budget(groups, 14, None, pinned).tolist() == [10, 2, 2]


def test_bounds_with_pins__are_raised_or_refused_with_the_numbers() -> None:
    bounds = {"a": Bounds(2, 10), "b": Bounds(0, 3)}
    assert bounds_with_pins(bounds, {"a": 1, "b": 2}, 8, "examples") == {"a": Bounds(2, 10), "b": Bounds(2, 3)}
    with pytest.raises(UserError, match="include pins 4 examples of dataset b, whose maximum is 3"):
        bounds_with_pins(bounds, {"b": 4}, 8, "examples")
    with pytest.raises(UserError, match="take 5 tokens, more than the budget of 4"):
        bounds_with_pins(bounds, {"a": 1, "b": 3}, 4, "tokens")


def test_subset__reads_some_rows_block_by_block() -> None:
    rows = np.arange(40, dtype=np.float32).reshape(20, 2)
    for which in ([], [0], [3, 4, 11, 19], list(range(20)), [5, 6, 7]):
        some = Subset(ArrayRows(rows, 3), np.array(which, np.int64))
        read = [some.read(b) for b in range(len(some.starts) - 1)]
        assert [len(part) for part in read] == np.diff(some.starts).tolist()
        assert all(len(part) for part in read)
        np.testing.assert_array_equal(np.concatenate(read) if read else rows[:0], rows[which])
