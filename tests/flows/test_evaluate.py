"""Selections compared by training on them: complete, resumable, on rows that no selection has seen."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows import pipeline
from flows.cli import main
from flows.compare import evaluate, plots
from flows.compare.examples import Heldout
from flows.compare.metrics import Measures
from flows.compare.tables import compact, report
from flows.compare.trials import plan_units
from flows.context import run_stage, start_or_resume
from flows.models import encode_row
from flows.progress import SilentReporter
from flows.stages.ingest import ingest
from storage import check, forget
from storage.catalog import evaluations, heldout, pool, runs, selections
from storage.examples import example_reader
from storage.root import Root, open_root
from tagcos_stream.config import load_settings
from tagcos_stream.evaluation import finetune as training
from tagcos_stream.evaluation.config import Evaluation, changed, load_evaluation, varied
from tagcos_stream.evaluation.losses import losses_of
from tagcos_stream.evaluation.questions import Question, Task
from tagcos_stream.gradients.adapter import attach_adapter
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.model import load_model
from tagcos_stream.types import UserError
from tests.benchmarks import experiment
from tests.flows.conftest import SMALL, TOPICS, First, conversation
from tests.method.test_tasks import write_tasks
from tests.models import tiny_model, tiny_tokenizer

METHODS = ("random", "longest", "tagcos", "full")
PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A root with one run of 120 examples in three files, a fifth of them held out, two variants of the feature, and an
    evaluation of two seeds, so that the tests find their selections made."""
    folder = tmp_path_factory.mktemp("evaluate")
    for topic in TOPICS:
        lines = [json.dumps({"messages": conversation(topic, n)}) for n in range(40)]
        (folder / f"{topic}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values: dict[str, Any] = {
        "sources": tuple(str(folder / f"{topic}.jsonl") for topic in TOPICS),
        "root": str(folder / "root"),
        "model": str(model_folder),
        "heldout": 0.2,
        "also_gradients": ("hidden",),
    }
    pipeline.run(load_settings(SMALL | values), SilentReporter())
    evaluate.evaluate(asked(open_root(values["root"], create=False), weights=True), SilentReporter())
    return folder / "root"


@pytest.fixture
def root(pattern: Path, tmp_path: Path) -> Root:
    shutil.copytree(pattern, tmp_path / "root")
    return open_root(str(tmp_path / "root"), create=False)


def asked(root: Root, **changes: Any) -> Evaluation:
    small = {"method": METHODS, "fraction": 0.1, "seeds": 2, "epochs": 2, "learning_rate": 5e-3, "threads": 1, "wait": 1}
    return load_evaluation({"root": root.url, **small, **changes})


class Stopped(SilentReporter):
    """Presses Ctrl-C when so many units are done."""

    def __init__(self, after: int) -> None:
        self.left = after

    def say(self, text: str) -> None:
        self.left -= "dataset_loss" in text
        if self.left == 0:
            raise KeyboardInterrupt


def scores(root: Root, name: str) -> pl.DataFrame:
    frame = root.catalog.read("SELECT * EXCLUDE (evaluation_id) FROM evaluation_scores WHERE evaluation_id = ?", [name])
    return frame.sort(set(frame.columns) - {"value", "sd", "items"})


def test_heldout__nothing_is_computed_of_it_and_nothing_chooses_it(root: Root) -> None:
    run = runs.complete_run(root.catalog)
    aside = heldout.heldout(root.catalog, run["run_id"])
    assert aside.group_by("dataset").len()["len"].to_list() == [8, 8, 8]
    ids = set(aside["example_id"])
    assert len(ids) == 24
    assert not ids & set(pool.pool(root.catalog, run["run_id"])["example_id"])
    assert not ids & set(pool.pool_sample(root.catalog, run["run_id"], 1000, 0)["example_id"]), "the warm-up's sample"
    seen = root.catalog.read("SELECT DISTINCT segment FROM feature_rows")["segment"].to_list()
    assert not set(seen) & set(aside["segment"])
    assert root.catalog.read("SELECT count(*) AS n FROM feature_rows")["n"][0] == 2 * 96
    assert check.check(root) == []
    assert root.catalog.read("FROM match_of(?)", [run["run_id"]])["size"].max() == 96


def test_heldout__nothing_like_it_stays_in_the_pool(tmp_path: Path) -> None:
    """Of two examples that differ in a word, one held out, the other is left out where near-duplicates are."""
    stem = "Name the river on which the city lies, and tell me of its bridges, its boats and its mills, in order of age"
    rows = [
        [
            {"role": "user", "content": f"{stem}, please, number {n // 2}{'.' if n % 2 else ' now.'}"},
            {"role": "assistant", "content": "No."},
        ]
        for n in range(40)
    ]
    others = [" ".join(f"word{n}x{i}" for i in range(20)) for n in range(8)]
    rows += [[{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1]}] for text in others]
    source = tmp_path / "twins.jsonl"
    source.write_text("\n".join(json.dumps({"messages": row}) for row in rows) + "\n", encoding="utf-8")
    values = {"sources": (str(source),), "root": str(tmp_path / "root"), "heldout": 0.25, "near_duplicates": 0.7}
    settings = load_settings(values)
    root = open_root(settings.root)
    with root.writer():
        run = start_or_resume(settings, root, SilentReporter())
        run_stage("ingest", ingest, run)
    aside = set(heldout.heldout(root.catalog, run.run_id)["example_id"])
    assert len(aside) == 12
    left_out = root.catalog.read("SELECT example_id, detail FROM rejects WHERE stage = 'near-duplicates'")
    pooled = pool.pool(root.catalog, run.run_id)
    assert len(pooled) + len(left_out) == 36
    assert not aside & set(left_out["example_id"])
    texts = pl.concat(list(example_reader(root).iterate(pooled.select("segment", "row"))))["messages"]
    assert not any(text[0]["content"].startswith(stem) for text in texts), "all of them are like one that is held out"
    assert all(any(name in detail for name in aside) for detail in left_out["detail"])


def test_evaluate__every_unit_is_what_its_definition_says(root: Root, model_folder: Path) -> None:
    name = root.catalog.read("SELECT evaluation_id FROM evaluations").item()
    base = runs.complete_run(root.catalog)["run_id"]
    done = evaluations.units(root.catalog, name)
    per_seed = {("random", False), ("longest", False), ("tagcos", False), ("tagcos", True), ("full", False)}
    assert {(key.method, key.weighted, key.seed, key.regime) for key in done} == {("base", False, 0, "none")} | {
        (*unit, seed, regime) for unit in per_seed for seed in (0, 1) for regime in ("steps", "epochs")
    }
    assert {key.gradient for key in done} == {"", "sgd"}
    for key, row in done.items():
        assert row["examples"] == {"base": 0, "full": 96 if key.regime == "epochs" else 16}.get(key.method, 10)
        assert row["steps"] == {"base": 0, "full": 24 if key.regime == "epochs" else 2}.get(key.method, 2)
        assert row["copied"] == (key.regime == "epochs" and key.method not in ("base", "full"))
    # a unit computed by hand: the selection of its run, trained and measured with the parts that have tests of their own
    key = next(key for key in done if key.method == "tagcos" and key.weighted and (key.seed, key.regime) == (1, "steps"))
    chosen = selections.selection(root.catalog, done[key]["selection_run"])
    assert json.loads(runs.run_status(root.catalog, done[key]["selection_run"]).run["config"])["seed"] == 1
    loaded = load_model(str(model_folder), device="cpu")
    model = attach_adapter(loaded.model, rank=8, alpha=32, dropout=0.0, seed=9)

    def encoded(rows: pl.DataFrame) -> list[Encoded]:
        frames = example_reader(root).iterate(rows.select("segment", "row", "example_id"))
        found = {row["example_id"]: row for frame in frames for row in frame.iter_rows(named=True)}
        return [encode_row(loaded.tokenizer, found[i], 96, False) for i in rows["example_id"]]  # type: ignore[misc]

    plan = training.Plan(batch_size=8, learning_rate=5e-3, schedule="cosine", rise=0.03)
    weights = chosen["share"].to_numpy() / chosen["share"].mean()
    ids = chosen["example_id"].to_list()
    training.finetune(model, encoded(chosen), ids, plan, steps=2, seed=1, weights=weights, token_budget=4096)
    aside = heldout.heldout(root.catalog, base)
    losses = losses_of(model, encoded(aside), token_budget=4096)
    mine = scores(root, name).filter(method="tagcos", weighted=True, seed=1, regime="steps", measure="loss")
    whole = mine.filter(pl.col("part").is_null()).row(0, named=True)
    assert (whole["items"], whole["value"]) == (24, pytest.approx(losses.mean(), abs=2e-5))
    assert whole["sd"] == pytest.approx(losses.std(ddof=1), abs=2e-5)
    for topic in TOPICS:
        part = mine.filter(part=topic)
        assert part["value"][0] == pytest.approx(losses[(aside["dataset"] == topic).to_numpy()].mean(), abs=2e-5)
    # training taught something, and the table is the arithmetic of the units
    results = evaluations.results(root.catalog, name).filter(pl.col("part").is_null(), measure="loss")
    values = {(r["regime"], r["method"], r["weighted"]): r for r in results.to_dicts()}
    assert all(
        values[regime, m, False]["value"] < values[regime, "base", False]["value"]
        for m in METHODS
        for regime in ("steps", "epochs")
    )
    units = scores(root, name).filter(pl.col("part").is_null(), measure="loss", regime="steps")
    ours, random = (units.filter(method=m, weighted=False).sort("seed")["value"].to_numpy() for m in ("tagcos", "random"))
    row = values["steps", "tagcos", False]
    assert (row["seeds"], row["pairs"]) == (2, 2)
    assert row["value"] == pytest.approx(ours.mean())
    assert row["se"] == pytest.approx(ours.std(ddof=1) / np.sqrt(2))
    assert row["vs_random"] == pytest.approx((ours - random).mean())
    assert row["vs_random_se"] == pytest.approx((ours - random).std(ddof=1) / np.sqrt(2))
    by_topic = scores(root, name).filter(pl.col("part").is_not_null(), measure="loss", regime="steps", weighted=False)
    wide = by_topic.pivot(on="method", index=["part", "seed"], values="value").sort("seed", "part")
    apart = (wide["tagcos"] - wide["random"]).to_numpy().reshape(2, 3)
    sources = evaluations.results(root.catalog, name).filter(
        measure="dataset_loss", regime="steps", method="tagcos", weighted=False
    )
    middle = np.median(apart, axis=1)
    row = sources.row(0, named=True)
    assert (row["datasets_ahead"], row["datasets"]) == ((apart.mean(axis=0) < 0).sum(), 3)
    assert row["median_vs_random"] == pytest.approx(middle.mean())
    assert row["median_vs_random_se"] == pytest.approx(middle.std(ddof=1) / np.sqrt(2))
    everything = compact(evaluations.results(root.catalog, name).filter(pl.col("part").is_null(), regime="steps"))
    line = everything.filter(method="tagcos sgd").row(0, named=True)
    assert line["datasets ahead"] == f"{row['datasets_ahead']}/3"
    assert line["median dataset vs random"].startswith(f"{middle.mean():+.4f} ± ")
    table = compact(results)
    assert set(table["method"]) == {"base", "random", "longest", "full", "tagcos sgd", "tagcos sgd weighted"}
    for query in re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        assert len(root.catalog.read(query)) > 0, query
    reported = report(root.catalog, name, "random")
    assert len(reported["units"]) == 21
    compared = next(r for r in reported["comparisons"] if (r["method"], r["weighted"], r["regime"]) == ("tagcos", False, "steps"))
    assert compared["difference"] == pytest.approx((ours - random).mean())
    assert compared["median_dataset"] == pytest.approx(middle.mean())
    assert compared["low"] < compared["difference"] < compared["high"]
    assert compared["p"] <= compared["p_holm"] <= 1
    assert check.check(root) == []


def test_evaluate__interrupted_it_goes_on_and_comes_to_the_same(root: Root, tmp_path: Path) -> None:
    other = open_root(str(shutil.copytree(root.url, tmp_path / "other")), create=False)
    changes: dict[str, Any] = {"regime": "steps", "learning_rate": 2e-3, "method": ("random", "tagcos", "full")}
    whole = evaluate.evaluate(asked(other, **changes), SilentReporter())

    def done() -> pl.DataFrame:
        return root.catalog.read("FROM evaluation_units WHERE evaluation_id = ?", [whole])

    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(asked(root, **changes), Stopped(3))
    before = done()
    assert len(before) == 3
    assert evaluate.evaluate(asked(root, **changes), SilentReporter()) == whole
    assert scores(root, whole).equals(scores(other, whole)), "bit for bit"
    assert len(done()) == 7
    kept = before.join(done(), on=before.columns, how="semi", nulls_equal=True)
    assert len(kept) == 3, "what was done is not done again"
    # nor with more asked for: only what lacks is done
    assert evaluate.evaluate(asked(root, **{**changes, "method": "longest", "seeds": 1}), SilentReporter()) == whole
    assert len(done()) == 8


def test_evaluate__processes_come_to_the_same(root: Root, tmp_path: Path) -> None:
    """Trials of several workers are those of one; trials of both regimes that are the same training are trained once."""
    other = open_root(str(shutil.copytree(root.url, tmp_path / "other")), create=False)
    changes: dict[str, Any] = {"epochs": 0.5, "seeds": 1, "weights": True, "method": ("random", "tagcos", "full")}
    whole = evaluate.evaluate(asked(root, **changes), SilentReporter())
    assert evaluate.evaluate(asked(other, **changes, workers=2), SilentReporter()) == whole
    assert scores(other, whole).equals(scores(root, whole)), "bit for bit"
    for catalog in (root.catalog, other.catalog):
        done = evaluations.units(catalog, whole)
        assert {key.method for key, row in done.items() if row["copied"]} == {"random", "tagcos"}
        assert len(done) == 9
        assert all((row["selection_run"] is None) == (key.method in ("base", "full")) for key, row in done.items())
        found = {(key.method, key.regime): (row["steps"], row["examples"]) for key, row in done.items() if not key.weighted}
        assert found["random", "steps"] == found["random", "epochs"] == (1, 10)
        assert (found["full", "steps"], found["full", "epochs"]) == ((1, 8), (6, 48)), "half of 96 examples"


@pytest.mark.slow
def test_evaluate__killed_hard_it_goes_on_and_comes_to_the_same(root: Root, tmp_path: Path) -> None:
    """The same with a process that gets no chance to say good-bye, three times."""
    other = open_root(str(shutil.copytree(root.url, tmp_path / "other")), create=False)
    changes: dict[str, Any] = {"regime": "steps", "learning_rate": 1e-3, "steps": 60, "method": ("random", "longest", "tagcos")}
    whole = evaluate.evaluate(asked(other, **changes), SilentReporter())
    values = asked(root, **changes).model_dump(mode="json", exclude_unset=True)
    code = (
        "import json, sys; from flows.compare.evaluate import evaluate; from tagcos_stream.evaluation.config import Evaluation; "
    )
    code += "evaluate(Evaluation(**json.loads(sys.argv[1])))"
    for wanted in (1, 3, 6):
        process = subprocess.Popen([sys.executable, "-c", code, json.dumps(values)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while len(evaluations.units(root.catalog, whole)) < wanted:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
        process.wait()
    assert len(evaluations.units(root.catalog, whole)) < 7
    assert evaluate.evaluate(asked(root, **changes), SilentReporter()) == whole
    assert scores(root, whole).equals(scores(other, whole)), "bit for bit"
    assert check.check(root) == []


def test_evaluate__variants_other_models_and_own_files(root: Root, tmp_path: Path) -> None:
    """Selected by one model, trained in another; by two variants of the feature; measured on files of the user's own."""
    other = tmp_path / "other-model"
    tiny_model("qwen2", seed=5).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    own = tmp_path / "own.jsonl"
    rows = [conversation("sums", n) for n in range(38, 45)]  # two of them met before
    own.write_text("\n".join(json.dumps({"messages": row}) for row in rows) + "\n", encoding="utf-8")
    said: list[str] = []

    class Listening(SilentReporter):
        def say(self, text: str) -> None:
            said.append(text)

    one = asked(
        root, model=str(other), method=("random", "tagcos"), gradient=("hidden", "sgd"), seeds=1, regime="steps",
        heldout_files=str(own),
    )  # fmt: skip
    name = evaluate.evaluate(one, Listening())
    found = evaluations.described(root.catalog, name)
    assert (found["model"], found["config"]["steps"]) == (str(other), 2)
    pooled = set(pool.pool(root.catalog, found["run_id"])["example_id"])
    assert found["heldout_examples"] == 7 - sum(text.count("are in the pool itself") and int(text.split()[0]) for text in said)
    assert found["heldout_examples"] in (5, 6, 7)
    assert len(pooled) == 96
    done = evaluations.units(root.catalog, name)
    assert {(key.method, key.gradient) for key in done} == {
        ("base", ""),
        ("random", ""),
        ("tagcos", "hidden"),
        ("tagcos", "sgd"),
    }
    runs_of = {key.gradient: row["selection_run"] for key, row in done.items() if key.method == "tagcos"}
    spaces = {gradient: runs.run_status(root.catalog, run).run["space_id"] for gradient, run in runs_of.items()}
    assert len(set(spaces.values())) == 2, "each variant selects in its own space"
    base = evaluate.evaluate(asked(root, method="random", seeds=1, regime="steps"), SilentReporter())
    assert base != name
    assert evaluations.described(root.catalog, base)["model_fingerprint"] != found["model_fingerprint"]


def test_evaluate__settings_are_varied_for_the_methods_that_read_them(root: Root) -> None:
    changes = {"method": ("random", "tagcos", "omp"), "vary": ("own", "clusters=1", "ridge=1e1"), "seeds": 1, "regime": "steps"}
    name = evaluate.evaluate(asked(root, **changes, weights=True, learning_rate=3e-3), SilentReporter())
    done = evaluations.units(root.catalog, name)
    kinds = {"random": [""], "tagcos": ["", "clusters=1", "ridge=10.0"], "omp": ["", "ridge=10.0"]}
    for method, settings in kinds.items():
        assert sorted({key.setting for key in done if key.method == method}) == settings, method
    made_by = {(key.method, key.setting): row["selection_run"] for key, row in done.items() if key.method != "base"}
    chosen = {unit: selections.selection(root.catalog, run).sort("rank") for unit, run in made_by.items()}
    one_cluster, pool_wide = chosen["tagcos", "clusters=1"], chosen["omp", ""]
    assert one_cluster["example_id"].equals(pool_wide["example_id"]), "one cluster is none"
    assert not chosen["tagcos", ""]["example_id"].equals(one_cluster["example_id"])
    for setting in ("clusters=1", "ridge=10.0"):
        field, value = setting.split("=")
        config = json.loads(runs.run_status(root.catalog, made_by["tagcos", setting]).run["config"])
        assert config[field] == float(value)
    results = evaluations.results(root.catalog, name).filter(pl.col("part").is_null(), measure="loss")
    losses = {(r["method"], r["setting"], r["weighted"]): r["value"] for r in results.to_dicts()}
    assert len(losses) == len(results) == 1 + 1 + 2 * 5
    assert losses["tagcos", "clusters=1", False] == losses["omp", "", False]
    assert "tagcos sgd clusters=1 weighted" in compact(results)["method"].to_list()
    # what is named, and nothing else
    vary = "tol=0.5; where=dataset <> 'sums'"
    only = evaluate.evaluate(asked(root, **changes | {"vary": vary}, learning_rate=4e-3), SilentReporter())
    done = evaluations.units(root.catalog, only)
    named = {(key.method, key.setting) for key in done}
    assert named == {("base", ""), ("random", "where=dataset <> 'sums'"), ("tagcos", vary), ("omp", vary)}
    for row in done.values():
        if row["selection_run"] is not None:
            assert set(selections.selection(root.catalog, row["selection_run"])["dataset"]) <= {"colours", "cities"}


def test_evaluate__differences_are_from_random_by_the_runs_own_settings(root: Root) -> None:
    vary = ("own", "where=dataset <> 'sums'")
    name = evaluate.evaluate(
        asked(root, method=("random", "longest", "full"), vary=vary, regime="steps", learning_rate=2e-3), SilentReporter()
    )
    measured = scores(root, name).filter(pl.col("part").is_null(), measure="loss")
    by_unit = {(r["method"], r["setting"], r["seed"]): r["value"] for r in measured.iter_rows(named=True)}
    results = evaluations.results(root.catalog, name).filter(pl.col("part").is_null(), measure="loss")
    found = {(r["method"], r["setting"]): (r["pairs"], r["vs_random"]) for r in results.iter_rows(named=True)}
    assert found.pop(("random", "")) == (0, None)
    assert found.pop(("base", ""))[0] == 2
    assert set(found) == {("random", vary[1]), ("longest", ""), ("longest", vary[1]), ("full", "")}
    for (method, setting), (pairs, difference) in found.items():
        assert pairs == 2
        apart = [by_unit[method, setting, seed] - by_unit["random", "", seed] for seed in (0, 1)]
        assert difference == pytest.approx(np.mean(apart)), (method, setting)
    assert {(r["method"], r["setting"]) for r in report(root.catalog, name, "random")["comparisons"]} == set(found)


def test_evaluate__a_loss_that_is_not_a_number_is_said_and_not_recorded(root: Root) -> None:
    """The loss of the only step is measured before it, so that the training itself saw nothing."""
    one = asked(root, method="random", seeds=1, regime="steps", steps=1, learning_rate=1e30)
    message = r"random 0\.1 seed 0 steps: the loss of a held-out example is not a number: lower --learning-rate, it is 1e\+30"
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(one, SilentReporter())
    newest = root.catalog.read("SELECT evaluation_id FROM evaluations ORDER BY started_at DESC LIMIT 1").item()
    assert {key.method for key in evaluations.units(root.catalog, newest)} == {"base"}


def test_settings__varied_settings_may_be_joined_and_reach_the_methods_that_read_them() -> None:
    vary = Evaluation(vary=("own", "target=clean;where=loss<4 AND dataset <> 'a=b'", "target=none ; clusters=02")).vary
    assert vary == ("own", "target=clean; where=loss<4 AND dataset <> 'a=b'", "target=none; clusters=2")
    assert varied("random", vary) == ("own", "where=loss<4 AND dataset <> 'a=b'")
    assert varied("omp", vary) == ("own", vary[1], "target=none")
    assert varied("tagcos", vary) == vary
    assert varied("random", ("clusters=3",)) == ("own",)
    assert [changed(item) for item in vary] == [
        {},
        {"target": ("clean",), "where": "loss<4 AND dataset <> 'a=b'"},
        {"target": (), "clusters": 2},
    ]
    # together they are right, alone the second is not
    assert changed("min_cluster_rows=1; max_cluster_rows=3") == {"min_cluster_rows": 1, "max_cluster_rows": 3}


def test_evaluate__seeds_do_not_keep_choices_of_the_run_that_is_selected_from(root: Root) -> None:
    with root.catalog.transaction() as connection:
        connection.execute("UPDATE runs SET config = json_merge_patch(config, '{\"sticky\": 0.5}') WHERE reselects IS NULL")
    base = runs.complete_run(root.catalog)
    one = asked(root, method="tagcos", regime="steps", equal="tokens")
    units = list(plan_units(one, base, root, SilentReporter()))
    made = {unit.selection for unit in units if unit.selection}
    assert base["run_id"] not in made
    assert len(made) == 2
    for run_id in made:
        config = json.loads(root.catalog.read("SELECT config::VARCHAR FROM runs WHERE run_id = ?", [run_id]).item())
        assert config["sticky"] is None


def test_evaluate__refuses_a_list_of_examples_that_changed(root: Root, tmp_path: Path) -> None:
    base = runs.complete_run(root.catalog)
    ids = root.catalog.read("SELECT example_id FROM pool_of(?) ORDER BY 1 LIMIT 4", [base["run_id"]])["example_id"].to_list()
    listed = tmp_path / "banned.txt"
    listed.write_text("\n".join(ids[:3]), encoding="utf-8")
    run_id = pipeline.reselect(root.url, reporter=SilentReporter(), method="random", exclude=str(listed)).run_id
    one = asked(root, run=run_id, method="random", regime="steps", steps=1, seeds=1)
    evaluate.evaluate(one, SilentReporter())
    with root.writer():
        forget.forget(root, ids[:1])
    evaluate.evaluate(one, SilentReporter())  # the list is the same
    listed.write_text("\n".join(ids), encoding="utf-8")
    with pytest.raises(UserError, match=f"exclude {listed}: it names other examples than when {run_id} was made"):
        evaluate.evaluate(one.model_copy(update={"seeds": 2}), SilentReporter())


def test_evaluate__tasks_are_measured_beside_the_loss(root: Root, tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks")
    one = asked(
        root, method="random", seeds=1, regime="steps", tasks=str(folder), task_items=("mmlu=1", "2"), task=("mmlu", "tydiqa")
    )
    name = evaluate.evaluate(one, SilentReporter())
    found = scores(root, name).filter(method="random")
    items = {(row["measure"], row["part"]): row["items"] for row in found.iter_rows(named=True)}
    assert items.pop(("loss", None)) == 24
    assert items.pop(("dataset_loss", None)) == 3
    assert {key: n for key, n in items.items() if key[0] != "loss"} == {
        ("mmlu", None): 2, ("mmlu", "law"): 1, ("mmlu", "high_school_maths"): 1,
        ("tydiqa", None): 2, ("tydiqa", "english"): 1, ("tydiqa", "finnish"): 1,
    }  # fmt: skip
    assert found.filter(pl.col("measure").is_in(["mmlu", "tydiqa"]))["value"].is_between(0, 1).all()
    config = evaluations.described(root.catalog, name)["config"]
    assert set(config["tasks"]) == {"mmlu", "tydiqa"}
    assert "protocol" not in config, "as in evaluations made before there were protocols"
    assert {"mmlu", "tydiqa vs random"} <= set(
        compact(evaluations.results(root.catalog, name).filter(pl.col("part").is_null())).columns
    )
    # asked as in the papers it is another evaluation
    plain = evaluate.evaluate(one.model_copy(update={"protocol": "paper", "task": ("mmlu",), "steps": 1}), SilentReporter())
    told = evaluations.described(root.catalog, plain)["config"]
    assert told["protocol"] == "paper"
    assert told["tasks"]["mmlu"] != config["tasks"]["mmlu"]
    assert scores(root, plain).filter(method="random", measure="mmlu")["value"].is_between(0, 1).all()
    # the picture: the same numbers, the same file
    for path in (tmp_path / "a.svg", tmp_path / "b.svg", tmp_path / "c.png"):
        plots.plot_evaluation(root.catalog, name, path)
    drawn = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert drawn == (tmp_path / "b.svg").read_text(encoding="utf-8")
    assert "random" in drawn or drawn.count("<use") > 5  # letters are drawn as paths
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_measures__a_task_may_count_its_parts_equally() -> None:
    """Protocol `paper`: the mean over languages, not over questions."""
    model = attach_adapter(tiny_model(), rank=2, alpha=4, dropout=0.0, seed=0)
    questions = [Question(part, "What?", (worth,)) for part, worth in (("a", "1"), ("a", "1"), ("a", "1"), ("b", "0"))]
    task = Task("tydiqa", tuple(questions), new_tokens=1, score=lambda reply, answers: float(answers[0]))
    for by_part, value, items in ((False, 0.75, 4), (True, 0.5, 2)):
        asked = replace(task, by_part=by_part)
        made = Measures(Heldout([], np.array([])), (asked,), tiny_tokenizer(), 512, 64, (1,))
        found = made.of(model, lambda done: None)
        assert found.filter(pl.col("part").is_null()).select("value", "items").row(0) == (value, items)
        assert dict(found.filter(pl.col("part").is_not_null()).select("part", "value").iter_rows()) == {"a": 1.0, "b": 0.0}


def test_plot__without_matplotlib_it_is_said_and_a_wrong_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"the name must end in \.png or \.svg"):
        plots.drawer(tmp_path / "x.pdf")
    drawn: list[Path] = []
    plots.drawer(None)(drawn.append)
    plots.drawer(tmp_path / "x.png")(drawn.append)
    assert drawn == [tmp_path / "x.png"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    plots.drawer(tmp_path / "x.png")(drawn.append)
    assert drawn == [tmp_path / "x.png"]
    assert "pip install 'tagcos-stream[plot]'" in capsys.readouterr().err


def test_plot__a_diagnosis_is_a_curve(tmp_path: Path) -> None:
    rows = [
        {
            "method": m,
            "fraction": f,
            "error_plain": 1 - f,
            "error_weighted": 0.9 - f,
            "error_fitted": None if m == "b" else 0.8 - f,
        }
        for m in "ab"
        for f in (0.01, 0.1)
    ]
    plots.plot_diagnosis(pl.DataFrame(rows), tmp_path / "made" / "x.png")
    assert (tmp_path / "made" / "x.png").read_bytes().startswith(b"\x89PNG")


def test_select__a_variant_that_was_not_computed_is_refused(root: Root) -> None:
    with pytest.raises(UserError, match=r"gradient adam: 0 examples of the pool .* --also-gradients adam"):
        pipeline.reselect(root.url, None, SilentReporter(), gradient="adam")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ("random", "best")}, "method: 'best' is unknown; choose from tagcos, .*, full"),
        ({"method": "full"}, "method: name a method in addition to full"),
        ({"fraction": (0.1, 2.0)}, "fraction: 2.0 must lie above 0 and be at most 1"),
        ({"regime": "hours"}, r"regime\.0: .*'steps' or 'epochs'.*given: 'hours'"),
        ({"vary": "dim=8"}, "vary: 'dim=8' is neither 'own' nor NAME=VALUE with a name among clusters, .*, tol"),
        ({"vary": "clusters"}, "vary: 'clusters' is neither"),
        ({"vary": "where=loss < 4; clusters"}, "vary: 'where=loss < 4; clusters' is neither"),
        ({"vary": "where=loss < 4; where=true"}, "vary: 'where=loss < 4; where=true' is neither"),
        ({"vary": ("clusters=1", "clusters=few")}, "vary: clusters: .*valid integer.*given: 'few'"),
        ({"vary": "ridge=0"}, "vary: ridge: .*greater than 0"),
        ({"workers": 2, "run_on": "threads"}, "threads are one worker, not 2"),
        ({"learning_rate": -1}, "learning_rate: .*greater than 0"),
        ({"seed": 3}, "seed: .*not permitted"),
    ],
)
def test_settings__wrong_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_evaluation(changes)


def test_command__nothing_held_out_is_a_mistake_that_one_line_explains(
    small_settings: Callable[..., dict[str, Any]], first_run: First, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    settings = small_settings()
    first_run(settings)
    command = ["tagcos", "evaluate", "--root", settings["root"], "--method", "random", "--seeds", "1", "--threads", "1"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    assert "holds no example out. Start a root with `tagcos run --heldout 0.05`" in capsys.readouterr().err


def test_command__prints_a_table_and_json(
    root: Root, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "tagcos",
        "evaluate",
        "--root",
        root.url,
        "--method",
        "random",
        "--method",
        "longest",
        "--seeds",
        "2",
        "--threads",
        "1",
    ]
    command += ["--fraction", "0.1", "--epochs", "1"]
    for extra in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", command + extra)
        with pytest.raises(SystemExit) as stop:
            main.main()
        assert not stop.value.code
        out = capsys.readouterr().out
        if extra:
            told = json.loads(out)
            assert {row["method"] for row in told["results"]} == {"base", "random", "longest"}
            assert {row["part"] for row in told["results"]} == {None, *TOPICS}
        else:
            assert "same number of steps for all (1 of 8 examples)" in out
            assert "same number of passes for all (1 over" in out
            assert re.search(r"longest +2 +10 +1 +\d\.\d{4} ± 0\.\d{4} +[+-]\d\.\d{4} ± 0\.\d{4}", out)
            assert "loss minus that of random: 95% intervals" in out
            assert "no trial of" not in out
    monkeypatch.setattr("sys.argv", [*command, "--against", "balanced"])
    with pytest.raises(SystemExit):
        main.main()
    out = capsys.readouterr().out
    assert "no trial of balanced is in this evaluation. Add --method balanced, or name another method" in out
    assert "95% intervals" not in out
    monkeypatch.setattr("sys.argv", ["tagcos", "status", "--root", root.url])
    with pytest.raises(SystemExit):
        main.main()
    assert re.search(r"run-\S+ +main +\S+ +\S+ +complete +96 +10 ", capsys.readouterr().out)


@pytest.mark.slow
def test_experiment__runs_in_one_go_from_files_and_goes_on(
    pool_folder: Path, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """tests/benchmarks/experiment.py: a run, every comparison, tasks, another model, and a table of each; twice."""
    config = tmp_path / "run.toml"
    config.write_text("\n".join(f"{name} = {value}" for name, value in SMALL.items() if name != "fraction"))
    other = tmp_path / "other"
    tiny_model(seed=5).save_pretrained(other)
    tiny_tokenizer().save_pretrained(other)
    words = [str(pool_folder), "--root", str(tmp_path / "root"), "--model", str(model_folder), "--config", str(config)]
    words += ["--tasks", str(write_tasks(tmp_path / "tasks")), "--transfer", str(other), "--fraction", "0.1", "--heldout", "0.2"]
    words += ["--seeds", "1", "--pool-methods", "--", "--regime", "steps", "--steps", "2", "--task", "mmlu"]
    experiment.main(words)
    first = capsys.readouterr().out
    tables = first[first.index("\n| measure") :]
    assert tables.count("| measure | method") == 2
    for method in ("random", "stratified", "longest", "kcenter", "herding", "herding-clusters", "omp", "tagcos", "full", "base"):
        assert f"| loss | {method} |" in tables
    assert "| mmlu | tagcos |" in tables
    experiment.main(words)
    again = capsys.readouterr().out
    assert again[again.index("\n| measure") :] == tables
