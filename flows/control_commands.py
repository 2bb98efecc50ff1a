"""The commands that work on stored features alone: `tagcos select` and `tagcos diagnose`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.tables import print_frame, print_summary
from tagcos_stream.config import Settings

RootOption = Annotated[str, typer.Option("--root", help="Folder that holds everything durable.")]
RunOption = Annotated[str | None, typer.Option("--run", help="A complete run's id; default the newest.")]
PlotOption = Annotated[
    Path | None, typer.Option("--plot", help="Also draw the table to this .png or .svg file (needs matplotlib).")
]
DEFAULT_ROOT = Settings.model_fields["root"].default


def select(
    root: RootOption = DEFAULT_ROOT,
    run: RunOption = None,
    out: Annotated[Path | None, typer.Option(help="Also write the selection to this .jsonl or .parquet file.")] = None,
    **settings: Any,
) -> None:
    """Select again from a run's stored features, with these settings changed: reads no source, computes no gradient."""
    from flows.pipeline import reselect
    from storage import exports
    from storage.root import open_root

    exports.check_suffix(out)
    run_id = reselect(root, run, **settings).run_id
    opened = open_root(root, create=False)
    print_summary(opened.catalog, run_id)
    if out is not None:
        print(f"{exports.export(opened, run_id, out)} examples written to {out}")


def diagnose(
    root: RootOption = DEFAULT_ROOT,
    run: RunOption = None,
    method: Annotated[list[str] | None, typer.Option(help="Method to measure, may be repeated; default all.")] = None,
    fraction: Annotated[
        list[float] | None, typer.Option(help="Share of the pool, may be repeated; default 0.01, 0.02, 0.05, 0.1, 0.2.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of draws and clusterings: 0, 1 and on.")] = 3,
    memory_limit: Annotated[float | None, typer.Option(help="GiB; default the run's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    plot: PlotOption = None,
) -> None:
    """Compare methods on a run's stored features: each selects by seven eighths of the dimensions, measured on the rest."""
    from flows import diagnosing, plotting

    draw = plotting.drawer(plot)
    run_id = diagnosing.diagnose(
        root,
        run,
        methods=tuple(method or ()),
        fractions=tuple(fraction or diagnosing.FRACTIONS),
        seeds=range(seeds),
        memory_limit=memory_limit,
    )
    frame = diagnosing.table(root, run_id)
    if as_json:
        print(json.dumps(frame.to_dicts()))
    else:
        print_frame(frame)
    draw(lambda path: plotting.plot_diagnosis(frame, path))
