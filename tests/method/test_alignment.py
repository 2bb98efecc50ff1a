"""Cosines with means and rows that are nearly the same, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from tagcos_stream.selection import alignment
from tagcos_stream.types import ArrayRows, UserError
from tests import naive


def test_alike__equals_naive_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    # three kinds of rows and a few of none, around the bound on both sides
    rows = rng.normal(size=(3, 16))[rng.integers(0, 3, 70)] + rng.normal(size=(70, 16))
    rows[[5, 40]] = 0
    rows = rows.astype(np.float16)
    _, _, expected = naive.naive_alignments(rows.astype(np.float64), np.zeros(70), alignment.ALIKE)
    assert 1 < np.mean(expected) < 20
    for block in (16, 1024):
        monkeypatch.setattr(alignment, "BLOCK", block)
        assert alignment.alike(ArrayRows(rows, 32)).tolist() == expected
    with pytest.raises(UserError, match=r"comparing 70 rows of 16 dimensions with each other .*max_cluster_rows"):
        alignment.alike(rows, memory_limit=1000)


def test_cosines__equal_naive_and_are_0_for_zero_rows() -> None:
    rng = np.random.default_rng(1)
    rows, vectors = rng.normal(size=(40, 8)).astype(np.float32), rng.normal(size=(2, 8))
    rows[3] = 0
    expected = [[naive.naive_cosine(row, vector) for vector in vectors] for row in rows]
    np.testing.assert_allclose(alignment.cosines(ArrayRows(rows, 16), vectors), expected, atol=1e-6)
    np.testing.assert_allclose(alignment.cosines(rows, vectors), expected, atol=1e-6)
