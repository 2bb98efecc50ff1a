"""The command line: `tagcos`."""

from __future__ import annotations

import errno
import importlib.metadata
import io
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from flows.cli.evaluate import evaluate
from flows.cli.options import JsonOption, QuietOption, takes_settings
from flows.cli.output import ask
from flows.cli.prepare import PresetOption, doctor, estimate, print_plan, texts
from flows.cli.report import report
from flows.cli.runs import promote, status
from flows.cli.select import diagnose, select, tell_run
from flows.cli.store import check, export, forget, gc, open_reader, sql
from storage.files.base import write_error
from tagcos_stream.config import DEFAULT_FRACTION, SELECT_FIELDS, Settings, load_settings
from tagcos_stream.evaluation.config import Evaluation
from tagcos_stream.machine import set_environment_defaults
from tagcos_stream.paths import expanded
from tagcos_stream.types import TERMINATED, UserError

EXIT_CODES = (
    "Exit codes: 0 done; 1 check or doctor found something; 2 a mistake that one line explains; 130 interrupted; 143 terminated."
)
RESUMED = ("run", "demo", "select", "diagnose", "evaluate")  # the same command goes on where it stopped
CHANGING = ("check", "gc", "forget")  # repeated, these do what is left
NO_LIMIT = 1e9  # hours of gradients, with --yes
UsageError: type[Any] = typer.BadParameter.__mro__[1]  # typer exports no name for it: click's, or its own

if TYPE_CHECKING:
    from flows.recompute import Recompute

app = typer.Typer(
    name="tagcos",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"tagcos {importlib.metadata.version('tagcos-stream')}")
        raise typer.Exit


@app.callback()
def tagcos(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Select the few percent of an instruction-tuning dataset that are worth training on, and see why."""


@app.command()
@takes_settings
def run(
    sources: Annotated[list[str] | None, typer.Argument(help="Files, folders, globs, URLs, or files that list sources.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; options given here win.")] = None,
    preset: PresetOption = None,
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Run as a Prefect flow (does so by itself where PREFECT_API_URL is set).")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the selection to this .jsonl or .parquet file.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be computed and what is reused, and why; write nothing.")
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Compute gradients again where settings changed, however long it takes, and do not ask.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Select a coreset from SOURCES: ingest, warm-up, gradients, clustering, selection. Run again, it does only what is new."""
    if sources:
        settings["sources"] = tuple(sources)
    if yes:
        settings["max_recompute"] = NO_LIMIT
    given = load_settings(settings, toml=config, preset=preset)
    if dry_run:
        from flows.pipeline import dry_run as plan

        print_plan(plan(given), as_json)
        return
    _run(given, prefect=prefect, out=out, as_json=as_json, ask=not yes, quiet=quiet)


app.command()(takes_settings(select, SELECT_FIELDS, inherited=True))
app.command()(diagnose)
for command in (takes_settings(estimate), doctor, texts, status, promote, sql, report, export, check, gc, forget):
    app.command()(command)
app.command()(takes_settings(evaluate, Evaluation.model_fields, Evaluation))


@app.command()
def demo(
    root: Annotated[str, typer.Option(help="Folder in which everything is stored.")] = "tagcos-demo",
    fraction: Annotated[float, typer.Option(help="Share of the pool to select.")] = 0.1,
    add: Annotated[int, typer.Option(min=0, max=120, help="Rows added to the pool, to see a second run compute only these.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """The whole job on a small real model and 90 examples made from the Python standard library, in one to three minutes."""
    from flows.demo.data import write_demo_data
    from flows.demo.model import demo_model
    from flows.demo.results import print_results
    from storage.files.local import LocalFiles
    from storage.files.open import open_files

    place = open_files(root)
    if not isinstance(place, LocalFiles):
        raise UserError(f"root {root}: the demo keeps its data in it, so it must be a folder of this machine")
    folder = place.folder if "://" in root else expanded(root)
    files = write_demo_data(folder / "demo-data", added=add)
    settings = load_settings(
        {
            "sources": tuple(str(path) for path in files),
            "root": root,
            "model": str(demo_model()),
            "fraction": fraction,
            "max_length": 128,
            "warmup_examples": 20,
            "clusters": 6,
        }
    )
    run_id = _run(settings, prefect=False, out=folder / "selected.jsonl", as_json=as_json)
    if as_json:
        return
    print_results(open_reader(root), run_id, root, add)
    print(f"\nyour own data:\n  tagcos run YOUR_FILES --model HUB_ID_OR_FOLDER --fraction {DEFAULT_FRACTION}")


def _run(settings: Settings, *, prefect: bool, out: Path | None, as_json: bool, ask: bool = False, quiet: bool = False) -> str:
    from flows import pipeline
    from flows.progress import SilentReporter
    from storage.exports import write as exports

    exports.check_target(out)
    if prefect or os.environ.get("PREFECT_API_URL"):
        from flows.prefect_flow import run_flow

        run_id = run_flow(settings)
    else:
        ask = ask and sys.stdin.isatty() and sys.stderr.isatty()
        run_id = pipeline.run(settings, SilentReporter() if quiet else None, confirm=_confirm if ask else None).run_id
    tell_run(open_reader(settings.root), run_id, out, as_json)
    return run_id


def _confirm(again: Recompute) -> bool:
    return ask(f"Compute the gradients of {again.examples:,} examples again?")


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2, an interruption says how to go on."""
    set_environment_defaults()
    signal.signal(signal.SIGTERM, _terminated)
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' own bars: ours tell enough
    if os.environ.get("COLUMNS", "").strip("0 ") == "":
        os.environ.pop("COLUMNS", None)  # terminals of CI say 0 where they do not know: rich would print nothing
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # texts and paths that its encoding lacks, as standard error does
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        if message := error.format_message():  # none where the help was printed in its place
            print(f"tagcos: {_usage_mistake(error, message)}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"tagcos: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"tagcos: {write_error(str(error.filename or 'a temporary file'), error)}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code in (130, TERMINATED):  # typer turns Ctrl-C into 130
            how = "ended by SIGTERM" if stop.code == TERMINATED else "interrupted"
            print(f"\ntagcos: {how}; {how_to_go_on(sys.argv[1:])}", file=sys.stderr)
        raise


def _usage_mistake(error: Any, message: str) -> str:
    """Return what is wrong with the command line, and for an unknown option the commands that have it."""
    context = error.ctx
    commands = (context.parent or context).command.commands
    option = error.option_name if hasattr(error, "possibilities") else None  # of an unknown one, likely others
    having = [name for name, command in commands.items() if any(option in p.opts for p in command.params)]
    hint = f" is an option of {' and '.join(f'`tagcos {name}`' for name in having)}" if having else ""
    text = f"{option}{hint}, not of this command" if having else message.replace("Value error, ", "").rstrip(".")
    return f"{text}; see `tagcos {'' if context.parent is None else context.info_name + ' '}--help`"


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """End like Ctrl-C: what is under way is recorded as interrupted, and workers are stopped."""
    sys.exit(TERMINATED)


def how_to_go_on(arguments: list[str]) -> str:
    """Return what is kept of an interrupted command, and the command that continues it."""
    line = shlex.join(["tagcos", *arguments])
    if arguments[:1] and arguments[0] in RESUMED:
        return f"what was committed is kept. Go on with the same command:\n  {line}"
    if arguments[:1] and arguments[0] in CHANGING:
        return f"what it did until then is kept. To do the rest:\n  {line}"
    return f"nothing was changed. To do it again:\n  {line}"


if __name__ == "__main__":
    main()
