"""The commands about the runs of a root: `tagcos status` and `tagcos promote`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import DEFAULT_ROOT, JsonOption, RootOption, run_ids
from flows.cli.output import print_frame, print_json
from tagcos_stream.types import TransientError, UserError

if TYPE_CHECKING:
    from storage.root import Root

SHOWN = ("run_id", "name", "method", "fraction", "status", "pool", "selected", "seconds")


def status(root: RootOption = DEFAULT_ROOT, as_json: JsonOption = False) -> None:
    """Runs of a root, newest first, and what names refer to; how far an unfinished run is, and the stages of the newest one."""
    import polars as pl

    from flows.cli.store import open_reader
    from storage.catalog import progress, runs, stages

    opened = open_reader(root)
    catalog = opened.catalog
    listed = [_with_state(opened, row) for row in runs.list_runs(catalog).to_dicts()]
    for row in listed:
        row["progress"] = progress.under_way(catalog, row["run_id"]) if row["status"] != "complete" else None
    if as_json:
        print_json([{**row, "stages": stages.finished(catalog, row["run_id"]).to_dicts()} for row in listed])
        return
    if not listed:
        print(f"no run in {opened.url} yet: `tagcos run` makes one")
        return
    frame = pl.DataFrame(listed, infer_schema_length=None).with_columns(
        pl.col("seconds").cast(pl.Float64), pl.col("selected").cast(pl.Int64), pl.col("pool").cast(pl.Int64)
    )
    print_frame(frame.select(SHOWN))
    named = {name: row["run_id"] for row in reversed(listed) for name in row["names"] or ()}
    if named:
        print("\nnames: " + "; ".join(f"{name} is {run_id}" for name, run_id in sorted(named.items())))
    for row in listed:
        if told := [text for text in (row["progress"] and _in_words(row["progress"]), row["error"]) if text]:
            print(f"\n{row['run_id']}: " + "\n  ".join(told))
    newest = listed[0]["run_id"]
    finished = stages.finished(catalog, newest)
    if len(finished):
        print(f"\nstages of {newest}:")
        print_frame(finished.select("stage", "seconds", (pl.col("peak_bytes") / 2**30).alias("peak GiB")))


def _with_state(root: Root, row: dict[str, Any]) -> dict[str, Any]:
    """A run that is recorded as running, while its process does not write to the root any more, was killed."""
    if row["status"] != "running":
        return row
    from storage.catalog import runs

    run = runs.run_row(root.catalog, row["run_id"])
    if root.written_by() == (run["host"], run["pid"]):
        return row
    return {
        **row,
        "status": "killed",
        "error": "its process was killed; the same command continues it at the first uncommitted block",
    }


def _in_words(found: dict[str, Any]) -> str:
    if found["total"] is not None:
        done = f", {found['done']:,} of {found['total']:,} {found['unit']}"
    else:
        done = "" if found["done"] is None else f", {found['done']:,} {found['unit']} done"
    return f"stage {found['stage']}{done}; attempt {found['attempt']}, begun {found['started_at']:%m-%d %H:%M} UTC"


def promote(
    run_id: Annotated[
        str, typer.Argument(metavar="RUN", help="A complete run's id, its first characters, or a name.", autocompletion=run_ids)
    ],
    as_name: Annotated[str, typer.Option("--as", help="The name, such as prod.")] = "main",
    root: RootOption = DEFAULT_ROOT,
    as_json: JsonOption = False,
) -> None:
    """Let a name refer to a complete run: export, report, select and SQL then mean this run by the name."""
    from flows.cli.store import open_reader
    from storage import snapshot
    from storage.catalog import runs
    from tagcos_stream.config import check_run_name

    try:
        check_run_name(as_name)
    except ValueError as error:
        raise UserError(f"--as: {error}") from None
    opened = open_reader(root)
    opened.catalog.upgrade()
    found = runs.complete_run(opened.catalog, run_id)["run_id"]
    runs.promote(opened.catalog, found, as_name)
    published = True
    try:
        with replace(opened, wait_seconds=0.0).writer():  # a run under way publishes at its end
            snapshot.republish(opened)
    except TransientError:
        published = False
    if as_json:
        print_json({"run_id": found, "name": as_name, "published": published})
        return
    print(f"{as_name} is {found}")
    if not published:
        print("the snapshot for readers follows when the run under way completes")
