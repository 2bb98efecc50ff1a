"""Controls and selecting again: every method through the same budget, recording and exports, from stored features alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows import pipeline
from flows.cli.summary import summary
from flows.compare import diagnose
from flows.compare.trials import require_same_lists
from flows.progress import SilentReporter
from flows.report.build import make_report
from storage import check
from storage.catalog import diagnostics, runs, selections, signals
from storage.examples import example_reader
from storage.exports import write as exports
from storage.root import Root, open_root
from tagcos_stream.config import SELECT_FIELDS, load_settings
from tagcos_stream.selection import groups as division
from tagcos_stream.selection.alignment import ALIKE
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.types import UserError
from tests import naive
from tests.flows.conftest import features_of

UNTARGETED = [name for name in METHODS if not METHODS[name].needs_target]  # the others: test_target.py
Maker = Callable[..., dict[str, Any]]


def reselect(root: Root, run: str | None = None, **changes: Any) -> pipeline.Outcome:
    return pipeline.reselect(root.url, run, SilentReporter(), **changes)


@pytest.fixture
def root(selected_root: Root) -> Root:
    return selected_root


@pytest.mark.parametrize("method", UNTARGETED)
def test_select__every_method_is_exact_recorded_and_exported(root: Root, tmp_path: Path, method: str) -> None:
    outcome = reselect(root, method=method, fraction=0.15)
    assert set(outcome.stages) == {"pool", "cluster", "select", "publish"}
    chosen = selections.selection(root.catalog, outcome.run_id)
    assert len(chosen) == chosen["example_id"].n_unique() == 18
    assert (chosen["weight"] >= 0).all()
    if not METHODS[method].weights:
        assert chosen["weight"].unique().to_list() == [1.0]
        assert chosen["share"].sum() == pytest.approx(1)
    # groups add up to the pool, whatever they are
    groups = root.catalog.read("FROM coverage_of(?)", [outcome.run_id])
    assert (groups["size"].sum(), groups["selected"].sum()) == (120, 18)
    expected = {"pool": 1, "clusters": root.catalog.read("SELECT max(n_clusters) AS k FROM clusterings").item()}
    assert len(groups) == expected.get(METHODS[method].within, len(groups))
    assert (groups["selected"] == groups["budget"]).all()
    by_dataset = root.catalog.read("FROM by_dataset(?)", [outcome.run_id])
    assert (by_dataset["pool"].sum(), by_dataset["selected"].sum()) == (120, 18)
    # why: the method, the score, and for those left how many would come before them
    everything = root.catalog.read("SELECT example_id FROM pool_of(?)", [outcome.run_id])["example_id"].to_list()
    reasons = [root.catalog.read("FROM why(?, ?)", [example, outcome.run_id]).row(0, named=True) for example in everything[::24]]
    example = chosen["example_id"][0]
    reasons.append(root.catalog.read("FROM why(?, ?)", [example, outcome.run_id]).row(0, named=True))
    for why in reasons:
        verb = "chosen" if why["chosen"] else "left"
        assert why["reason"].startswith(f"{verb} by {method}: "), why
        assert any(digit in why["reason"] for digit in "0123456789") or "by draw" in why["reason"]
        assert why["chosen"] == (why["places_to_cut"] is None)
    path = tmp_path / "out.jsonl"
    assert exports.export(root, outcome.run_id, path).rows == 18
    weights = pl.read_ndjson(path)["weight"]
    assert weights.mean() == pytest.approx(1)
    if not METHODS[method].weights:
        assert weights.unique().to_list() == pytest.approx([1.0])
    assert check.check(root) == []
    # how well it matches is recorded: of the pool and of every cluster, whatever the method
    match = root.catalog.read("FROM match_of(?) ORDER BY cluster NULLS FIRST", [outcome.run_id])
    assert match["cluster"].to_list() == [None, *range(expected["clusters"])]
    assert match["selected"][0] == match["selected"][1:].sum() == 18
    pool, rows = features_of(root, outcome.run_id)
    at = pool.with_row_index("at").join(chosen.select("example_id", "share"), on="example_id")
    errors = naive.naive_match_errors(rows, np.zeros(120), at["at"].to_numpy(), at["share"].to_numpy())
    assert (match["error_plain"][0], match["error_weighted"][0]) == pytest.approx(errors, abs=1e-6)
    assert match["datasets_reached"][0] == chosen["dataset"].n_unique() / 3


def test_select__methods_choose_what_their_definitions_choose(root: Root) -> None:
    base = runs.complete_run(root.catalog)["run_id"]
    pool, rows = features_of(root, base)
    names = pool["example_id"].to_list()
    known: dict[str, Any] = {"draw": [naive.naive_draw(name, 0) for name in names], "features": rows, "target": rows.mean(axis=0)}
    known |= {column: pool[column].to_list() for column in ("target_tokens", "loss", "norm", "ifd")}
    known["reference"] = pool["example_id"].is_in(list(selections.chosen_by(root.catalog, base))).to_list()

    def chosen(method: str) -> list[str]:
        frame = selections.selection(root.catalog, reselect(root, base, method=method, count=12).run_id)
        return frame.sort("cluster", "rank")["example_id"].to_list()

    for method in UNTARGETED:
        if METHODS[method].within == "pool":
            ref = getattr(naive, "choose_" + method.replace("-", "_"))(known, 12)
            assert chosen(method) == [names[i] for i in ref], method
    # balanced: equally many of each of the three datasets
    balanced = selections.selection(root.catalog, reselect(root, base, method="balanced", count=12).run_id)
    assert balanced["dataset"].value_counts()["count"].to_list() == [4, 4, 4]
    # stratified: every source and length in proportion
    strata = division.strata(pool["dataset"].to_list(), pool["target_tokens"].to_numpy())
    sizes = np.bincount(strata)
    got = np.bincount(strata[[names.index(name) for name in chosen("stratified")]], minlength=len(sizes))
    assert got.tolist() == naive.allocate(sizes.tolist(), 12)


def test_select__takes_the_settings_of_the_run_it_names(root: Root) -> None:
    first = runs.complete_run(root.catalog)["run_id"]
    second = reselect(root, method="longest", count=7)
    third = reselect(root, second.run_id, seed=3)  # its method and count stay
    assert third.stages["select"]["selected"] == 7
    assert json.loads(runs.run_status(root.catalog, third.run_id).run["config"])["method"] == "longest"
    assert runs.run_status(root.catalog, third.run_id).run["reselects"] == second.run_id
    fourth = reselect(root, first, fraction=0.2)
    assert fourth.stages["cluster"]["reused"]
    assert fourth.stages["select"]["selected"] == 24
    # the same again is the same selection
    again = reselect(root, first)
    before, after = (selections.selection(root.catalog, run).drop("run_id") for run in (first, again.run_id))
    assert before.equals(after)


def test_select__refuses_what_needs_recomputing(root: Root) -> None:
    with pytest.raises(UserError, match=r"dim cannot change without computing gradients again"):
        reselect(root, dim=64)
    with pytest.raises(UserError, match=r"method: .*given: 'best'"):
        reselect(root, method="best")
    with pytest.raises(UserError, match="there is no run nowhere"):
        reselect(root, "nowhere")
    with pytest.raises(UserError, match="there is no run nowhere"):
        reselect(root, method="length-matched", match_lengths="nowhere")
    with pytest.raises(
        UserError, match=r"choosing 12 of 120 rows .* GiB: raise memory_limit, select fewer, or use --method tagcos"
    ):
        reselect(root, method="omp", memory_limit=0.02)
    assert set(SELECT_FIELDS) <= set(load_settings({}).model_dump())


def test_run__with_lengths_of_a_selection_needs_one_before_any_work(small_settings: Maker) -> None:
    settings = load_settings(small_settings(method="length-matched"))
    for begin in (pipeline.run, pipeline.dry_run):
        with pytest.raises(UserError, match="no run is named: set match_lengths"):
            begin(settings, SilentReporter())
    assert not Path(settings.root).exists()


def test_run__with_a_control_makes_no_clusters(small_settings: Maker) -> None:
    outcome = pipeline.run(load_settings(small_settings(method="hardest")), SilentReporter())
    assert outcome.stages["cluster"]["clusters"] == 0
    root = open_root(small_settings()["root"], create=False)
    assert root.catalog.read("SELECT count(*) AS n FROM clusterings").item() == 0
    assert root.catalog.read("FROM match_of(?)", [outcome.run_id])["cluster"].to_list() == [None]
    assert selections.selection(root.catalog, outcome.run_id)["cluster"].unique().to_list() == [0]
    with pytest.raises(UserError, match="has no clusters to measure by"):
        diagnose.diagnose(root.url, reporter=SilentReporter())


class Interrupting(SilentReporter):
    """Presses Ctrl-C when so many rows are chosen."""

    def __init__(self, after: int) -> None:
        self.after = after

    @contextmanager
    def stage(self, title: str, unit: str) -> Iterator[Any]:
        def progress(done: float, total: float | None = None) -> None:
            if title == "select" and done >= self.after:
                raise KeyboardInterrupt

        yield progress


@pytest.mark.parametrize("method", ["tagcos", "herding-clusters", "stratified"])
def test_select__interrupted_and_resumed_equals_uninterrupted(root: Root, tmp_path: Path, method: str) -> None:
    base = runs.complete_run(root.catalog)["run_id"]
    shutil.copytree(tmp_path / "root", tmp_path / "other")
    other = open_root(str(tmp_path / "other"), create=False)
    changes: dict[str, Any] = {"method": method, "fraction": 0.2}
    reference = selections.selection(other.catalog, reselect(other, base, **changes).run_id).drop("run_id")
    for after in (5, 14):
        with pytest.raises(KeyboardInterrupt):
            pipeline.reselect(root.url, base, Interrupting(after), **changes)
    done = root.catalog.read(
        "SELECT run_id, count(*) AS n FROM run_groups JOIN runs USING (run_id) WHERE reselects = ? GROUP BY ALL", [base]
    )
    assert len(done) == 1
    assert 2 <= done["n"].item() < len(reference["cluster"].unique())
    resumed = reselect(root, base, **changes)
    assert resumed.run_id == done["run_id"].item()
    assert runs.run_status(root.catalog, resumed.run_id).run["attempts"] == 3
    assert selections.selection(root.catalog, resumed.run_id).drop("run_id").equals(reference)


@pytest.mark.parametrize("method", ["herding-clusters", "kcenter", "perplexity"])
def test_select__every_method_chooses_the_same_on_workers(root: Root, tmp_path: Path, method: str) -> None:
    """Of a clustering, of the space and of scalars alone; another root, since equal inputs would copy the choice."""
    shutil.copytree(tmp_path / "root", tmp_path / "other")
    other = open_root(str(tmp_path / "other"), create=False)
    here = reselect(root, method=method, fraction=0.2)
    there = reselect(other, method=method, fraction=0.2, workers=2, threads=1)
    assert here.stages["select"]["copied"] == there.stages["select"]["copied"] == 0
    chosen = [selections.selection(at.catalog, made.run_id).drop("run_id") for at, made in ((root, here), (other, there))]
    assert len(chosen[0]) == 24
    assert chosen[0].equals(chosen[1])


METHODS_FAST = ("tagcos", "random", "herding", "omp", "kcenter")


def test_diagnose__measures_every_unit_once_on_dimensions_it_held_out(root: Root) -> None:
    base = diagnose.diagnose(root.url, fractions=(0.1, 0.2), seeds=(0, 1), reporter=SilentReporter())
    frame = diagnose.table(root.url, base)
    assert sorted(set(frame["method"])) == sorted(UNTARGETED)
    assert len(frame) == 2 * len(UNTARGETED)
    for row in frame.iter_rows(named=True):
        assert row["seeds"] == (2 if METHODS[row["method"]].seeded else 1)
        assert (row["jaccard"] is None) == (row["seeds"] == 1)
        assert row["selected"] == round(120 * row["fraction"])
        assert 0 < row["error_fitted"] < 1.2
        assert 0 < row["clusters_reached"] <= 1
        assert METHODS[row["method"]].weights or row["error_weighted"] == pytest.approx(row["error_plain"])
    # a unit by hand: random chooses by id, so that its errors follow from the held-out dimensions alone
    from tagcos_stream.selection.match import reserved_dimensions

    pool, rows = features_of(root, base)
    names = pool["example_id"].to_list()
    draws = [naive.naive_draw(name, 1) for name in names]
    chosen = np.array(naive.naive_best(draws, draws, 12))
    held = rows[:, reserved_dimensions(256)]
    plain, _ = naive.naive_match_errors(held, np.zeros(120), chosen, np.full(12, 1 / 12))
    stored = root.catalog.read(
        """SELECT error_plain, chosen FROM diagnostics
        WHERE method = 'random' AND seed = 1 AND fraction = 0.1 AND cluster IS NULL AND dimensions = 'reserved'"""
    )
    assert stored["error_plain"].item() == pytest.approx(plain, abs=1e-6)
    assert stored["chosen"].to_list() == [sorted(chosen.tolist())]

    # what is there is not measured again; what is new is added
    before = root.catalog.read("SELECT method, measured_at FROM diagnostics ORDER BY ALL")
    diagnose.diagnose(root.url, base, fractions=(0.1,), seeds=(0, 1), reporter=SilentReporter())
    assert root.catalog.read("SELECT method, measured_at FROM diagnostics ORDER BY ALL").equals(before)
    diagnose.diagnose(root.url, base, methods=("random",), fractions=(0.3,), seeds=(0,), reporter=SilentReporter())
    assert len(diagnose.table(root.url, base)) == len(frame) + 1
    assert ("random", 0.3, 0) in diagnostics.units_done(root.catalog, base)


def test_diagnose__errors_fall_with_the_budget(root: Root) -> None:
    base = diagnose.diagnose(root.url, methods=METHODS_FAST, fractions=(0.05, 1.0), seeds=(0,), reporter=SilentReporter())
    frame = diagnose.table(root.url, base)
    for method in METHODS_FAST:
        small, whole = frame.filter(pl.col("method") == method).sort("fraction")["error_plain"]
        assert small > 0.1
        assert whole < 1e-6, method


def test_diagnose__takes_the_newest_run_that_has_clusters(root: Root) -> None:
    drawn = reselect(root, method="random", fraction=0.1).run_id
    runs.promote(root.catalog, drawn)
    said: list[str] = []
    reporter = SilentReporter()
    reporter.say = said.append  # type: ignore[assignment]
    measured: dict[str, Any] = {"methods": ("random",), "fractions": (0.1,), "seeds": (0,), "reporter": reporter}
    base = diagnose.diagnose(root.url, **measured)
    assert base != drawn
    assert said == [f"run {drawn} has no clusters to measure by: measured on {base}, the newest run that has them"]
    with pytest.raises(UserError, match=f"run {drawn} has no clusters to measure by: name another"):
        diagnose.diagnose(root.url, drawn, **measured)


def test_diagnose__chooses_from_what_the_run_might_choose_from(root: Root) -> None:
    run_id = reselect(root, where="dataset <> 'sums' AND loss > 0", fraction=0.1).run_id
    said: list[str] = []
    reporter = SilentReporter()
    reporter.say = said.append  # type: ignore[assignment]
    methods = ("tagcos", "random")
    diagnose.diagnose(root.url, run_id, methods=methods, fractions=(0.1, 0.7), seeds=(0,), reporter=reporter)
    assert said[0] == f"measured on the 80 of 120 examples that {run_id} might choose from"
    assert [text for text in said if "84 examples are to be chosen, and 80 may be" in text] == said[1:]
    frame = diagnose.table(root.url, run_id)
    assert sorted(frame["method"]) == ["random", "tagcos"]
    assert set(frame["selected"]) == {12}
    # by hand: the best draws of the other rows, against the mean of these
    from tagcos_stream.selection.match import reserved_dimensions

    pool, rows = features_of(root, run_id)
    left = np.flatnonzero((pool["dataset"] != "sums").to_numpy())
    draws = [naive.naive_draw(pool["example_id"][int(i)], 0) for i in left]
    chosen = np.array(naive.naive_best(draws, draws, 12))
    held = rows[left][:, reserved_dimensions(256)]
    plain, _ = naive.naive_match_errors(held, np.zeros(80), chosen, np.full(12, 1 / 12))
    assert frame.filter(pl.col("method") == "random")["error_plain"].item() == pytest.approx(plain, abs=1e-6)


def test_diagnose__leaves_out_what_does_not_fit_and_says_so(root: Root) -> None:
    said: list[str] = []
    reporter = SilentReporter()
    reporter.say = said.append  # type: ignore[assignment]
    base = diagnose.diagnose(root.url, methods=("omp", "random"), fractions=(0.1,), memory_limit=0.02, reporter=reporter)
    assert diagnose.table(root.url, base)["method"].to_list() == ["random"]
    assert len(said) == 1
    assert "omp at 10.0% is left out" in said[0]
    assert "tagcos" in said[0]
    with pytest.raises(UserError, match="unknown method best"):
        diagnose.diagnose(root.url, methods=("best",))
    with pytest.raises(UserError, match=r"fraction 1\.5"):
        diagnose.diagnose(root.url, fractions=(1.5,))
    with pytest.raises(UserError, match=r"^less and rds: a method that chooses by a target set"):
        diagnose.diagnose(root.url, methods=("random", "less", "rds"))


def test_where__true_changes_nothing_and_takes_over_earlier_choices(root: Root) -> None:
    base = runs.complete_run(root.catalog)["run_id"]
    before = selections.selection(root.catalog, base).drop("run_id")
    outcome = reselect(root, base, where="true", target_where="loss > 0")  # which holds for every row
    assert outcome.stages["select"]["copied"] == outcome.stages["select"]["clusters"] > 1
    assert "excluded" not in outcome.stages["select"]
    assert selections.selection(root.catalog, outcome.run_id).drop("run_id").equals(before)


def test_where__only_eligible_rows_are_chosen_and_only_counted_ones_are_matched(root: Root) -> None:
    base = runs.complete_run(root.catalog)["run_id"]
    pool, rows = features_of(root, base)
    median = float(pool["loss"].median())  # type: ignore[arg-type]
    where = f"loss < {median!r} and dataset <> 'cities'"
    kept = pool.with_row_index("at").filter((pl.col("loss") < median) & (pl.col("dataset") != "cities"))["at"].to_numpy()
    known = {"draw": [naive.naive_draw(name, 0) for name in pool["example_id"].gather(kept)], "features": rows[kept]}
    targets = {None: rows[kept], "dataset = 'cities'": rows[(pool["dataset"] == "cities").to_numpy()], "true": rows}
    for target_where, counted in targets.items():
        target = counted.mean(axis=0)
        for method in ("herding",) if target_where == "true" else ("omp",):
            outcome = reselect(root, base, method=method, fraction=0.1, where=where, target_where=target_where)
            chosen = selections.selection(root.catalog, outcome.run_id).sort("rank")
            ref = getattr(naive, "choose_" + method)(known | {"target": target}, 12)  # a tenth of the whole pool
            assert chosen["example_id"].to_list() == [pool["example_id"][int(kept[i])] for i in ref], (method, target_where)
            measured = root.catalog.read("FROM match_of(?) WHERE cluster IS NULL", [outcome.run_id]).row(0, named=True)
            mine = pool.with_row_index("at").join(chosen.select("example_id", "share"), on="example_id")
            estimate = rows[mine["at"].to_numpy()].mean(axis=0)
            error = np.linalg.norm(estimate - target) / np.linalg.norm(target)
            assert measured["error_plain"] == pytest.approx(error, abs=1e-6)
    # in clusters: every group's mean is that of its counted rows; the same rows counted give the same choice
    within = {
        text: selections.selection(root.catalog, reselect(root, base, method="tagcos", where=where, target_where=text).run_id)
        for text in (None, where, "true")
    }
    assert set(within["true"]["example_id"]) <= set(pool["example_id"].gather(kept))
    assert within[None].drop("run_id").equals(within[where].drop("run_id"))
    assert not within[None].drop("run_id").equals(within["true"].drop("run_id"))


def test_where__counts_what_it_excludes_by_reason(root: Root, tmp_path: Path) -> None:
    outcome = reselect(root, where="dataset <> 'sums' AND turns > 2", fraction=0.1)
    assert outcome.stages["select"]["excluded"] == {"dataset != 'sums'": 40, "turns > 2": 40}
    assert (outcome.stages["select"]["pool"], outcome.stages["select"]["eligible"]) == (120, 40)
    counted = root.catalog.read(
        "SELECT reason, examples FROM exclusions_by_reason_of(?) ORDER BY reason", [outcome.run_id]
    ).rows()
    assert counted == [("dataset != 'sums'", 40), ("turns > 2", 40)]
    example = root.catalog.read("SELECT example_id FROM pool_of(?) WHERE dataset = 'sums'", [outcome.run_id])["example_id"][0]
    assert root.catalog.read("FROM why(?, ?)", [example, outcome.run_id])["reason"][0] == "may not be chosen: dataset != 'sums'"
    chosen = root.catalog.read("SELECT dataset FROM selection_of(?)", [outcome.run_id])
    assert set(chosen["dataset"]) == {"cities"}
    # the pool of a run is what has a feature, everywhere
    assert outcome.sentence.startswith("12 of 120 selected")
    listed = runs.list_runs(root.catalog).row(by_predicate=pl.col("run_id") == outcome.run_id, named=True)
    assert (listed["pool"], listed["fraction"]) == (120, pytest.approx(0.1))
    told = summary(root.catalog, outcome.run_id)
    assert (told["usable"], told["without_gradient"]) == (120, 0)
    assert told["excluded"] == {"dataset != 'sums'": 40, "turns > 2": 40}
    assert root.catalog.read("SELECT pool, fraction FROM trend WHERE run_id = ?", [outcome.run_id]).rows() == [(120, 0.1)]
    exports.export(root, outcome.run_id, tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()[0])["fraction"] == pytest.approx(0.1)
    page = make_report(root, outcome.run_id)
    assert "that may be chosen" in page
    assert "turns &gt; 2" in page


def test_where__is_checked_before_any_work_and_against_the_budget(root: Root) -> None:
    known = root.catalog.read("SELECT count(*) AS n FROM runs").item()
    for changes, message in (
        ({"where": "quality > 3"}, "where 'quality > 3': there is no column quality; choose from example_id, dataset"),
        ({"target_where": "loss"}, "target_where 'loss': it gives DOUBLE"),
    ):
        with pytest.raises(UserError, match=message):
            reselect(root, **changes)
    assert root.catalog.read("SELECT count(*) AS n FROM runs").item() == known
    with pytest.raises(UserError, match=r"40 of 120 examples may be chosen, but 60 are to be: 80 fail dataset = 'sums'\. Relax"):
        reselect(root, where="dataset = 'sums'", count=60)
    with pytest.raises(UserError, match="target_where 'loss < 0' holds for none of 120 examples"):
        reselect(root, target_where="loss < 0")
    with pytest.raises(UserError, match='120 fail "cluster" >= 0: no value'):  # what is missing satisfies no condition
        reselect(root, method="random", where="cluster >= 0")
    with pytest.raises(UserError, match=r"cannot be computed: .*Could not convert"):
        reselect(root, where="dataset::INTEGER > 3")


def test_signals__of_answers_are_computed_once_and_choose(root: Root) -> None:
    base = runs.complete_run(root.catalog)
    detail = runs.run_status(root.catalog, base["run_id"]).stages.filter(pl.col("stage") == "gradients")["detail"][0]
    assert json.loads(detail)["ifd"] == 120
    found = root.catalog.read("FROM signals_of(?)", [base["run_id"]])
    assert found["ifd"].null_count() == 0
    assert found["ifd"].is_between(0.5, 2).all()
    texts = {
        row["example_id"]: [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
        for frame in example_reader(root).iterate(found.select("segment", "row", "example_id"))
        for row in frame.iter_rows(named=True)
    }
    repeated = [sum(texts[one] == texts[other] for other in texts) for one in found["example_id"]]
    assert found["repeated"].to_list() == repeated
    assert max(repeated) > 2
    outcome = reselect(root, method="omp", where="ifd < 1.05 AND repeated < 3", fraction=0.05)
    kept = set(found.filter(pl.col("ifd") < 1.05, pl.col("repeated") < 3)["example_id"])
    assert set(selections.selection(root.catalog, outcome.run_id)["example_id"]) <= kept
    assert sum(outcome.stages["select"]["excluded"].values()) == 120 - len(kept)
    with root.catalog.transaction() as connection:
        connection.execute("DELETE FROM answer_losses WHERE row < 5")
    with pytest.raises(UserError, match=r"ifd was not computed for 5 of 120 examples: `tagcos run --ifd`"):
        reselect(root, where="ifd < 1.05", method="random")
    with pytest.raises(UserError, match=r"ifd was not computed for 5 of 120 examples: `tagcos run --ifd`"):
        reselect(root, method="ifd")


def test_signals__of_features_are_computed_for_conditions_that_name_them(root: Root) -> None:
    base = runs.complete_run(root.catalog)["run_id"]
    columns = "SELECT example_id, cluster, pool_alignment, cluster_alignment, target_alignment, alike FROM signals_of(?)"
    assert root.catalog.read(columns, [base])["pool_alignment"].null_count() == 120
    # a condition that holds for every row computes them and changes nothing
    outcome = reselect(root, base, where="alike >= 1 AND target_alignment IS NULL")
    assert outcome.stages["select"]["copied"] == outcome.stages["select"]["clusters"] > 1
    pool, rows = features_of(root, base)
    found = pool.select("example_id").join(root.catalog.read(columns, [outcome.run_id]), on="example_id", maintain_order="left")
    of_pool, of_cluster, alike = naive.naive_alignments(rows, found["cluster"].to_numpy(), ALIKE)
    assert found["pool_alignment"].to_list() == pytest.approx(of_pool, abs=1e-5)
    assert found["cluster_alignment"].to_list() == pytest.approx(of_cluster, abs=1e-5)
    assert found["alike"].to_list() == alike
    assert found["target_alignment"].null_count() == 120
    # without clusters the mean of the pool is the same, and there is nothing else
    median = found["pool_alignment"].median()
    outcome = reselect(root, base, method="random", fraction=0.1, where=f"pool_alignment > {median!r}")
    assert outcome.stages["select"]["eligible"] == 60
    alone = pool.select("example_id").join(root.catalog.read(columns, [outcome.run_id]), on="example_id", maintain_order="left")
    assert alone["pool_alignment"].to_list() == pytest.approx(of_pool, abs=1e-5)
    assert alone["alike"].null_count() == alone["cluster_alignment"].null_count() == 120


def test_exclude__by_a_list_or_a_condition(root: Root, tmp_path: Path) -> None:
    base = runs.complete_run(root.catalog)["run_id"]
    first = reselect(root, base, method="omp", fraction=0.1)
    chosen = selections.selection(root.catalog, first.run_id)["example_id"].to_list()
    listed = tmp_path / "used.txt"
    listed.write_text("\n".join([*chosen, "0" * 32]) + "\n")
    second = reselect(root, base, method="omp", fraction=0.1, exclude=str(listed))
    assert second.stages["select"]["excluded"] == {f"exclude {listed}": 12}
    pool, rows = features_of(root, base)
    kept = pool.with_row_index("at").filter(~pl.col("example_id").is_in(chosen))["at"].to_numpy()
    ref = naive.naive_omp(rows[kept], rows[kept].mean(axis=0), 12)
    others = selections.selection(root.catalog, second.run_id).sort("rank")["example_id"].to_list()
    assert others == [pool["example_id"][int(kept[row])] for row, *_ in ref]
    third = reselect(root, base, method="random", fraction=0.1, exclude="dataset = 'sums' OR turns > 2", where="loss > 0")
    assert third.stages["select"]["excluded"] == {"exclude dataset = 'sums' OR turns > 2": 80}
    missing = rf"exclude {re.escape(str(Path.cwd()))}/none\.txt: "
    for exclude, message in (("none.txt", missing), ("nothing = 3", "there is no column nothing")):
        with pytest.raises(UserError, match=message):
            reselect(root, base, exclude=exclude)


def test_exclude_and_include__a_file_is_the_same_from_any_folder(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = runs.complete_run(root.catalog)["run_id"]
    ids = root.catalog.read("SELECT example_id FROM pool_of(?) ORDER BY 1 LIMIT 6", [base])["example_id"].to_list()
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder, banned in ((here, ids[:3]), (elsewhere, ids[3:])):
        folder.mkdir()
        (folder / "banned.txt").write_text("\n".join(banned))
    pl.DataFrame({"example_id": ids[4:]}).write_csv(here / "gold.csv")
    monkeypatch.chdir(here)
    first = reselect(root, base, method="random", count=12, exclude="banned.txt", include="gold.csv").run_id
    monkeypatch.chdir(elsewhere)  # which has another file of this name, and none of the other
    again = reselect(root, first, count=13).run_id
    for run_id in (first, again):
        assert signals.excluded_ids(root.catalog, run_id, f"exclude {here / 'banned.txt'}") == set(ids[:3])
        assert signals.pinned_ids(root.catalog, run_id) == set(ids[4:])
    row = runs.complete_run(root.catalog, first)
    require_same_lists(root, row, load_settings(pipeline.changed_settings(row, root.url, {})))
    # a run of an earlier version recorded what its user wrote
    with root.catalog.transaction() as connection:
        connection.execute("UPDATE exclusions SET reason = 'exclude banned.txt' WHERE run_id = ?", [first])
        connection.execute(
            'UPDATE runs SET config = json_merge_patch(config, \'{"exclude": "banned.txt"}\') WHERE run_id = ?', [first]
        )
    row = runs.complete_run(root.catalog, first)
    monkeypatch.chdir(here)
    require_same_lists(root, row, load_settings(pipeline.changed_settings(row, root.url, {})))
    monkeypatch.chdir(elsewhere)
    with pytest.raises(UserError, match=f"exclude {elsewhere}/banned.txt: it names other examples than when {first} was made"):
        require_same_lists(root, row, load_settings(pipeline.changed_settings(row, root.url, {})))
