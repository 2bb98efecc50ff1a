"""The pipeline, once: the command line runs these stages here, the Prefect flow runs the same as tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flows.clustering import cluster
from flows.features import gradients, warm_up
from flows.ingesting import ingest
from flows.job import Job, Stage, open_job, open_settings_root, run_stage
from flows.progress import Reporter, default_reporter
from flows.selecting import publish, select
from storage import runs
from storage.root import open_root
from tagcos_stream.config import SELECT_FIELDS, Settings, load_settings
from tagcos_stream.types import UserError

STAGES: dict[str, Stage] = {
    "ingest": ingest,
    "warm-up": warm_up,
    "gradients": gradients,
    "cluster": cluster,
    "select": select,
    "publish": publish,
}


@dataclass(frozen=True)
class Outcome:
    """What a finished run came to: its id and what each stage reported."""

    run_id: str
    stages: dict[str, dict[str, Any]]


def run(
    settings: Settings,
    reporter: Reporter | None = None,
    do_stage: Callable[[str, Stage, Job], dict[str, Any]] = run_stage,
) -> Outcome:
    """Run every stage under the root's writer lock. Called again after any interruption it goes on where it stopped.

    Raises:
        UserError: a mistake that the user can mend; the run is recorded as failed with its message.
    """
    reporter = reporter or default_reporter()
    if not settings.sources:
        raise UserError("no sources given: name files, folders or globs with instruction data")
    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)
    root = open_settings_root(settings, reporter)
    with root.writer():
        job = open_job(settings, root, reporter)
        try:
            outcome = {name: do_stage(name, stage, job) for name, stage in STAGES.items()}
        except Exception as error:
            runs.stop_run(root.catalog, job.run_id, "failed", str(error))
            raise
        except BaseException:  # Ctrl-C, or a flow that is cancelled
            runs.stop_run(root.catalog, job.run_id, "interrupted", "interrupted by the user")
            raise
    return Outcome(run_id=job.run_id, stages=outcome)


def reselect(
    root: str,
    run_id: str | None = None,
    reporter: Reporter | None = None,
    do_stage: Callable[[str, Stage, Job], dict[str, Any]] = run_stage,
    **changes: Any,
) -> Outcome:
    """Select again from the stored features of a complete run (by default the newest), with other SELECT_FIELDS: the same
    pipeline with that run's settings, which finds every file read and every gradient computed.

    Raises:
        UserError: no such complete run, or a setting that cannot change without computing anew.
    """
    reporter = reporter or default_reporter()
    wrong = sorted(set(changes) - set(SELECT_FIELDS))
    if wrong:
        raise UserError(f"{', '.join(wrong)} cannot change without computing anew: use `tagcos run`")
    catalog = open_root(root, create=False, on_wait=reporter.say).catalog
    done = catalog.read("SELECT run_id, config FROM runs WHERE status = 'complete' ORDER BY finished_at DESC")
    found = done if run_id is None else done.filter(run_id=run_id)
    if found.is_empty():
        raise UserError(f"{root} has no complete run {run_id or ''}: `tagcos status --root {root}` lists them".replace("  ", " "))
    values = {**json.loads(found["config"][0]), "root": root}
    if {"fraction", "count"} & set(changes):
        values |= {"fraction": None, "count": None}
    values |= changes
    return run(load_settings({name: value for name, value in values.items() if value is not None}), reporter, do_stage)
