"""The commands that work on stored features alone: `tagcos select` and `tagcos diagnose`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import DEFAULT_ROOT, JsonOption, QuietOption, RootOption, RunOption
from flows.cli.output import print_frame, print_json
from flows.cli.prepare import print_plan
from flows.cli.store import print_exported
from flows.cli.summary import print_summary, summary

if TYPE_CHECKING:
    from storage.root import Root

PlotOption = Annotated[
    Path | None, typer.Option("--plot", help="Also draw the table to this .png or .svg file (needs matplotlib).")
]


def select(
    root: RootOption = DEFAULT_ROOT,
    run: RunOption = None,
    out: Annotated[Path | None, typer.Option(help="Also write the selection to this .jsonl or .parquet file.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be computed and what is reused, and why; select nothing.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Select again from a run's stored features, with these settings changed: reads no source, computes no gradient."""
    from flows.pipeline import dry_reselect, reselect
    from flows.progress import SilentReporter
    from storage.exports import write as exports
    from storage.root import open_root

    exports.check_target(out)
    if dry_run:
        print_plan(dry_reselect(root, run, **settings), as_json)
        return
    run_id = reselect(root, run, SilentReporter() if quiet else None, **settings).run_id
    tell_run(open_root(root, create=False), run_id, out, as_json)


def tell_run(root: Root, run_id: str, out: Path | None, as_json: bool) -> None:
    """What a finished run selected, and its export where one was asked for."""
    from flows import export

    if not as_json:
        print_summary(root.catalog, run_id)
    done = export.export(root, run_id, out) if out is not None else None
    if as_json:
        print_json({**summary(root.catalog, run_id), "exported": None if done is None else asdict(done)})
    elif done is not None:
        print_exported(done)


def diagnose(
    root: RootOption = DEFAULT_ROOT,
    run: RunOption = None,
    method: Annotated[list[str] | None, typer.Option(help="Method to measure, may be repeated; default all.")] = None,
    fraction: Annotated[
        list[float] | None, typer.Option(help="Share of the pool, may be repeated; default 0.01, 0.02, 0.05, 0.1, 0.2.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of draws and clusterings: 0, 1 and on.")] = 3,
    memory_limit: Annotated[float | None, typer.Option(help="GiB; default the run's.")] = None,
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """Compare methods on a run's stored features: each selects by seven eighths of the dimensions, measured on the rest."""
    from flows.compare import diagnose, plots

    draw = plots.drawer(plot)
    run_id = diagnose.diagnose(
        root,
        run,
        methods=tuple(method or ()),
        fractions=tuple(fraction or diagnose.FRACTIONS),
        seeds=range(seeds),
        memory_limit=memory_limit,
    )
    frame = diagnose.table(root, run_id)
    if as_json:
        print_json(frame.to_dicts())
    else:
        print_frame(frame)
    draw(lambda path: plots.plot_diagnosis(frame, path))
