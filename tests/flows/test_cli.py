"""The command line as a user meets it: exit codes, one clear line for a mistake, output that can be read on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import pipeline
from flows.cli.options import settings_parameters
from flows.context import run_stage
from flows.progress import SilentReporter
from storage.root import Root
from tagcos_stream.config import Settings, load_settings
from tests.flows.conftest import Call, First
from tests.storage import tiny

Maker = Callable[..., dict[str, Any]]


def flags(values: dict[str, Any]) -> list[str]:
    given = [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if name != "sources"]
    return [*values["sources"], *given]


def test_run_status_sql_export(tagcos: Call, small_settings: Maker, tmp_path: Path) -> None:
    values = small_settings()
    out = tmp_path / "selected.jsonl"
    code, printed, _ = tagcos("run", *flags(values), "--out", out)
    assert code == 0
    assert "12 of 120 selected (10.0%); first run of these sources\n" in printed
    assert len(out.read_text(encoding="utf-8").splitlines()) == 12

    code, printed, _ = tagcos("status", "--root", values["root"], "--json")
    (listed,) = json.loads(printed)
    assert code == 0
    assert listed["status"] == "complete"
    assert [stage["stage"] for stage in listed["stages"]] == ["ingest", "warm-up", "gradients", "cluster", "select", "publish"]
    shown = tagcos("status", "--root", values["root"])[1]
    assert f"main is {listed['run_id']}" in shown
    assert "\npublish " in shown

    code, printed, _ = tagcos("sql", "SELECT count(*) AS n FROM latest_selection", "--root", values["root"], "--json")
    assert (code, json.loads(printed)) == (0, [{"n": 12}])
    assert tagcos("sql", "FROM selection_of('nobody')", "--root", values["root"])[2] == "no rows\n"
    code, _, err = tagcos("sql", "DELETE FROM runs", "--root", values["root"])
    assert code == 2
    assert "read-only" in err
    code, printed, _ = tagcos("export", "latest", "--root", values["root"], "--out", tmp_path / "x.parquet")
    assert (code, printed) == (0, f"12 of 12 examples of {listed['run_id']} written to {tmp_path / 'x.parquet'}\n")
    code, _, err = tagcos("export", "latest", "--root", values["root"], "--out", tmp_path / "x.csv")
    assert (code, err.count("\n")) == (2, 1)
    assert ".jsonl or .parquet" in err


def test_run__from_a_toml_file(tagcos: Call, small_settings: Maker, tmp_path: Path) -> None:
    values = small_settings(count=5)
    del values["fraction"]
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    (tmp_path / "pool.toml").write_text("\n".join(lines), encoding="utf-8")
    code, printed, _ = tagcos("run", "--config", tmp_path / "pool.toml")
    assert code == 0
    assert "5 of 120 selected" in printed


@pytest.mark.parametrize("command", ["run", "estimate"])
def test_preset__an_option_wins_over_the_file(tagcos: Call, tmp_path: Path, command: str) -> None:
    (tmp_path / "pool.toml").write_text('preset = "of the file"', encoding="utf-8")
    code, _, err = tagcos(command, "--config", tmp_path / "pool.toml")
    assert code == 2
    assert "preset 'of the file' is unknown; choose from recommended, published, clean" in err
    code, _, err = tagcos(command, "--config", tmp_path / "pool.toml", "--preset", "clean")
    assert code == 2
    assert "no sources given" in err


def bad_inputs(folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    """What a user may get wrong: changed settings, and a pattern that the one line must hold."""
    (folder / "empty.jsonl").write_text("", encoding="utf-8")
    (folder / "unanswered.jsonl").write_text('{"messages": [{"role": "user", "content": "hm"}]}\n', encoding="utf-8")
    (folder / "broken.jsonl").write_text('{"messages": [\n{"messages": [\n', encoding="utf-8")
    (folder / "wrong.jsonl").write_text('{"messages": 7}\n[1, 2]\n', encoding="utf-8")
    (folder / "columns.jsonl").write_text('{"text": "only this"}\n', encoding="utf-8")
    (folder / "file-as-root").write_text("", encoding="utf-8")
    return {
        "no sources": ({"sources": ()}, "no sources"),
        "absent source": ({"sources": (str(folder / "absent.jsonl"),)}, "absent.jsonl: no such file"),
        "empty file": ({"sources": (str(folder / "empty.jsonl"),)}, "empty.jsonl: the file is empty"),
        "unanswered": ({"sources": (str(folder / "unanswered.jsonl"),)}, "no usable example in .*unanswered.jsonl"),
        "broken": ({"sources": (str(folder / "broken.jsonl"),)}, "no usable example in .*broken.jsonl"),
        "wrong types": ({"sources": (str(folder / "wrong.jsonl"),)}, "no usable example in .*wrong.jsonl"),
        "missing column": ({"sources": (str(folder / "columns.jsonl"),)}, "columns.jsonl"),
        "unknown model": ({"model": str(folder / "no-model")}, "no-model.*no such folder"),
        "model of no user": ({"model": "~nouser/model"}, "~nouser/model: no home folder is known for ~nouser"),
        "unknown hub model": ({"model": "nobody/nothing-at-all"}, "nobody/nothing-at-all"),
        "model before sources": ({"model": "./none", "sources": (str(folder / "absent.jsonl"),)}, "model ./none: no such folder"),
        "no such device": ({"device": "cuda:99"}, "device cuda:99: torch .* CUDA device.*--device cpu"),
        "unknown device": ({"device": "tpu"}, "device is 'tpu': use auto, cpu"),
        "no checks": ({"checks": str(folder / "no-checks")}, "no-checks is not a folder with .sql files"),
        "no model": ({"model": ""}, "no model given"),
        "unwritable root": ({"root": str(folder / "file-as-root" / "root")}, "file-as-root"),
        "wrong value": ({"dim": 3}, "dim: .*8"),
        "checkpoints": ({"checkpoints": 99}, "99 checkpoints"),
    }


def test_run__a_mistake_is_one_line_and_exit_code_2(tagcos: Call, small_settings: Maker, tmp_path: Path) -> None:
    for case, (changes, pattern) in bad_inputs(tmp_path).items():
        code, _, err = tagcos("run", *flags(small_settings(**changes)))
        message = err.strip().splitlines()[-1]
        assert code == 2, case
        assert message.startswith("tagcos: "), case
        assert re.search(pattern, message), (case, message)
        assert "Traceback" not in err, case


def test_readers__need_a_root_that_is_there(tagcos: Call, tmp_path: Path) -> None:
    for arguments in (["status"], ["sql", "FROM runs"], ["export", "latest", "--out", "x.jsonl"]):
        code, _, err = tagcos(*arguments, "--root", tmp_path / "nowhere")
        assert code == 2
        assert "nowhere" in err
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("columns", ["0", "00", ""])
def test_help__is_printed_where_the_environment_does_not_know_the_width(
    tagcos: Call, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    """Terminals of CI say COLUMNS=0: a width of 0 would print nothing."""
    monkeypatch.setenv("COLUMNS", columns)
    code, printed, _ = tagcos("--help")
    assert code == 0
    assert "Usage: " in printed
    assert "--version" in printed


def test_help__lists_every_setting(tagcos: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, printed, _ = tagcos("run", "--help")
    for name in Settings.model_fields:
        assert name == "sources" or f"--{name.replace('_', '-')}" in printed, name
    assert {p.name for p in settings_parameters()} == set(Settings.model_fields) - {"sources"}


@pytest.mark.parametrize(
    "place",
    [
        "spaces/*/segments/*.zarr/features/c.1.0",
        "spaces/*/segments/*.zarr/example_ids/c.0.0",
        "clusterings/*.zarr/part-00000/features/c.0.0",
        "clusterings/*.zarr/part-00000/sums/c.0.0",
    ],
)
def test_check__a_flipped_byte_is_named_mended_and_computed_again(
    tagcos: Call, small_settings: Maker, first_run: First, tmp_path: Path, place: str
) -> None:
    values = small_settings()
    first_run(values)
    assert tagcos("export", "--root", values["root"], "--out", tmp_path / "before.jsonl")[0] == 0
    assert tagcos("check", "--root", values["root"])[1].strip() == "everything is as it was written"
    (chunk,) = Path(values["root"]).glob(place)
    damaged = bytearray(chunk.read_bytes())
    damaged[1000] ^= 1
    chunk.write_bytes(damaged)

    assert tagcos("check", "--fast", "--root", values["root"])[0] == ("features" not in place)  # which it does not read
    code, printed, _ = tagcos("check", "--root", values["root"])
    assert code == 1
    assert str(chunk) in printed
    if place.startswith("clusterings"):  # selecting reads it: nothing wrong is selected
        code, _, err = tagcos("run", *flags(small_settings(fraction=0.2)))
        assert code == 2
        assert str(chunk) in err
        assert "tagcos check --repair" in err
    assert tagcos("check", "--repair", "--root", values["root"])[0] == 0
    assert tagcos("run", *flags(values), "--out", tmp_path / "after.jsonl")[0] == 0
    assert tagcos("check", "--root", values["root"])[0] == 0
    before, after = (
        [json.loads(line) | {"run_id": None} for line in (tmp_path / f"{name}.jsonl").read_bytes().splitlines()]
        for name in ("before", "after")
    )
    assert before == after


def test_gc__lists_and_removes_what_nothing_refers_to(tagcos: Call, small_settings: Maker, first_run: First) -> None:
    values = small_settings()
    first_run(values)
    orphan = Path(values["root"]) / "examples" / "seg-00009" / "part-00000.parquet"
    orphan.parent.mkdir()
    orphan.write_bytes(b"left over")
    assert "1 files, 9 bytes" in tagcos("gc", "--root", values["root"])[1]
    assert orphan.exists()
    assert tagcos("gc", "--yes", "--root", values["root"])[0] == 0
    assert not orphan.exists()
    assert "0 files" in tagcos("gc", "--root", values["root"])[1]


def test_select_and_diagnose__from_stored_features(tagcos: Call, small_settings: Maker, first_run: First, tmp_path: Path) -> None:
    values = small_settings()
    first_run(values)
    out = tmp_path / "longest.jsonl"
    code, printed, _ = tagcos("select", "--root", values["root"], "--method", "longest", "--count", 7, "--out", out)
    assert code == 0
    assert "7 of 120 selected" in printed
    assert "on dimensions seen" in printed
    assert len(out.read_text(encoding="utf-8").splitlines()) == 7
    code, _, err = tagcos("select", "--root", values["root"], "--method", "best")
    assert code == 2
    assert "herding-clusters" in err
    (first,) = json.loads(tagcos("sql", "SELECT run_id FROM runs WHERE reselects IS NULL", "--root", values["root"], "--json")[1])
    options = ["--method", "random", "--method", "tagcos", "--fraction", 0.1, "--seeds", 2, "--json"]
    code, printed, _ = tagcos("diagnose", "--root", values["root"], "--run", first["run_id"], *options)
    assert code == 0
    assert sorted(row["method"] for row in json.loads(printed)) == ["random", "tagcos"]


def test_gc_and_forget__ask_before_anything_goes(tagcos: Call, filled: Root) -> None:
    where = ("--root", filled.url)
    run_id = json.loads(tagcos("status", *where, "--json")[1])[0]["run_id"]
    other = tiny.run(filled, examples=310).run_id
    with filled.catalog.transaction() as connection:
        connection.execute("UPDATE runs SET name = NULL WHERE run_id = ?", [other])
    listed = json.loads(tagcos("gc", "--unnamed", *where, "--json")[1])
    assert (listed["dropped"]["runs"], listed["removed"]) == ([other], False)
    assert f"{other}  run\n" in tagcos("gc", "--unnamed", *where)[1]
    assert tagcos("gc", "--older-than", "1", *where)[1] == "0 runs, 0 files, 0 bytes\n"
    assert "1 runs, 0 files, " in tagcos("gc", "--unnamed", "--yes", *where)[1]
    assert [row["run_id"] for row in json.loads(tagcos("status", *where, "--json")[1])] == [run_id]

    code, _, err = tagcos("forget", tiny.example_id(3), *where)
    assert (code, err) == (2, "tagcos: forget erases for good: add --yes where nobody can be asked\n")
    code, printed, _ = tagcos("forget", tiny.example_id(3)[:12], "--yes", *where)
    assert (code, printed.splitlines()[0]) == (0, "1 examples forgotten: 1 files of examples rewritten, 0 snippets removed")
    reason = tagcos("sql", f"SELECT reason FROM why('{tiny.example_id(3)}')", *where, "--csv")[1]
    assert reason.splitlines()[1].split(":")[0] in ("chosen by tagcos", "left by tagcos")


def test_run__refuses_a_count_above_the_pool_and_says_how_sigterm_ended_it(
    tagcos: Call, small_settings: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = small_settings(count=500, fraction=None)
    del values["fraction"]
    code, _, err = tagcos("run", *flags(values))
    message = "count 500 is more than the 120 examples of the pool: lower it, or give more sources"
    assert (code, err.splitlines()[-1]) == (2, f"tagcos: {message}")
    assert "gradients" not in err.splitlines()[-1]
    assert f" UTC\n  {message}\n\nstages of" in tagcos("status", "--root", values["root"])[1]  # in one block with its stage

    def end(*given: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)  # the handler interrupts it

    monkeypatch.setattr(pipeline, "warm_up", end)
    code, printed, err = tagcos("run", *flags(values | {"count": 5}), "--quiet")
    assert (code, printed) == (143, "")
    assert err.startswith("\ntagcos: ended by SIGTERM; what was committed is kept. Go on with the same command:")
    (newest, _) = json.loads(tagcos("status", "--root", values["root"], "--json")[1])
    assert (newest["status"], newest["error"]) == ("interrupted", "ended by SIGTERM")
    assert (newest["progress"]["stage"], newest["progress"]["outcome"]) == ("warm-up", "interrupted")

    # continued, it waits longer than --wait for a notebook that holds the catalog, and loses nothing
    monkeypatch.undo()
    hold = """if True:
        import duckdb, sys, time
        while True:
            try:
                c = duckdb.connect(sys.argv[1], read_only=True)
                break
            except duckdb.IOException:  # the run has it for a moment longer
                time.sleep(0.05)
        print("open", flush=True)
        time.sleep(4)"""
    held: list[subprocess.Popen[str]] = []

    def while_held(name: str, work: Any, run: Any, *given: Any) -> Any:
        if name == "publish":
            command = [sys.executable, "-c", hold, str(Path(values["root"], "catalog.duckdb"))]
            held.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            assert held[0].stdout is not None
            assert held[0].stdout.readline() == "open\n"
        return run_stage(name, work, run, *given)

    settings = load_settings(values | {"count": 5, "wait": 1})
    done = pipeline.run(settings, SilentReporter(), while_held)
    held[0].communicate()
    assert (done.run_id, done.stages["select"]["selected"]) == (newest["run_id"], 5)


def test_help__has_panels_whole_sentences_and_what_is_inherited(tagcos: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert tagcos("--version")[1] == f"tagcos {importlib.metadata.version('tagcos-stream')}\n"
    listed = tagcos("--help")[1]
    assert "..." not in listed.replace("[ARGS]...", "")
    run = tagcos("run", "--help")[1]
    for panel in ("Pool", "Model", "Warm-up", "Gradient features", "Clusters", "Selection", "Machine"):
        assert f" {panel} ─" in run, panel
    words = " ".join(tagcos("select", "--help")[1].replace("│", " ").split())
    assert "Number of clusters; default as in the run." in words
    assert "default as in the run" not in words[words.index("--name") : words.index("--name") + 300].split("--")[1]
