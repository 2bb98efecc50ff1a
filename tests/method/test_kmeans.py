"""K-means against its definition (tests/naive.py) and scikit-learn, and what must hold for any rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from tagcos_stream.clustering import kmeans, threaded
from tagcos_stream.clustering import stream as kmeans_batches
from tagcos_stream.clustering.assign import Assigned, Assigner, assign_stretch
from tagcos_stream.clustering.exact_pass import StretchSums, pass_sums
from tagcos_stream.clustering.nearest import NearestCentroid
from tagcos_stream.types import ArrayRows, UserError
from tests import naive
from tests.benchmarks.features import Shape


def finished(rows: ArrayRows, clusters: int, seed: int = 0, **options: float) -> kmeans.KMeansState:
    *_, state = kmeans.fit(rows, clusters, seed=seed, **options)  # type: ignore[arg-type]
    assert state.done
    return state


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 256 rows, so that a few thousand rows go through mini-batches as a million would."""
    monkeypatch.setattr(kmeans_batches, "BATCH_BYTES", 1)


@pytest.mark.parametrize(("n", "clusters"), [(1, 1), (14_000, 1), (16_000, 2), (100_000, 10), (1_000_000, 100), (10**7, 1000)])
def test_default_clusters__follows_its_rule(n: int, clusters: int) -> None:
    assert kmeans.default_clusters(n) == clusters
    assert kmeans.default_clusters(10**9) == 10_000


@pytest.mark.parametrize("seed", range(20))
def test_assign__equals_naive(seed: int) -> None:
    r = np.random.default_rng(seed)
    n, dim, clusters = int(r.integers(1, 400)), int(r.choice([1, 3, 64])), int(r.integers(1, 30))
    X, C = r.standard_normal((n, dim)).astype(np.float32), r.standard_normal((clusters, dim)).astype(np.float32)
    ref_labels, ref_distances = naive.naive_assign(X, C)
    found = kmeans.assign(ArrayRows(X, 37), C)
    labels, distances = found.labels, found.distances
    np.testing.assert_array_equal(labels, ref_labels)
    np.testing.assert_allclose(distances, ref_distances, atol=2e-3)
    assert labels.dtype == np.int32
    assert distances.dtype == np.float32
    alone, squared = NearestCentroid(C)(X, np.arange(n, dtype=np.uint64))
    np.testing.assert_array_equal(alone, labels)
    np.testing.assert_array_equal(np.sqrt(squared).astype(np.float32), distances)


def test_nearest_centroid__shares_rows_of_equal_centroids_by_key() -> None:
    C = np.array([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    X = np.array([[2, 0]] * 6 + [[0, 1]], np.float32)
    keys = np.array([0, 1, 2, 3, 4, 5, 5], np.uint64)
    for nearest in (NearestCentroid(C), Assigner(C)):
        labels, squared = nearest(X, keys)
        assert labels.tolist() == [0, 2, 3, 0, 2, 3, 1]
        assert squared.tolist() == [1.0] * 6 + [0.0]


@pytest.mark.parametrize("seed", range(10))
def test_minibatch_step__is_a_running_mean(seed: int) -> None:
    r = np.random.default_rng(seed)
    X = r.standard_normal((300, 12)).astype(np.float32)
    state = next(kmeans.fit(ArrayRows(X, 64), 7, seed=seed))
    ref_centroids, ref_counts, _ = naive.naive_minibatch_step(X, state.centroids, state.counts)
    comp = kmeans.minibatch_step(state, X, seed)
    np.testing.assert_allclose(comp.centroids, ref_centroids, atol=1e-5)
    np.testing.assert_array_equal(comp.counts, ref_counts)


def test_finalise__means_sizes_and_inertia_equal_naive() -> None:
    X = Shape(64, 12, 5).array(5000, np.float16)
    rows = ArrayRows(X, 128)
    comp = kmeans.finalise(rows, finished(rows, 12))
    means, sizes, inertia = naive.naive_cluster_stats(X, comp.labels, len(comp.sizes))
    np.testing.assert_array_equal(comp.sizes, sizes)
    np.testing.assert_allclose(comp.means, means, atol=1e-7)
    np.testing.assert_allclose(comp.inertia, inertia, rtol=1e-9)
    labels, distances = naive.naive_assign(X, comp.centroids)
    np.testing.assert_array_equal(comp.labels, labels)
    np.testing.assert_allclose(comp.distances, distances, atol=1e-3)


@pytest.mark.usefixtures("small_batches")
def test_fit__one_cluster_takes_one_pass() -> None:
    X = Shape(32, 8, 7).array(9000, np.float16)
    rows = ArrayRows(X, 100)
    state = finished(rows, 1)
    assert state.epoch == 1
    comp = kmeans.finalise(rows, state)
    np.testing.assert_allclose(comp.centroids[0], X.astype(np.float64).mean(axis=0), atol=1e-7)
    np.testing.assert_array_equal(comp.labels, 0)


@pytest.mark.process  # some seconds
def test_fit__is_as_good_as_scikit_learn_to_convergence() -> None:
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    X = Shape(128, 20, 3).array(8000)
    rows = ArrayRows(X, 256)
    comps = [kmeans.finalise(rows, finished(rows, 20, seed)) for seed in range(5)]
    runs = [KMeans(20, n_init=1, random_state=seed).fit(X) for seed in range(5)]
    reached = [float((comp.distances.astype(np.float64) ** 2).sum()) for comp in comps]
    assert np.median(reached) < 1.005 * np.median([run.inertia_ for run in runs])  # single runs end in different minima
    best = min(runs, key=lambda run: run.inertia_)
    ours = np.median([adjusted_rand_score(comp.labels, best.labels_) for comp in comps])
    theirs = np.median([adjusted_rand_score(run.labels_, best.labels_) for run in runs if run is not best])
    assert ours > theirs - 0.05


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5, 8])
def test_fit__resumed_equals_uninterrupted_bit_for_bit(stop: int) -> None:
    X = Shape(32, 8, 7).array(9000, np.float16)
    rows = ArrayRows(X, 100)
    whole = list(kmeans.fit(rows, 10, seed=4, max_epochs=2))
    assert len(whole) > 8
    saved = kmeans.KMeansState.from_arrays({k: v.copy() for k, v in whole[stop].to_arrays().items()})
    *_, resumed = kmeans.fit(rows, 10, seed=4, max_epochs=2, state=saved)
    for name, value in whole[-1].to_arrays().items():
        np.testing.assert_array_equal(resumed.to_arrays()[name], value, err_msg=name)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(("n", "block"), [(9, 4), (257, 256), (1301, 37), (3001, 64)])
def test_kmeans__stretches_computed_in_any_order_and_grouping_give_the_same_bits(
    n: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans_batches, "STRETCH_BATCHES", 2)
    rows = ArrayRows(Shape(24, 5, 3).array(n, np.float16), block)
    r = np.random.default_rng(n)
    computed: list[int] = []

    def passes(centroids: np.ndarray, cut: Sequence[kmeans_batches.Stretch]) -> Iterator[StretchSums]:
        nearest = kmeans_batches.Nearest(centroids, "cpu")
        parts = {i: pass_sums(rows, nearest, cut[i]) for i in r.permutation(len(cut)).tolist()}
        computed.append(len(cut))
        while parts:
            first = min(parts)
            run = parts.pop(first)
            if first + 2 in parts and r.random() < 0.5:
                run = run + (parts.pop(first + 1) + parts.pop(first + 2))
            yield run

    def assigning(
        centroids: np.ndarray, tasks: Sequence[tuple[kmeans_batches.Stretch, np.ndarray]]
    ) -> Iterator[tuple[int, Assigned]]:
        for i in r.permutation(len(tasks)).tolist():
            yield i, assign_stretch(rows, Assigner(centroids), *tasks[i])

    whole = list(kmeans.fit(rows, 5, seed=1, max_passes=3))
    smallest, largest = 2, max(4, n // 3)
    ref = kmeans.finalise(rows, whole[-1], min_cluster_rows=smallest, max_cluster_rows=largest)
    under_way = [state for state in whole if state.phase == kmeans.PASSES and state.position]
    for start in (None, under_way[0]):
        *_, state = kmeans.fit(rows, 5, seed=1, max_passes=3, state=start, passes=passes)
        for name, value in whole[-1].to_arrays().items():
            np.testing.assert_array_equal(state.to_arrays()[name], value, err_msg=name)
    assert max(computed) == len(kmeans_batches.stretches(rows))
    comp = kmeans.finalise(rows, state, min_cluster_rows=smallest, max_cluster_rows=largest, assigning=assigning)
    for name in ("centroids", "labels", "distances", "means", "sizes", "inertia"):
        np.testing.assert_array_equal(getattr(comp, name), getattr(ref, name), err_msg=name)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_threaded__any_number_of_threads_gives_the_same_bits(kind: type) -> None:
    r = np.random.default_rng(0)
    X: np.ndarray = r.standard_normal((1001, 3 * threaded.PART // 1001)).astype(kind)
    C, labels = X[:9].astype(np.float32), r.integers(-1, 9, len(X))
    found = []
    for threads in (1, 2, 3, 50, None):
        sums = np.zeros((9, X.shape[1]))
        threaded.add_rows(X, labels, sums, threads)
        near = threaded.decide(X.astype(np.float32), C, np.zeros((len(X), 9), np.float32), np.ones(len(X)), threads)
        found.append((threaded.squared_lengths(X, threads), sums, *near))
    for part, ref in enumerate(found[0]):
        assert {ref.tobytes()} == {each[part].tobytes() for each in found}
    np.testing.assert_allclose(found[0][0], np.square(X, dtype=np.float64).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found[0][1], [X[labels == k].sum(axis=0, dtype=np.float64) for k in range(9)], atol=1e-9)


@pytest.mark.parametrize("threads", [1, 2])
def test_kmeans__keeps_to_the_threads_of_torch(threads: int) -> None:
    X = Shape(64, 8, 7).array(8192, np.float16)
    before = torch.get_num_threads()
    threaded._executor.cache_clear()
    try:
        torch.set_num_threads(threads)
        state = finished(ArrayRows(X), 4)
        kmeans.finalise(ArrayRows(X), state)
    finally:
        torch.set_num_threads(before)
    assert threaded._executor.cache_info().currsize == threads - 1  # one of two threads, none for one


@pytest.mark.usefixtures("small_batches")
def test_fit__states_given_are_not_changed_later() -> None:
    rows = ArrayRows(Shape(16, 4, 1).array(9000), 64)
    seen = [(state, {k: v.copy() for k, v in state.to_arrays().items()}) for state in kmeans.fit(rows, 5, seed=0)]
    for state, copy in seen:
        for name, value in copy.items():
            np.testing.assert_array_equal(state.to_arrays()[name], value)
    assert {state.phase for state, _ in seen} == {kmeans.MINIBATCH, kmeans.PASSES, kmeans.DONE}


def test_fit__passes_never_raise_the_inertia() -> None:
    state = finished(ArrayRows(Shape(48, 15, 2).array(6000), 256), 15, pass_tol=0.0, max_passes=15)
    assert len(state.history) >= 2
    assert (np.diff(state.history) <= 1e-6 * state.history[0]).all()


@pytest.mark.usefixtures("small_batches")
def test_fit__moves_centres_that_no_row_is_near() -> None:
    r = np.random.default_rng(0)
    X = np.concatenate([r.standard_normal((2000, 8)) + 20 * i * np.eye(8)[i] for i in range(4)]).astype(np.float32)
    rows = ArrayRows(X[r.permutation(8000)], 64)
    state = next(kmeans.fit(rows, 4, seed=0))
    centroids = state.centroids.copy()
    centroids[2] = 1e3
    broken = kmeans.KMeansState(**{**vars(state), "centroids": centroids, "counts": np.array([9.0, 9, 0, 9])})
    *_, state = kmeans.fit(rows, 4, seed=0, state=broken)
    comp = kmeans.finalise(rows, state)
    assert sorted(comp.sizes.tolist()) == [2000] * 4


def test_finalise__splits_large_and_merges_small_clusters() -> None:
    X = Shape(32, 30, 9).array(6000)
    rows = ArrayRows(X, 256)
    comp = kmeans.finalise(rows, finished(rows, 30), min_cluster_rows=100, max_cluster_rows=300)
    assert comp.sizes.sum() == 6000
    assert comp.sizes.max() <= 300
    assert comp.sizes.min() >= 100 or (comp.sizes < 100).sum() <= 2  # only where no neighbour had room
    means, sizes, inertia = naive.naive_cluster_stats(X, comp.labels, len(comp.sizes))
    np.testing.assert_array_equal(comp.sizes, sizes)
    np.testing.assert_allclose(comp.means, means, atol=1e-7)
    np.testing.assert_allclose(comp.inertia, inertia, rtol=1e-9)
    exact = np.linalg.norm(X - comp.centroids[comp.labels], axis=1)
    np.testing.assert_allclose(comp.distances, exact, atol=2e-3)


def test_finalise__splits_before_the_pass_that_assigns() -> None:
    """The sizes of the fit's last pass say what is too large: one pass and a few blocks for samples."""
    rows = ArrayRows(Shape(32, 8, 10).array(8000), 50)
    state = finished(rows, 9)
    read: list[int] = []

    class Counted(ArrayRows):
        def read(self, block: int) -> np.ndarray:
            read.append(block)
            return super().read(block)

    comp = kmeans.finalise(Counted(Shape(32, 8, 10).array(8000), 50), state, max_cluster_rows=900)
    assert state.sizes.sum() == 8000
    assert state.sizes.max() > 900 >= comp.sizes.max()
    assert (
        160 < len(read) <= 320
    )  # all for labels, and as many at most for samples, which here are all rows of the large clusters
    without = kmeans.KMeansState(**{**vars(state), "sizes": np.zeros_like(state.sizes)})  # as one before its end has
    later = kmeans.finalise(rows, without, max_cluster_rows=900)
    assert later.sizes.max() <= 900


def test_finalise__merges_into_the_nearest() -> None:
    X = np.array([[0, 0], [0, 1], [0, 2], [10, 0], [10, 1], [10, 2], [7, 1]], np.float32)
    rows = ArrayRows(X, 3)
    state = next(kmeans.fit(rows, 3, seed=0))
    centroids = np.array([[0, 1], [10, 1], [7, 1]], np.float32)
    comp = kmeans.finalise(rows, kmeans.KMeansState(**{**vars(state), "centroids": centroids}), min_cluster_rows=2)
    assert comp.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_allclose(comp.means[1], [9.25, 1.0])
    assert comp.distances[6] == pytest.approx(3.0)


def test_finalise__equal_rows_are_cut_by_order() -> None:
    rows = ArrayRows(np.ones((10_000, 4), np.float32), 512)
    comp = kmeans.finalise(rows, finished(rows, 8), max_cluster_rows=3000)
    assert comp.sizes.sum() == 10_000
    assert comp.sizes.max() <= 3000
    np.testing.assert_allclose(comp.means, 1.0)
    np.testing.assert_allclose(comp.inertia, 0.0, atol=1e-9)


@pytest.mark.parametrize("clusters", [1, 5, 9])
def test_fit__few_rows(clusters: int) -> None:
    X = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float16)
    rows = ArrayRows(X, 4)
    comp = kmeans.finalise(rows, finished(rows, clusters))
    assert comp.sizes.sum() == 9
    assert (comp.sizes > 0).all()


@pytest.mark.parametrize(
    ("clusters", "options", "message"),
    [(0, {}, "0 clusters"), (51, {}, "51 clusters of 50 rows"), (5, {"memory_limit": 1000}, "raise memory_limit")],
)
def test_fit__refuses_mistakes(clusters: int, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        next(kmeans.fit(ArrayRows(np.ones((50, 2), np.float32)), clusters, seed=0, **options))  # type: ignore[arg-type]


def test_finalise__refuses_limits_that_contradict() -> None:
    rows = ArrayRows(np.ones((50, 2), np.float32))
    with pytest.raises(UserError, match="min_cluster_rows 30"):
        kmeans.finalise(rows, finished(rows, 1), min_cluster_rows=30, max_cluster_rows=50)


PEAK = """
import numpy as np
from tagcos_stream.clustering import kmeans
from tagcos_stream.types import ArrayRows
class Made:
    # rows that exist only while they are read: what is measured is the clustering's own memory
    def __init__(self, n, dim, block): self.n_rows, self.dim, self.starts = n, dim, np.append(np.arange(0, n, block), n)
    def read(self, b):
        r = np.random.default_rng(b)
        return r.standard_normal((int(self.starts[b + 1] - self.starts[b]), self.dim), np.float32).astype(np.float16)
small = ArrayRows(np.random.default_rng(0).standard_normal((300, 8)).astype(np.float32))
for s in kmeans.fit(small, 3, seed=0): pass
kmeans.finalise(small, s)
def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")  # the peak so far belongs to imports and to Numba compiling
before = memory("VmRSS")
rows = Made({n}, {dim}, 256)
for s in kmeans.fit(rows, {k}, seed=0, max_passes=1): pass
kmeans.finalise(rows, s)
after = memory("VmHWM")
print(after - before, kmeans.peak_bytes({n}, {dim}, {k}, block_rows=256))
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("n", "dim", "clusters"),
    [
        (20_000, 1024, 40),
        pytest.param(100_000, 1024, 32, marks=pytest.mark.slow),
        pytest.param(1_000_000, 1024, 100, marks=pytest.mark.slow),
    ],
)
def test_kmeans__measured_peak_stays_under_the_formula(n: int, dim: int, clusters: int) -> None:
    code = PEAK.replace("{n}", str(n)).replace("{dim}", str(dim)).replace("{k}", str(clusters))
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    measured, formula = int(output[-2]), int(output[-1])
    assert measured <= formula
    assert measured >= formula / 8, "a formula this loose refuses what would fit"
