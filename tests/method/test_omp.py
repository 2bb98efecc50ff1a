"""The matching pursuit against its definition (tests/naive.py), and what must hold for any rows.

Case table: `cases(seed)` draws n, D, budget, a kind of rows and a kind of target from one seed, so that a failure names its seed.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tagcos_stream.rows.held import open_rows
from tagcos_stream.selection.pursuit import gram_cache, rounds
from tagcos_stream.selection.pursuit.omp import omp_select, peak_bytes
from tagcos_stream.types import ArrayRows, UserError
from tests import naive

KINDS = ["plain", "correlated", "duplicates", "zeros", "positive", "scaled", "integers", "low rank", "spiky"]
TARGETS = ["mean", "opposite", "random", "sum", "one row"]


def case(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    r = np.random.default_rng(seed)
    n, dim = int(r.integers(1, 90)), int(r.choice([1, 2, 3, 5, 16, 64, 200]))
    budget = int(r.integers(0, n + 3))
    A: np.ndarray = r.standard_normal((n, dim))
    kind, aim = KINDS[seed % len(KINDS)], TARGETS[seed % len(TARGETS)]
    if kind == "correlated":
        A += 3 * r.standard_normal(dim)
    if kind == "duplicates":
        A = A[r.integers(0, max(1, n // 3), n)]
    if kind == "zeros":
        A[r.random(n) < 0.3] = 0
    if kind == "positive":
        A = np.abs(A)
    if kind == "scaled":
        A *= np.exp(2 * r.standard_normal((n, 1)))
    if kind == "integers":
        A = r.integers(-1, 2, (n, dim))
    if kind == "low rank":
        A = A[:, : max(1, dim // 8)] @ r.standard_normal((max(1, dim // 8), dim))
    if kind == "spiky":
        A[:, 0] *= 300
    A = np.ascontiguousarray(A, np.float32)
    b = A.mean(axis=0, dtype=np.float64)
    if aim == "opposite":
        b = -np.abs(A).sum(axis=0, dtype=np.float64) * np.sign(b)
    if aim == "random":
        b = r.standard_normal(dim)
    if aim == "sum":
        b = b * n
    if aim == "one row":
        b = A[0].astype(np.float64)
    return A, b, budget


def check(seed: int) -> None:
    A, b, budget = case(seed)
    ref = naive.naive_omp(A, b, budget)
    comp = omp_select(A, b, budget)
    assert comp.indices.tolist() == [c[0] for c in ref], f"seed {seed}"
    assert comp.rounds.tolist() == [c[1] for c in ref], f"seed {seed}"
    scale = max(float(np.linalg.norm(A, axis=1).max() * np.linalg.norm(b)), 1e-30)
    np.testing.assert_allclose(comp.correlations, [c[2] for c in ref], atol=1e-9 * scale, err_msg=f"seed {seed}")
    np.testing.assert_allclose(comp.residuals, [c[3] for c in ref], atol=1e-6, err_msg=f"seed {seed}")
    weights = naive.naive_weights(A, b, comp.indices.tolist())
    np.testing.assert_allclose(comp.weights, weights, atol=1e-6 * max(weights.max(initial=0.0), 1e-30), err_msg=f"seed {seed}")
    residual = b - A[comp.indices].T.astype(np.float64) @ comp.weights
    np.testing.assert_allclose(comp.margins, A @ residual, atol=1e-5 * scale)
    assert comp.residual == pytest.approx(np.linalg.norm(residual) / np.linalg.norm(b) if b.any() else 0.0, abs=1e-9)


@pytest.mark.parametrize("start", range(0, 480, 40))
def test_omp__chooses_what_the_definition_chooses(start: int) -> None:
    for seed in range(start, start + 40):
        check(seed)


@pytest.mark.parametrize(("probes", "candidates"), [(1, 1), (4, 8), (7, 3)])
def test_omp__choices_do_not_depend_on_how_far_drafts_look(monkeypatch: pytest.MonkeyPatch, probes: int, candidates: int) -> None:
    monkeypatch.setattr(rounds, "LONGEST", probes)
    monkeypatch.setattr(rounds, "HORIZON", probes)
    monkeypatch.setattr(rounds, "CANDIDATES", candidates)
    monkeypatch.setattr(gram_cache, "LISTED", 2 * candidates + 1)
    for seed in range(1000, 1060):
        check(seed)


def unit_rows(n: int, dim: int, seed: int, common: float = 0.5) -> np.ndarray:
    r = np.random.default_rng(seed)
    A = r.standard_normal((n, dim)) / np.sqrt(dim) + common * r.standard_normal(dim) / np.sqrt(dim)
    return (A / np.linalg.norm(A, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("common", "own_target"), [(0.0, False), (0.5, False), (2.0, False), (0.5, True)])
def test_omp__follows_the_definition_over_many_steps_and_rounds(common: float, own_target: bool) -> None:
    A = unit_rows(1500, 96, 3, common)
    b = A[7].astype(np.float64) if own_target else A.mean(axis=0, dtype=np.float64)
    ref = naive.naive_omp(A, b, 150)
    comp = omp_select(A, b, 150)
    assert comp.indices.tolist() == [c[0] for c in ref]
    assert comp.rounds.tolist() == [c[1] for c in ref]


def test_omp__cases_cover_drops_and_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[int] = []
    solve = naive.naive_ridge

    def counted(A: np.ndarray, b: np.ndarray, S: list[int], ridge: float) -> np.ndarray:
        solved.append(len(S))
        return solve(A, b, S, ridge)

    monkeypatch.setattr(naive, "naive_ridge", counted)
    drops, restarts = 0, 0
    for seed in range(200):
        solved.clear()
        A, b, budget = case(seed)
        ref = naive.naive_omp(A, b, budget)
        drops += sum(later == earlier - 1 for earlier, later in itertools.pairwise(solved))
        restarts += bool(ref) and ref[-1][1] > 0
    assert drops >= 20
    assert restarts >= 100


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_omp__streamed_and_held_choose_the_same(dtype: type) -> None:
    A: np.ndarray = unit_rows(900, 512, 5).astype(dtype)
    b = A.mean(axis=0, dtype=np.float64)
    held = omp_select(A, b, 90)
    assert held.stats.held
    limit = peak_bytes(900, 512, 90, hold=False, blocks=100)
    streamed = omp_select(ArrayRows(A, 100), b, 90, memory_limit=limit)
    assert not streamed.stats.held
    np.testing.assert_array_equal(streamed.indices, held.indices)
    np.testing.assert_array_equal(streamed.rounds, held.rounds)
    np.testing.assert_allclose(streamed.weights, held.weights, rtol=1e-9)
    np.testing.assert_allclose(streamed.margins, held.margins, atol=1e-7)


def test_omp__one_thread_and_many_choose_the_same() -> None:
    A = unit_rows(1200, 700, 6)
    b = A.mean(axis=0, dtype=np.float64)
    one, many = omp_select(A, b, 120, threads=1), omp_select(A, b, 120, threads=4)
    np.testing.assert_array_equal(one.indices, many.indices)
    np.testing.assert_allclose(one.weights, many.weights, rtol=1e-9)


def test_omp__copies_far_apart_tie_and_the_lowest_wins() -> None:
    """Edges of a matrix product round differently from its middle: equal rows must not be told apart by where they stand."""
    A = np.concatenate([unit_rows(301, 333, 8)] * 3)
    b = A.mean(axis=0, dtype=np.float64)
    ref = naive.naive_omp(A, b, 120)
    assert omp_select(A, b, 120).indices.tolist() == [c[0] for c in ref]


def test_omp__near_copies_are_told_apart_in_float64() -> None:
    A = np.concatenate([unit_rows(300, 256, 9)] * 2)
    A[300:] += np.float32(3e-8) * np.sign(A[300:])  # below what a float32 product resolves
    b = A.mean(axis=0, dtype=np.float64)
    ref = naive.naive_omp(A, b, 60)
    comp = omp_select(A, b, 60)
    assert comp.indices.tolist() == [c[0] for c in ref]
    assert comp.stats.exact_checks > 0


@pytest.mark.process  # some seconds
def test_omp__hundred_thousand_equal_rows_are_taken_in_order() -> None:
    A = np.ones((100_000, 8), np.float32)
    comp = omp_select(A, np.ones(8), 3000)
    assert comp.indices.tolist() == list(range(3000))
    assert comp.rounds.tolist() == list(range(3000))
    aside = omp_select(A, np.array([1.0, 0, 0, 0, 0, 0, 0, 0]), 300)
    assert aside.indices.tolist() == list(range(300))


def test_omp__budget_of_zero_chooses_nothing() -> None:
    A = unit_rows(10, 4, 0)
    comp = omp_select(A, A.mean(axis=0), 0)
    assert comp.indices.shape == comp.weights.shape == (0,)
    assert comp.residual == pytest.approx(1.0)
    np.testing.assert_allclose(comp.margins, A @ A.mean(axis=0), atol=1e-6)


def test_omp__budget_over_n_chooses_every_row_once() -> None:
    A = unit_rows(40, 8, 1)
    assert sorted(omp_select(A, A.mean(axis=0), 1000).indices.tolist()) == list(range(40))


def test_omp__no_rows_and_one_row() -> None:
    assert omp_select(np.empty((0, 3), np.float32), np.ones(3), 5).indices.size == 0
    comp = omp_select(np.array([[3.0, 4.0]], np.float32), np.array([3.0, 4.0]), 1)
    assert comp.indices.tolist() == [0]
    assert comp.weights[0] == pytest.approx(25 / 26)


def test_omp__target_of_length_zero_takes_rows_in_order() -> None:
    comp = omp_select(unit_rows(20, 4, 2), np.zeros(4), 5)
    assert comp.indices.tolist() == [0, 1, 2, 3, 4]
    assert comp.weights.tolist() == [0.0] * 5
    assert comp.residual == 0.0


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("streamed", [False, True])
def test_omp__refuses_a_row_that_is_not_finite_and_names_it(wrong: float, streamed: bool) -> None:
    A = unit_rows(300, 16, 4)
    A[217, 3] = wrong
    with pytest.raises(UserError, match="row 217"):
        omp_select(ArrayRows(A, 50) if streamed else A, np.ones(16), 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.ones(5)}, r"shape \(5,\)"),
        ({"target": np.array([0, np.nan, 0, 0])}, "dimension 1"),
        ({"budget": -1}, "budget -1"),
        ({"ridge": 0.0}, "ridge 0.0"),
        ({"features": np.ones(4)}, "two-dimensional"),
        ({"memory_limit": 1000}, "raise memory_limit"),
    ],
)
def test_omp__refuses_mistakes_with_the_value_and_a_remedy(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"features": unit_rows(10, 4, 0), "target": np.ones(4), "budget": 3} | change
    with pytest.raises(UserError, match=message):
        omp_select(**arguments)


def test_omp__reports_progress_and_what_it_spent() -> None:
    A = unit_rows(500, 64, 11)
    seen: list[tuple[int, int]] = []
    comp = omp_select(A, A[0], 60, progress=lambda done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {60}
    assert all(0 <= done <= 60 for done, _ in seen)
    assert seen[-1] == (60, 60)
    assert comp.stats.columns - comp.stats.unused <= 60
    assert comp.stats.rounds == comp.rounds[-1] + 1 < len(seen)  # within rounds, too


@pytest.mark.process
def test_omp__needs_no_torch() -> None:
    code = "import sys, tagcos_stream.selection.pursuit.omp; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.process
def test_omp__kernels_interpreted_choose_the_same() -> None:
    """The same checks as above, with Numba switched off: kernels are plain Python."""
    code = (
        "from tests.method import test_omp as t; from tagcos_stream.selection.pursuit import kernels as k;"
        "assert not k.compiled(); [t.check(seed) for seed in range(0, 64)]"
    )
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


def test_shortlist__products_follow_rows_that_come_and_go() -> None:
    rng = np.random.default_rng(5)
    A = unit_rows(300, 32, 5)
    with open_rows(A, hold=True) as rows:
        slots = gram_cache.Slots(rows, 60)
        listed = gram_cache.Shortlist(rows, slots, 40)
        for _ in range(200):
            free = np.flatnonzero(slots.slot_of < 0)
            wanted = np.sort(rng.choice(free, rng.integers(0, 21), replace=False))
            listed.add(wanted)
            before = listed.row[: listed.size].copy()
            assert listed.size <= 40
            assert len(np.unique(before)) == listed.size
            assert np.isin(wanted, before).all()
            drafted = rng.choice(free, 9, replace=False)
            if len(drafted) > slots.room:
                kept = np.sort(rng.choice(slots.size, 20, replace=False))
                slots.keep(kept)
                listed.keep(kept)
            slots.add(drafted)
            listed.hand_over(drafted)
            here = listed.row[: listed.size]
            assert set(here) == set(before) - set(drafted)
            np.testing.assert_allclose(listed.gram[: listed.size, : listed.size], A[here] @ A[here].T, atol=1e-4)
            slots.open[rng.integers(0, slots.size)] = False  # chosen in a round before: needs no products any more
            known = np.flatnonzero(slots.open[: slots.size])
            np.testing.assert_allclose(listed.cross[known, : listed.size], A[slots.row[known]] @ A[here].T, atol=1e-4)


@pytest.mark.parametrize(("p", "b"), [(1, 1), (3, 9), (4, 4), (5, 7), (130, 33)])
def test_exact_products_are_summed_in_float64(p: int, b: int) -> None:
    rng = np.random.default_rng(p)
    left, right = rng.standard_normal((p, 517), np.float32), rng.standard_normal((b, 517), np.float32)
    with open_rows(left, hold=True) as rows:
        np.testing.assert_allclose(rows.exact(left, right), left.astype(np.float64) @ right.astype(np.float64).T, atol=1e-12)
