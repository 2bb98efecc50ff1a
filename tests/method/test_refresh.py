"""Rows join clusters by a rule of their own, sums are exact, drift is seen, and earlier choices are kept within a margin."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest

from tagcos_stream.clustering import drift, kmeans
from tagcos_stream.clustering.assign import assign, count
from tagcos_stream.selection.methods import Group, Limits
from tagcos_stream.selection.pursuit.omp import omp_select
from tagcos_stream.selection.tagcos import TAGCOS
from tagcos_stream.types import ArrayRows
from tests import naive
from tests.benchmarks.features import Shape


def keys(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, n).astype(np.uint64)


def fitted(X: np.ndarray, clusters: int, **options: Any) -> tuple[kmeans.Clustering, np.ndarray]:
    rows, key = ArrayRows(X, 100), keys(len(X))
    state = deque(kmeans.fit(rows, clusters, seed=0), maxlen=1).pop()
    return kmeans.finalise(rows, state, key, **options), key


@pytest.mark.parametrize("seed", range(5))
def test_assign__does_not_depend_on_how_rows_arrive(seed: int) -> None:
    r = np.random.default_rng(seed)
    X = Shape(int(r.choice([3, 64, 1000])), 9, seed).array(700, np.float16)
    C = X[r.choice(700, 9, replace=False)].astype(np.float32)
    C[4] = (C[3] + 1e-7 * r.standard_normal(C.shape[1])).astype(np.float32)  # nearly equal: float32 products cannot tell
    C[6] = C[5]  # equal: shared by key
    key = keys(700, seed)
    whole = assign(ArrayRows(X, 64), C, key)
    shuffled = r.permutation(700)
    for order in (np.arange(700)[::-1], shuffled):
        found = assign(ArrayRows(X[order], 7), C, key[order])
        np.testing.assert_array_equal(found.labels, whole.labels[order])
        np.testing.assert_array_equal(found.distances, whole.distances[order])
        np.testing.assert_array_equal(found.totals.sums, whole.totals.sums)
        np.testing.assert_array_equal(found.totals.inertia(), whole.totals.inertia())
    # one by one, and what is taken off leaves what was never there
    one = assign(ArrayRows(X[5:6]), C, key[5:6])
    assert (one.labels[0], one.distances[0]) == (whole.labels[5], whole.distances[5])
    some, rest = shuffled[:300], shuffled[300:]
    off = whole.totals - count(ArrayRows(X[some]), whole.labels[some], 9)
    only = assign(ArrayRows(X[rest]), C, key[rest]).totals
    np.testing.assert_array_equal(off.centroids(), only.centroids())
    np.testing.assert_array_equal(off.inertia(), only.inertia())
    means, sizes, inertia = naive.naive_cluster_stats(X[rest], whole.labels[rest], 9)
    np.testing.assert_array_equal(only.sizes, sizes)
    np.testing.assert_allclose(only.centroids(), means, atol=1e-7)
    np.testing.assert_allclose(only.inertia(), inertia, atol=1e-7)
    ref, _ = naive.naive_assign(X, C)
    same = whole.labels == ref
    assert set(whole.labels[~same]) <= {5, 6}  # the naive rule knows no keys
    assert set(whole.labels[(ref == 5) | (ref == 6)]) == {5, 6}


@pytest.mark.parametrize("options", [{}, {"min_cluster_rows": 40, "max_cluster_rows": 150}, {"max_cluster_rows": 20}])
def test_finalise__labels_are_those_that_its_centroids_give(options: dict[str, int]) -> None:
    X = Shape(32, 12, 3).array(1500, np.float16)
    X[:200] = X[0]  # equal rows: more than a small cluster may hold
    made, key = fitted(X, 12, **options)
    again = assign(ArrayRows(X, 33), made.centroids, key)
    np.testing.assert_array_equal(again.labels, made.labels)
    np.testing.assert_array_equal(again.distances, made.distances)
    np.testing.assert_array_equal(again.totals.sums, made.totals.sums)
    np.testing.assert_array_equal(again.totals.squares, made.totals.squares)
    assert made.sizes.max() <= options.get("max_cluster_rows", 1500)


def drifted(X: np.ndarray, new: np.ndarray, **changes: object) -> drift.Drift:
    made, _ = fitted(X, 8)
    joined = assign(ArrayRows(new), made.centroids, keys(len(new), 1))
    totals = made.totals + joined.totals
    was = drift.Fitted(made.labels, made.distances, made.sizes, made.means, made.inertia)
    values: dict[str, object] = {"unseen": 0.0, "losses": None, "max_cluster_rows": 10_000} | changes
    return drift.measure(was, joined.labels, joined.distances, sizes=totals.sizes, means=totals.centroids(), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("n", [10, 100, 400])
@pytest.mark.parametrize("seed", range(4))
def test_drift__is_quiet_on_more_of_the_same(n: int, seed: int) -> None:
    X = Shape(256, 8, seed).array(2400 + n, np.float16)
    found = drifted(X[:2400], X[2400:])
    assert found.advice == "keep"
    assert found.share == pytest.approx(n / (2400 + n))


def test_drift__is_quiet_where_clusters_are_small() -> None:
    X = Shape(512, 8, 1).array(260, np.float16)
    assert drifted(X[:240], X[240:]).advice == "keep"


@pytest.mark.parametrize("seed", range(3))
def test_drift__sees_other_data(seed: int) -> None:
    X = Shape(256, 8, seed).array(2400, np.float16)
    other = Shape(256, 8, seed + 100).array(200, np.float16)
    found = drifted(X, other)
    assert found.advice == "recluster"
    assert "further from their centroids" in found.reasons_to_recluster[0]


def test_drift__sees_growth_large_clusters_and_a_stale_warm_up() -> None:
    X = Shape(64, 8, 0).array(1400, np.float16)
    found = drifted(X[:1000], X[1000:], max_cluster_rows=100, unseen=0.6)
    assert found.advice == "recluster and repeat warm-up"
    assert "29% of the pool joined" in found.reasons_to_recluster[0]
    assert "more than 100 rows" in found.reasons_to_recluster[-1]
    assert "60% of the pool was met after the warm-up" in found.reasons_to_warm_up[0]
    losses = (drift.Moments(1000, 2.0, 0.5), drift.Moments(50, 2.6, 0.5))
    assert "1.20 standard deviations above" in drifted(X[:1000], X[1000:1050], losses=losses).reasons_to_warm_up[0]
    few = (drift.Moments(1000, 2.0, 0.5), drift.Moments(3, 2.6, 0.5))
    assert drifted(X[:1000], X[1000:1003], losses=few).reasons_to_warm_up == []


def test_drift__sees_means_move() -> None:
    X = Shape(64, 4, 5).array(1000, np.float16)
    made, _ = fitted(X, 4)
    was = drift.Fitted(made.labels, made.distances, made.sizes, made.means, made.inertia)
    spread = np.sqrt(made.inertia.sum() / 1000)
    moved = made.means + (0.3 * spread * np.eye(64)[0]).astype(np.float32)
    nothing = np.zeros(0, np.int32), np.zeros(0, np.float32)
    options = {"sizes": made.sizes, "max_cluster_rows": 10_000, "unseen": None, "losses": None}
    assert drift.measure(was, *nothing, means=made.means, **options).advice == "keep"  # type: ignore[arg-type]
    found = drift.measure(was, *nothing, means=moved, **options)  # type: ignore[arg-type]
    assert found.movement == pytest.approx(0.3, rel=1e-3)
    assert found.reasons_to_recluster == ["means moved by 0.30 of the rows' spread"]


@pytest.mark.parametrize("margin", [0.0, 0.02, 0.1, 10.0])
def test_keep_earlier__keeps_as_many_as_the_match_allows(margin: float) -> None:
    X = Shape(64, 3, 7).array(600, np.float16)
    rows = ArrayRows(X, 256)
    target = X.astype(np.float64).mean(axis=0)
    was = omp_select(X[:560], X[:560].astype(np.float64).mean(axis=0), 30)
    settings = {"ridge": 1.0, "tol": 1e-4, "sticky": margin}
    fresh, held = (
        TAGCOS.choose(Group(features=rows, mean=target, earlier=earlier), 30, settings, Limits())
        for earlier in (None, was.indices)
    )
    dropped = set(was.indices) - set(fresh.indices)
    assert dropped
    if held.indices.tolist() == fresh.indices.tolist():
        assert margin < 0.1
        return
    assert held.residual is not None
    assert fresh.residual is not None
    assert held.residual <= (1 + margin) * fresh.residual
    assert len(set(held.indices)) == 30
    place = [fresh.indices.tolist().index(row) for row in held.indices if row in fresh.indices]
    assert held.indices[: len(place)].tolist() == fresh.indices[place].tolist()
    for name in ("scores", "rounds", "residuals"):  # of the fresh choices; those kept were chosen in no round
        np.testing.assert_array_equal(getattr(held, name), getattr(fresh, name)[place])
    kept = set(held.indices) - set(fresh.indices)
    assert kept <= dropped
    assert set(was.indices) & set(fresh.indices) <= set(held.indices)
    if margin == 10.0:
        assert kept == dropped  # nobody loses by as much
    ref = naive.naive_weights(X, target, held.indices.tolist())
    assert held.weights is not None
    np.testing.assert_allclose(held.weights, ref, atol=1e-6)
    left = target - ref @ X[held.indices].astype(np.float64)
    assert held.residual == pytest.approx(np.linalg.norm(left) / np.linalg.norm(target), rel=1e-6)
    np.testing.assert_allclose(held.margins, X.astype(np.float64) @ left, atol=1e-4)


def test_keep_earlier__has_nothing_to_keep_where_all_are_chosen_again() -> None:
    X = Shape(16, 2, 1).array(50, np.float16)
    target = X.mean(axis=0)
    settings = {"ridge": 1.0, "tol": 1e-4, "sticky": 1.0}
    fresh = TAGCOS.choose(Group(features=X, mean=target), 5, settings, Limits())
    again = TAGCOS.choose(Group(features=X, mean=target, earlier=fresh.indices[:3]), 5, settings, Limits())
    np.testing.assert_array_equal(again.indices, fresh.indices)
    np.testing.assert_array_equal(again.weights, fresh.weights)
