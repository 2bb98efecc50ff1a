"""Rows rounded to whole numbers: what is exact is exact, and what is bounded stays within its bound."""

from __future__ import annotations

import numpy as np
import pytest

from tagcos_stream.rows.held import open_rows, single
from tagcos_stream.selection.pursuit import int_kernels
from tagcos_stream.selection.pursuit.int8_rows import BYTE, PROBES, RoundedRows, width
from tagcos_stream.selection.pursuit.int16_rows import FineRows
from tagcos_stream.types import ArrayRows

KINDS = ["plain", "correlated", "spiky", "sparse", "faint", "huge", "zeros", "equal"]


def rows_of(kind: str, n: int, dim: int, seed: int) -> np.ndarray:
    r = np.random.default_rng(seed)
    A = r.standard_normal((n, dim))
    if kind == "correlated":
        A += 3 * r.standard_normal(dim)
    if kind == "spiky":
        A[:, r.integers(0, dim)] *= 1000
    if kind == "sparse":
        A *= r.random((n, dim)) < 0.05
    if kind == "faint":
        A *= 10.0 ** r.uniform(-30, -8, (n, 1))
    if kind == "huge":
        A *= 10.0 ** r.uniform(8, 16, (n, 1))
    if kind == "zeros":
        A[r.random(n) < 0.5] = 0
    if kind == "equal":
        A[:] = 1 / 3
    return np.ascontiguousarray(A, np.float32)


def test_every_float16_widens_exactly() -> None:
    half = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(64, -1)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(single(half), half.astype(np.float32))


@pytest.mark.parametrize("kind", [np.int8, np.int16])
@pytest.mark.parametrize(("rows", "probes", "dim"), [(4, 4, 1), (5, 7, 16), (9, 4, 17), (66, 33, 250), (130, 17, 1024)])
def test_products_of_whole_numbers_are_exact(rows: int, probes: int, dim: int, kind: type) -> None:
    r = np.random.default_rng(rows)
    W = width(dim)
    codes: np.ndarray = np.zeros((rows, W), kind)
    right = np.zeros((probes, W), np.int16)
    codes[:, :dim] = r.integers(-127, 128, (rows, dim))
    right[:, :dim] = r.integers(-(2**15), 2**15, (probes, dim)) if dim < 300 else r.integers(-5000, 5000, (probes, dim))
    whole = np.full((probes, rows + 5), -1, np.int32)
    int_kernels.multiply(codes, right, whole[:, 2 : rows + 2])
    np.testing.assert_array_equal(whole[:, 2 : rows + 2], right.astype(np.int64) @ codes.astype(np.int64).T)
    assert (whole[:, :2] == -1).all()
    assert (whole[:, rows + 2 :] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 30, 2000])
def test_rounding_to_bytes_stays_within_its_bound(kind: str, dim: int) -> None:
    A = rows_of(kind, 200, dim, 1)
    r = np.random.default_rng(2)
    dither = r.random(dim, np.float32) - np.float32(0.5)
    codes, scale, error = np.zeros((200, width(dim)), np.int8), np.empty(200, np.float32), np.empty(200, np.float32)
    int_kernels.encode(A, dither, BYTE, codes, scale, error)
    near = scale[:, None].astype(np.float64) * codes[:, :dim]
    vectors = np.concatenate([r.standard_normal((50, dim)), np.eye(dim)[:20], A[:50], np.sign(A[:20]), np.ones((1, dim))])
    wrong = np.abs((A.astype(np.float64) - near) @ vectors.astype(np.float64).T)
    assert (wrong <= error[:, None] * np.linalg.norm(vectors.astype(np.float64), axis=1)).all()
    if kind == "plain" and dim == 2000:
        assert (error < 0.006 * np.linalg.norm(A, axis=1)).all()  # a bound that rules nothing out would hold, too


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_row_that_reaches_a_bound_is_ruled_out(kind: str, hold: bool) -> None:
    A = rows_of(kind, 700, 300, 3)
    with open_rows(ArrayRows(A, 90), hold=hold, threads=2) as rows:
        rounded = RoundedRows(rows, hold=hold)
        norm = np.sqrt(rows.scan(np.zeros(300), 0, also=rounded.take_in)[0][:, 1])
        for seed in range(4):
            r = np.random.default_rng(seed)
            residuals = (r.standard_normal((1 + seed * (PROBES - 1) // 3, 300)) * A[5 * seed]).astype(np.float32)
            exact = residuals.astype(np.float64) @ A.astype(np.float64).T
            bound = np.sort(exact, axis=1)[:, -5]  # five rows reach it, one of them just so
            rounded.probe(residuals)
            length = np.linalg.norm(residuals.astype(np.float64), axis=1)
            found = rounded.reaching(length, np.zeros(len(residuals)), bound, norm)
            reached = set(map(tuple, np.argwhere(exact >= bound[:, None]).tolist()))
            assert reached <= set(map(tuple, found.tolist()))
            assert len(found) == len(set(map(tuple, found.tolist())))
            if kind == "plain":
                assert len(found) < 40 * len(residuals)
            for t in (0, len(residuals) - 1):
                room = (0.03 * norm + 1e-30) * length[t]
                if kind in ("plain", "correlated", "zeros"):
                    assert (np.abs(rounded.correlations(t) - exact[t]) <= room).all()


@pytest.mark.parametrize(("p", "v"), [(1, 1), (3, 2), (40, 7), (64, 64)])
def test_products_in_16_bits_are_good_to_draft_by(p: int, v: int) -> None:
    A, B = rows_of("correlated", 64, 500, 4), rows_of("plain", 64, 500, 5)
    with open_rows(A, hold=True) as rows:
        left, right = FineRows(rows, 64), FineRows(rows, 64)
        left.put(slice(0, 64), A)
        right.put(slice(0, 64), B)
        found = left.product(slice(64 - p, 64), right, slice(0, v))
        exact = A[64 - p :].astype(np.float64) @ B[:v].astype(np.float64).T
        lengths = np.linalg.norm(A[64 - p :], axis=1)[:, None] * np.linalg.norm(B[:v], axis=1)
        assert found.shape == (p, v)
        assert (np.abs(found - exact) <= 1e-4 * lengths).all()
        left.copy(np.array([1, 0]), right, np.array([5, 6]))
        np.testing.assert_array_equal(
            left.product(slice(0, 2), right, slice(0, v)), right.product(slice(5, 7), right, slice(0, v))[::-1]
        )
