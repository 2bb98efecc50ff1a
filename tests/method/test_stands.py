"""Which chosen row stands for each row: against the definition (tests/naive.py), and what must hold for any rows."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagcos_stream.selection import stands as stands_module
from tagcos_stream.selection.stands import peak_bytes, stands_for
from tagcos_stream.types import ArrayRows, UserError
from tests import naive
from tests.method.draw_rows import draw_rows


def case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, D) float16, and some of them chosen in a random order: scattered, in clumps, or with copies and zeros."""
    r = np.random.default_rng(seed)
    n, dim = int(r.integers(1, 90)), int(r.choice([1, 2, 7, 64, 200]))
    rows = draw_rows(r, n, dim, seed, spread=0.01)
    if seed % 3 == 2:
        rows[r.integers(0, n)] = 0
    return rows, r.permutation(n)[: int(r.integers(1, n + 1))]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), block_rows=st.integers(1, 40), threads=st.integers(1, 2), tile=st.sampled_from([1, 3, 1024]))
def test_stands__equal_naive(seed: int, block_rows: int, threads: int, tile: int) -> None:
    rows, chosen = case(seed)
    expected = naive.naive_stands(rows, chosen.tolist())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stands_module, "TILE", tile)
        found = stands_for(ArrayRows(rows, block_rows), chosen, threads=threads)
    assert found.places.tolist() == [place for place, _ in expected]
    assert found.cosines == pytest.approx([cosine for _, cosine in expected], abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_stands__do_not_depend_on_how_many_chosen_rows_are_held(seed: int) -> None:
    rows, chosen = case(seed + 30)
    whole = stands_for(rows, chosen)
    least = peak_bytes(rows.shape[1], len(rows), 1, len(rows))
    for held in (1, 2, 5):
        limit = least + held * (4 * rows.shape[1] + 8 + 4 * len(rows))
        reads: list[tuple[int, int]] = []
        parts = stands_for(rows, chosen, memory_limit=limit, progress=lambda done, total: reads.append((done, total)))  # noqa: B023
        np.testing.assert_array_equal(parts.places, whole.places)
        np.testing.assert_array_equal(parts.cosines, whole.cosines)
        assert reads[-1][0] == reads[-1][1]


def test_stands__a_chosen_row_stands_for_itself_and_of_equal_ones_the_first() -> None:
    r = np.random.default_rng(0)
    rows = r.standard_normal((300, 300)).astype(np.float16)
    rows[200:] = rows[:100]
    chosen = np.array([7, 250, 107, 50, 207])
    found = stands_for(rows, chosen)
    assert found.places[[7, 250, 107]].tolist() == [0, 1, 2]
    assert found.places[50] == 1  # row 250 is equal to it and was chosen earlier
    assert found.places[207] == 0
    assert found.cosines[chosen].tolist() == [1] * 5


def test_stands__refuses_by_the_formula_and_says_what_to_change() -> None:
    rows = np.ones((100, 50), np.float16)
    with pytest.raises(UserError, match=r"100 rows of 50 dimensions needs 0\.02 GiB, limit 0\.00 GiB: raise memory_limit"):
        stands_for(rows, np.arange(5), memory_limit=1000)
    with pytest.raises(ValueError, match="no row is chosen"):
        stands_for(rows, np.zeros(0, np.int64))


PEAK = """
import subprocess
import sys

import numpy as np
from tagcos_stream.selection.stands import peak_bytes, stands_for
from tagcos_stream.types import ArrayRows
def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
n, dim, k = 20_000, 512, 2_000
r = np.random.default_rng(0)
A = np.concatenate([r.standard_normal((1000, dim), np.float32).astype(np.float16) for _ in range(n // 1000)])
stands_for(ArrayRows(A[:500], 100), np.arange(20))
limit = LIMIT
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")  # the peak so far belongs to making the data and to Numba compiling
before = memory("VmRSS")
stands_for(ArrayRows(A, 1000), np.arange(0, n, n // k), memory_limit=limit)
print(memory("VmHWM") - before, limit or peak_bytes(dim, n, k, 1000))
"""


@pytest.mark.process
@pytest.mark.parametrize("limit", ["None", "peak_bytes(dim, n, 300, 1000)"], ids=["all held", "in batches"])
def test_stands__measured_peak_stays_under_the_formula(limit: str) -> None:
    code = PEAK.replace("LIMIT", limit)
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert 0 < int(output[-2]) <= int(output[-1])
