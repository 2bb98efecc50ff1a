"""Selections with bounds and weights of datasets, and with budgets in tokens, from stored features."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows import pipeline
from flows.compare.trials import plan_units
from flows.progress import SilentReporter
from storage import check
from storage.catalog import choices, runs, selections, spaces
from storage.catalog import pool as catalog_pool
from storage.root import Root, open_root
from tagcos_stream.config import load_settings
from tagcos_stream.evaluation.config import load_evaluation
from tagcos_stream.types import UserError
from tests.flows.conftest import SMALL, TOPICS, conversation


@pytest.fixture
def root(selected_root: Root) -> Root:
    return selected_root


def reselect(root: Root, **changes: Any) -> pipeline.Outcome:
    return pipeline.reselect(root.url, None, SilentReporter(), **changes)


def amounts(root: Root, run_id: str) -> dict[str, int]:
    chosen = selections.selection(root.catalog, run_id)
    return dict.fromkeys(TOPICS, 0) | dict(chosen["dataset"].value_counts().iter_rows())


@pytest.mark.parametrize("method", ["tagcos", "longest", "herding-clusters", "stratified", "balanced"])
def test_share__bounds_hold_for_every_kind_of_method(root: Root, method: str) -> None:
    free = amounts(root, reselect(root, method=method, count=30).run_id)
    most = max(free, key=lambda name: (free[name], name))
    least = min(free, key=lambda name: (free[name], name))
    if most == least:
        least = next(name for name in TOPICS if name != most)
    bounds = (f"{most}=:{free[most] - 2}", f"{least}={free[least] + 3}:{free[least] + 5}")
    outcome = reselect(root, method=method, count=30, share=bounds)
    found = amounts(root, outcome.run_id)
    assert sum(found.values()) == outcome.stages["select"]["selected"] == 30
    assert found[most] <= free[most] - 2
    assert free[least] + 3 <= found[least] <= free[least] + 5
    groups = root.catalog.read("FROM coverage_of(?)", [outcome.run_id])
    assert (groups["selected"] == groups["budget"]).all()
    assert (groups["size"].sum(), groups["selected"].sum()) == (120, 30)
    assert check.check(root) == []


def test_share__that_does_not_bind_changes_nothing(root: Root) -> None:
    base = runs.complete_run(root.catalog)["run_id"]
    for method in ("tagcos", "random"):
        plain = reselect(root, method=method, count=24)
        bounded = reselect(root, method=method, count=24, share=("sums=0:40", "colours=:100%", "cities=::1"))
        one, other = (selections.selection(root.catalog, o.run_id).drop("run_id") for o in (plain, bounded))
        assert one.equals(other)
        assert bounded.stages["select"]["copied"] == bounded.stages["select"]["clusters"]  # not even chosen again
    assert runs.complete_run(root.catalog)["run_id"] == base


def test_share__infeasible_is_refused_before_anything_is_chosen(root: Root) -> None:
    with pytest.raises(UserError, match="minima of the datasets add up to 24 examples, more than the budget of 12"):
        reselect(root, count=12, share=("sums=12:", "colours=12:"))
    with pytest.raises(UserError, match="no such dataset of which rows may be chosen, but cities, colours, sums"):
        reselect(root, count=12, share=("code=0.5",))
    assert root.catalog.read("SELECT count(DISTINCT run_id) AS n FROM run_groups").item() == 1


def test_share__of_a_dataset_that_is_not_there_is_refused_before_gradients(small_settings: Callable[..., dict[str, Any]]) -> None:
    settings = load_settings(small_settings(share=("code=0.5",)))
    with pytest.raises(UserError, match="share of dataset code: the pool has no such dataset"):
        pipeline.run(settings, SilentReporter())
    assert open_root(settings.root).catalog.read("FROM feature_spaces").is_empty()


def test_share__weights_part_the_budget_by_weight_times_rows(root: Root) -> None:
    for method in ("tagcos", "random", "balanced"):
        found = amounts(root, reselect(root, method=method, count=30, share=("sums=::3", "cities=:4:")).run_id)
        assert found == {"sums": 19, "colours": 7, "cities": 4}, method


def test_balance__equal_gives_every_dataset_as_much_and_chooses_within_it(root: Root) -> None:
    few = "dataset <> 'sums' OR example_id < '4'"
    there = len(features(root).filter(pl.col("dataset") == "sums", pl.col("example_id") < "4"))
    assert 12 <= there < 20
    for method in ("random", "omp", "balanced"):
        changes: dict[str, Any] = {"method": method, "where": few, "balance": "equal"}
        equal = reselect(root, count=24, **changes).run_id
        assert amounts(root, equal) == {"sums": 8, "colours": 8, "cities": 8}, method
        found = amounts(root, reselect(root, count=2 * there + 40, **changes).run_id)
        half = (there + 40) // 2
        assert found["sums"] == there, "all that it has"
        assert sorted((found["colours"], found["cities"])) == [half, there + 40 - half]
        if method == "omp":
            chosen = selections.selection(root.catalog, equal).filter(dataset="cities")
            alone = reselect(root, count=8, method=method, where="dataset = 'cities'").run_id
            assert set(chosen["example_id"]) == set(selections.selection(root.catalog, alone)["example_id"])
    assert amounts(root, reselect(root, method="random", count=24, where=few).run_id)["sums"] < 8
    weighted = reselect(root, method="omp", count=24, where=few, balance="equal", share="sums=::2").run_id
    assert amounts(root, weighted) == {"sums": 12, "colours": 6, "cities": 6}


def test_balance__equal_holds_where_the_datasets_are_equally_large(root: Root) -> None:
    for seed in (1, 2, 3):
        found = amounts(root, reselect(root, method="random", count=24, balance="equal", seed=seed).run_id)
        assert found == {"sums": 8, "colours": 8, "cities": 8}


def test_balance__with_target_where_matches_the_counted_rows_of_each_dataset(root: Root) -> None:
    """All rows count but one, so the choice from each dataset must match nearly what it matches without `target_where`."""
    one = features(root)["example_id"][0]
    asked: dict[str, Any] = {"method": "omp", "count": 24, "balance": "equal", "where": f"example_id <> '{one}'"}
    plain, counted = reselect(root, **asked).run_id, reselect(root, **asked, target_where="true").run_id
    mine, theirs = (
        root.catalog.read("SELECT residual FROM coverage_of(?) WHERE size > 0 ORDER BY group_id", [run_id])["residual"]
        for run_id in (plain, counted)
    )
    assert len(mine) == 3
    assert theirs.to_list() == pytest.approx(mine.to_list(), abs=0.05)


def test_source_weight__is_the_weight_of_its_dataset(tmp_path: Path, model_folder: Path) -> None:
    lines = []
    for topic, weight in zip(TOPICS, (1, 3, 1), strict=True):
        rows = [json.dumps({"messages": conversation(topic, n)}) for n in range(20)]
        (tmp_path / f"{topic}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        lines.append(f'[[source]]\npath = "{topic}.jsonl"\nweight = {weight}\n')
    (tmp_path / "sources.toml").write_text("\n".join(lines), encoding="utf-8")
    values = {"sources": (str(tmp_path / "sources.toml"),), "root": str(tmp_path / "root"), "model": str(model_folder)}
    settings = load_settings({k: v for k, v in SMALL.items() if k != "fraction"} | values | {"count": 15, "method": "random"})
    outcome = pipeline.run(settings, SilentReporter())
    root = open_root(str(tmp_path / "root"), create=False)
    assert catalog_pool.dataset_weights(root.catalog, outcome.run_id) == {"sums": 1, "colours": 3, "cities": 1}
    assert amounts(root, outcome.run_id) == {"sums": 3, "colours": 9, "cities": 3}
    again = reselect(root, method="balanced", count=20)  # adopted with the pool
    assert amounts(root, again.run_id) == {"sums": 4, "colours": 12, "cities": 4}


def features(root: Root) -> Any:
    run = runs.complete_run(root.catalog)
    return spaces.features_pool(root.catalog, run["run_id"], run["space_id"])


@pytest.mark.parametrize("method", ["tagcos", "omp", "random", "stratified", "herding-clusters", "balanced", "shuffled"])
def test_tokens__are_met_to_within_an_example_and_never_exceeded(root: Root, method: str) -> None:
    pool = features(root)
    longest = int(pool["target_tokens"].max())
    for budget in (int(pool["target_tokens"].sum() * 0.2), int(pool["target_tokens"].sum() * 0.2) + 7):
        outcome = reselect(root, method=method, tokens=str(budget))
        chosen = selections.selection(root.catalog, outcome.run_id)
        spent = int(chosen["target_tokens"].sum())
        assert spent == outcome.stages["select"]["tokens"]
        assert budget - longest < spent <= budget
        left = choices.spent(root.catalog, outcome.run_id)["next_tokens"].drop_nulls()
        assert (left > budget - spent).all()  # no group can pay for its next row
    assert check.check(root) == []


def test_tokens__count_all_tokens_and_keep_shares(root: Root) -> None:
    pool = features(root)
    budget = int(pool["tokens"].sum() * 0.3)
    outcome = reselect(root, tokens=str(budget), tokens_all=True, share=("sums=:10%", "cities=50%:"))
    chosen = selections.selection(root.catalog, outcome.run_id)
    by = dict(chosen.group_by("dataset").agg(pl.col("tokens").sum()).iter_rows())
    longest = int(pool["tokens"].max())
    assert budget - longest < sum(by.values()) <= budget
    assert by.get("sums", 0) <= 0.1 * budget
    assert by["cities"] > 0.5 * budget - longest
    longest = int(pool["target_tokens"].max())
    with pytest.raises(UserError, match=r"tokens 1: the shortest example of the pool has"):
        reselect(root, tokens="1")
    with pytest.raises(UserError, match=rf"none of the examples that method longest would choose first, .* has {longest}; give"):
        reselect(root, method="longest", tokens=str(longest - 1), tokens_all=False)
    with pytest.raises(UserError, match="give one of fraction, count and tokens"):
        reselect(root, tokens="100", count=3)


class Interrupting(SilentReporter):
    """Presses Ctrl-C at the n-th report of progress in the selection."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def stage(self, title: str, unit: str) -> Iterator[Any]:
        def progress(done: float, total: float | None = None) -> None:
            if title == "select":
                self.left -= 1
                if self.left < 0:
                    raise KeyboardInterrupt

        yield progress


@pytest.mark.parametrize(
    "changes",
    [{"count": 30, "share": ("sums=:3", "cities=20:")}, {"tokens": "400"}],
    ids=["share", "tokens"],
)
def test_budget__interrupted_and_resumed_equals_uninterrupted(root: Root, tmp_path: Path, changes: dict[str, Any]) -> None:
    base = runs.complete_run(root.catalog)["run_id"]
    shutil.copytree(tmp_path / "root", tmp_path / "other")
    other = open_root(str(tmp_path / "other"), create=False)
    whole = pipeline.reselect(other.url, base, SilentReporter(), **changes)
    steps = choices.budget_steps(other.catalog, whole.run_id)
    assert len(steps) > 0  # it was divided again
    for after in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            pipeline.reselect(root.url, base, Interrupting(after), **changes)
    resumed = pipeline.reselect(root.url, base, SilentReporter(), **changes)
    one, two = (
        selections.selection(at.catalog, run).drop("run_id") for at, run in ((root, resumed.run_id), (other, whole.run_id))
    )
    assert one.equals(two)
    assert choices.budget_steps(root.catalog, resumed.run_id).equals(steps)


def test_evaluate__at_equal_tokens_gives_every_method_as_many_tokens(root: Root) -> None:
    pool = features(root)
    asked = load_evaluation({"root": root.url, "method": ("random", "longest"), "fraction": 0.2, "seeds": 1, "equal": "tokens"})
    base = runs.complete_run(root.catalog)
    units = {unit.key.method: unit for unit in plan_units(asked, base, root, SilentReporter()) if unit.selection}
    budget = round(0.2 * pool["target_tokens"].sum())
    for method in ("random", "longest"):
        chosen = units[method].selection
        assert chosen is not None
        spent = int(selections.selection(root.catalog, chosen)["target_tokens"].sum())
        assert budget - int(pool["target_tokens"].max()) < spent <= budget
    assert units["longest"].rows < units["random"].rows
