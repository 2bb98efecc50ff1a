"""The pipeline as a Prefect flow: the same stages as tasks, with the same settings as flat, checked parameters."""

from __future__ import annotations

import inspect
import os
from typing import Any

# before Prefect is imported: no telemetry, and time enough for a temporary server to start on a slow machine
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from flows.job import Job, Stage, run_stage
from flows.pipeline import Outcome, run
from flows.progress import LineReporter
from storage.root import open_root
from tagcos_stream.config import Settings, load_settings


def _do_stage(name: str, stage: Stage, job: Job) -> dict[str, Any]:
    # resume is the catalog's, so Prefect's caching is off. No arguments: Prefect would walk through the job's open handles
    @task(name=name, task_run_name=name, cache_policy=NO_CACHE, persist_result=False)
    def work() -> dict[str, Any]:
        return run_stage(name, stage, job)

    return work()


def _flow(preset: str = "recommended", **settings: Any) -> str:
    """Select a coreset from the sources; returns the run's id."""
    logger = get_run_logger()
    checked = load_settings({name: value for name, value in settings.items() if value is not None}, preset=preset)
    outcome = run(checked, reporter=LineReporter(logger.info), do_stage=_do_stage)
    _artifacts(checked, outcome)
    return outcome.run_id


def _artifacts(settings: Settings, outcome: Outcome) -> None:
    catalog = open_root(settings.root).catalog
    by_source = catalog.read("FROM by_source(?) ORDER BY dataset", [outcome.run_id])
    create_table_artifact(key="tagcos-selection-by-source", table=by_source.to_dicts(), description=outcome.run_id)
    lines = [f"# {outcome.run_id}", ""]
    lines += [
        f"- **{stage}**: " + ", ".join(f"{key} {value}" for key, value in detail.items() if not isinstance(value, list))
        for stage, detail in outcome.stages.items()
    ]
    create_markdown_artifact(key="tagcos-summary", markdown="\n".join(lines), description=outcome.run_id)


def _parameters() -> list[inspect.Parameter]:
    """One parameter per setting. None keeps the preset's value, so that a deployment may set some and a run others."""
    own = inspect.Parameter("preset", inspect.Parameter.KEYWORD_ONLY, default="recommended", annotation=str)
    return [own] + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=field.annotation | None)  # type: ignore[operator]
        for name, field in Settings.model_fields.items()
    ]


_flow.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]
_flow.__annotations__ = {p.name: p.annotation for p in _parameters()}
tagcos_run = flow(name="tagcos-run", flow_run_name="{root}", persist_result=False)(_flow)


def run_flow(settings: Settings) -> str:
    """Run as a flow with these settings; a temporary server is started where none is configured."""
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return tagcos_run(**given)
