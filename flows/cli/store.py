"""The commands that look at a root or tidy it: `tagcos sql`, `export`, `check`, `gc` and `forget`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.cli.options import DEFAULT_ROOT, JsonOption, RootOption, run_ids
from flows.cli.output import ask, in_terminal, print_csv, print_frame, print_json
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
        if frame.is_empty():
            print("no rows", file=sys.stderr)


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
            metavar="RUN", help="A complete run's id, its first characters, a name, or latest (main).", autocompletion=run_ids
        ),
    ] = "latest",
    format: Annotated[FormatName, typer.Option(help="Shape to write (docs/exports.md).")] = "messages",
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave out and count what the format cannot hold, instead of refusing.")
    ] = False,
    tokenizer: Annotated[str | None, typer.Option(help="For trl: model whose tokens to write; default the run's.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="For trl: run Python code that comes with the model.")
    ] = False,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Write a selection for a trainer: conversations with weight, cluster and rank."""
    from flows import export

    done = export.export(
        open_reader(root),
        run_id,
        out,
        format=format,
        leave_out=leave_out,
        tokenizer=tokenizer,
        trust_remote_code=trust_remote_code,
    )
    if as_json:
        print_json(asdict(done))
    else:
        print_exported(done)


def print_exported(done: Exported) -> None:
    """Print what an export wrote, what it left out and why."""
    written = done.examples - sum(done.left_out.values())
    rows = f" as {done.rows:,} rows" if done.rows != written else ""
    print(f"{written:,} of {done.examples:,} examples of {done.run_id} written{rows} to {done.path}")
    for reason, n in done.left_out.items():
        print(f"  left out: {n} with {reason}")
    for note, n in done.notes.items():
        print(f"  note: {n} {note}")


def check(
    root: RootOption = DEFAULT_ROOT,
    fast: Annotated[bool, typer.Option("--fast", help="Look at presence, sizes and counts only, not at every byte.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Repair what can be repaired from what is left.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Cross-check files and catalog: checksums, counts, references. Exit code 1 where something stays damaged."""
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
        shown = ("place", "problem", "remedy", "damage")
        print_json([{**{name: getattr(f, name) for name in shown}, "mended": f in mended} for f in findings])
    else:
        for finding in findings:
            print(f"{finding.place}: {finding.problem}\n    {'mended' if finding in mended else finding.remedy}")
        print(f"{len(findings)} findings, {len(mended)} mended" if findings else "everything is as it was written")
    if any(finding.damage for finding in findings if finding not in mended):
        raise typer.Exit(1)


def gc(
    older_than: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Drop runs that completed, or stopped, longer ago than this.")
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="Drop runs of this name; may be repeated.")] = None,
    unnamed: Annotated[bool, typer.Option("--unnamed", help="Drop runs without a name: what `tagcos select` tried.")] = False,
    root: RootOption = DEFAULT_ROOT,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List files that nothing refers to, and the runs that the options name; with --yes, remove them.

    A run goes with its selection, its report, and the features and clusters that no other run uses. Never dropped are runs that
    another name refers to, that were evaluated, and the root's first one.
    """
    from storage import retention
    from storage.gc import orphans, sweep

    opened = open_reader(root)
    if yes:
        opened.catalog.upgrade()
    asked = older_than is not None or bool(name) or unnamed
    with opened.writer():
        found = orphans(opened)
        dropped = retention.to_drop(opened, days=older_than, names=name or (), unnamed=unnamed) if asked else None
        removed = sweep(opened, found) if yes else 0
        if yes and dropped is not None and (dropped.runs or retention.unfinished(opened)):
            retention.drop(opened, dropped)
            removed += dropped.bytes
    if as_json:
        files = [{**asdict(orphan), "removed": yes} for orphan in found]
        print_json(files if dropped is None else {"files": files, "dropped": asdict(dropped), "removed": yes})
        return
    for orphan in found:
        print(f"{orphan.key}  {orphan.bytes} bytes  {orphan.reason}")
    total, runs = sum(orphan.bytes for orphan in found), ""
    if dropped is not None:
        for kind in ("runs", "spaces", "clusterings", "reports"):
            for item in getattr(dropped, kind):
                print(f"{item}  {kind.removesuffix('s')}")
        total, runs = total + dropped.bytes, f"{len(dropped.runs)} runs, "
    note = f"; {removed} bytes removed" if yes else "; --yes removes them" if found or (dropped and dropped.runs) else ""
    print(f"{runs}{len(found)} files, {total} bytes{note}")


def forget(
    example_ids: Annotated[
        list[str], typer.Argument(metavar="EXAMPLE_ID...", help="Ids of examples, or their first characters.")
    ],
    file: Annotated[
        list[Path] | None, typer.Option(help="An export or report page outside of the root that may hold them; may be repeated.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Erase without asking.")] = False,
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Erase the text of examples from the root, its snapshot, reports and exports, for good; only their ids stay."""
    from storage.forget import forget as erase

    opened = open_reader(root)
    opened.catalog.upgrade()
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("forget erases for good: add --yes where nobody can be asked")
        if not ask(f"Erase {len(example_ids)} examples from {opened.url} for good?"):
            raise UserError("nothing was erased")
    with opened.writer():
        done = erase(opened, example_ids, file or ())
    unread = "; ".join(done.unread)
    problem = UserError(f"these may hold what was forgotten, but cannot be read: {unread}; remove them, or mend them and repeat")
    if as_json:
        print_json(asdict(done))
        if unread:
            raise problem
        return
    print(
        f"{len(done.example_ids)} examples forgotten: {done.parts} files of examples rewritten, {done.snippets} snippets removed"
    )
    for place, rows in done.files.items():
        print(f"  {place}: {f'{rows} rows removed' if rows else 'deleted'}")
    print("their sources, and copies that you made of the root or its exports, are yours to erase")
    if unread:
        raise problem


def open_reader(root: str) -> Root:
    """Open an existing root for reading."""
    from storage.root import open_root

    return open_root(root, create=False)
