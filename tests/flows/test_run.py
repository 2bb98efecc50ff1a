"""The whole job on a tiny real model: what a run selects, records, resumes and refuses."""

from __future__ import annotations

import gc
import json
import random
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

from flows import models, pipeline
from flows.compare import diagnose
from flows.context import run_stage
from flows.models import load_adapted
from flows.progress import SilentReporter
from storage import check
from storage.catalog import runs, selections
from storage.catalog.spaces import Space
from storage.exports import write as exports
from storage.root import open_root
from tagcos_stream.config import Settings, load_settings
from tagcos_stream.data.read import read_file
from tagcos_stream.data.sources import resolve_sources
from tagcos_stream.gradients import model
from tagcos_stream.gradients.model import LoadedModel, load_model
from tagcos_stream.types import UserError
from tests.flows.conftest import TOPICS, First, conversation, features_of
from tests.models import CHATML, tiny_tokenizer
from tests.stages import STAGES

Maker = Callable[..., dict[str, Any]]
CHANGES = ("add", "drop", "rename", "shuffle", "replace", "repeat", "spoil", "move")  # of the files of a pool


class Collecting(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def run(values: dict[str, Any]) -> pipeline.Outcome:
    return pipeline.run(load_settings(values), SilentReporter())


def selected(root: str, run_id: str) -> pl.DataFrame:
    return selections.selection(open_root(root, create=False).catalog, run_id).drop("run_id")


def test_run__selects_the_exact_budget_and_records_why(small_settings: Maker, first_run: First, tmp_path: Path) -> None:
    outcome = first_run(small_settings())
    root = open_root(str(tmp_path / "root"), create=False)
    chosen = selected(root.url, outcome.run_id)
    assert len(chosen) == 12 == round(0.1 * 120)
    assert chosen["example_id"].n_unique() == 12
    assert (chosen["weight"] >= 0).all()
    by_dataset = root.catalog.read("FROM by_dataset(?)", [outcome.run_id])
    assert sorted(by_dataset["dataset"]) == ["cities", "colours", "sums"]
    assert by_dataset["pool"].sum() == 120
    # every pool row belongs to one cluster, and clusters add up
    clusters = root.catalog.read("FROM coverage_of(?)", [outcome.run_id])
    assert clusters["size"].sum() == 120
    assert clusters["selected"].sum() == 12
    assert clusters["residual"].is_between(0, 1).all()
    # chosen and left alike know why
    left = root.catalog.read("SELECT example_id FROM examples ANTI JOIN selections USING (example_id) ORDER BY 1 LIMIT 1").item()
    why = root.catalog.read("FROM why(?)", [left]).row(0, named=True)
    assert not why["chosen"]
    assert why["places_to_cut"] >= 1
    assert root.catalog.read("FROM why(?)", [chosen["example_id"][0]]).row(0, named=True)["chosen"]


def test_run__same_input_and_seed_give_the_same_selection(small_settings: Maker, first_run: First, tmp_path: Path) -> None:
    first, second = (do(small_settings(root=str(tmp_path / name))).run_id for name, do in (("a", first_run), ("b", run)))
    assert selected(str(tmp_path / "a"), first).equals(selected(str(tmp_path / "b"), second))


def test_run__again_computes_only_what_is_new(small_settings: Maker, first_run: First, pool_folder: Path) -> None:
    values = small_settings()
    first = first_run(values)
    assert first.stages["gradients"]["computed"] == 120
    again = run(values)
    assert again.run_id != first.run_id
    assert again.stages["ingest"]["new"] == 0
    assert again.stages["warm-up"]["reused"]
    assert again.stages["gradients"]["computed"] == 0
    assert again.stages["cluster"]["reused"]
    assert selected(values["root"], first.run_id).equals(selected(values["root"], again.run_id))

    # a moved, reordered file costs nothing, three new rows cost three
    lines = (pool_folder / "sums.jsonl").read_text(encoding="utf-8").splitlines()
    new = [
        json.dumps({"messages": [{"role": "user", "content": f"Say {i}"}, {"role": "assistant", "content": f"{i}"}]})
        for i in range(3)
    ]
    (pool_folder / "sums.jsonl").unlink()
    (pool_folder / "other.jsonl").write_text("\n".join([*reversed(lines), *new]), encoding="utf-8")
    third = run(values)
    assert third.stages["ingest"]["new"] == 3
    assert third.stages["gradients"]["computed"] == 3
    assert third.stages["select"]["pool"] == 123


def test_run__another_fraction_needs_no_gradients(small_settings: Maker, first_run: First) -> None:
    first_run(small_settings())
    outcome = run(small_settings(fraction=0.25))
    assert outcome.stages["gradients"]["computed"] == 0
    assert outcome.stages["cluster"]["reused"]
    assert outcome.stages["select"]["selected"] == 30


def test_run__whatever_became_of_a_pool_it_is_that_of_a_fresh_root(
    small_settings: Maker, pool_folder: Path, tmp_path: Path
) -> None:
    """Files that came, went, moved and changed, changed settings, interruptions: pool, rejects and features show none of them."""
    generator = random.Random(0)
    fresh_numbers = iter(range(1000, 2000))
    files = {topic: [{"messages": conversation(topic, n)} for n in range(8)] for topic in TOPICS}
    evaluation = tmp_path / "evaluation.jsonl"
    words = "one two three four five six seven eight nine ten eleven twelve thirteen"
    evaluation.write_text(json.dumps({"text": words}), encoding="utf-8")
    values = small_settings(gradient="hidden", method="herding", refit="always", max_retired=1e9, max_rejects=1e9, block_rows=8)
    settings: dict[str, tuple[Any, ...]] = {
        "decontaminate": ((), (str(evaluation),)),
        "max_length": (64, 96),
        "fraction": (0.2, 0.4),
        "method": ("herding", "tagcos", "longest"),
    }

    def change(folder: Path, *kinds: str) -> Path:
        """One change of the files; returns the folder, which may be another."""
        what, name = generator.choice(kinds or CHANGES), generator.choice(sorted(files))
        if what == "add":
            files[f"new-{next(fresh_numbers)}"] = [{"messages": conversation("sums", next(fresh_numbers))} for _ in range(9)]
        elif what == "drop" and len(files) > 2:
            files.pop(name)
        elif what == "rename":
            files[f"{name}-again"] = files.pop(name)
        elif what == "shuffle":
            generator.shuffle(files[name])
        elif what == "replace":
            files[name][0] = {"messages": conversation("cities", next(fresh_numbers))}
        elif what == "repeat":
            files[name].append(files[generator.choice(sorted(files))][0])
        elif what == "spoil":
            asked = {"role": "user", "content": f"{words} {next(fresh_numbers)}"}
            files[name] += [{"messages": [asked]}, {"messages": [asked, {"role": "assistant", "content": "yes"}]}]
        shutil.rmtree(folder)
        folder = folder.with_name(f"pool-{next(fresh_numbers)}") if what == "move" else folder
        folder.mkdir()
        for name, rows in files.items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return folder

    def interrupted(name: str, work: Any, run: Any, /, *given: Any) -> Any:
        result = run_stage(name, work, run, *given)
        if name == stage:
            raise KeyboardInterrupt
        return result

    def state(where: str, run_id: str) -> list[Any]:
        root = open_root(where, create=False)
        assert check.check(root) == []
        pool, features = features_of(root, run_id)
        order = pool["example_id"].arg_sort()
        rejects = """SELECT r.stage, r.reason, f.url, CASE r.stage WHEN 'ingest' THEN r.row END AS row, r.example_id
            FROM rejects_of(?) r LEFT JOIN files f USING (file_id) ORDER BY ALL"""
        rows = pool.select("example_id", "turns", "chars", "tokens", "target_tokens")[order]
        return [rows.rows(), root.catalog.read(rejects, [run_id]).rows(), features[order.to_numpy()]]

    folder, blocks = pool_folder, set[Any]()
    for step in range(5):
        for _ in range(2):
            folder = change(folder)
        name = generator.choice(sorted(settings))
        values |= {name: generator.choice(settings[name]), "sources": (str(folder),)}
        if step % 2:
            stage = generator.choice(STAGES)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(load_settings(values), SilentReporter(), interrupted)
            folder = change(folder)
            values["sources"] = (str(folder),)
        done = run(values)
        if step == 4:  # as many rows, of which one is another: what was chosen before is not what is chosen now
            folder = change(folder, "replace")
            done = run(values)
        root = open_root(values["root"], create=False)
        before, blocks = blocks, set(root.catalog.read("SELECT space_id, segment, block, committed_at FROM blocks").rows())
        assert before <= blocks, "a block was computed again"
    lived = state(values["root"], done.run_id)
    fresh = values | {"root": str(tmp_path / "fresh")}
    new = state(fresh["root"], run(fresh).run_id)
    assert lived[:2] == new[:2]
    np.testing.assert_allclose(lived[2], new[2], atol=4e-3)  # batches are others
    # choices that were copied are those that would be made
    connection = duckdb.connect(str(root.catalog_path))
    connection.execute("UPDATE run_groups SET inputs = NULL")
    connection.close()
    again = run(values | {"name": "again"})
    assert again.stages["select"]["copied"] == again.stages["gradients"]["computed"] == 0
    assert selected(root.url, again.run_id).equals(selected(root.url, done.run_id))


def test_run__bad_rows_are_rejects_and_the_run_goes_on(small_settings: Maker, pool_folder: Path) -> None:
    with (pool_folder / "cities.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "user", "content": "no answer"}]}\n{broken\n{"messages": 7}\n')
        long_prompt = [{"role": "user", "content": "x" * 500}, {"role": "assistant", "content": "cut off"}]
        file.write(json.dumps({"messages": long_prompt}) + "\n")
    values = small_settings()
    outcome = run(values)
    rejects = open_root(values["root"], create=False).catalog.read("SELECT stage, row, reason, snippet FROM rejects ORDER BY ALL")
    assert rejects.filter(pl.col("stage") == "ingest")["row"].to_list() == [40, 41, 42]
    assert rejects.filter(pl.col("stage") == "gradients")["reason"].to_list() == ["no target tokens"]
    assert outcome.stages["select"]["pool"] == 120


@pytest.mark.parametrize(
    "changes", [{"method": "random"}, {}, {"fraction": None, "tokens": "400"}], ids=["random", "own", "tokens"]
)
def test_run__that_stopped_after_its_choice_chooses_from_the_sources_as_they_are_now(
    small_settings: Maker, pool_folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    checks = tmp_path / "checks"
    checks.mkdir()
    (checks / "never.sql").write_text("-- after: select\nSELECT 1 AS one")
    values = small_settings(**changes)
    with pytest.raises(UserError, match="check never"):
        run(values | {"checks": str(checks)})
    stopped = runs.run_status(open_root(values["root"], create=False).catalog)
    (pool_folder / "sums.jsonl").unlink()
    lines = [json.dumps({"messages": conversation("colours", n)}) for n in range(200)]
    (pool_folder / "colours.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    reporter = Collecting()
    outcome = pipeline.run(load_settings(values), reporter)
    assert outcome.run_id == stopped.run["run_id"]
    assert "the sources changed since this run began: its choices are made again" in reporter.said
    root = open_root(values["root"], create=False)
    pool = root.catalog.read("SELECT example_id FROM pool_of(?)", [outcome.run_id])["example_id"]
    chosen = selected(values["root"], outcome.run_id)
    assert len(pool) == 240
    assert chosen["example_id"].is_in(pool.implode()).all()
    assert root.catalog.read("SELECT pool FROM run_sizes WHERE run_id = ?", [outcome.run_id]).item() == 240
    if "tokens" in changes:
        assert 300 < outcome.stages["select"]["tokens"] <= 400
    else:
        assert len(chosen) == 24
    assert check.check(root) == []
    # given again without a change, nothing is dropped
    again = Collecting()
    pipeline.run(load_settings(values), again)
    assert not any("sources changed" in said for said in again.said)


def test_run__that_is_resumed_leaves_out_the_same_near_duplicates(
    small_settings: Maker, pool_folder: Path, tmp_path: Path
) -> None:
    checks = tmp_path / "checks"
    checks.mkdir()
    (checks / "never.sql").write_text("-- after: select\nSELECT 1 AS one")
    values = small_settings(method="random", near_duplicates=0.4)
    with pytest.raises(UserError, match="check never"):
        run(values | {"checks": str(checks)})
    root = open_root(values["root"], create=False)
    stopped = runs.run_status(root.catalog)
    reporter = Collecting()
    outcome = pipeline.run(load_settings(values), reporter)
    assert outcome.run_id == stopped.run["run_id"]
    assert 0 < outcome.stages["ingest"]["near_duplicates"] == 120 - stopped.examples
    assert runs.run_status(root.catalog, outcome.run_id).examples == stopped.examples
    assert not any("choices are made again" in said for said in reporter.said)


def test_run__near_duplicates_that_do_not_fit_in_memory_are_refused(small_settings: Maker) -> None:
    refused = r"near-duplicates among 120 examples needs 0\.3 GiB, limit 0\.1 GiB: raise memory_limit, or leave near_dup"
    with pytest.raises(UserError, match=refused) as error:
        run(values := small_settings(method="random", near_duplicates=0.8, memory_limit=0.1))
    (row,) = runs.list_runs(open_root(values["root"], create=False).catalog).to_dicts()
    assert pipeline.failed_run(error.value) == row["run_id"]
    with pytest.raises(UserError, match="unknown kind of store 'ftp'") as error:
        run(values | {"root": "ftp://host/root"})
    assert pipeline.failed_run(error.value) is None


def test_run__refused_for_its_sources_keeps_its_choices(small_settings: Maker, pool_folder: Path, tmp_path: Path) -> None:
    checks = tmp_path / "checks"
    checks.mkdir()
    (checks / "never.sql").write_text("-- after: select\nSELECT 1 AS one")
    values = small_settings(method="random")
    run(values)
    again = values | {"seed": 1}
    with pytest.raises(UserError, match="check never"):
        run(again | {"checks": str(checks)})
    text = (pool_folder / "sums.jsonl").read_bytes()
    (pool_folder / "sums.jsonl").unlink()
    with pytest.raises(UserError, match="max_retired"):
        run(again)
    (pool_folder / "sums.jsonl").write_bytes(text)
    reporter = Collecting()
    assert pipeline.run(load_settings(again), reporter).stages["select"]["selected"] == 12
    assert not any("choices are made again" in said for said in reporter.said)


def test_run__a_target_with_rejects_is_accepted_once(small_settings: Maker, tmp_path: Path) -> None:
    good = [json.dumps({"messages": conversation("sums", n)}) for n in range(300, 303)]
    (tmp_path / "want.jsonl").write_text("\n".join([*good, *["{broken"] * 5]) + "\n", encoding="utf-8")
    values = small_settings(method="omp", target=(str(tmp_path / "want.jsonl"),))
    with pytest.raises(UserError, match=r"target want: 5 of 8 rows rejected \(62%\)"):
        run(values)
    run(values | {"max_rejects": 0.9})
    run(values | {"seed": 1})
    # a source is not accepted for having an example of the target
    (tmp_path / "source.jsonl").write_text("\n".join([good[0], *["{broken"] * 500]) + "\n", encoding="utf-8")
    for _ in range(2):
        with pytest.raises(UserError, match=r"500 of 501 rows rejected|rows rejected \(100%\)"):
            run(values | {"sources": (*values["sources"], str(tmp_path / "source.jsonl"))})


def test_run__too_many_rejects_stop_every_attempt(small_settings: Maker, tmp_path: Path) -> None:
    """A run that is given again, as by a schedule, counts what earlier attempts read; files of a complete run were accepted."""
    good = [json.dumps({"messages": conversation("sums", n)}) for n in range(40)]
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.jsonl").write_text("\n".join([*good, *["{broken"] * 60]) + "\n", encoding="utf-8")
    values = small_settings(sources=(str(tmp_path / "pool"),), method="random")
    for _ in range(2):
        with pytest.raises(UserError, match=r"60 of 100 rows rejected \(60%\), max_rejects is 50%"):
            run(values)
    run(values | {"max_rejects": 0.7})
    run(values)


def with_template(model_folder: Path, folder: Path, template: str) -> str:
    """The tiny model with another chat template."""
    shutil.copytree(model_folder, folder)
    for file in folder.glob("chat_template*"):
        file.unlink()
    tiny_tokenizer(template).save_pretrained(folder)
    return str(folder)


def test_run__says_at_its_end_that_rows_were_lost(small_settings: Maker, model_folder: Path, tmp_path: Path) -> None:
    """A template that raises an error for a third of the rows: each is a reject with the template's words."""
    template = "{% if 'colour' in messages[0].content %}{{ messages[7].content }}{% endif %}" + CHATML
    values = small_settings(model=with_template(model_folder, tmp_path / "picky", template))
    reporter = Collecting()
    outcome = pipeline.run(load_settings(values), reporter)
    assert outcome.stages["select"]["pool"] == 80
    last = reporter.said[-1]
    assert last.startswith("WARNING: 40 of 120 examples (33.3%) have no feature and cannot be selected: chat template failed: ")
    assert "line 1: UndefinedError: list object has no element 7" in last
    again = Collecting()
    pipeline.run(load_settings(values | {"seed": 3}), again)
    assert again.said[-1].partition(": chat template")[0] == last.partition(": chat template")[0]


def test_run__template_that_fails_for_all_is_the_message(small_settings: Maker, model_folder: Path, tmp_path: Path) -> None:
    values = small_settings(model=with_template(model_folder, tmp_path / "broken", "\n{{ 1 / 0 }}" + CHATML))
    says = r"none of 32 examples drawn can be trained on; chat template failed \(32 of them\), such as [0-9a-f]{32}: chat "
    with pytest.raises(UserError, match=says + r"template of .*broken \(.{8}\), line 2: ZeroDivisionError: division by zero$"):
        run(values)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_export__holds_messages_weight_group_and_rank(small_settings: Maker, first_run: First, tmp_path: Path, name: str) -> None:
    values = small_settings()
    outcome = first_run(values)
    path = tmp_path / name
    assert exports.export(open_root(values["root"], create=False), outcome.run_id, path).rows == 12
    frame = pl.read_ndjson(path) if name.endswith("jsonl") else pl.read_parquet(path)
    assert len(frame) == 12
    assert frame["weight"].mean() == pytest.approx(1)
    chosen = selected(values["root"], outcome.run_id)
    columns = ("example_id", "group_id", "rank")
    assert sorted(frame.select(columns).rows()) == sorted(chosen.select(columns).rows())
    source = {
        line
        for topic in ("sums", "colours", "cities")
        for line in (Path(values["sources"][0]) / f"{topic}.jsonl").read_text().splitlines()
    }
    for messages in frame["messages"].to_list():
        turns = [{"role": m["role"], "content": m["content"]} for m in messages]
        assert json.dumps({"messages": turns}) in source


def test_run__a_changed_model_is_refused(small_settings: Maker, model_folder: Path, pool_folder: Path, tmp_path: Path) -> None:
    import shutil

    from tests.models import tiny_model

    own = tmp_path / "model"
    shutil.copytree(model_folder, own)
    run(small_settings(model=str(own)))
    tiny_model("llama", seed=1).save_pretrained(own)
    with pytest.raises(UserError, match="features of two models never mix"):  # no feature is missing, but losses of answers are
        run(small_settings(model=str(own), ifd=True))
    (pool_folder / "more.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="features of two models never mix"):
        run(small_settings(model=str(own)))


def test_run__near_duplicates_and_evaluation_overlap_leave_the_pool_with_a_reason(
    small_settings: Maker, pool_folder: Path, tmp_path: Path
) -> None:
    leaked = "the quick brown fox jumps over the lazy dog while seven wizards quietly boil a pot of soup"
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": leaked, "answer": "soup"}) + "\n", encoding="utf-8")
    story = " ".join(f"word{i}" for i in range(60))
    rows = [
        [{"role": "user", "content": leaked}, {"role": "assistant", "content": "soup"}],
        [{"role": "user", "content": "Tell it."}, {"role": "assistant", "content": story}],
        [{"role": "user", "content": "Tell it."}, {"role": "assistant", "content": story + " end"}],
    ]
    (pool_folder / "more.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in rows), encoding="utf-8")
    outcome = run(small_settings(decontaminate=(str(tmp_path / "exam.jsonl"),), near_duplicates=0.85))
    catalog = open_root(str(tmp_path / "root"), create=False).catalog
    rejects = {row["stage"]: row for row in catalog.read("SELECT stage, reason, detail, row FROM rejects").iter_rows(named=True)}
    assert rejects["ingest"]["reason"] == "contaminated"
    assert "exam.jsonl" in rejects["ingest"]["detail"]
    # of the pool's short, form-like conversations many are near-duplicates, too: the pool is what is left
    assert outcome.stages["ingest"]["near_duplicates"] >= 1
    left_out = catalog.read("SELECT example_id FROM rejects WHERE stage = 'near-duplicates'")["example_id"]
    pool = catalog.read("FROM pool_of(?)", [outcome.run_id])["example_id"]
    assert not set(left_out) & set(pool)
    assert outcome.stages["select"]["pool"] == len(pool) == 122 - len(left_out)


def test_run__several_variants_in_one_pass_share_an_adapter(small_settings: Maker, tmp_path: Path) -> None:
    run(small_settings(also_gradients=("adam-delta", "adam")))
    catalog = open_root(str(tmp_path / "root"), create=False).catalog
    spaces = catalog.read("SELECT variant, space_id FROM feature_spaces ORDER BY variant")
    assert spaces["variant"].to_list() == ["adam", "adam-delta", "sgd"]
    assert catalog.read("SELECT count(DISTINCT fingerprint->'checkpoints') AS n FROM feature_spaces").item() == 1
    assert catalog.read("SELECT count(*) AS n FROM feature_rows WHERE status = 'ok'").item() == 3 * 120
    # the other variant's features are there: selecting by it computes nothing, and equals a run of its own
    outcome = run(small_settings(gradient="adam-delta"))
    assert outcome.stages["gradients"]["computed"] == 0
    alone = run(small_settings(gradient="adam-delta", root=str(tmp_path / "alone")))
    assert selected(str(tmp_path / "root"), outcome.run_id).equals(selected(str(tmp_path / "alone"), alone.run_id))


def test_run__hidden_states_with_gradients_and_alone(
    small_settings: Maker, first_run: First, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_run(small_settings(also_gradients=("hidden",)))
    root = str(tmp_path / "root")
    together = pipeline.reselect(root, reporter=SilentReporter(), gradient="hidden", method="omp")  # no gradient is computed
    catalog = open_root(root, create=False).catalog
    found = catalog.read("SELECT variant, fingerprint->'checkpoints' AS made FROM feature_spaces ORDER BY variant")
    assert found["variant"].to_list() == ["hidden", "sgd"]
    assert found["made"].n_unique() == 1

    loads: list[str] = []

    def load(settings: Settings, device: str) -> LoadedModel:
        loads.append(device)
        return load_adapted(settings, device)

    monkeypatch.setattr(models, "load_adapted", load)
    alone = run(small_settings(gradient="hidden", method="omp", ifd=True))
    assert len(loads) == 1, "every stage and the answers without prompts use the same model"
    assert alone.stages["gradients"]["computed"] == 120
    assert alone.stages["warm-up"]["trained"] is False
    assert (
        catalog.read("SELECT count(*) FROM checkpoints JOIN runs USING (space_id) WHERE run_id = ?", [alone.run_id]).item() == 0
    )
    assert together.stages["select"]["selected"] == len(selected(root, alone.run_id)) == 12
    signals = catalog.read("SELECT count(norm) AS lengths, count(loss) AS losses FROM signals_of(?)", [alone.run_id])
    assert signals.row(0) == (0, 120)
    # methods are compared on hidden states as on gradients
    within = pipeline.reselect(root, alone.run_id, SilentReporter(), method="tagcos").run_id
    diagnose.diagnose(root, within, methods=("tagcos", "omp"), fractions=(0.1,), seeds=(0,), reporter=SilentReporter())
    assert sorted(diagnose.table(root, within)["method"]) == ["omp", "tagcos"]
    assert (diagnose.table(root, within)["error_plain"] < 1).all()
    again = run(small_settings(gradient="hidden", lora_rank=2, warmup_examples=9, method="kcenter"))
    assert again.stages["gradients"]["computed"] == 0
    assert again.plan is not None
    assert again.plan.step("warm-up").total == 0
    with pytest.raises(UserError, match="gradient-norm reads norm, which 120 of 120 examples do not have"):
        pipeline.reselect(root, reporter=SilentReporter(), method="gradient-norm")


def test_run__too_long_examples_are_rejected_when_asked(small_settings: Maker, pool_folder: Path) -> None:
    long = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one two " * 40}]
    (pool_folder / "long.jsonl").write_text(json.dumps({"messages": long}) + "\n", encoding="utf-8")
    cut = run(small_settings(max_length=220))
    assert (cut.stages["gradients"]["truncated"], cut.stages["select"]["pool"]) == (1, 121)
    refused = run(small_settings(max_length=220, too_long="reject"))
    assert (refused.stages["gradients"]["rejected"], refused.stages["select"]["pool"]) == (1, 120)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_export__read_again_gives_the_same_ids(small_settings: Maker, tmp_path: Path, name: str) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "system", "content": " s "},
                {"role": "user", "content": "a\n"},
                {"role": "assistant", "content": "ü\u202e"},
            ]
        },
        {
            "messages": [{"role": "user", "content": "b", "name": "Ann"}, {"role": "assistant", "content": "Yes. No."}],
            "tools": tools,
        },
        {"messages": [{"role": "user", "content": "c", "train": True}, {"role": "assistant", "content": "d", "train": False}]},
    ]
    (tmp_path / "rich.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = small_settings(sources=(str(tmp_path / "rich.jsonl"),), fraction=1.0, clusters=1, max_length=400)
    outcome = run(values)
    path = tmp_path / name
    assert exports.export(open_root(values["root"], create=False), outcome.run_id, path).rows == 3
    (file,) = resolve_sources([str(path)])
    again = [example_id for block in read_file(file) for example_id in block.occurrences["example_id"]]
    assert sorted(again) == sorted(selected(values["root"], outcome.run_id)["example_id"])


def test_run__with_its_root_in_an_object_store_selects_the_same(
    small_settings: Maker, first_run: First, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))  # where the catalog of such a root lies
    local, remote = first_run(small_settings()), run(small_settings(root=bucket))
    assert selected(str(tmp_path / "root"), local.run_id).equals(selected(bucket, remote.run_id))
    assert run(small_settings(root=bucket)).stages["gradients"]["computed"] == 0
    assert exports.export(open_root(bucket, create=False), remote.run_id, tmp_path / "out.jsonl").rows == 12


def test_load_of_space__in_the_dtype_that_the_space_was_begun_in(small_settings: Maker) -> None:
    """A device without one in its settings would load another: a driver without a GPU, or the same root on two machines."""
    asked = load_settings(small_settings())
    made = load_adapted(asked.model_copy(update={"dtype": "bfloat16"}), "cpu")
    space = Space("space", "recipe", "sgd", 8, {"model": made.fingerprint, "dtype": "bfloat16"}, pl.DataFrame())
    with models.AdaptedModel() as held:
        assert models.load_of_space(held, asked, "cpu", space).dtype == "bfloat16"
        with pytest.raises(UserError, match="features of two models never mix"):
            models.load_of_space(held, asked.model_copy(update={"dtype": "float32"}), "cpu", space)


def test_run__loads_the_model_once_and_releases_it(small_settings: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm-up and the gradients share one; the later stages have its memory, and a run without new rows loads none."""
    loaded: list[weakref.ref[Any]] = []
    left: list[int] = []

    def load(*arguments: Any, **options: Any) -> Any:
        made = load_model(*arguments, **options)
        loaded.append(weakref.ref(made.model))
        return made

    def do_stage(name: str, work: Any, run: Any, /, *given: Any) -> Any:
        result = run_stage(name, work, run, *given)
        gc.collect()
        left.append(sum(ref() is not None for ref in loaded))
        return result

    monkeypatch.setattr(model, "load_model", load)
    settings = load_settings(small_settings())
    pipeline.run(settings, SilentReporter(), do_stage)
    assert len(loaded) == 1
    assert left == [0, 1, 0, 0, 0, 0]  # after ingest, warm-up, gradients, cluster, select, publish
    pipeline.run(settings, SilentReporter(), do_stage)
    assert len(loaded) == 1
