"""The command line: `tagcos`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.control_commands import diagnose, select
from flows.options import takes_settings
from flows.report.command import report
from flows.tables import console, print_frame, print_summary
from tagcos_stream.config import SELECT_FIELDS, Settings, load_settings
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from storage.catalog import Catalog
    from storage.root import Root

app = typer.Typer(
    name="tagcos",
    help="Choose the few percent of an instruction-tuning pool that are worth training on, and see why.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RootOption = Annotated[str, typer.Option("--root", help="Folder that holds everything durable.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DEFAULT_ROOT = Settings.model_fields["root"].default


@app.command()
@takes_settings
def run(
    sources: Annotated[list[str] | None, typer.Argument(help="Files, folders, globs, URLs, or files that list sources.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; options given here win.")] = None,
    preset: Annotated[str, typer.Option(help="recommended, or published for the paper's setting.")] = "recommended",
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Run as a Prefect flow (does so by itself where PREFECT_API_URL is set).")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the selection to this .jsonl or .parquet file.")] = None,
    **settings: Any,
) -> None:
    """Select a coreset from SOURCES: ingest, warm-up, gradients, clustering, selection. Run again, it does only what is new."""
    if sources:
        settings["sources"] = tuple(sources)
    _run(load_settings(settings, toml=config, preset=preset), prefect=prefect, out=out)


app.command()(takes_settings(select, SELECT_FIELDS))
app.command()(diagnose)
app.command()(report)


@app.command()
def demo(
    root: RootOption = "tagcos-demo",
    fraction: Annotated[float, typer.Option(help="Share of the pool to select.")] = 0.05,
) -> None:
    """The whole job on a small real model and 400 examples made from the Python standard library; under five minutes."""
    from flows.demo_data import write_demo_data
    from flows.demo_model import demo_model

    files = write_demo_data(Path(root) / "demo-data")
    settings = load_settings(
        {
            "sources": tuple(str(path) for path in files),
            "root": root,
            "model": str(demo_model()),
            "fraction": fraction,
            "max_length": 128,
            "warmup_examples": 64,
            "clusters": 8,
        }
    )
    run_id = _run(settings, prefect=False, out=Path(root) / "selected.jsonl")
    print(
        "\nGo on with:\n"
        f"  tagcos status --root {root}\n"
        f'  tagcos sql --root {root} "SELECT * FROM latest_selection ORDER BY cluster, rank LIMIT 10"\n'
        f"  tagcos report {run_id} --root {root}\n"
        f"  tagcos export {run_id} --root {root} --out selection.parquet\n"
        "  tagcos run YOUR_FILES --model HUB_ID_OR_FOLDER --fraction 0.05"
    )


@app.command()
def status(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Runs of a root: what is done, what is not, and what it took."""
    from storage import runs

    catalog = _open_root(root).catalog
    listed = runs.list_runs(catalog)
    if as_json:
        print(json.dumps([{**row, "stages": _stages(catalog, row["run_id"])} for row in listed.to_dicts()], default=str))
        return
    table = Table(
        "run", "status", "started (UTC)", "pool", "selected", "stage", "seconds", "peak GiB", box=None, header_style="bold"
    )
    for row in listed.iter_rows(named=True):
        pool, selected = (str(row[name]) if row[name] is not None else "" for name in ("pool", "selected"))
        table.add_row(
            row["run_id"],
            row["status"],
            f"{row['started_at']:%Y-%m-%d %H:%M}",
            pool,
            selected,
            "all",
            _seconds(row["seconds"]),
            "",
        )
        for stage in _stages(catalog, row["run_id"]):
            table.add_row(*[""] * 5, stage["stage"], _seconds(stage["seconds"]), f"{(stage['peak_bytes'] or 0) / 2**30:.2f}")
        if row["error"]:
            table.add_row("", row["error"])
    console().print(table)


def _stages(catalog: Catalog, run_id: str) -> list[dict[str, Any]]:
    from storage import runs

    return runs.run_status(catalog, run_id).stages.to_dicts()


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


@app.command()
def sql(query: str, root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Ask the catalog, read-only: tables, views and macros are described in docs/store.md."""
    import duckdb

    try:
        frame = _open_root(root).catalog.read(query)
    except duckdb.Error as error:
        raise UserError(f"query failed: {error}") from error
    if as_json:
        print(json.dumps(frame.to_dicts(), default=str, ensure_ascii=False))
    else:
        print_frame(frame)


@app.command()
def export(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="A run's id, its first letters, or latest.")],
    out: Annotated[Path, typer.Option(help="File to write: .jsonl or .parquet.")],
    root: RootOption = DEFAULT_ROOT,
) -> None:
    """Write a selection for a trainer: messages with weight, cluster and rank."""
    from storage import exports, runs

    opened = _open_root(root)
    run_id = runs.find_run(opened.catalog, run_id)
    written = exports.export(opened, run_id, out)
    print(f"{written} examples of {run_id} written to {out}")


@app.command()
def check(
    root: RootOption = DEFAULT_ROOT,
    fast: Annotated[bool, typer.Option("--fast", help="Look at presence, sizes and counts only, not at every byte.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended from what is left.")] = False,
) -> None:
    """Hold files and catalog against each other: checksums, counts, references. Exit code 1 where something stays damaged."""
    from flows.progress import default_reporter
    from storage import check as checking

    opened = _open_root(root)
    with default_reporter().stage("check", "files") as progress:
        findings = checking.check(opened, deep=not fast, progress=lambda _, done, total: progress(done, total))
    mended = []
    if repair:
        with opened.writer():
            mended = checking.repair(opened, findings)
    for finding in findings:
        print(f"{finding.place}: {finding.problem}\n    {'mended' if finding in mended else finding.remedy}")
    left = [finding for finding in findings if finding not in mended]
    print(f"{len(findings)} findings, {len(mended)} mended" if findings else "everything is as it was written")
    if any(finding.damage for finding in left):
        raise typer.Exit(1)


@app.command()
def gc(root: RootOption = DEFAULT_ROOT, yes: Annotated[bool, typer.Option("--yes", help="Remove them.")] = False) -> None:
    """List files that nothing refers to, left by interrupted work; with --yes, remove them."""
    from storage.gc import orphans, sweep

    opened = _open_root(root)
    with opened.writer():
        found = orphans(opened)
        for orphan in found:
            print(f"{orphan.key}  {orphan.bytes} bytes  {orphan.reason}")
        removed = sweep(opened, found) if yes else 0
    total = sum(orphan.bytes for orphan in found)
    print(
        f"{len(found)} files, {total} bytes" + (f"; {removed} bytes removed" if yes else "; --yes removes them" if found else "")
    )


def _run(settings: Settings, *, prefect: bool, out: Path | None) -> str:
    from flows import pipeline
    from storage import exports

    exports.check_suffix(out)
    if prefect or os.environ.get("PREFECT_API_URL"):
        from flows.prefect_flow import run_flow

        run_id = run_flow(settings)
    else:
        run_id = pipeline.run(settings).run_id
    print_summary(_open_root(settings.root).catalog, run_id)
    if out is not None:
        print(f"{exports.export(_open_root(settings.root), run_id, out)} examples written to {out}")
    return run_id


def _open_root(root: str) -> Root:
    from storage.root import open_root

    return open_root(root, create=False)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2, an interruption says how to go on."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' own bars: ours tell enough
    try:
        app()
    except UserError as error:
        print(f"tagcos: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == 130:  # typer turns Ctrl-C into this
            print("\ntagcos: interrupted; what was committed is kept. Run the same command again to go on.", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
