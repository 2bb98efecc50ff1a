"""What is planned is what is then computed: first run, interrupted run, grown pool, changed settings."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import pipeline, recompute
from flows.changes import recorded
from flows.cli.main import app
from flows.context import DoStage, run_stage
from flows.plan import Plan
from flows.progress import SilentReporter
from flows.recompute import Recompute
from flows.workers import gradients as worker
from storage.root import open_root
from tagcos_stream.config import load_settings
from tagcos_stream.types import UserError
from tests.flows.conftest import First, conversation
from tests.flows.test_cli import flags

Maker = Callable[..., dict[str, Any]]
STAGES = ("ingest", "warm-up", "gradients", "cluster", "select")


# a run of seconds is not asked about
ASKING = "from flows import recompute; recompute.ASK_ABOVE = 0.0; from flows.cli.main import main; main()"


def in_terminal(arguments: list[str], answer: str) -> tuple[int, str]:
    """Run a command in a terminal of its own and answer its question. Returns its exit code and what the terminal showed."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", ASKING, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        shown, answered = b"", False
        while True:
            try:
                shown += os.read(ours, 4096)
            except OSError:  # the terminal is closed with its last process
                break
            if not answered and shown.endswith(b"[y/N]: "):
                os.write(ours, f"{answer}\n".encode())
                answered = True
    os.close(ours)
    return process.returncode, shown.decode().replace("\r\n", "\n")


def planned(values: dict[str, Any]) -> Plan:
    return pipeline.dry_run(load_settings(values), SilentReporter())


def run(values: dict[str, Any], do_stage: DoStage = run_stage) -> pipeline.Outcome:
    return pipeline.run(load_settings(values), SilentReporter(), do_stage)


def counts(plan: Plan) -> dict[str, tuple[int, int]]:
    return {step.stage: (step.compute, step.total) for step in plan.steps}


def agrees(plan: Plan, outcome: pipeline.Outcome, before: int = 0) -> None:
    """A plan made before a run names what the run then reused and computed. before: features of its earlier attempts, which count
    as computed by the run."""
    stages = outcome.stages
    warm_up, gradients, clusters, select = (plan.step(name) for name in ("warm-up", "gradients", "cluster", "select"))
    assert (warm_up.compute == 0) == stages["warm-up"]["reused"]
    assert warm_up.reuse in (None, stages["warm-up"]["space_id"])
    assert (before + gradients.compute, gradients.total) == (stages["gradients"]["computed"], stages["gradients"]["rows"])
    assert (clusters.reuse is not None) == (stages["cluster"]["reused"] and stages["cluster"]["clustering_id"] is not None)
    if clusters.reuse is not None:
        assert (clusters.reuse, clusters.compute) == (stages["cluster"]["clustering_id"], stages["cluster"]["joined"])
    elif clusters.total:
        assert clusters.compute == clusters.total == stages["cluster"]["rows"]
    assert select.total == stages["select"]["selected"]
    assert (select.compute == 0) == (stages["select"]["copied"] == stages["select"]["clusters"])
    if select.reuse is not None:
        copied, groups = stages["select"]["copied"], stages["select"]["clusters"]
        assert select.reason == f"{copied} of {groups} groups are unchanged"
    assert outcome.plan is not None
    assert outcome.plan.step("warm-up").reason == warm_up.reason
    assert counts(outcome.plan) | {"ingest": (0, 0)} == counts(plan) | {"ingest": (0, 0)}, "planned again once sources are read"


def stages(*counts: tuple[int, int]) -> dict[str, tuple[int, int]]:
    return dict(zip(("ingest", "warm-up", "gradients", "cluster", "select"), counts, strict=True))


def write(path: Path, topic: str, numbers: range) -> None:
    path.write_text("".join(json.dumps({"messages": conversation(topic, n)}) + "\n" for n in numbers), encoding="utf-8")


def test_plan__before_a_first_run_after_it_after_growth_and_after_changed_settings(
    small_settings: Maker, pool_folder: Path, tmp_path: Path
) -> None:
    values = small_settings(heldout=0.1, refit="never")  # a fit that no longer suits the data shows only when it is measured
    first = planned(values)
    assert not (tmp_path / "root").exists(), "a plan writes nothing"
    assert counts(first) == stages((3, 3), (1, 1), (108, 108), (108, 108), (11, 11))
    assert first.step("warm-up").reason == "first run of this root"
    agrees(first, done := run(values))

    from flows.prefect_artifacts import summary  # Prefect takes seconds to import

    root = open_root(values["root"], create=False)
    by_dataset = root.catalog.read("FROM by_dataset(?)", [done.run_id]).to_dicts()
    told = summary(root, done, recorded(root.catalog, done.run_id), by_dataset)
    assert "| stage | planned | reused | why |" in told
    assert "| gradients | 108 of 108 examples |  | a new space has none |" in told

    again = planned(values)
    assert {name: n for name, (n, _) in counts(again).items()} == dict.fromkeys(counts(again), 0)
    assert again.step("select").reuse == done.run_id
    assert again.exact
    agrees(again, run(values))

    write(pool_folder / "more.jsonl", "sums", range(100, 130))
    grown = planned(values)
    assert counts(grown) == stages((1, 4), (0, 1), (27, 135), (27, 135), (14, 14))
    agrees(grown, run(values))

    fraction = planned(values | {"fraction": 0.2})
    assert [fraction.step(name).compute for name in ("ingest", "warm-up", "gradients", "cluster")] == [0, 0, 0, 0]
    assert 20 <= fraction.step("select").compute <= fraction.step("select").total == 27  # a cluster of one row chooses as before
    agrees(fraction, run(values | {"fraction": 0.2}))

    changed = planned(values | {"max_length": 64})
    assert "max_length is 64, not 96 as in run-" in changed.step("warm-up").reason
    assert (counts(changed)["warm-up"], counts(changed)["gradients"]) == ((1, 1), (135, 135))
    assert changed.step("gradients").reuse is None
    agrees(changed, run(values | {"max_length": 64}))


def test_plan__of_another_variant_or_method_and_of_a_pool_that_shrank(
    small_settings: Maker, first_run: First, pool_folder: Path
) -> None:
    values = small_settings()
    first_run(values)
    variant = planned(values | {"also_gradients": ("adam",)})
    assert {name: variant.step(name).compute for name in STAGES} == dict(zip(STAGES, (0, 0, 120, 0, 0), strict=True))
    assert variant.step("warm-up").reason == "same adapter; new spaces for adam"
    agrees(variant, run(values | {"also_gradients": ("adam",)}))

    control = planned(values | {"method": "random"})
    assert counts(control)["cluster"] == (0, 0)
    agrees(control, run(values | {"method": "random"}))

    tokens = planned({**values, "fraction": None, "tokens": "300", "tokens_all": True})
    assert tokens.step("select").reuse is None  # shares of a budget in tokens of all kinds are not known before

    equal = planned(values | {"balance": "equal"})  # other groups, of every dataset
    assert (equal.step("select").compute, equal.step("select").reuse) == (12, None)
    agrees(equal, run(values | {"balance": "equal"}))

    (pool_folder / "sums.jsonl").unlink()
    values |= {"max_retired": 0.5}
    shrunk = planned(values)
    assert (shrunk.step("cluster").total, shrunk.step("select").total) == (80, 8)
    agrees(shrunk, run(values))


def test_plan__after_an_interruption_is_what_is_left(small_settings: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    values = small_settings()
    write_block = worker.segments.SegmentWriter.write_block
    written: list[int] = []

    def stops(self: Any, block: int, rows: Any) -> int:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(len(rows))
        return write_block(self, block, rows)

    with monkeypatch.context() as patched:
        patched.setattr(worker.segments.SegmentWriter, "write_block", stops)
        with pytest.raises(KeyboardInterrupt):
            run(values)
    left = planned(values)
    assert left.run_id is not None
    committed = open_root(values["root"], create=False).catalog.read("SELECT coalesce(sum(rows), 0)::INT FROM blocks").item()
    assert counts(left)["gradients"] == (120 - committed, 120)
    assert counts(left)["warm-up"] == (0, 1)
    done = run(values)
    assert done.run_id == left.run_id
    agrees(left, done, before=committed)


def test_dry_run__prints_the_plan_and_writes_nothing(small_settings: Maker, tmp_path: Path) -> None:
    values = small_settings()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if name != "sources"]
    shown = CliRunner().invoke(app, ["run", *values["sources"], "--dry-run", *options])
    assert shown.exit_code == 0, shown.output
    assert "120 of 120 examples" in shown.output
    assert "first run of this root" in shown.output
    found = CliRunner().invoke(app, ["run", *values["sources"], "--dry-run", "--json", *options])
    steps = {step["stage"]: step for step in json.loads(found.stdout.splitlines()[-1])["steps"]}
    assert (steps["gradients"]["compute"], steps["gradients"]["total"]) == (120, 120)
    assert not (tmp_path / "root").exists()


class Saying(SilentReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_plan__changed_settings_are_told_and_asked_about_before_they_cost_and_select_plans_too(
    small_settings: Maker, pool_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = small_settings(dim=64, warmup_examples=8)
    reporter = Saying()
    first = pipeline.run(load_settings(values), reporter, confirm=lambda again: pytest.fail("a first run computes nothing again"))
    assert not [text for text in reporter.said if "settings changed" in text]
    root = open_root(values["root"], create=False)

    # selecting again is planned like a run, and nothing is recorded
    same = pipeline.dry_reselect(values["root"], None, SilentReporter())
    assert counts(same) == {"cluster": (0, 120), "select": (0, 12)}
    other = CliRunner().invoke(app, ["select", "--root", values["root"], "--method", "longest", "--count", "7", "--dry-run"])
    assert other.exit_code == 0, other.output
    assert "method longest needs no clusters" in other.stdout
    assert "7 of 7 choices" in other.stdout
    assert root.catalog.read("SELECT run_id FROM runs")["run_id"].to_list() == [first.run_id]

    # cheap work is told, not asked about; what takes long is asked about, and no stops the run before it costs
    changed = load_settings(values | {"max_length": 48})
    asked = []

    def refuse(again: Recompute) -> bool:
        asked.append(again)
        return False

    monkeypatch.setattr(recompute, "ASK_ABOVE", 0.0)
    with pytest.raises(UserError, match=r"stopped before the gradients, as settings changed .*--yes"):
        pipeline.run(changed, reporter, confirm=refuse)
    (again,) = asked
    assert (again.examples, again.run_id) == (120, first.run_id)
    assert again.reason == f"max_length is 48, not 96 as in {first.run_id}"
    taken = root.catalog.read("SELECT sum(seconds) FROM blocks").item()
    assert again.seconds == pytest.approx(taken * 120 / 120)
    assert reporter.said[-1] == again.summary
    assert "the gradients of 120 examples are computed again, about" in again.summary
    assert root.catalog.read("SELECT count(*) FROM feature_spaces").item() == 1
    code, shown = in_terminal(["run", *flags(values | {"max_length": 48})], "n")
    assert (code, shown.splitlines()[-1].split(",")[0]) == (2, "tagcos: stopped before the gradients")
    assert "Compute the gradients of 120 examples again? [y/N]: n" in shown
    monkeypatch.setattr(recompute, "ASK_ABOVE", 600.0)
    # where nobody is asked, a setting is the limit
    none = changed.model_copy(update={"max_recompute": 0.0})
    with pytest.raises(UserError, match=r"at the speed of run-\S+, max_recompute is 0 h; give the earlier settings"):
        pipeline.run(none, reporter)
    # a run of another name that came later is not what this one is compared with
    with root.catalog.transaction() as connection:
        connection.execute(
            """INSERT INTO runs BY NAME SELECT * REPLACE ('run-later' AS run_id, 'dev' AS name, 'other' AS space_id,
                finished_at + to_days(1) AS finished_at, started_at + to_days(1) AS started_at) FROM runs WHERE run_id = ?""",
            [first.run_id],
        )
    with pytest.raises(UserError, match=f"as in {first.run_id}\\): the gradients of 120 examples are computed again"):
        pipeline.run(none, reporter)
    with root.catalog.transaction() as connection:
        connection.execute("DELETE FROM runs WHERE run_id = 'run-later'")
    less = taken / 3600 / 2
    with pytest.raises(UserError, match="stopped before the gradients"):
        pipeline.run(changed.model_copy(update={"max_recompute": less}), reporter)
    assert root.catalog.read("SELECT count(*) FROM feature_spaces").item() == 1
    done = pipeline.run(changed, reporter, confirm=refuse)  # the same run goes on
    assert len(asked) == 1
    assert done.stages["gradients"]["computed"] == 120
    # the same settings again compute nothing again, and nothing is said of it
    reporter.said.clear()
    pipeline.run(changed, reporter, confirm=refuse)
    assert not [text for text in reporter.said if "settings changed" in text]
    with pytest.raises(UserError, match=r"settings changed \(gradient is adam, the root has features of sgd\)"):
        pipeline.run(load_settings(values | {"gradient": "adam", "max_recompute": 0}), reporter)
    unattended = ["run", *flags(values | {"max_length": 40, "max_recompute": 0})]
    assert isinstance(CliRunner().invoke(app, unattended).exception, UserError)
    assert CliRunner().invoke(app, [*unattended, "--yes"]).exit_code == 0
