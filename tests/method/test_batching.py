"""Batches: every row once, within the budget, little padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagcos_stream.gradients.batching import MAX_PADDING, plan_batches
from tests.naive import padding_share


@given(st.lists(st.integers(1, 300), max_size=80), st.integers(1, 2000))
def test_plan_batches__every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
        real = [lengths[i] for i in batch]
        assert sum(real) >= (1 - MAX_PADDING) * max(real) * len(batch) - 1e-9


def test_plan_batches__longest_first_and_stable() -> None:
    assert [batch.tolist() for batch in plan_batches([5, 9, 5, 9, 5], 18)] == [[1, 3], [0, 2, 4]]


def test_plan_batches__at_most_max_rows() -> None:
    assert [batch.tolist() for batch in plan_batches([2] * 5, 100, max_rows=2)] == [[0, 1], [2, 3], [4]]


def test_plan_batches__joins_what_is_of_like_length() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.7, 256).clip(8, 512).astype(int)
    plan = plan_batches(lengths, 8192)
    assert padding_share(lengths, plan) < 0.05
    assert len(plan) < 64  # the limit on padding does not take batches apart


def test_padding_share() -> None:
    assert padding_share([4, 2], [np.array([0, 1])]) == 0.25
    assert padding_share([], []) == 0.0


def test_plan_batches__refuses_no_budget() -> None:
    with pytest.raises(ValueError, match="token_budget is 0"):
        plan_batches([1], 0)
