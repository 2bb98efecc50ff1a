"""The pipeline, once: the command line runs these stages here, the Prefect flow runs the same as tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flows.context import Job, Stage, open_job, open_settings_root, run_stage
from flows.progress import Reporter, default_reporter
from flows.stages.cluster import cluster
from flows.stages.gradients import gradients, warm_up
from flows.stages.ingest import adopt, ingest
from flows.stages.select import publish, select
from storage.catalog import runs
from storage.root import Root, open_root
from tagcos_stream.compile_ahead import compiling_ahead
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
# what selecting again from stored features takes: the pool of an earlier run, and everything after the gradients
RESELECT_STAGES: dict[str, Stage] = {"pool": adopt} | {name: STAGES[name] for name in ("cluster", "select", "publish")}


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
    if not settings.sources:
        raise UserError("no sources given: name files, folders or globs with instruction data")
    reporter = reporter or default_reporter()
    root = open_settings_root(settings, reporter)
    with compiling_ahead():
        return _run_stages(settings, root, reporter, do_stage, STAGES)


def reselect(
    root: str,
    run_id: str | None = None,
    reporter: Reporter | None = None,
    do_stage: Callable[[str, Stage, Job], dict[str, Any]] = run_stage,
    **changes: Any,
) -> Outcome:
    """Select again from the stored features of a complete run (by default the newest): a new run of the same pool and the same
    settings but for `changes`, which may be any of SELECT_FIELDS. Neither sources nor model are read. Resumed like every run.

    Raises:
        UserError: no such complete run, a setting that stored features do not allow to change, or a wrong value.
    """
    reporter = reporter or default_reporter()
    wrong = sorted(set(changes) - set(SELECT_FIELDS))
    if wrong:
        raise UserError(f"{', '.join(wrong)} cannot change without computing anew: use `tagcos run`")
    wait = changes.get("wait", Settings.model_fields["wait"].default)
    opened = open_root(root, create=False, wait_seconds=wait, on_wait=reporter.say)
    opened.catalog.upgrade()
    base = runs.complete_run(opened.catalog, run_id)
    settings = load_settings(changed_settings(base, root, changes))
    return _run_stages(settings, opened, reporter, do_stage, RESELECT_STAGES, reselects=base["run_id"])


def changed_settings(base: dict[str, Any], root: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run in the catalog, changed; a fraction replaces a count and the other way round."""
    values = {**json.loads(base["config"]), "root": root}
    if {"fraction", "count"} & set(changes):
        values |= {"fraction": None, "count": None}
    values |= changes
    return {name: value for name, value in values.items() if value is not None}


def _run_stages(
    settings: Settings,
    root: Root,
    reporter: Reporter,
    do_stage: Callable[[str, Stage, Job], dict[str, Any]],
    stages: dict[str, Stage],
    reselects: str | None = None,
) -> Outcome:
    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)
    with root.writer():
        job = open_job(settings, root, reporter, reselects)
        try:
            outcome = {name: do_stage(name, stage, job) for name, stage in stages.items()}
        except Exception as error:
            runs.stop_run(root.catalog, job.run_id, "failed", str(error))
            raise
        except BaseException:  # Ctrl-C, or a flow that is cancelled
            runs.stop_run(root.catalog, job.run_id, "interrupted", "interrupted by the user")
            raise
    return Outcome(run_id=job.run_id, stages=outcome)
