"""One grammar for all commands, tables that fit, completion, and what Ctrl-C says."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import polars as pl
import pytest
import typer
from rich.console import Console

from flows import pipeline
from flows.cli import main, output, summary
from flows.pipeline import load_settings
from flows.progress import SilentReporter
from storage.root import Root
from tests.flows.conftest import Call

COMMANDS = typer.main.get_command(main.app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", list(COMMANDS))
def test_commands__one_grammar(name: str) -> None:
    """--json and -h everywhere, --root but where no root is read; a run is RUN or --run; every help text is a sentence."""
    command: click.Command = COMMANDS[name]
    options = {option: p for p in command.params for option in p.opts}
    assert "--json" in options
    assert ("--root" in options) == (name != "texts")
    assert command.help
    assert command.help.split("\n")[0].endswith(".")
    for option in command.params:
        told = getattr(option, "help", None)
        assert told is None or told.endswith("."), (name, option.name)
        assert "_" not in "".join(option.opts) or option.param_type_name == "argument", (name, option.opts)
    assert all(p.name == "root" or p.envvar is None for p in command.params)
    if root := options.get("--root"):
        assert root.envvar == (None if name == "demo" else "TAGCOS_ROOT")


def printed(monkeypatch: pytest.MonkeyPatch, frame: pl.DataFrame, width: int) -> list[str]:
    out = io.StringIO()
    monkeypatch.setattr(output, "in_terminal", lambda: True)
    monkeypatch.setattr(output, "console", lambda: Console(width=width, file=out, markup=False, highlight=False))
    output.print_frame(frame)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 72, 200])
def test_print_frame__fits(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Long texts are folded, numbers stay whole, and columns that do not fit become a line each."""
    wide = pl.DataFrame({f"column_{i}": [123456.75 + i, None] for i in range(9)} | {"text": ["many words " * 9, "[b]x"]})
    lines = printed(monkeypatch, wide, width)
    assert max(map(len, lines)) <= width
    whole = "\n".join(lines)
    assert "1.235e+05" in whole
    assert "[b]x" in whole
    assert ("-- 2 ---" in whole) == (width < 200)
    narrow = printed(monkeypatch, pl.DataFrame({"n": [1, 20], "text": ["a " * 60, "b"]}), width)
    assert max(map(len, narrow)) <= width
    assert narrow[1].startswith(" 1  a a")
    assert sum(line.count("a") for line in narrow[1:]) == 60
    assert printed(monkeypatch, pl.DataFrame({"a": [], "b": []}), width)[0].split() == ["a", "b"]


def test_commands__complete_and_print_json(
    small_settings: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = load_settings(small_settings(method="random"))
    run_id = pipeline.run(settings, SilentReporter()).run_id

    def complete(line: str) -> list[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1), "_TAGCOS_COMPLETE": "complete_bash"}
        done = subprocess.run(
            [str(Path(sys.executable).with_name("tagcos"))], env=os.environ | words, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    assert set(complete("tagcos ")) == set(COMMANDS)
    assert complete(f"tagcos export --root {settings.root} ") == [run_id, "main", "latest"]
    assert complete(f"tagcos select --root {settings.root} --run {run_id[:3]}") == [run_id]
    assert "llama-factory" in complete("tagcos export --format ")
    assert "herding" in complete("tagcos run --method h")
    assert complete("tagcos export --root /nowhere/at/all r") == []

    def printed_json(*arguments: str) -> Any:
        """All of standard output is one JSON value."""
        monkeypatch.setattr("sys.argv", ["tagcos", *arguments, "--root", settings.root, "--json"])
        capsys.readouterr()
        with contextlib.suppress(SystemExit):
            main.main()
        return json.loads(capsys.readouterr().out)

    out = tmp_path / "selected.jsonl"
    chosen = printed_json("select", "--method", "longest", "--count", "5", "--out", str(out))
    assert (chosen["selected"], chosen["usable"], chosen["exported"]["rows"]) == (5, 120, 5)
    assert sum(row["selected"] for row in chosen["by_dataset"]) == 5
    assert printed_json("export", run_id, "--out", str(out))["examples"] == 12
    assert [row["run_id"] for row in printed_json("status")] == [chosen["run_id"], run_id]
    assert (printed_json("check"), printed_json("gc")) == ([], [])
    assert {row["what"] for row in printed_json("doctor")} >= {"packages", "catalog"}


def test_print_summary__names_the_groups_and_needs_no_error(selected_root: Root, capsys: pytest.CaptureFixture[str]) -> None:
    """A mean of zero has no relative error."""
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "cluster  size"),
        ({"balance": "equal"}, "group  size"),
        ({"balance": "natural", "method": "stratified"}, "stratum  size"),
        ({"method": "random"}, "pool  size"),
        ({"name": "first-of-its-name"}, "\n\nclusters kept\ndrift: "),
    )
    for changes, header in cases:
        run_id = pipeline.reselect(selected_root.url, None, SilentReporter(), **changes).run_id
        rows = summary.summary(selected_root.catalog, run_id)["by_cluster"]
        assert all(row["group_id"] == row["cluster"] for row in rows)
        capsys.readouterr()
        summary.print_summary(selected_root.catalog, run_id)
        printed = capsys.readouterr().out
        assert header in printed
        assert ("fitted weights" in printed) == ("method" not in changes)
        assert "since None" not in printed
    with selected_root.catalog.transaction() as connection:
        connection.execute("UPDATE diagnostics SET error_plain = NULL, error_weighted = NULL")
    summary.print_summary(selected_root.catalog, run_id)
    assert "error of" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--gradient", "foo"], "Invalid value for '--gradient': 'foo' is not one of 'adam'"),
        (["select", "--fraction", "many"], "Invalid value for '--fraction': Input should be a valid number"),
        (
            ["select", "--dim", "256"],
            "--dim is an option of `tagcos run` and `tagcos estimate`, not of this command; see `tagcos s",
        ),
        (["run", "--frction", "1"], "No such option: --frction (Possible options: --fraction, "),
        (["export"], "Missing option '--out'; see `tagcos export --help`"),
        (["chose"], "No such command 'chose'"),
        (["--seed"], "--seed is an option of `tagcos run`"),
    ],
)
def test_usage__a_mistake_is_one_line_and_exit_code_2(tagcos: Call, arguments: list[str], said: str) -> None:
    code, _, err = tagcos(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"tagcos: {said}")
    assert "Value error" not in err


def test_help__without_a_command(tagcos: Call) -> None:
    code, out, err = tagcos()
    assert "diagnose" in out
    assert (code, err) == (2, "")
    assert tagcos("--version")[0] == tagcos("sql", "-h")[0] == 0


@pytest.mark.parametrize(("option", "shown"), [("--json", '[{"t": "\\u65e5 \\u00e9"}]'), ("--csv", "t\n\\u65e5 \\xe9")])
def test_output__what_an_encoding_lacks_is_escaped(selected_root: Root, option: str, shown: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "sql", "--root", selected_root.url, option, "SELECT '日 é' AS t"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, shown), done.stderr


ASK = "import polars; from flows.cli.output import ask; print(ask('sure?'))"


@pytest.mark.parametrize(("typed", "answer"), [(b"maybe\ny\n", "True"), (b"\n", "False"), (b"\x03", "KeyboardInterrupt")])
def test_ask__hears_ctrl_c_at_once(typed: bytes, answer: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execv(sys.executable, [sys.executable, "-c", ASK])
    said = b""
    while not said.endswith(b"[y/N]: "):
        said += os.read(terminal, 1024)
    os.write(terminal, typed)
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 20
    while answer.encode() not in said and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            said += os.read(terminal, 1024)
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(terminal)
    assert answer.encode() in said


def test_texts__replace_no_source(tmp_path: Path, tagcos: Call) -> None:
    source = tmp_path / "pool.parquet"
    pl.DataFrame({"prompt": ["a"], "response": ["b"]}).write_parquet(source)
    before = source.read_bytes()
    code, _, err = tagcos("texts", source, "--out", source)
    assert (code, source.read_bytes()) == (2, before)
    assert "was not written by `tagcos texts`" in err
    for _ in range(2):  # its own file is replaced
        assert tagcos("texts", source, "--out", tmp_path / "texts.parquet", "--json")[0] == 0


def test_how_to_go_on__says_the_command() -> None:
    """tests/flows/test_kill.py sends the signal."""
    said = main.how_to_go_on(["run", "my data.jsonl", "--fraction", "0.1"])
    assert said == "what was committed is kept. Go on with the same command:\n  tagcos run 'my data.jsonl' --fraction 0.1"
    assert main.how_to_go_on(["gc", "--yes"]) == "what it did until then is kept. To do the rest:\n  tagcos gc --yes"
    assert main.how_to_go_on(["sql", "FROM runs"]) == "nothing was changed. To do it again:\n  tagcos sql 'FROM runs'"


def test_root__from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TAGCOS_ROOT", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("sys.argv", ["tagcos", "status"])
    with pytest.raises(SystemExit):
        main.main()
    assert "elsewhere" in capsys.readouterr().err
