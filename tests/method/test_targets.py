"""What a target set asks of groups, held against its definition; and a target that is the pool asks what no target asks."""

from __future__ import annotations

import numpy as np
import pytest

from tagcos_stream.clustering.sums import ClusterSums, Sums
from tagcos_stream.config import Settings
from tagcos_stream.selection import nearest as nearest_module
from tagcos_stream.selection import rds
from tagcos_stream.selection.budget import allocate
from tagcos_stream.selection.methods import METHODS, Group, Limits
from tagcos_stream.selection.nearest import nearest
from tagcos_stream.selection.targets import TargetRows, allocate_by_target, group_targets
from tagcos_stream.types import ArrayRows, UserError
from tests import naive


def stored(n: int, dim: int, seed: int) -> np.ndarray:
    """(n, dim) float16 rows of about unit length, as features are stored."""
    rows = np.random.default_rng(seed).standard_normal((n, dim))
    return (rows / np.linalg.norm(rows, axis=1)[:, None]).astype(np.float16)


def target(n: int, dim: int, parts: int, seed: int) -> TargetRows:
    r = np.random.default_rng(seed)
    numbers = np.unique(r.integers(0, parts, n), return_inverse=True)[1]
    return TargetRows(stored(n, dim, seed).astype(np.float32), numbers, r.uniform(0.1, 3, int(numbers.max()) + 1))


@pytest.mark.parametrize("seed", range(8))
def test_group_targets__equals_naive(seed: int) -> None:
    r = np.random.default_rng(seed)
    made, n_groups = target(int(r.integers(1, 40)), 12, 4, seed), int(r.integers(1, 6))
    labels = r.integers(0, n_groups, len(made.parts))
    vectors, weights = group_targets(made, labels, n_groups)
    rows = made.rows.astype(np.float64)
    expected, shares = naive.naive_targets(rows, made.parts.tolist(), made.weights.tolist(), labels.tolist(), n_groups)
    np.testing.assert_allclose(vectors, expected, atol=1e-12)
    np.testing.assert_allclose(weights / weights.sum(), shares, atol=1e-12)
    assert made.shares.sum() == pytest.approx(1)
    means = [rows[made.parts == part].mean(axis=0) for part in range(len(made.weights))]
    np.testing.assert_allclose(made.part_means(), means, atol=1e-12)


def test_target__a_small_part_is_not_drowned() -> None:
    rows = np.eye(3, dtype=np.float32)[[0] * 98 + [1, 2]]
    parts = np.array([0] * 98 + [1, 2])
    np.testing.assert_allclose(group_targets(TargetRows(rows, parts, np.ones(3)), parts * 0, 1)[0], [[1 / 3] * 3])


@pytest.mark.parametrize("n_clusters", [1, 5])
def test_target__of_the_pool_itself_asks_what_no_target_asks_to_the_bit(n_clusters: int) -> None:
    """Vectors, budgets and so the choice of `tagcos` and `omp` are those of a run without a target."""
    pool = stored(300, 16, 3)
    labels = np.random.default_rng(4).integers(0, n_clusters, 300)
    made = TargetRows(pool.astype(np.float32), np.zeros(300, np.int64), np.array([0.7]))
    vectors, weights = group_targets(made, labels, n_clusters)
    totals = ClusterSums.empty(n_clusters, 16)
    totals.count(pool.astype(np.float32), labels)
    assert vectors.astype(np.float32).tobytes() == totals.centroids().tobytes()
    sizes = np.bincount(labels, minlength=n_clusters)
    assert allocate_by_target(sizes, 37, weights).tolist() == allocate(sizes, 37).tolist()
    whole = group_targets(made, np.zeros(300, np.int64), 1)[0][0]
    assert whole.tobytes() == Sums.of(ArrayRows(pool, 64), np.zeros(300, np.int64), 1).means()[0].tobytes()
    settings = {name: getattr(Settings(), name) for name in METHODS["omp"].settings}
    choices = [METHODS["omp"].choose(Group({}, ArrayRows(pool), mean), 20, settings, Limits()) for mean in (None, whole)]
    assert choices[0].indices.tolist() == choices[1].indices.tolist()
    assert choices[0].weights is not None
    assert choices[1].weights is not None
    assert choices[0].weights.tobytes() == choices[1].weights.tobytes()


@pytest.mark.parametrize("seed", range(40))
def test_allocate_by_target__is_exact_proportional_and_never_above_the_rows(seed: int) -> None:
    r = np.random.default_rng(seed)
    sizes = r.integers(0, 30, int(r.integers(1, 9)))
    weights = np.where(r.random(len(sizes)) < 0.3, 0.0, r.uniform(0.01, 2, len(sizes)))
    if not (weights[sizes > 0] > 0).any():
        sizes[0], weights[0] = 5, 1.0
    total = int(r.integers(0, sizes.sum() + 1))
    budgets = allocate_by_target(sizes, total, weights)
    assert budgets.sum() == total
    assert (budgets >= 0).all()
    assert (budgets <= sizes).all()
    present = (weights > 0) & (sizes > 0)
    if total <= sizes[present].sum():
        assert budgets[~present].sum() == 0
    if total >= present.sum():
        assert (budgets[present] > 0).all()
    assert allocate_by_target(sizes, total, sizes.astype(float)).tolist() == allocate(sizes, total).tolist()


def test_allocate_by_target__refuses_what_cannot_be_shared() -> None:
    with pytest.raises(ValueError, match="budget 9 must lie between 0 and the 8 rows"):
        allocate_by_target(np.array([3, 5]), 9, np.array([1.0, 1.0]))
    with pytest.raises(ValueError, match="one must be above 0"):
        allocate_by_target(np.array([3, 5]), 2, np.array([0.0, 0.0]))


def test_nearest__equals_naive_in_blocks_of_any_size() -> None:
    rows, queries = stored(90, 10, 0), stored(7, 10, 1).astype(np.float64)
    rows[4] = 0
    cosines = np.array([[naive.naive_cosine(row, query) if row.any() else 0 for query in queries] for row in rows.astype(float)])
    for features in (rows, ArrayRows(rows, 13)):
        found = nearest(features, queries)
        assert found.rows.tolist() == cosines.argmax(axis=0).tolist()
        np.testing.assert_allclose(found.cosines, cosines.max(axis=0), atol=1e-6)
        np.testing.assert_allclose(found.row_cosines, cosines.max(axis=1), atol=1e-6)
        assert found.queries[5:].tolist() == cosines.argmax(axis=1)[5:].tolist()
    with pytest.raises(UserError, match="comparing 90 rows of 10 dimensions with 7 target examples"):
        nearest(rows, queries, memory_limit=1000)


def test_rds__parts_take_turns_and_memory_is_checked_first() -> None:
    assert rds.turns(np.array([0, 0, 0, 1]), 6).tolist() == [0, 3, 1, 3, 2, 3]
    rows, wanted = stored(200, 8, 2), stored(3, 8, 3)
    choice = rds.round_robin(ArrayRows(rows, 32), wanted, np.array([0, 0, 1]), 200)
    assert sorted(choice.indices.tolist()) == list(range(200))  # every row, though the queues are sorted in pieces
    with pytest.raises(UserError, match="round robin of 3 target examples over 200 rows"):
        rds.round_robin(rows, wanted, np.array([0, 0, 1]), 5, memory_limit=1000)
    assert nearest_module.peak_bytes(8, 200, 3) > 0


@pytest.mark.parametrize("m", [1, 3, 7])
def test_nearest_and_rds__equal_rows_are_equal_wherever_they_lie(m: int) -> None:
    """The lowest wins, although products in blocks give equal rows other last bits; 33 dimensions, a short last block."""
    for n in (50, 300, 1037, 4100):
        rng = np.random.default_rng(n + m)
        rows = rng.standard_normal((n, 33)).astype(np.float32)
        queries = rng.standard_normal((m, 33))
        same = np.sort(rng.choice(n, n // 3, replace=False))
        rows[same] = rows[same[0]] = queries[0]
        for features in (rows, ArrayRows(rows, 64)):
            found = nearest(features, queries, threads=1)
            assert found.rows[0] == same[0]
            assert len(np.unique(found.row_cosines[same])) == 1
            assert (found.queries[same] == 0).all()
            choice = rds.round_robin(features, queries[:1], np.zeros(1, np.int64), len(same), threads=1)
            np.testing.assert_array_equal(choice.indices, same)
            assert len(np.unique(choice.margins[same])) == 1
