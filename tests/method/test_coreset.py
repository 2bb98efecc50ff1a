from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagcos_stream.selection.budget import allocate
from tests import naive


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=40), st.floats(0, 1))
def test_allocate__equals_naive_and_is_exact(sizes: list[int], share: float) -> None:
    total = round(share * sum(sizes))
    got = allocate(np.array(sizes), total)
    assert got.tolist() == naive.allocate(sizes, total)
    assert got.sum() == total
    assert (got >= 0).all()
    assert (got <= np.array(sizes)).all()
    if total >= sum(size > 0 for size in sizes):
        assert (got[np.array(sizes) > 0] >= 1).all()


def test_allocate__small_clusters_get_one() -> None:
    assert allocate(np.array([10_000, 3, 0, 1]), 500).tolist() == [498, 1, 0, 1]


@pytest.mark.parametrize(("sizes", "total"), [([3, 4], 8), ([3], -1), ([-1, 5], 2)])
def test_allocate__refuses_impossible_budgets(sizes: list[int], total: int) -> None:
    with pytest.raises(ValueError, match=r"budget|negative"):
        allocate(np.array(sizes), total)
