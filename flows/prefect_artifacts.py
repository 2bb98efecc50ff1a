"""What a flow run shows on the server: progress of gradients, a summary, the selection by source and dataset, the report."""

from __future__ import annotations

import base64
import json
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import polars as pl
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.changes import Changes, gather, recorded
from flows.checks import described
from flows.compare.tables import compact
from flows.pipeline import Outcome
from flows.plan import Plan
from flows.progress import LineReporter, Stage
from flows.report.picture import datasets_png
from storage.catalog import changes as catalog_changes
from storage.catalog import check_results, evaluations, refreshes, runs, selections, stages
from storage.root import Root
from tagcos_stream.config import Settings
from tagcos_stream.credentials import redact
from tagcos_stream.identity import reading

LONG = ("gradients", "evaluate")
EVERY = 5.0  # seconds between updates of a progress bar on the server
MAX_ROWS = 1000  # of a table
# counts of stages in the summary: (words, stage, its detail)
COUNTS = (
    ("selects again from", "pool", "of"),
    ("new examples, those held out included", "ingest", "new"),
    ("rows rejected", "ingest", "rejected"),
    ("examples held out", "ingest", "heldout"),
    ("near-duplicates left out", "ingest", "near_duplicates"),
    ("gradients computed", "gradients", "computed"),
    ("examples without a gradient", "gradients", "rejected"),
    ("clusters", "select", "clusters"),
    ("pool", "select", "pool"),
    ("selected", "select", "selected"),
)


class FlowReporter(LineReporter):
    """Log lines every few seconds, and a progress artifact for what takes hours."""

    @contextmanager
    def stage(self, title: str, unit: str) -> Iterator[Stage]:
        """Show the progress of a long stage as a progress artifact, too."""
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
    """A server that is busy or away, or a fault of what is shown, does not fail a run: its results are in the catalog."""
    try:
        yield
    except Exception as error:  # whatever a client of HTTP raises, or a fault of what is shown
        say(f"the Prefect server took no artifact: {type(error).__name__}: {redact(str(error)).partition(chr(10))[0]}")


def publish_artifacts(root: Root, outcome: Outcome, report: str | None, say: Callable[[str], None]) -> None:
    """Create the artifacts of a complete run: tagcos-summary, tagcos-selection-by-source, -by-dataset and tagcos-report.

    Parameters
    ----------
    root
        The root of the run.
    outcome
        Of the run.
    report
        Where its report was written; None where it was not.
    say
        Gets a message if an artifact cannot be made, or the server does not accept it.
    """
    run_id = outcome.run_id
    with for_show(say):
        by_dataset = selections.by_dataset(root.catalog, run_id).to_dicts()
        found = recorded(root.catalog, run_id)
        text = summary(root, outcome, found, by_dataset)
        create_markdown_artifact(key="tagcos-summary", markdown=text, description=run_id)
        create_table_artifact(key="tagcos-selection-by-source", table=_rounded(found.sources), description=run_id)
        create_table_artifact(key="tagcos-selection-by-dataset", table=_rounded(by_dataset), description=run_id)
        if report is not None:
            create_markdown_artifact(key="tagcos-report", markdown=_where(root, run_id, report), description=run_id)


def publish_failure(root: Root, run_id: str, message: str, say: Callable[[str], None]) -> None:
    """Create tagcos-summary of a run that a mistake, a guard or a check ended: its message, and what is known by source."""
    parts = [f"# {run_id}: failed", _text(message), *_changes(_unfinished(root, run_id))]
    with for_show(say):
        markdown = "\n\n".join([*parts, *_checks(root, run_id)])
        create_markdown_artifact(key="tagcos-summary", markdown=markdown, description=run_id)


def publish_evaluation(root: Root, evaluation_id: str, say: Callable[[str], None]) -> None:
    """tagcos-evaluation: the table that the command prints."""
    with for_show(say):
        results = evaluations.results(root.catalog, evaluation_id).filter(pl.col("part").is_null())
        rows = [row for (regime,), mine in results.group_by("regime", maintain_order=True) for row in _of_regime(regime, mine)]
        create_table_artifact(key="tagcos-evaluation", table=rows, description=evaluation_id)


def _of_regime(regime: Any, results: pl.DataFrame) -> list[dict[str, Any]]:
    return [{"regime": regime, **row} for row in compact(results).to_dicts()]


def summary(root: Root, outcome: Outcome, found: Changes, by_dataset: Sequence[Mapping[str, Any]]) -> str:
    """Describe a run in Markdown: what it selected, what changed by source, drift, checks, and the cost of each stage."""
    counts = [(words, outcome.stages.get(stage, {}).get(key)) for words, stage, key in COUNTS]
    finished = stages.finished(root.catalog, outcome.run_id)
    rows: list[tuple[Any, ...]] = [
        (row["stage"], f"{row['seconds']:.1f}", f"{(row['peak_bytes'] or 0) / 2**30:.2f}")
        for row in finished.iter_rows(named=True)
    ]
    rows.append(("**all**", f"{finished['seconds'].sum():.1f}", ""))
    picture = base64.b64encode(datasets_png(by_dataset)).decode()
    columns = ("dataset", "pool", "selected", "share_of_pool", "share_of_selection")
    datasets = [tuple(_shown(row[name], share=name.startswith("share")) for name in columns) for row in by_dataset[:MAX_ROWS]]
    return "\n\n".join(
        [
            f"# {outcome.run_id}",
            f"**{_text(outcome.sentence)}**",
            *_changes(found),
            f"![Share of each dataset in the pool and in the selection](data:image/png;base64,{picture})",
            _table(("dataset", "pool", "selected", "of the pool", "of the selection"), datasets),
            _table(("", ""), [(words, _shown(value)) for words, value in counts if value is not None]),
            *_drift(root, outcome.run_id),
            *_checks(root, outcome.run_id),
            _table(("stage", "seconds", "peak GiB"), rows),
            *([] if outcome.plan is None else [_table(("stage", "planned", "reused", "why"), _planned(outcome.plan))]),
        ]
    )


def _unfinished(root: Root, run_id: str) -> Changes:
    """The changes of a run whose ingest may not have been recorded: since the run that a guard compared it with."""
    settings = Settings(**json.loads(runs.run_row(root.catalog, run_id)["config"]))
    return gather(root.catalog, run_id, catalog_changes.earlier_run(root.catalog, run_id, reading(settings)))


def _changes(found: Changes) -> list[str]:
    """The table of sources, those that changed first."""
    if not found.sources:
        return []
    moved = sorted(found.sources, key=lambda row: -(row["new"] + row["returned"] + row["retired"] + row["rejected"]))
    names = ("source", "before", "pool", "new", "returned", "retired", "rejected", "selected")
    rows = [tuple(_shown(row[name]) for name in names) for row in moved[:MAX_ROWS]]
    since = "First run of these sources." if found.base is None else f"Sources since {found.base}: {_text(found.summary)}."
    return [since, _table(names, rows)]


def _drift(root: Root, run_id: str) -> list[str]:
    """Drift and churn, where the run was compared with an earlier one."""
    names = ("share", "distance_shift", "movement", "loss_shift", "unseen")
    row = refreshes.with_churn(root.catalog, run_id)
    if row is None:
        return []
    cells = [(f"drift: {name.replace('_', ' ')}", _shown(row[name])) for name in names if row[name] is not None]
    if row["churn"] is not None:
        cells.append(("churn", f"{row['churn']:.1%} ({row['left_it']:,} of {row['earlier']:,} left)"))
    cells.append(("advice", _text(row["advice"] + (f": {row['why']}" if row["why"] else ""))))
    return [_table(("since the run before", ""), cells)]


def _checks(root: Root, run_id: str) -> list[str]:
    """Results of the user's checks."""
    rows = [
        (_text(row["name"]), row["stage"], row["severity"], _text(described(row["rows"], json.loads(row["first_row"] or "{}"))))
        for row in check_results.of_run(root.catalog, run_id)
    ]
    return [_table(("check", "after", "severity", "result"), rows)] if rows else []


def _where(root: Root, run_id: str, place: str) -> str:
    """Name the report's place and how to see it. No signed address of an object: it would be a key for all who see the page."""
    if root.path is None:
        kind, there = "object", "which your own access to the store opens. To see it in a browser on the machine that ran it:"
    else:
        kind, there = "file", "on the machine that ran it. To see it in a browser there:"
    command = f"tagcos report {run_id} --root {shlex.quote(root.url)} --serve"
    return f"The report of {run_id} is the {kind}\n\n    {place}\n\n{there}\n\n    {command}"


def _planned(plan: Plan) -> list[tuple[Any, ...]]:
    """A row a stage after the ingest."""
    return [
        (step.stage, f"{step.compute:,} of {step.total:,} {step.unit}", step.reuse or "", _text(step.reason))
        for step in plan.steps
        if step.stage != "ingest"
    ]


def _shown(value: Any, *, share: bool = False) -> str:
    if isinstance(value, float):
        return f"{value:.1%}" if share else f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else _text(str(value))


def _rounded(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows[:MAX_ROWS]]


def _text(value: str) -> str:
    """A name or message within Markdown: on one line, nothing in it is markup."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(value.split()))


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) + ("--:",) * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
