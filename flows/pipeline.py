"""The pipeline, once: the command line runs these stages here, the Prefect flow runs the same as tasks."""

from __future__ import annotations

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
from tagcos_stream.config import Settings
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
        except KeyboardInterrupt:
            runs.stop_run(root.catalog, job.run_id, "interrupted", "interrupted by the user")
            raise
        except Exception as error:
            runs.stop_run(root.catalog, job.run_id, "failed", str(error))
            raise
    return Outcome(run_id=job.run_id, stages=outcome)
