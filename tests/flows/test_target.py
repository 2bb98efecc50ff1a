"""Target sets: read like sources, kept apart from the pool, found again by name, and chosen for."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows import pipeline
from flows.context import open_settings_root, start_or_resume
from flows.plan import Plan
from flows.progress import SilentReporter, Stage
from flows.report.build import make_report
from flows.stages.ingest import ingest
from flows.stages.select import _shares
from flows.stages.target_rows import GroupTargets
from storage import check, forget
from storage.arrays import segments
from storage.catalog import pool, runs, selections, spaces, targets
from storage.root import Root, open_root
from tagcos_stream.config import load_settings
from tagcos_stream.data.same_words import word_keys
from tagcos_stream.selection.division import Division
from tagcos_stream.selection.groups import by_label
from tagcos_stream.types import UserError
from tests import naive
from tests.flows.conftest import SMALL, TOPICS, conversation, features_of


class Comparisons(SilentReporter):
    """Keeps how many examples of the pool were compared with the target, each time."""

    def __init__(self) -> None:
        self.rows: list[float] = []

    @contextmanager
    def stage(self, title: str, unit: str) -> Iterator[Stage]:
        yield lambda done, total=None: self.rows.append(done) if title == "compare pool with target" else None


def write(path: Path, conversations: list[list[dict[str, str]]], dataset: str | None = None) -> None:
    named = {} if dataset is None else {"dataset": dataset}
    path.write_text("".join(json.dumps({"messages": c, **named}) + "\n" for c in conversations), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A folder with a root: 120 examples in three topics; a target of two parts, of which four rows repeat rows of the pool."""
    folder = tmp_path_factory.mktemp("target")
    (folder / "pool").mkdir()
    for topic in TOPICS:
        write(folder / "pool" / f"{topic}.jsonl", [conversation(topic, n) for n in range(40)])
    sums = [conversation("sums", n) for n in (100, 101, 102, 103, 104)]
    equal = [conversation("sums", n) for n in (0, 1)]
    shouted = [[{**turn, "content": turn["content"].upper() + " !"} for turn in conversation("cities", n)] for n in (2, 3)]
    write(folder / "sums.jsonl", [*sums, *equal])
    write(folder / "cities.jsonl", [conversation("cities", 100), *shouted])
    listed = "".join(
        f"[[source]]\npath = '{name}.jsonl'\n{weight}\n" for name, weight in (("sums", "weight = 3"), ("cities", ""))
    )
    (folder / "wanted.toml").write_text(listed)
    values = {"sources": (str(folder / "pool"),), "root": str(folder / "root"), "model": str(model_folder)}
    settings = load_settings(SMALL | values | {"target": (str(folder / "wanted.toml"),)})
    planned = pipeline.dry_run(settings, SilentReporter()).step("gradients")
    done = pipeline.run(settings, SilentReporter())
    assert done.plan is not None
    # two rows of the pool that repeat the target in other letters are known once they are compared
    assert (planned.compute, done.stages["gradients"]["computed"]) == (128, 128)
    assert counted(done.plan) == (128, 128)
    assert counted(pipeline.dry_run(settings, SilentReporter())) == (0, 128)
    again = load_settings(SMALL | values | {"target": ("wanted",)})
    assert counted(pipeline.dry_run(again, SilentReporter())) == (0, 128)
    return folder


def counted(plan: Plan) -> tuple[int, int]:
    step = plan.step("gradients")
    return step.compute, step.total


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Root:
    shutil.copytree(made / "root", tmp_path / "root")
    return open_root(str(tmp_path / "root"), create=False)


def test_target__is_kept_out_of_the_pool_and_counted(root: Root) -> None:
    run_id = runs.find_run(root.catalog)
    found = targets.of_run(root.catalog, run_id)
    assert found is not None
    assert found.name == "wanted"
    rows = targets.examples(root.catalog, found.target_id)
    assert rows.group_by("part").agg(pl.len(), pl.col("weight").first()).sort("part").rows() == [
        ("cities", 3, 1.0),
        ("sums", 7, 3.0),
    ]
    # two equal rows, and two that differ in case and punctuation
    assert targets.repeats(root.catalog, run_id) == {"in the target": 2, "same words as in the target": 2}
    pooled = pool.pool(root.catalog, run_id)
    assert len(pooled) == 116
    assert not set(pooled["example_id"]) & set(rows["example_id"])
    detail = json.loads(root.catalog.read("SELECT detail FROM stages WHERE stage = 'ingest'").item())
    assert (detail["examples"], detail["target"], detail["target_repeats"]) == (116, "wanted", 4)
    reasons = root.catalog.read("FROM rejects_by_reason").filter(pl.col("stage") == "target").sort("rows")
    assert reasons["rows"].sum() == 4
    assert check.check(root) == []


def test_word_keys__ignore_case_spacing_punctuation_and_system() -> None:
    def keys(*contents: str) -> int:
        turns = [{"role": role, "content": text} for role, text in zip(("system", "user", "assistant"), contents, strict=True)]
        return int(word_keys(pl.Series([turns]))[0])

    assert keys("be brief", "What is 1 + 1?", "Two.") == keys("", "what is  1+1", "two")
    assert keys("", "a b", "c") != keys("", "a c", "b")
    assert keys("", "?", "!") == 0
    assert len(word_keys(pl.Series([], dtype=pl.List(pl.Struct({"role": pl.String, "content": pl.String}))))) == 0


def test_target__selection_stands_for_the_target_and_says_so(root: Root) -> None:
    run_id = runs.find_run(root.catalog)
    chosen = selections.selection(root.catalog, run_id)
    assert len(chosen) == 12
    # the features of the target were computed with the pool's
    space = runs.run_status(root.catalog, run_id).run["space_id"]
    found = targets.of_run(root.catalog, run_id)
    assert found is not None
    wanted = targets.with_features(root.catalog, found.target_id, space)
    assert len(wanted) == 10
    # the budget goes where the target is, and weights are shares of the target
    groups = root.catalog.read("FROM run_groups WHERE run_id = ?", [run_id])
    assert groups["target_share"].sum() == pytest.approx(1)
    assert groups.filter(pl.col("target_share") > 0).select(pl.col("budget").min()).item() >= 1
    assert groups.filter(pl.col("target_share") == 0)["budget"].sum() == 0
    # against the definition: the mean of the target, and what the weighted selection leaves of it
    _, rows = features_of(root, run_id)
    pooled = spaces.features_pool(root.catalog, run_id, space)
    features = segments.open_features(root.files, space, wanted.select("segment", "row").sort("segment", "row"))
    order = wanted.with_row_index("n").sort("segment", "row")["n"].to_numpy()
    near = np.empty((10, features.dim))
    near[order] = features.gather(np.arange(10)).astype(np.float64)
    shares = [3 / 4 / 7 if part == "sums" else 1 / 4 / 3 for part in wanted["part"]]
    mean = shares @ near
    at = pooled.with_row_index("at").join(chosen.select("example_id", "share"), on="example_id")
    error = np.linalg.norm(at["share"].to_numpy() @ rows[at["at"].to_numpy()] - mean) / np.linalg.norm(mean)
    detail = json.loads(root.catalog.read("SELECT detail FROM stages WHERE stage = 'select' AND run_id = ?", [run_id]).item())
    assert detail["target_error_weighted"] == pytest.approx(error, abs=1e-4)
    # coverage by part, and the part of the target that a chosen example stands for
    coverage = root.catalog.read("FROM target_coverage")
    assert coverage.select("part", "weight", "examples").rows() == [("cities", 0.25, 3), ("sums", 0.75, 7)]
    assert coverage["chosen"].sum() == 12
    assert (coverage["pool_cosine"] >= coverage["chosen_cosine"] - 1e-6).all()
    cosines = (near / np.linalg.norm(near, axis=1)[:, None]) @ (rows / np.linalg.norm(rows, axis=1)[:, None]).T
    assert coverage["pool_cosine"].to_list() == pytest.approx(
        [cosines[:3].max(axis=1).mean(), cosines[3:].max(axis=1).mean()], abs=1e-4
    )
    why = root.catalog.read("FROM why(?)", [chosen["example_id"][0]]).row(0, named=True)
    mine = cosines[:, pooled["example_id"].to_list().index(chosen["example_id"][0])]
    assert why["target_example"] == wanted["example_id"][int(mine.argmax())]
    assert (why["target_part"], why["target_cosine"]) == (wanted["part"][int(mine.argmax())], pytest.approx(mine.max(), abs=1e-4))
    repeat = root.catalog.read("SELECT example_id, like_id FROM target_repeats WHERE example_id <> like_id").row(0)
    assert root.catalog.read("FROM why(?)", [repeat[0]])["reason"].to_list() == [f"left out: repeats target example {repeat[1]}"]


def test_target__selecting_again_finds_it_by_name_or_leaves_it(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it, which takes seconds and 150 MiB, would fail

    def again(**changes: Any) -> str:
        return pipeline.reselect(root.url, base, SilentReporter(), **changes).run_id

    def chosen(run_id: str) -> list[str]:
        return selections.selection(root.catalog, run_id)["example_id"].to_list()

    base = runs.find_run(root.catalog)
    assert chosen(again(target=("wanted",), ridge=1.0)) == chosen(base)
    none = again(target=("none",))
    assert targets.of_run(root.catalog, none) is None
    assert len(pool.pool(root.catalog, none)) == 120  # what repeats the target is back, with its features
    assert root.catalog.read("SELECT sum(size) FROM run_groups WHERE run_id = ?", [none]).item() == 120
    assert root.catalog.read("FROM target_coverage_of(?)", [none]).is_empty()
    # cosines with the weighted mean of the target
    aligned = again(method="random", count=8, where="target_alignment > -2")
    space = runs.run_status(root.catalog, base).run["space_id"]
    found = targets.of_run(root.catalog, base)
    assert found is not None
    mean = np.zeros(256)
    for (part,), group in targets.with_features(root.catalog, found.target_id, space).group_by("part"):
        rows = segments.open_features(root.files, space, group.select("segment", "row").sort("segment", "row"))
        mean += {"sums": 3 / 4, "cities": 1 / 4}[str(part)] * rows.gather(np.arange(len(group))).astype(np.float64).mean(axis=0)
    pooled, features = features_of(root, base)
    signals = root.catalog.read("SELECT example_id, target_alignment FROM signals_of(?)", [aligned])
    values = pooled.select("example_id").join(signals, on="example_id", maintain_order="left")["target_alignment"]
    assert values.to_list() == pytest.approx([naive.naive_cosine(row, mean) for row in features], abs=1e-5)
    for method in ("omp", "less", "rds"):
        run_id = again(method=method, count=8)
        selected = selections.selection(root.catalog, run_id)
        assert len(selected) == selected["example_id"].n_unique() == 8
        assert root.catalog.read("SELECT sum(chosen) FROM target_coverage_of(?)", [run_id]).item() == 8
    with pytest.raises(UserError, match="method less chooses by the examples of a target set"):
        again(method="less", target=("none",))
    with pytest.raises(UserError, match="no target set has this name, there are wanted"):
        again(target=("other",))
    assert check.check(root) == []


def test_shares__are_numbers_where_no_group_with_a_budget_has_any_of_the_target() -> None:
    two_datasets = Division(by_label(np.array([0, 1, 2, 3]), 4), np.array([0, 3, 0, 1]), parts=("cities",))
    shares = _shares(GroupTargets(np.zeros((2, 4), np.float32), np.array([1.0, 0.0])), two_datasets)
    assert shares.tolist() == [0.0, 0.75, 0.0, 0.25]


@pytest.mark.parametrize("method", ["tagcos", "random", "less"])
def test_target__with_where_shares_and_tokens_keeps_what_each_promises(root: Root, method: str) -> None:
    run_id = runs.find_run(root.catalog)
    pooled = root.catalog.read("FROM signals_of(?)", [run_id])
    quantile = pooled["target_tokens"].quantile(0.9)
    assert quantile is not None
    bound = int(quantile)
    kept = pooled.filter(pl.col("target_tokens") <= bound)
    budget = int(float(kept["target_tokens"].sum()) * 0.25)
    asked = {"method": method, "tokens": str(budget), "share": ("sums=:30%", "cities=25%:"), "where": f"target_tokens <= {bound}"}

    def again(**changes: Any) -> pl.DataFrame:
        outcome = pipeline.reselect(root.url, run_id, SilentReporter(), **asked | changes)
        assert targets.of_run(root.catalog, outcome.run_id) is not None
        return selections.selection(root.catalog, outcome.run_id).drop("run_id")

    chosen = again()
    spent = dict(chosen.group_by("dataset").agg(pl.col("target_tokens").sum()).iter_rows())
    assert budget - bound < sum(spent.values()) <= budget
    assert spent.get("sums", 0) <= 0.3 * budget
    assert spent["cities"] > 0.25 * budget - bound
    assert set(chosen["example_id"]) <= set(kept["example_id"])
    # a condition that is joined and holds for every row changes nothing; neither do bounds that do not bind
    assert again(where=f"target_tokens <= {bound} AND target_tokens > 0").equals(chosen)
    assert again(share=(*asked["share"], "colours=0:100%")).equals(chosen)


def test_target__pool_is_compared_once_and_then_what_it_gains_or_loses(made: Path, root: Root, model_folder: Path) -> None:
    def nearest(run_id: str) -> list[tuple[str, str, str, float]]:
        rows = root.catalog.read("SELECT part, example_id, pool_id, pool_cosine FROM target_nearest WHERE run_id = ?", [run_id])
        return rows.sort("part", "example_id").rows()

    def run(pool: list[Path], **changes: Any) -> tuple[str, list[float]]:
        values = {"sources": tuple(map(str, pool)), "root": root.url, "model": str(model_folder), "target": ("wanted",)}
        compared = Comparisons()
        return pipeline.run(load_settings(SMALL | values | changes), compared).run_id, compared.rows

    base = runs.find_run(root.catalog)
    compared = Comparisons()
    again = pipeline.reselect(root.url, base, compared, ridge=2.0).run_id
    assert compared.rows == []
    assert nearest(again) == nearest(base)
    # a row that says nearly what a target example says becomes its nearest, by looking at the new rows only
    more = made / "more.jsonl"
    close = conversation("sums", 104)
    write(more, [[close[0], {**close[1], "content": close[1]["content"] + " Yes."}], conversation("colours", 300)])
    grown, looked = run([made / "pool", more])
    assert looked == [2]
    changed = [(old, new) for old, new in zip(nearest(base), nearest(grown), strict=True) if old != new]
    assert changed
    assert all(new[3] > old[3] for old, new in changed)
    # without it, the target examples it was nearest to are compared with the whole pool, and nothing is known that was not
    shrunk, looked = run([made / "pool"], seed=1)
    assert len(looked) == 1
    assert [row[:3] for row in nearest(shrunk)] == [row[:3] for row in nearest(base)]
    assert [row[3] for row in nearest(shrunk)] == pytest.approx([row[3] for row in nearest(base)], abs=1e-6)


def test_target__whose_examples_were_all_forgotten_is_refused(root: Root) -> None:
    found = targets.of_run(root.catalog, runs.find_run(root.catalog))
    assert found is not None
    with root.writer():
        forget.forget(root, targets.examples(root.catalog, found.target_id)["example_id"].unique().to_list())
    with pytest.raises(UserError, match="target wanted: all of its examples were forgotten"):
        pipeline.reselect(root.url, reporter=SilentReporter(), ridge=2.0)


def test_target__report_shows_its_parts_and_the_nearest_chosen_examples(root: Root) -> None:
    page = make_report(root, runs.find_run(root.catalog))
    coverage = root.catalog.read("FROM target_coverage")
    assert "stands for the target set wanted" in page
    assert "Parts of the target" in page
    assert f"{coverage['pool_cosine'][0]:.4g}" in page
    near = root.catalog.read("SELECT part, cosine FROM selection_targets LIMIT 1").row(0)
    assert f"nearest target example: one of {near[0]} (cosine" in page
    none = pipeline.reselect(root.url, None, SilentReporter(), target=("none",)).run_id
    assert "target set" not in make_report(root, none)


def test_target__near_duplicates_of_its_examples_are_left_out(tmp_path: Path) -> None:
    def told(n: int, last: str) -> list[dict[str, str]]:
        words = " ".join(f"word{n * 31 % 97}x{k}" for k in range(40))
        return [{"role": "user", "content": f"Tell {n}."}, {"role": "assistant", "content": f"{words} {last}"}]

    write(tmp_path / "pool.jsonl", [told(n, "end") for n in range(6)])
    write(tmp_path / "wanted.jsonl", [told(4, "finish")])
    values = {"sources": (str(tmp_path / "pool.jsonl"),), "root": str(tmp_path / "root"), "near_duplicates": 0.7}
    settings = load_settings(values | {"target": (str(tmp_path / "wanted.jsonl"),)})
    root = open_settings_root(settings, SilentReporter())
    with root.writer():
        run = start_or_resume(settings, root, SilentReporter())
        found = ingest(run)
    assert (found.examples, found.detail["near_duplicates"], found.detail["target_repeats"]) == (5, 1, 0)
    like = root.catalog.read("SELECT like_id FROM near_duplicates_of(?)", [run.run_id]).item()
    assert like == root.catalog.read("SELECT example_id FROM target_examples").item()
