"""The controls against their definitions (tests/naive.py), and what must hold for any rows."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info

from tagcos_stream.clustering.sums import Sums
from tagcos_stream.config import Settings
from tagcos_stream.declare import decided_by
from tagcos_stream.random_bits import draws
from tagcos_stream.rows import blocks
from tagcos_stream.selection import facility_location as facility_location_module
from tagcos_stream.selection import gram_columns, groups, match, perplexity, scores
from tagcos_stream.selection import kcenter as kcenter_module
from tagcos_stream.selection.budget import fill
from tagcos_stream.selection.facility_location import facility_location
from tagcos_stream.selection.herding import herding
from tagcos_stream.selection.kcenter import kcenter
from tagcos_stream.selection.log_det import PENALTY, log_det
from tagcos_stream.selection.methods import METHODS, Choice, Group, Limits, Method, Registry, Words
from tagcos_stream.selection.targets import TargetRows
from tagcos_stream.types import ArrayRows, UserError
from tests import naive
from tests.method.draw_rows import draw_rows


def test_methods__are_those_of_the_settings() -> None:
    assert tuple(METHODS) == get_args(Settings.model_fields["method"].annotation)
    for name, method in METHODS.items():
        assert method.name == name
        assert set(method.settings) <= set(decided_by(Settings, "choice"))


def test_methods__that_cannot_choose_fail_when_they_are_made() -> None:
    def choose(group: Group, budget: int, settings: object, limits: Limits) -> Choice:
        return scores.best(group.columns["loss"], group.columns["draw"], budget)

    words = Words("loss {:.4g}")
    assert Method("mine", "pool", choose, words, columns=("loss", "draw")).settings == ()
    with pytest.raises(TypeError, match="choose must be a function"):
        Method("mine", "pool", "loss", words)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="choose"):
        Method("mine", "pool", words=words)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="within 'cluster' must be"):
        Method("mine", "cluster", choose, words)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown columns \['length'\]"):
        Method("mine", "pool", choose, words, columns=("length",))
    with pytest.raises(ValueError, match="have no field for the score"):
        Method("mine", "pool", choose, Words("high loss", "loss {:.4g}"))
    with pytest.raises(TypeError, match="method best is registered as"):
        Registry({"best": "tagcos_stream.selection.hardest:HARDEST"})["best"]
    with pytest.raises(AttributeError):
        Registry({"best": "tagcos_stream.selection.hardest:EASIEST"})["best"]


def test_methods__get_no_setting_that_they_do_not_declare() -> None:
    group = Group(features=np.eye(3, dtype=np.float32))
    with pytest.raises(KeyError, match="ridge"):
        METHODS["omp"].choose(group, 1, {}, Limits())


@pytest.mark.process
def test_registry__lists_names_without_importing_a_method() -> None:
    code = (
        "import sys; from tagcos_stream.config import Settings; from tagcos_stream.selection.methods import METHODS; "
        "print(len(METHODS)); print(*sorted(sys.modules))"
    )
    count, modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert int(count) == len(METHODS)
    assert not {"numba", "torch", "tagcos_stream.selection.tagcos"} & set(modules.split())


def ids(n: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [generator.bytes(16).hex() for _ in range(n)]


def case(seed: int) -> tuple[np.ndarray, int]:
    """Rows (n, D) float16 as the store gives them, and a budget: scattered, in clumps, or with copies."""
    r = np.random.default_rng(seed)
    n, dim = int(r.integers(1, 120)), int(r.choice([1, 2, 7, 64]))
    return draw_rows(r, n, dim, seed, spread=0.1), int(r.integers(1, n + 3))


# --- one number an example


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_draws__equal_naive_and_follow_from_id_and_seed_alone(seed: int) -> None:
    names = [*ids(200), "0" * 32, "f" * 32]
    drawn = draws(names, seed)
    assert drawn.tolist() == [naive.naive_draw(name, seed) for name in names]
    assert draws(names[50:], seed).tolist() == drawn[50:].tolist()


def test_draws__are_uniform_and_differ_by_seed() -> None:
    names = ids(20_000)
    one, two = draws(names, 0), draws(names, 1)
    assert np.histogram(one, 10, (0, 1))[0].min() > 1800
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.03


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 45))
def test_best__equals_naive_with_ties_by_draw(values: list[float], budget: int) -> None:
    numbers = np.array(values, np.float64)
    drawn = draws(ids(len(values)), 3)
    choice = scores.best(numbers, drawn, budget)
    assert choice.indices.tolist() == naive.naive_best(values, drawn.tolist(), budget)
    assert choice.scores.tolist() == numbers[choice.indices].tolist()


def test_best__ties_do_not_go_to_whoever_comes_first() -> None:
    drawn = draws(ids(1000), 0)
    chosen = scores.best(np.full(1000, 128.0), drawn, 100).indices
    assert 30 < (chosen < 500).sum() < 70


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 20, allow_nan=False), min_size=1, max_size=30))
def test_middle__equals_naive(losses: list[float]) -> None:
    np.testing.assert_allclose(perplexity.middle(np.array(losses)), naive.naive_middle(losses), atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_methods__choose_what_their_definitions_choose(name: str) -> None:
    """Every registered method against the function of its name in tests/naive.py, which a new method must have."""
    method, settings = METHODS[name], Settings()
    for seed in range(6):
        r = np.random.default_rng(seed)
        n, k = int(r.integers(2, 60)), int(r.integers(1, 20))
        rows = r.standard_normal((n, 24)).astype(np.float16)
        columns = {
            "draw": draws(ids(n, seed), seed),
            "target_tokens": r.integers(1, 9, n),  # many are equal
            "loss": r.integers(0, 9, n) / 4,
            "norm": r.integers(1, 9, n) / 8,
            "ifd": np.where(r.random(n) < 0.1, np.nan, r.integers(2, 12, n) / 8),
            "distance": (r.integers(0, 9, n) / 4).astype(np.float32),
            "reference": r.permutation(n) < max(1, n // 3),
        }
        parts = np.sort(r.integers(0, 3, 7))
        wanted = TargetRows(r.standard_normal((7, 24)).astype(np.float32), np.unique(parts, return_inverse=True)[1], np.ones(3))
        near = {"wanted": wanted.rows.astype(np.float64), "parts": wanted.parts.tolist()}
        group = Group(
            {column: columns[column] for column in method.columns},
            ArrayRows(rows, 7) if method.features else None,
            rows.astype(np.float64).mean(axis=0),
            wanted if method.needs_target else None,
        )
        choice = method.choose(group, k, {name: getattr(settings, name) for name in method.settings}, Limits())
        known = {column: columns[column].tolist() for column in method.columns}
        ref = getattr(naive, "choose_" + name.replace("-", "_"))(known | {"features": rows, "target": group.mean} | near, k)
        assert choice.indices.tolist() == ref, f"seed {seed}"
        assert len(choice.margins) == n
        assert (choice.weights is not None) == method.weights


class Watched(ArrayRows):
    """Rows that notice, whenever they are read, how many threads there are and how many BLAS may use."""

    def __init__(self, rows: np.ndarray, block_rows: int) -> None:
        super().__init__(rows, block_rows)
        self.seen: set[tuple[int, int]] = set()

    def read(self, block: int) -> np.ndarray:
        blas = max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
        self.seen.add((threading.active_count(), blas))
        return super().read(block)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.features])
def test_methods__keep_to_their_threads_which_change_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram_columns, "HELD_BYTES", 1)  # read again for every pass
    r = np.random.default_rng(5)
    n = 1500
    rows = r.standard_normal((n, 128)).astype(np.float32)
    method, settings = METHODS[name], Settings()
    read = {setting: getattr(settings, setting) for setting in method.settings}
    wanted = TargetRows(r.standard_normal((7, 128)).astype(np.float32), np.zeros(7, np.int64), np.ones(1))
    choices = []
    for threads in (1, 2):
        watched = Watched(rows, 250)
        group = Group({"draw": draws(ids(n), 0)}, watched, rows.mean(axis=0), wanted if method.needs_target else None)
        before = threading.active_count()
        choices.append(method.choose(group, 200, read, Limits(threads=threads)))
        assert max(now for now, _ in watched.seen) <= before + (threads if threads > 1 else 0)
        assert {blas for _, blas in watched.seen} == {1}, "products on threads of ours and of BLAS"
    for part in ("indices", "scores", "margins", "weights"):
        one, two = (getattr(choice, part) for choice in choices)
        assert (one is None and two is None) or one.tobytes() == two.tobytes(), part


def test_strata__part_sources_and_lengths_and_none_is_empty() -> None:
    r = np.random.default_rng(1)
    sources = [("a", "b", None)[i] for i in r.integers(0, 3, 900)]
    lengths = r.integers(1, 400, 900)
    labels = groups.strata(sources, lengths)
    assert np.bincount(labels).min() > 0
    assert labels.max() + 1 == 3 * groups.LENGTH_BINS
    for stratum in range(labels.max() + 1):
        inside = labels == stratum
        assert len({sources[i] for i in np.flatnonzero(inside)}) == 1
        others = lengths[~inside]
        low, high = lengths[inside].min(), lengths[inside].max()
        same = [i for i in np.flatnonzero(~inside) if sources[i] == sources[np.flatnonzero(inside)[0]]]
        assert not ((lengths[same] > low) & (lengths[same] < high)).any()
        assert others.size


def test_strata__equal_lengths_are_one_stratum_a_source() -> None:
    assert groups.strata(["a", "b", "a"], np.array([7, 7, 7])).tolist() == [0, 1, 0]


# --- k-center


@pytest.mark.parametrize("candidates", [1, 3, 2048])
@pytest.mark.parametrize("start", range(0, 60, 20))
def test_kcenter__chooses_what_the_definition_chooses(monkeypatch: pytest.MonkeyPatch, candidates: int, start: int) -> None:
    monkeypatch.setattr(kcenter_module, "CANDIDATES", candidates)
    monkeypatch.setattr(kcenter_module, "TILE", 5)
    for seed in range(start, start + 20):
        rows, budget = case(seed)
        first = seed % len(rows)
        choice = kcenter(ArrayRows(rows, 13), budget, begin=[first])
        indices, radii = naive.naive_kcenter(rows, budget, [first])
        assert len(set(choice.indices.tolist())) == min(budget, len(rows))
        # copies tie, and so do half-precision numbers on a line: there the radii must agree, elsewhere the rows, too
        np.testing.assert_allclose(choice.scores, radii, atol=1e-5, err_msg=f"seed {seed}")
        if seed % 3 != 2 and rows.shape[1] > 2:
            assert choice.indices.tolist() == indices, f"seed {seed}"
        own = rows.astype(np.float64)
        distances = np.linalg.norm(own[:, None] - own[choice.indices][None], axis=2).min(axis=1)
        np.testing.assert_allclose(choice.margins, distances, atol=0.05)  # float32: the root of 1e-7 of a squared length


def test_kcenter__radii_fall_and_cover() -> None:
    """Gonzalez: every row is within the last radius of a centre, and centres are at least that far apart."""
    rows = np.random.default_rng(5).standard_normal((700, 32)).astype(np.float32)
    choice = kcenter(rows, 60, begin=[3])
    radii = choice.scores[1:]
    assert (np.diff(radii) <= 1e-5).all()
    assert choice.margins.max() <= radii[-1] + 1e-5
    centres = rows[choice.indices]
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2) + 1e9 * np.eye(60)
    assert apart.min() >= radii[-1] - 1e-4


def test_kcenter__reads_again_only_what_comes_to_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kcenter_module, "CANDIDATES", 64)
    rows = np.random.default_rng(6).standard_normal((2000, 16)).astype(np.float32)
    choice = kcenter(ArrayRows(rows, 100), 100, begin=[0])
    assert choice.stats["refills"] * 64 < 2000 * 100 / 5  # rows read; the plain algorithm reads all of them for every choice
    assert choice.stats["measured"] - 2000 * 100 < 0.6 * 2000 * 100  # distances before the last pass


@pytest.mark.parametrize("budget", [0, 1, 2])
def test_kcenter__small_budgets(budget: int) -> None:
    rows = np.array([[0.0], [1.0], [5.0]], np.float32)
    assert kcenter(rows, budget, begin=[1]).indices.tolist() == [1, 2][:budget]


# --- herding


@pytest.mark.parametrize("columns", [1, 4, 256])
@pytest.mark.parametrize("start", range(0, 60, 20))
def test_herding__chooses_what_the_definition_chooses(monkeypatch: pytest.MonkeyPatch, columns: int, start: int) -> None:
    monkeypatch.setattr(gram_columns, "COLUMNS", columns)
    for seed in range(start, start + 20):
        rows, budget = case(seed)
        b = rows.astype(np.float64).mean(axis=0) + (0.3 if seed % 2 else 0.0)
        choice = herding(ArrayRows(rows, 13), b, budget)
        assert choice.indices.tolist() == naive.naive_herding(rows, b, budget), f"seed {seed}"
        own = rows.astype(np.float64)
        step = len(choice.indices) + 1
        residual = step * b - own[choice.indices].sum(axis=0)
        scale = max(float((own**2).sum(axis=1).max()), 1e-30)
        np.testing.assert_allclose(choice.margins, own @ residual - (own**2).sum(axis=1) / 2, atol=1e-5 * scale * step)


def test_herding__held_and_streamed_choose_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(8).standard_normal((900, 128)).astype(np.float16)
    b = rows.astype(np.float64).mean(axis=0)
    held = herding(ArrayRows(rows, 100), b, 90)
    monkeypatch.setattr(gram_columns, "HELD_BYTES", 0)
    streamed = herding(ArrayRows(rows, 100), b, 90)
    np.testing.assert_array_equal(held.indices, streamed.indices)


def test_herding__follows_the_mean_better_than_chance() -> None:
    rows = np.random.default_rng(9).standard_normal((500, 64)).astype(np.float32)
    b = rows.mean(axis=0, dtype=np.float64)
    chosen = rows[herding(rows, b, 50).indices].mean(axis=0)
    assert np.linalg.norm(chosen - b) < 0.5 * np.linalg.norm(rows[:50].mean(axis=0) - b)


def test_herding__all_rows_give_the_mean() -> None:
    rows = np.random.default_rng(10).standard_normal((30, 8)).astype(np.float32)
    assert sorted(herding(rows, rows.mean(axis=0), 99).indices.tolist()) == list(range(30))


def test_controls__that_do_not_fit_say_what_to_change() -> None:
    rows = ArrayRows(np.zeros((50, 8), np.float16))
    with pytest.raises(UserError, match=r"needs .* GiB, limit .* GiB: raise memory_limit, select fewer"):
        kcenter(rows, 5, begin=[0], memory_limit=1000)
    with pytest.raises(UserError, match=r"needs .* GiB, limit .* GiB: raise memory_limit, or choose herding-clusters"):
        herding(rows, np.zeros(8), 5, memory_limit=1000)
    with pytest.raises(UserError, match=r"needs .* GiB, limit .* GiB: raise memory_limit, or lower max_cluster_rows"):
        facility_location(rows, 5, memory_limit=1000)
    with pytest.raises(UserError, match=r"needs .* GiB, limit .* GiB: raise memory_limit, select fewer, or lower max_cluster"):
        log_det(rows, 5, np.zeros(50), memory_limit=1000)


# --- facility location and log-determinant


@pytest.mark.parametrize("columns", [1, 8, 256])
def test_submodular__choose_what_their_definitions_choose(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(gram_columns, "COLUMNS", columns)
    monkeypatch.setattr(facility_location_module, "BATCH", columns)
    monkeypatch.setattr(facility_location_module, "SIMILARITIES", 4 * 256 if columns < 256 else 1 << 30)
    for seed in range(12):
        rows, budget = case(seed)
        rows[:1] *= seed % 2  # a row of length 0
        draw = draws(ids(len(rows), seed), seed)
        located = facility_location(ArrayRows(rows, 13), budget)
        spread = log_det(ArrayRows(rows, 13), budget, draw)
        agreeing = log_det(ArrayRows(rows, 13), budget, draw, penalty=PENALTY)
        known = {"features": rows, "draw": draw}
        for choice, ref in (
            (located, naive.choose_facility_location(known, budget)),
            (spread, naive.choose_log_det(known, budget)),
            (agreeing, naive.choose_spice(known, budget)),
        ):
            assert len(set(choice.indices.tolist())) == min(budget, len(rows))
            if seed % 3 == 0 and rows.shape[1] > 2:  # copies tie, and so do clumps and rows on a line
                assert choice.indices.tolist() == ref, f"seed {seed}"
        S = naive.naive_cosines(rows)
        nearest = np.maximum(S[:, located.indices].max(axis=1), 0)
        np.testing.assert_allclose(located.margins, np.maximum(S - nearest[:, None], 0).sum(axis=0), atol=1e-4)
        kernel = S + np.eye(len(S))
        inside = np.linalg.inv(kernel[np.ix_(spread.indices, spread.indices)])
        left = np.setdiff1d(np.arange(len(S)), spread.indices)
        cross = kernel[np.ix_(left, spread.indices)]
        added = np.diag(kernel)[left] - np.einsum("ij,jk,ik->i", cross, inside, cross)
        np.testing.assert_allclose(np.exp(spread.margins[left]), added, atol=1e-4)


def test_submodular__gains_fall_and_add_up() -> None:
    rows = np.random.default_rng(7).standard_normal((150, 20)).astype(np.float32)
    S = naive.naive_cosines(rows)
    located, spread = facility_location(rows, 40), log_det(rows, 40, np.arange(150.0))
    for choice in (located, spread):
        assert (np.diff(choice.scores) <= 1e-5).all()
    assert located.scores.sum() == pytest.approx(np.maximum(S[:, located.indices].max(axis=1), 0).sum(), rel=1e-5)
    kernel = (S + np.eye(150))[np.ix_(spread.indices, spread.indices)]
    assert spread.scores.sum() == pytest.approx(np.linalg.slogdet(kernel)[1], rel=1e-5)


def test_spice__penalty_keeps_the_chosen_from_opposing_each_other() -> None:
    rows = np.random.default_rng(9).standard_normal((300, 30)).astype(np.float32)
    rows[:, 0] += np.where(np.arange(300) % 3, 2, -2)  # a third opposes the others
    draw = (np.arange(300) == 1).astype(np.float64)

    def opposing(choice: Choice) -> int:
        U = rows[choice.indices] / np.linalg.norm(rows[choice.indices], axis=1, keepdims=True)
        return int((U @ U.mean(axis=0) < 0).sum())

    counts = [opposing(log_det(rows, 60, draw, penalty=penalty)) for penalty in (0.0, PENALTY, 100.0)]
    assert counts[0] > counts[1] > counts[2], counts
    assert METHODS["spice"].choose(Group({"draw": draw}, rows), 60, {}, Limits()).indices.tolist() == (
        log_det(rows, 60, draw, penalty=PENALTY).indices.tolist()
    )
    margins = log_det(rows, 20, draw, penalty=PENALTY).margins
    following = log_det(rows, 21, draw, penalty=PENALTY)
    assert following.scores[20] == pytest.approx(margins[following.indices[20]], abs=1e-6)


def test_facility_location__evaluates_few_rows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(8).standard_normal((1000, 32)).astype(np.float32)
    choice = facility_location(ArrayRows(rows, 100), 50)
    assert choice.stats["evaluations"] < 1000 * 50 / 5  # the plain algorithm evaluates all of them for every choice


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # submodlib's own
@pytest.mark.parametrize("seed", range(3))
def test_submodular__choose_what_submodlib_chooses(seed: int) -> None:
    submodlib = pytest.importorskip("submodlib", reason="submodlib-py is the specification of this test")
    r = np.random.default_rng(seed)
    rows, budget = r.standard_normal((80, 16)).astype(np.float32), 15
    S = naive.naive_cosines(rows)
    kernel = np.maximum(S, 0)
    theirs = submodlib.FacilityLocationFunction(n=80, mode="dense", sijs=kernel, separate_rep=False)
    located = [i for i, _ in theirs.maximize(budget=budget, optimizer="NaiveGreedy", show_progress=False)]
    assert facility_location(rows, budget).indices.tolist() == located
    theirs = submodlib.LogDeterminantFunction(n=80, mode="dense", lambdaVal=1.0, sijs=S)
    spread = [i for i, _ in theirs.maximize(budget=budget, optimizer="NaiveGreedy", show_progress=False)]
    draw = (np.arange(80) == spread[0]).astype(np.float64)  # all rows add the same at first
    assert log_det(rows, budget, draw).indices.tolist() == spread


# --- shares, lengths and the negative control


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_fill__equals_naive(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=8))
    weights = data.draw(st.lists(st.sampled_from([0.1, 0.5, 1.0, 1.0, 3.0]), min_size=len(sizes), max_size=len(sizes)))
    total = data.draw(st.integers(0, sum(sizes)))
    shares = fill(np.array(sizes), total, np.array(weights))
    assert shares.tolist() == naive.naive_fill(sizes, total, weights)
    assert shares.sum() == total
    assert (shares <= sizes).all()


def test_fill__a_group_with_too_few_rows_gives_all_and_the_others_share_the_rest() -> None:
    assert fill(np.array([2, 50, 50]), 30, np.ones(3)).tolist() == [2, 14, 14]
    assert fill(np.array([50, 50, 50]), 31, np.array([1.0, 1.0, 2.0])).tolist() == [8, 8, 15]
    with pytest.raises(ValueError, match="budget 6 must lie between 0 and the 5 rows"):
        fill(np.array([2, 3]), 6, np.ones(2))
    with pytest.raises(ValueError, match="weights must be above 0"):
        fill(np.array([2, 3]), 1, np.zeros(2))


def test_length_matched__has_the_lengths_of_the_other_selection() -> None:
    r = np.random.default_rng(3)
    lengths, reference = r.integers(1, 400, 4000), np.zeros(4000, bool)
    reference[r.permutation(np.argsort(-lengths)[:900])[:300]] = True  # of the longest
    columns = {"draw": r.random(4000), "target_tokens": lengths, "reference": reference}
    chosen = METHODS["length-matched"].choose(Group(columns), 200, {}, Limits()).indices
    marks = np.arange(0.05, 1, 0.1)
    np.testing.assert_allclose(np.quantile(lengths[chosen], marks), np.quantile(lengths[reference], marks), atol=4)
    assert 0 < reference[chosen].sum() < 200  # it is random among them, not the same examples
    columns["reference"] = np.zeros(4000, bool)
    with pytest.raises(UserError, match="name another with match_lengths"):
        METHODS["length-matched"].choose(Group(columns), 200, {}, Limits())


def test_shuffled__chooses_the_features_of_the_pursuit_for_other_rows() -> None:
    r = np.random.default_rng(4)
    rows, settings = r.standard_normal((300, 32)).astype(np.float16), {"ridge": 1.0, "tol": 1e-4, "sticky": None}
    group = Group({"draw": r.random(300)}, rows)
    other = METHODS["shuffled"].choose(group, 40, {name: settings[name] for name in ("ridge", "tol")}, Limits())
    own = METHODS["tagcos"].choose(group, 40, settings, Limits())
    np.testing.assert_array_equal(other.weights, own.weights)
    assert sorted(other.margins.tolist()) == sorted(own.margins.tolist())
    assert len(np.intersect1d(other.indices, own.indices)) < 20


# --- how well a selection stands for its pool


@pytest.mark.parametrize("seed", range(10))
def test_match__equals_naive(seed: int) -> None:
    r = np.random.default_rng(seed)
    n, dim, k = int(r.integers(5, 200)), int(r.choice([1, 5, 40])), int(r.integers(1, 6))
    rows = r.standard_normal((n, dim)).astype(np.float32) + 1
    labels = r.integers(0, k, n)
    labels[:k] = np.arange(k)[: len(labels[:k])]
    k = int(labels.max()) + 1
    chosen = r.choice(n, int(r.integers(1, n + 1)), replace=False)
    shares = r.random(len(chosen)) / len(chosen)
    means = Sums.of(ArrayRows(rows, 17), labels, k).means()
    sizes = np.bincount(labels, minlength=k)
    found = match.match(means, sizes, lambda part: rows[chosen[part]], labels[chosen], shares)
    plain, weighted = naive.naive_match_errors(rows.astype(np.float64), labels, chosen, shares)
    assert found.plain == pytest.approx(plain, abs=1e-9)
    assert found.weighted == pytest.approx(weighted, abs=1e-9)
    assert found.selected.tolist() == np.bincount(labels[chosen], minlength=k).tolist()
    for cluster in range(k):
        inside, mine = labels == cluster, labels[chosen] == cluster
        own = rows[inside].astype(np.float64)
        if mine.any():
            index = np.searchsorted(np.flatnonzero(inside), chosen[mine])
            own_shares = shares[mine] * n / inside.sum()
            plain, weighted = naive.naive_match_errors(own, labels[inside], index, own_shares)
            assert found.cluster_plain[cluster] == pytest.approx(plain, abs=1e-9)
            assert found.cluster_weighted[cluster] == pytest.approx(weighted, abs=1e-9)
        else:
            assert found.cluster_plain[cluster] == found.cluster_weighted[cluster] == 1.0


def test_match__the_whole_pool_has_no_error() -> None:
    rows = np.random.default_rng(0).standard_normal((90, 12))
    labels = np.arange(90) % 3
    means = Sums.of(ArrayRows(rows), labels, 3).means()
    found = match.match(means, np.full(3, 30), lambda part: rows[part], labels, np.full(90, 1 / 90))
    assert max(found.plain, found.weighted, *found.cluster_plain, *found.cluster_weighted) < 1e-12


def test_reserved_dimensions__are_an_eighth_and_always_the_same() -> None:
    held = match.reserved_dimensions(256)
    assert held.sum() == 32
    assert (held == match.reserved_dimensions(256)).all()
    rows = np.random.default_rng(0).standard_normal((40, 256)).astype(np.float16)
    seen, other = blocks.Dimensions(ArrayRows(rows, 16), ~held), blocks.Dimensions(ArrayRows(rows, 16), held)
    assert (seen.dim, other.dim, seen.n_rows) == (224, 32, 40)
    both = np.empty((16, 256), np.float16)
    both[:, ~held], both[:, held] = seen.read(1), other.read(1)
    np.testing.assert_array_equal(both, rows[16:32])


def test_fitted_weights__match_better_than_any_scaling_of_plain_ones() -> None:
    rows = np.random.default_rng(3).standard_normal((200, 50)).astype(np.float32) / 7
    mean = rows.mean(axis=0, dtype=np.float64)
    chosen = rows[:40]
    weights = match.fitted_weights(chosen, mean, 1e-6)
    assert (weights >= 0).all()
    plain = chosen.mean(axis=0)
    scaled = plain * (plain @ mean) / (plain @ plain)
    assert match.relative_error(weights @ chosen, mean) <= match.relative_error(scaled, mean)


def test_reached__counts_kinds() -> None:
    assert match.reached(["a", "a"], ["a", "b", None, "b"]) == pytest.approx(1 / 3)
