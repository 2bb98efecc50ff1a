"""The commands that look at a root or tidy it: `tagcos sql`, `export`, `check` and `gc`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.options import DEFAULT_ROOT, JsonOption, RootOption, run_ids
from flows.cli.output import in_terminal, print_csv, print_frame, print_json
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from storage.exports.write import Exported
    from storage.root import Root

FormatName = Literal["messages", "sharegpt", "alpaca", "prompt-completion", "datasets", "llama-factory", "axolotl", "trl"]


def sql(
    query: Annotated[str | None, typer.Argument(help="SQL; - or nothing reads it from standard input.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the query from this file.")] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Show at most so many rows.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header.")] = False,
    safe: Annotated[
        bool, typer.Option("--safe", help="Allow only queries, and no other file than the examples of this root.")
    ] = False,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Ask the catalog, read-only: tables, views and macros are described in docs/store.md, questions in docs/cookbook.md."""
    import duckdb

    if as_csv and as_json:
        raise UserError("--csv and --json exclude each other: give one of them")
    text, opened = _query(query, file), open_reader(root)
    try:
        frame = opened.catalog.ask(text, safe=safe, limit=limit, examples=opened.files.place("examples/*/*.parquet"))
    except duckdb.Error as error:
        raise UserError(f"query failed: {error}") from error
    if as_json:
        print_json(frame.to_dicts())
    elif as_csv:
        print_csv(frame)
    else:
        print_frame(frame, exact=not in_terminal())


def _query(query: str | None, file: Path | None) -> str:
    """The text of a query, from where the user says it is."""
    if file is not None:
        if query is not None:
            raise UserError("a query and --file exclude each other: give one of them")
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the query from {file}: {error}") from None
    if query is not None and query != "-":
        return query
    if query is None and sys.stdin.isatty():
        raise UserError("no query given: write it as an argument, in a file with --file, or to standard input")
    return sys.stdin.read()


def export(
    out: Annotated[Path, typer.Option(help="File (.jsonl or .parquet) or, for the last four formats, folder to write.")],
    run_id: Annotated[
        str,
        typer.Argument(
            metavar="[RUN]", help="A complete run's id, its first letters, a name, or latest (main).", autocompletion=run_ids
        ),
    ] = "latest",
    format: Annotated[FormatName, typer.Option(help="Shape to write (docs/exports.md).")] = "messages",
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out and count what the format cannot hold, instead of refusing.")
    ] = False,
    tokenizer: Annotated[str | None, typer.Option(help="For trl: model whose tokens to write; default the run's.")] = None,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Write a selection for a trainer: conversations with weight, cluster and rank."""
    from flows import export

    done = export.export(open_reader(root), run_id, out, format=format, leave_out=leave_out, tokenizer=tokenizer)
    if as_json:
        print_json(asdict(done))
    else:
        print_exported(done)


def print_exported(done: Exported) -> None:
    left = sum(done.left_out.values())
    print(f"{done.rows} rows of {done.examples - left} of {done.examples} examples of {done.run_id} written to {done.path}")
    for reason, n in done.left_out.items():
        print(f"  left out: {n} with {reason}")
    for note, n in done.notes.items():
        print(f"  note: {n} {note}")


def check(
    root: RootOption = DEFAULT_ROOT,
    fast: Annotated[bool, typer.Option("--fast", help="Look at presence, sizes and counts only, not at every byte.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended from what is left.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Hold files and catalog against each other: checksums, counts, references. Exit code 1 where something stays damaged."""
    from flows.progress import default_reporter
    from storage import check as checking

    opened = open_reader(root)
    with default_reporter().stage("check", "files") as progress:
        findings = checking.check(opened, deep=not fast, progress=lambda _, done, total: progress(done, total))
    mended = []
    if repair:
        with opened.writer():
            mended = checking.repair(opened, findings)
    if as_json:
        told = ("place", "problem", "remedy", "damage")
        print_json([{**{name: getattr(f, name) for name in told}, "mended": f in mended} for f in findings])
    else:
        for finding in findings:
            print(f"{finding.place}: {finding.problem}\n    {'mended' if finding in mended else finding.remedy}")
        print(f"{len(findings)} findings, {len(mended)} mended" if findings else "everything is as it was written")
    if any(finding.damage for finding in findings if finding not in mended):
        raise typer.Exit(1)


def gc(
    root: RootOption = DEFAULT_ROOT,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List files that nothing refers to, left by interrupted work; with --yes, remove them."""
    from storage.gc import orphans, sweep

    opened = open_reader(root)
    with opened.writer():
        found = orphans(opened)
        removed = sweep(opened, found) if yes else 0
    if as_json:
        print_json([{**asdict(orphan), "removed": yes} for orphan in found])
        return
    for orphan in found:
        print(f"{orphan.key}  {orphan.bytes} bytes  {orphan.reason}")
    total = sum(orphan.bytes for orphan in found)
    told = f"; {removed} bytes removed" if yes else "; --yes removes them" if found else ""
    print(f"{len(found)} files, {total} bytes{told}")


def open_reader(root: str) -> Root:
    from storage.root import open_root

    return open_root(root, create=False)
