"""What a flow run shows of itself on the server: progress while gradients run, the selection by source, a summary, a link."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.compare.tables import compact
from flows.pipeline import Outcome
from flows.plan import Plan
from flows.progress import LineReporter, Stage
from flows.report.build import report_key, write_report
from storage.catalog import evaluations
from storage.root import Root
from tagcos_stream.types import UserError

LONG = ("gradients", "evaluate")
EVERY = 5.0  # seconds between updates of a progress bar on the server
# what the summary tells of the stages, where they report it: (words, stage, its detail)
TOLD = (
    ("selects again from", "pool", "of"),
    ("rows new", "ingest", "new"),
    ("rows retired", "ingest", "retired"),
    ("rows rejected", "ingest", "rejected"),
    ("examples held out", "ingest", "heldout"),
    ("near-duplicates left out", "ingest", "near_duplicates"),
    ("gradients computed", "gradients", "computed"),
    ("examples without a gradient", "gradients", "rejected"),
    ("drift", "cluster", "drift"),
    ("clusters", "select", "clusters"),
    ("pool", "select", "pool"),
    ("selected", "select", "selected"),
)


class FlowReporter(LineReporter):
    """Log lines every few seconds, and a progress artifact for what takes hours."""

    @contextmanager
    def stage(self, title: str, unit: str) -> Iterator[Stage]:
        with super().stage(title, unit) as line:
            if title not in LONG:
                yield line
                return
            bar: Any = None
            with for_show(self.say):
                bar = create_progress_artifact(0.0, key=f"tagcos-{title}", description=f"{title}, {unit}")
            shown, percent = time.monotonic(), 0.0

            def show() -> None:
                nonlocal bar
                kept, bar = bar, None  # after one failure no more: each took its retries' minute
                if kept is not None:
                    with for_show(self.say):
                        update_progress_artifact(kept, percent)
                        bar = kept

            def update(done: float, total: float | None = None) -> None:
                nonlocal shown, percent
                line(done, total)
                percent = 100 * done / total if total else percent
                if time.monotonic() - shown >= EVERY:
                    show()
                    shown = time.monotonic()

            yield update
            show()


@contextmanager
def for_show(say: Callable[[str], None]) -> Iterator[None]:
    """What a server that is busy or away cannot show does not fail a run: its results are in the catalog."""
    try:
        yield
    except Exception as error:  # whatever a client of HTTP raises
        say(f"the Prefect server took no artifact: {type(error).__name__}: {str(error).partition(chr(10))[0]}")


def publish_artifacts(root: Root, outcome: Outcome, say: Callable[[str], None]) -> None:
    """Of a complete run: tagcos-selection-by-source, tagcos-summary, and tagcos-report, a link to the page written here."""
    run_id = outcome.run_id
    by_dataset = root.catalog.read("FROM by_dataset(?) ORDER BY dataset", [run_id]).to_dicts()
    text = summary(root, outcome)
    name, link = "report", root.files.place(report_key(run_id))
    try:
        write_report(root, run_id)
    except UserError as error:  # the run is complete all the same
        say(f"no report was written: {error}")
        name, link = "snapshot", outcome.stages["publish"]["snapshot"]
    uri = link if "://" in link else Path(link).as_uri()
    with for_show(say):
        create_table_artifact(key="tagcos-selection-by-source", table=by_dataset, description=run_id)
        create_markdown_artifact(key="tagcos-summary", markdown=text, description=run_id)
        create_link_artifact(uri, link_text=f"{name} of {run_id}", key="tagcos-report", description=run_id)


def publish_evaluation(root: Root, evaluation_id: str, say: Callable[[str], None]) -> None:
    """tagcos-evaluation: the table that the command prints."""
    results = evaluations.results(root.catalog, evaluation_id).filter(pl.col("part").is_null())
    rows = [row for (regime,), mine in results.group_by("regime", maintain_order=True) for row in _of_regime(regime, mine)]
    with for_show(say):
        create_table_artifact(key="tagcos-evaluation", table=rows, description=evaluation_id)


def _of_regime(regime: Any, results: pl.DataFrame) -> list[dict[str, Any]]:
    return [{"regime": regime, **row} for row in compact(results).to_dicts()]


def summary(root: Root, outcome: Outcome) -> str:
    """Markdown: what came in, what went out, how long each stage took."""
    told = [(words, outcome.stages.get(stage, {}).get(key)) for words, stage, key in TOLD]
    stages = root.catalog.read(
        "SELECT stage, seconds, peak_bytes FROM stages WHERE run_id = ? ORDER BY finished_at", [outcome.run_id]
    )
    rows: list[tuple[Any, ...]] = [
        (row["stage"], f"{row['seconds']:.1f}", f"{(row['peak_bytes'] or 0) / 2**30:.2f}") for row in stages.iter_rows(named=True)
    ]
    rows.append(("**all**", f"{stages['seconds'].sum():.1f}", ""))
    return "\n\n".join(
        [
            f"# {outcome.run_id}",
            _table(("", ""), [(words, _shown(value)) for words, value in told if value is not None]),
            _table(("stage", "seconds", "peak GiB"), rows),
            *([] if outcome.plan is None else [_table(("stage", "planned", "reused", "why"), _planned(outcome.plan))]),
        ]
    )


def _planned(plan: Plan) -> list[tuple[Any, ...]]:
    """A row a stage after the ingest."""
    return [
        (step.stage, f"{step.compute:,} of {step.total:,} {step.unit}", step.reuse or "", step.reason)
        for step in plan.steps
        if step.stage != "ingest"
    ]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) + ("--:",) * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
