"""The pipeline as Prefect flows: the same stages as tasks, the same settings as flat, checked parameters: docs/prefect.md."""

# ruff: noqa: E402 -- environment variables that are read at import are set first
from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

# before Prefect is imported: no telemetry, and time enough for a temporary server to start on a slow machine
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")

from tagcos_stream.machine import set_environment_defaults

set_environment_defaults()

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run

from flows.compare.evaluate import evaluate
from flows.context import Result, RunContext, run_stage
from flows.pipeline import Outcome, reselect, run
from flows.prefect_artifacts import FlowReporter, publish_artifacts, publish_evaluation
from flows.prefect_parameters import REQUIRED, evaluate_parameters, refresh_parameters, select_parameters, takes
from storage.root import open_root
from tagcos_stream.config import DEFAULT_FRACTION, Settings, load_settings
from tagcos_stream.evaluation.config import load_evaluation
from tagcos_stream.types import TransientError, UserError

RETRY_AFTER = [5.0, 20.0, 60.0]  # seconds: a stage goes on at its first block that is not committed
LEASE_SECONDS = 60.0  # how long a root stays taken by a machine that died; Prefect's least


def can_pass(error: BaseException) -> bool:
    """A busy catalog, an object store or a network that does not answer. All else would fail the same way again."""
    lost = (TransientError, ConnectionError, TimeoutError)
    return isinstance(error, lost) or f"{type(error).__module__}.{type(error).__name__}" == "obstore.exceptions.GenericError"


def _retries(task: Any, task_run: Any, state: Any) -> bool:
    try:
        state.result()
    except BaseException as error:
        return can_pass(error)
    return False


def _as_task(name: str, work: Callable[[], Any]) -> Any:
    # resume is the catalog's, so Prefect's caching is off. No arguments: Prefect would walk through a job's open handles
    @task(
        name=name,
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_AFTER),
        retry_delay_seconds=RETRY_AFTER,
        retry_condition_fn=_retries,
    )
    def do() -> Any:
        return work()

    return do()


def _do_stage(name: str, work: Callable[..., Result], run: RunContext, /, *given: Any) -> Result:
    result: Result = _as_task(name, lambda: run_stage(name, work, run, *given))
    return result


@contextmanager
def _turn(root: str) -> Iterator[None]:
    """One run at a time on a root. On one machine the root's own lock sees to that (a run waits `wait` seconds, and a killed
    holder is gone at once); an object store may be written from several machines, so that the server keeps a limit for it."""
    if "://" not in root or root.startswith("file:"):
        yield
        return
    name = "tagcos-root-" + re.sub(r"[^A-Za-z0-9._-]+", "-", root)
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
    with concurrency(name, lease_duration=LEASE_SECONDS, strict=True):
        yield


def _finish(outcome: Outcome, root: str) -> str:
    publish_artifacts(open_root(root, create=False), outcome, get_run_logger().warning)
    return outcome.run_id


def _name(kind: str) -> str:
    given = flow_run.parameters
    words = [kind, f"{flow_run.scheduled_start_time:%Y-%m-%d}"]
    if given.get("model"):
        words.append(re.sub(r"\.gguf$", "", PurePath(given["model"]).name).lower())
    words.append(f"count-{given['count']}" if given.get("count") else f"{given.get('fraction') or DEFAULT_FRACTION:g}")
    return "-".join(words)


def refresh_name() -> str:
    """refresh-2026-11-23-smollm2-360m-instruct-0.05: what was asked, when, of which model, how much."""
    return _name("refresh")


def select_name() -> str:
    """select-2026-11-23-0.1."""
    return _name("select")


def evaluate_name() -> str:
    """evaluate-2026-11-23-random-tagcos-full."""
    given = flow_run.parameters
    return "-".join(["evaluate", f"{flow_run.scheduled_start_time:%Y-%m-%d}", *given["method"]])


@flow(name="tagcos-refresh", flow_run_name=refresh_name, persist_result=False)
@takes(refresh_parameters())
def tagcos_refresh(**settings: Any) -> str:
    """Bring a selection up to date: read the sources, compute what is new, cluster, select, publish. Returns the run's id."""
    checked = load_settings(settings)
    with _turn(checked.root):
        outcome = run(checked, reporter=FlowReporter(get_run_logger().info), do_stage=_do_stage)
    return _finish(outcome, checked.root)


@flow(name="tagcos-select", flow_run_name=select_name, persist_result=False)
@takes(select_parameters())
def tagcos_select(root: str, run: str, **changes: Any) -> str:
    """Select again from stored features, for example another share: no gradient is computed. Returns the new run's id."""
    given = {name: value for name, value in changes.items() if value is not None}
    with _turn(root):
        reporter = FlowReporter(get_run_logger().info)
        outcome = reselect(root, run, reporter, _do_stage, **given)
    return _finish(outcome, root)


@flow(name="tagcos-evaluate", flow_run_name=evaluate_name, persist_result=False)
@takes(evaluate_parameters())
def tagcos_evaluate(**settings: Any) -> str:
    """Train one model on each selection and on the whole pool, and measure what it learned. Returns the evaluation's id."""
    asked = load_evaluation(settings)

    with _turn(asked.root):
        evaluation_id = _as_task("evaluate", lambda: evaluate(asked, FlowReporter(get_run_logger().info)))
    publish_evaluation(open_root(asked.root, create=False), evaluation_id, get_run_logger().warning)
    return str(evaluation_id)


def run_flow(settings: Settings) -> str:
    """Run as a flow with these settings; a temporary server is started where none is configured."""
    for name in REQUIRED:
        if not getattr(settings, name):
            raise UserError(f"no {name} given: a flow needs {' and '.join(REQUIRED)}")
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return tagcos_refresh(**given)
