"""`tagcos report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import DEFAULT_ROOT, JsonOption, RootOption, run_ids
from flows.cli.output import print_json


def report(
    run_id: Annotated[
        str,
        typer.Argument(metavar="RUN", help="A run's id, its first characters, a name, or latest (main).", autocompletion=run_ids),
    ] = "latest",
    root: RootOption = DEFAULT_ROOT,
    out: Annotated[Path | None, typer.Option(help="HTML file to write; default reports/RUN.html under the root.")] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Also serve the page on 127.0.0.1 until Ctrl-C.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port for --serve; 0: a free one.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML page that shows what a run selected from what, and why; it opens from disk and needs no network."""
    from flows.report import serve as server
    from flows.report.build import report_key, write_report
    from storage.catalog import runs
    from storage.root import open_root

    opened = open_root(root, create=False)
    found = runs.find_run(opened.catalog, run_id)
    place, size = write_report(opened, found, out)
    if as_json:
        print_json({"run_id": found, "path": str(place), "bytes": size})
    else:
        print(f"report of {found} written to {place} ({size / 1e6:.1f} MB)")
    if serve:
        sys.stdout.flush()  # a pipe would hear of the page only at the end
        page = opened.files.read(report_key(found)) if out is None else out.read_bytes()
        server.serve(page, port, lambda address: print(f"serving it at {address} until Ctrl-C", file=sys.stderr, flush=True))
