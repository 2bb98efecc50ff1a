"""The commands before a run: `tagcos estimate`, `tagcos doctor` and `tagcos texts`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import DEFAULT_ROOT, ROOT_VARIABLE, JsonOption
from flows.cli.output import print_frame, print_json
from tagcos_stream.config import load_settings
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from flows.estimate import Estimate
    from flows.plan import Plan

ConfigOption = Annotated[Path | None, typer.Option(help="TOML file with settings; options given here win.")]
PresetOption = Annotated[
    str | None,
    typer.Option(
        help="recommended, published for the paper's setting, or clean to leave out repeated answers and answers that their "
        "prompt does not help; default the file's, or recommended."
    ),
]


def estimate(
    sources: Annotated[list[str] | None, typer.Argument(help="Files, folders, globs, URLs, or files that list sources.")] = None,
    config: ConfigOption = None,
    preset: PresetOption = None,
    seconds: Annotated[float, typer.Option(min=0, help="How long gradient passes are measured.")] = 30.0,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """What a run would take: rows, tokens, disk and hours, from real passes of the model on a sample of rows. Writes nothing."""
    from flows import estimate
    from flows.progress import default_reporter

    if sources:
        settings["sources"] = tuple(sources)
    given = load_settings(settings, toml=config, preset=preset)
    if not given.sources:
        raise UserError("no sources given: name files, folders or globs with instruction data")
    found = estimate.estimate(given, seconds, default_reporter())
    if as_json:
        print_json(asdict(found))
    else:
        _print_estimate(found)


def _print_estimate(found: Estimate) -> None:
    import polars as pl

    from flows.recompute import duration
    from storage.files.base import size_text

    counted = "counted" if found.rows_counted else "from file sizes and the rows counted in a minute"
    if found.rows_read < found.rows:
        counted += f"; what follows is from the {found.rows_read / found.rows:.0%} read"
    rows = [
        ("rows", f"{found.rows:,}", counted),
        ("examples", f"{found.examples:,}", f"different ones; {found.rejected_rows:,} rows rejected"),
        ("without a gradient", f"{found.without_gradient:,}", "no target token left within max_length"),
        ("cut at max_length", f"{found.truncated:,}", ""),
        ("selected", f"{found.selected:,}", f"from {found.clusters:,} cluster{'s' * (found.clusters != 1)}"),
        ("tokens", f"{found.tokens:,}", f"plus or minus {found.tokens_error:,}; {found.tokens_an_example:.0f} an example"),
        ("tokens a second", f"{found.tokens_a_second:,.0f}", f"measured in {found.probe_seconds:.0f} s on {found.device}"),
    ]
    rows.append(("processor", f"{found.matrix_rate / 1e9:,.0f} GFLOP/s", f"float32 products on {found.cpus} cores, measured"))
    if found.heldout:
        rows.insert(2, ("held out", f"{found.heldout:,}", "kept out of the pool, no gradient"))
    if found.known_examples:
        rows.insert(2, ("known examples", f"{found.known_examples:,}", "whose features the root has: not computed again"))
    rows.append(
        ("disk", size_text(found.disk_bytes), "" if found.free_bytes is None else f"{size_text(found.free_bytes)} are free")
    )
    rows += [(f"  {name}", size_text(n), "") for name, n in found.disk.items()]
    rows.append(("time", duration(found.seconds), ""))
    arithmetic = {"cluster": "arithmetic: matrix products", "select": "arithmetic: matrix products"}
    rows += [(f"  {name}", duration(n), arithmetic.get(name, "")) for name, n in found.stages.items()]
    print_frame(pl.DataFrame(rows, schema=["what", "value", "how"], orient="row"))
    if found.free_bytes is not None and found.disk_bytes > found.free_bytes:
        print("\nthe disk is too small: choose a --root elsewhere (an object store will do), or lower --dim")


def print_plan(plan: Plan, as_json: bool) -> None:
    """What `--dry-run` shows: what each stage would compute, what it would reuse, and why."""
    import polars as pl

    if as_json:
        print_json(asdict(plan))
        return
    if plan.run_id:
        print(f"run {plan.run_id} would go on where it stopped\n")
    shown = [
        (step.stage, f"{step.compute:,} of {step.total:,} {step.unit}", step.reuse or "", step.reason) for step in plan.steps
    ]
    print_frame(pl.DataFrame(shown, schema=["stage", "to compute", "reused", "why"], orient="row"))
    if not plan.exact:
        print("\ncounts are upper bounds: examples without a usable gradient or close to another are known only afterwards")


def texts(
    sources: Annotated[list[str], typer.Argument(help="Files, folders, globs, URLs, or files that list sources.")],
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    as_json: JsonOption = False,
) -> None:
    """Write the different examples of SOURCES with their ids and texts, for vectors of your own. Needs no root and no model."""
    from flows.progress import default_reporter
    from flows.texts import write_texts

    written = write_texts(sources, out, default_reporter())
    if as_json:
        print_json({"examples": written, "path": str(out)})
    else:
        print(f"{written:,} examples written to {out}")


def doctor(
    root: Annotated[
        str | None,
        typer.Option(
            help=f"Folder or object-store URL in which everything is stored; default the file's, or {DEFAULT_ROOT}.",
            envvar=ROOT_VARIABLE,
        ),
    ] = None,
    config: ConfigOption = None,
    model: Annotated[str | None, typer.Option(help="Model that runs will use.")] = None,
    device: Annotated[str | None, typer.Option(help="Device that runs will use.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Is this machine ready: versions, devices, memory, disk, root, servers that you configured. Exit code 1 if not.

    Contacts only what is configured: the hub for a hub model, Prefect where PREFECT_API_URL is set, a root's object store.
    """
    import polars as pl

    from flows.doctor import examine

    asked = {"root": root, "model": model, "device": device}
    given = {name: value for name, value in asked.items() if value is not None}
    findings = examine(load_settings(given, toml=config))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_frame(pl.DataFrame([asdict(finding) for finding in findings]))
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)
