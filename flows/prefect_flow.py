"""The pipeline as Prefect flows: the same stages as tasks, the same settings as flat, checked parameters: docs/nightly.md."""

# ruff: noqa: E402 -- environment variables that are read at import are set first
from __future__ import annotations

import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

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
from prefect.settings import get_current_settings
from prefect.states import Completed, Failed, State

from flows.addresses import plain_url
from flows.compare.evaluate import evaluate
from flows.context import UNDER_WAY, Result, RunContext, run_stage
from flows.export import export
from flows.pipeline import Outcome, failed_run, reselect, run
from flows.prefect_artifacts import FlowReporter, for_show, publish_artifacts, publish_evaluation, publish_failure
from flows.prefect_parameters import REQUIRED, evaluate_parameters, filled, refresh_parameters, select_parameters, takes
from flows.report.build import write_report
from storage.catalog import runs
from storage.exports.write import check_target
from storage.files.open import local_folder
from storage.root import Root, open_root
from tagcos_stream.config import DEFAULT_FRACTION, Settings, load_settings
from tagcos_stream.evaluation.config import load_evaluation
from tagcos_stream.identity import digest
from tagcos_stream.types import TransientError, UserError

RETRY_AFTER = [5.0, 20.0, 60.0]  # seconds: a stage goes on at its first block that is not committed
DEFAULT_ROOT = Settings.model_fields["root"].default
ENGINE_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")
ANSWER_SECONDS = 10.0  # for a server to answer before a run, or to give it its turn
LEASE_SECONDS = 60.0  # how long a root stays taken by a machine that died; Prefect's least


def can_pass(error: BaseException) -> bool:
    """A busy catalog, an object store or a network that does not answer. All else would fail the same way again."""
    return isinstance(error, (TransientError, ConnectionError, TimeoutError))


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
def _turn(root: str, wait: float) -> Iterator[None]:
    """Hold the server's limit of one run at a time on a root in an object store.

    On one machine the root's own lock suffices (a run waits `wait` seconds, and a killed holder is gone at once); an object store
    may be written from several machines.

    Raises
    ------
    UserError
        Another flow run holds it for longer than `wait` seconds, and as long as a server may take to answer.
    """
    if local_folder(root) is not None:
        yield
        return
    wait = max(wait, ANSWER_SECONDS)  # with less, a free root would be refused
    name = _limit_name(root)
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, 1)
    with ExitStack() as stack:
        try:
            stack.enter_context(concurrency(name, lease_duration=LEASE_SECONDS, strict=True, timeout_seconds=wait))
        except TimeoutError as error:
            raise UserError(f"another flow run has held {root} for {wait:g} s: try again later, or give a longer wait") from error
        yield


def _limit_name(root: str) -> str:
    """Of the limit of a root: readable, and another one for s3://team/a-b than for s3://team-a/b."""
    root = root.rstrip("/")
    return f"tagcos-root-{re.sub(r'[^A-Za-z0-9._-]+', '-', root)}-{digest(root)[:8]}"


def _state(
    root: str, name: str | None, work: Callable[[], Outcome], out: str | None, format: str | None, wait: float | None
) -> State[Any]:
    """Run, then report and export as tasks; the state's message is the run's sentence, or a mistake's one line.

    A mistake of the user ends the flow run as failed without a traceback: what it says is all that there is to know.
    """
    _hide_tracebacks()
    log = get_run_logger()
    with for_show(log.warning):
        _tag(root, name)
    try:
        if out is not None:
            check_target(Path(out), format)
        with _turn(root, Settings.model_fields["wait"].default if wait is None else wait):
            outcome = work()
        opened = open_root(root, create=False, wait_seconds=UNDER_WAY)  # the run is complete: it is reported, too
        log.info(outcome.sentence)
        place = _as_task("report", lambda: _report(opened, outcome.run_id))
        publish_artifacts(opened, outcome, place, log.warning)
        if out is not None:
            done = _as_task("export", lambda: export(opened, outcome.run_id, Path(out), format=format))
            log.info(f"{done.examples:,} examples exported to {done.path} ({done.format})")
    except UserError as error:
        message = " ".join(str(error).split())
        if (run_id := failed_run(error)) is not None:
            with suppress(UserError):  # a root that cannot be read any more
                publish_failure(open_root(root, create=False), run_id, message, log.warning)
        return Failed(message=message, data=error)
    return Completed(message=outcome.sentence, data=outcome.run_id)


def _report(root: Root, run_id: str) -> str | None:
    """Where the report was written; None where it could not be, since the run is complete all the same."""
    try:
        return write_report(root, run_id)[0]
    except UserError as error:
        get_run_logger().warning(f"no report was written: {error}")
    except Exception:  # a fault of the page must not keep the selection from its readers
        get_run_logger().exception("no report was written")
    return None


def _hide_tracebacks() -> None:
    """Keep the tracebacks of mistakes out of the logs of flow runs."""
    for name in ENGINE_LOGGERS:
        logging.getLogger(name).addFilter(_no_mistake)


def _no_mistake(record: logging.LogRecord) -> bool:
    """Leaves out the traceback of a mistake, which is logged as the state of the flow run."""
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))


def _tag(root: str, name: str | None = None) -> None:
    """Tag the flow run with its root and name, for filters on the page."""
    tags = {f"root:{root}"} | ({f"name:{name}"} if name else set())
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), tags={*flow_run.tags, *tags})


def _name(kind: str, fraction: float | None = None) -> str:
    """`fraction`: what is selected where no amount is given; None where that depends on an earlier run."""
    given = flow_run.parameters
    name = [given["name"]] if given.get("name") else []
    words = [kind, _short(given.get("root", DEFAULT_ROOT)), *name, f"{flow_run.scheduled_start_time:%Y-%m-%d}"]
    if given.get("model"):
        words.append(re.sub(r"\.gguf$", "", PurePath(given["model"]).name).lower())
    amounts = [f"{unit}-{given[unit]}" for unit in ("count", "tokens") if given.get(unit)]
    share = given.get("fraction") or fraction
    return "-".join([*words, *(amounts or ([f"{share:g}"] if share else []))])


def _short(root: str) -> str:
    """The last part of a root's path or address."""
    return PurePath(root.rstrip("/")).name or "root"


def refresh_name() -> str:
    """refresh-tagcos-data-2026-11-23-smollm2-360m-instruct-0.05: what was asked, of which root and model, when, how much."""
    return _name("refresh", DEFAULT_FRACTION)


def select_name() -> str:
    """select-tagcos-data-2026-11-23-0.1."""
    return _name("select")


def evaluate_name() -> str:
    """evaluate-tagcos-data-2026-11-23-random-tagcos-full."""
    given = flow_run.parameters
    return "-".join(
        ["evaluate", _short(given.get("root", DEFAULT_ROOT)), f"{flow_run.scheduled_start_time:%Y-%m-%d}", *given["method"]]
    )


@flow(name="tagcos-refresh", flow_run_name=refresh_name, persist_result=False)
@takes(refresh_parameters())
def tagcos_refresh(out: str | None = None, format: str | None = None, **settings: Any) -> State[str]:
    """Bring a selection up to date: read the sources, compute what is new, cluster, select, publish, export.

    Its result is the run's id, its message says what was selected and what changed.
    """
    settings, out = filled(settings), out or None

    def work() -> Outcome:
        return run(load_settings(settings), reporter=FlowReporter(get_run_logger().info), do_stage=_do_stage)

    return _state(settings.get("root", DEFAULT_ROOT), settings.get("name") or runs.MAIN, work, out, format, settings.get("wait"))


@flow(name="tagcos-select", flow_run_name=select_name, persist_result=False)
@takes(select_parameters())
def tagcos_select(root: str, run: str, out: str | None = None, format: str | None = None, **changes: Any) -> State[str]:
    """Select again from stored features, for example another share: no gradient is computed. Its result is the new run's id."""
    given, out = filled(changes), out or None

    def work() -> Outcome:
        return reselect(root, run, FlowReporter(get_run_logger().info), _do_stage, **given)

    return _state(root, given.get("name"), work, out, format, given.get("wait"))


@flow(name="tagcos-evaluate", flow_run_name=evaluate_name, persist_result=False)
@takes(evaluate_parameters())
def tagcos_evaluate(**settings: Any) -> State[str]:
    """Train one model on each selection and on the whole pool, and measure what it learned. Its result is the evaluation's id."""
    _hide_tracebacks()
    log = get_run_logger()
    try:
        asked = load_evaluation(filled(settings))
        with for_show(log.warning):
            _tag(asked.root)
        with _turn(asked.root, asked.wait):
            evaluation_id = str(_as_task("evaluate", lambda: evaluate(asked, FlowReporter(log.info))))
    except UserError as error:
        return Failed(message=" ".join(str(error).split()), data=error)
    publish_evaluation(open_root(asked.root, create=False, wait_seconds=UNDER_WAY), evaluation_id, log.warning)
    return Completed(message=f"evaluation {evaluation_id} is complete", data=evaluation_id)


def run_flow(settings: Settings) -> str:
    """Run as a flow with these settings; a temporary server is started where none is configured.

    Parameters
    ----------
    settings
        With sources and a model.

    Returns
    -------
    str
        The run's id.

    Raises
    ------
    UserError
        As for `tagcos run`, or the configured server does not answer.
    """
    for name in REQUIRED:
        if not getattr(settings, name):
            raise UserError(f"no {name} given: a flow needs {' and '.join(REQUIRED)}")
    url = get_current_settings().api.url
    if url and (error := _unreachable(url)):
        raise UserError(
            f"the Prefect server at {plain_url(url)} does not answer ({error}): start it (`prefect server start`), or unset "
            "PREFECT_API_URL to run without it"
        )
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return str(tagcos_refresh(**given))


def _unreachable(url: str) -> str | None:
    """Why a server cannot be reached; None where it can."""
    try:
        with urllib.request.urlopen(f"{plain_url(url).rstrip('/')}/health", timeout=ANSWER_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        asks_for_login = error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)  # Prefect's own client has it
        return None if asks_for_login else str(error.reason)
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
