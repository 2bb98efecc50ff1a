"""Names of runs: explorations change nothing for others, comparisons stay within a name, promotion, and what status says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import pipeline
from flows.progress import SilentReporter
from storage.catalog import runs, selections, stages
from storage.database import Catalog
from storage.root import Root, open_root
from storage.snapshot import snapshot_path
from tagcos_stream.config import load_settings
from tagcos_stream.types import UserError
from tests.flows.conftest import Call
from tests.storage import tiny


def test_names__an_exploration_changes_nothing_for_others(
    small_settings: Callable[..., dict[str, Any]], tagcos: Call, tmp_path: Path
) -> None:
    settings = load_settings(small_settings(dim=64, warmup_examples=8))
    first = pipeline.run(settings, SilentReporter()).run_id
    where = ("--root", settings.root)

    def reselect(*options: object) -> str:
        code, out, err = tagcos("select", *where, "--json", *options)
        assert code == 0, err
        return str(json.loads(out)["run_id"])

    def exported(*run: str) -> set[str]:
        assert tagcos("export", *run, "--out", tmp_path / "x.jsonl", *where)[0] == 0
        lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
        return {json.loads(line)["example_id"] for line in lines}

    trial = reselect("--method", "random", "--fraction", "0.02")
    root = open_root(settings.root, create=False)
    chosen = {run: selections.chosen_by(root.catalog, run) for run in (first, trial)}
    assert (len(chosen[first]), len(chosen[trial])) == (12, 2)
    # neither the export, nor SQL, nor the next select follows it
    assert exported() == exported("main") == chosen[first]
    assert exported(trial) == chosen[trial]
    assert set(root.catalog.read("SELECT example_id FROM latest_selection")["example_id"]) == chosen[first]
    other = reselect("--name", "dev", "--fraction", "0.2")
    row = runs.complete_run(root.catalog, other)
    assert (row["reselects"], row["name"], json.loads(row["config"])["method"]) == (first, "dev", "tagcos")
    # an unchanged nightly run is compared with the nightly run before it
    nightly = pipeline.run(settings, SilentReporter()).run_id
    changed = root.catalog.read("SELECT base_run, churn FROM churn WHERE run_id = ?", [nightly]).row(0)
    assert changed == (first, 0.0)
    # names are taken wherever a run is; a run under another name is a run of its own
    assert runs.find_run(root.catalog, "dev") == other
    with pytest.raises(UserError, match=r"there is no run prod .*names are dev, main"):
        runs.find_run(root.catalog, "prod")
    assert json.loads(tagcos("promote", "dev", "--as", "prod", *where, "--json")[1]) == {
        "run_id": other,
        "name": "prod",
        "published": True,
    }
    assert exported("prod") == selections.chosen_by(root.catalog, other)
    copy = Catalog(snapshot_path(root))
    assert copy.read("SELECT run_id FROM names WHERE name = 'prod'").item() == other
    # promoted to main, it is what the next run is compared with, until that is complete
    assert tagcos("promote", "dev", *where)[1] == f"main is {other}\n"
    assert runs.find_run(root.catalog) == other
    after = pipeline.run(settings, SilentReporter()).run_id
    assert root.catalog.read("SELECT base_run FROM refreshes WHERE run_id = ?", [after]).item() == other
    assert runs.find_run(root.catalog) == after
    assert root.catalog.read("SELECT run_id FROM trend_of('main')")["run_id"].to_list() == [first, other, nightly, after]
    code, out, _ = tagcos("status", *where)
    assert code == 0
    assert f"names: dev is {other}; main is {after}; prod is {other}" in out
    assert [line.split()[:4] for line in out.splitlines()[1:6]] == [
        [after, "main", "tagcos", "0.1"],
        [nightly, "main", "tagcos", "0.1"],
        [other, "dev", "tagcos", "0.2"],
        [trial, "random", "0.01667", "complete"],
        [first, "main", "tagcos", "0.1"],
    ]


@pytest.mark.parametrize("name", ["latest", "run-20261128-130405", "a b", "", "-x", "x" * 65])
def test_names__refuses_what_could_be_confused(name: str, filled: Root, tagcos: Call) -> None:
    with pytest.raises(UserError, match="cannot name runs"):
        load_settings({"name": name})
    code, _, err = tagcos("promote", "main", f"--as={name}", "--root", filled.url)
    assert (code, err.count("\n")) == (2, 1)
    assert "--as: " in err


def test_names__a_promotion_does_not_wait_for_a_run_under_way(filled: Root, tagcos: Call) -> None:
    with filled.writer():
        code, out, _ = tagcos("promote", "latest", "--as", "prod", "--root", filled.url)
    assert (code, out.splitlines()[1]) == (0, "the snapshot for readers follows when the run under way completes")
    assert runs.find_run(filled.catalog, "prod") == runs.find_run(filled.catalog)


def test_names__without_main_say_which_there_are(filled: Root) -> None:
    with filled.catalog.transaction() as connection:
        connection.execute("UPDATE runs SET name = 'dev'")
    with pytest.raises(UserError, match=r"no complete run is named main, but dev: .*tagcos promote RUN"):
        runs.find_run(filled.catalog)
    assert filled.catalog.read("FROM latest_selection").is_empty()


def test_status__shows_the_stage_of_a_run_under_way_and_of_one_that_was_killed(tmp_path: Path, tagcos: Call) -> None:
    """The other process stops within the gradients, first waiting, then killed."""
    root = open_root(str(tmp_path / "root"), wait_seconds=20)
    script = (
        "import sys, time; from storage.root import open_root; from storage.catalog import runs; from tests.storage import tiny\n"
        "def step(name):\n"
        "    if name == 'block':\n"
        "        print(name, flush=True); time.sleep(60)\n"
        "tiny.run(open_root(sys.argv[1]), step=step)"
    )
    with subprocess.Popen([sys.executable, "-c", script, root.url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "block\n"
        stages.begun(root.catalog, run_id := runs.list_runs(root.catalog)["run_id"][0], "gradients")
        _, running, _ = tagcos("status", "--root", root.url)
        process.kill()
    _, killed, _ = tagcos("status", "--root", root.url)
    assert "running" in running
    assert f"{run_id}: stage gradients, 1 of {tiny.BLOCKS} blocks; attempt 1, begun" in running
    assert "killed" in killed
    assert "the same command continues it" in killed
    (row,) = json.loads(tagcos("status", "--root", root.url, "--json")[1])
    assert (row["status"], row["progress"]["stage"], row["progress"]["done"]) == ("killed", "gradients", 1)
