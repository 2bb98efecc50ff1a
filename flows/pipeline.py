"""The pipeline, once: the command line runs these stages here, the Prefect flow runs the same as tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flows.changes import sentence
from flows.checks import load_checks, run_checks
from flows.context import DoStage, Result, RunContext, open_settings_root, run_stage, start_or_resume
from flows.models import check_device, check_model
from flows.plan import Plan, make_plan, plan_from_pool, plan_reselect
from flows.progress import Reporter, default_reporter
from flows.recompute import Confirm, recomputed
from flows.reference import need_reference
from flows.reuse import find_spaces
from flows.stages.adopt import adopt, space_of_variant
from flows.stages.cluster import cluster
from flows.stages.eligible import check_predicates
from flows.stages.gradients import compute_gradients
from flows.stages.ingest import ingest
from flows.stages.publish import publish
from flows.stages.select import select
from flows.stages.target import need_target
from flows.stages.warmup import warm_up
from flows.survey import survey
from flows.vectors import need_vectors
from flows.workers.work import set_threads
from storage.catalog import runs, signals
from storage.root import NoRoot, Root, open_root
from tagcos_stream.compile_ahead import compiling_ahead
from tagcos_stream.config import SELECT_FIELDS, Settings, load_settings
from tagcos_stream.data.sources import score_names
from tagcos_stream.types import TERMINATED, TransientError, UserError

FAILED_RUN = "failed_run"  # attribute of an error that ended a run


@dataclass(frozen=True)
class Outcome:
    """Result of a completed run: its id, what each stage reported, and one sentence on what was selected and what changed."""

    run_id: str
    stages: Mapping[str, Mapping[str, Any]]
    sentence: str
    plan: Plan | None = None  # of a run that read sources


def run(
    settings: Settings, reporter: Reporter | None = None, do_stage: DoStage = run_stage, confirm: Confirm | None = None
) -> Outcome:
    """Run every stage under the root's writer lock. A second call continues where an interrupted one stopped.

    Parameters
    ----------
    settings
        With sources and a model.
    reporter
        Gets messages and progress; by default bars in a terminal, otherwise lines.
    do_stage
        Does one stage: here, or as a task of an orchestrator.
    confirm
        Asked before a changed setting makes gradients be computed again that take longer than ASK_ABOVE. By default nobody is,
        and the setting `max_recompute` is the limit.

    Returns
    -------
    Outcome
        What the run selected, and what each stage reported.

    Raises
    ------
    UserError
        The question was answered with no, the limit is exceeded, or a mistake that the user can correct; the run is recorded as
        failed with it.
    """
    _check(settings)
    reporter = reporter or default_reporter()
    checks = load_checks(settings.checks)
    check_device(settings)
    if settings.model_variants and not _has_features(settings):
        check_model(settings)
    root = open_settings_root(settings, reporter)
    with compiling_ahead(), _writing(settings, root, reporter, do_stage) as (run, stage):
        pool = stage("ingest", ingest, run)
        run_checks(run, checks, "ingest")
        plan = plan_from_pool(settings, run.catalog, run.run_id, pool.files)
        reporter.say(plan.summary)
        again = recomputed(plan, settings, run.catalog, run.run_id)
        if again is not None:
            reporter.say(again.summary)
            again.check(settings.max_recompute, confirm)
        spaces = stage("warm-up", warm_up, run, pool)
        features = stage("gradients", compute_gradients, run, spaces)
        clusters = stage("cluster", cluster, run, features)
        selection = stage("select", select, run, features, clusters)
        run_checks(run, checks, "select")
        stage("publish", publish, run, selection)
    for warning in features.detail["warnings"]:
        reporter.say(warning)
    return Outcome(run.run_id, stage.details, sentence(run.catalog, run.run_id), plan)


def failed_run(error: BaseException) -> str | None:
    """Return the run that was recorded as failed with this error.

    Parameters
    ----------
    error
        Raised by `run` or `reselect`.

    Returns
    -------
    str or None
        Its id; None where no run was begun.
    """
    return vars(error).get(FAILED_RUN)


def dry_run(settings: Settings, reporter: Reporter | None = None) -> Plan:
    """Plan what `run` would do with these settings. Reads sources and the root, writes nothing.

    Parameters
    ----------
    settings
        As for `run`.
    reporter
        Gets messages and progress.

    Returns
    -------
    Plan
        Per stage, what is reused and what is computed.

    Raises
    ------
    UserError
        As `run` would raise for its settings, sources and root.
    """
    _check(settings)
    reporter = reporter or default_reporter()
    try:
        catalog = open_root(settings.root, create=False, wait_seconds=settings.wait, on_wait=reporter.say).catalog
    except NoRoot:
        catalog = None
    with reporter.stage("read sources", "bytes") as progress:
        found = survey(settings, catalog, progress)
    return make_plan(settings, catalog, found)


def _has_features(settings: Settings) -> bool:
    """Whether the root has a feature space of these settings, so that a run may need no model."""
    try:
        return bool(find_spaces(open_root(settings.root, create=False, wait_seconds=settings.wait).catalog, settings))
    except TransientError:
        raise
    except UserError:  # no root or catalog yet, or one that is to be migrated
        return False


def _check(settings: Settings) -> None:
    """Refuse settings that cannot work, before any work."""
    check_predicates(settings, score_names(settings.sources))
    if not settings.sources:
        raise UserError("no sources given: name files, folders or globs with instruction data")
    if settings.run_on == "ray":
        from flows.workers.ray_executor import cluster_address

        cluster_address()
    need_reference(settings, None)
    need_target(settings)
    need_vectors(settings)


def reselect(
    root: str, run_id: str | None = None, reporter: Reporter | None = None, do_stage: DoStage = run_stage, **changes: Any
) -> Outcome:
    """Select again from the stored features of a complete run: a new run on the same pool, with other settings.

    Neither sources nor model are read. An interrupted call is resumed like every run.

    Parameters
    ----------
    root
        Folder or URL of the root.
    run_id
        The complete run, as `storage.catalog.runs.find_run` takes it; by default `latest`.
    reporter, do_stage
        As for `run`.
    **changes
        Any of SELECT_FIELDS; all other settings are those of that run.

    Returns
    -------
    Outcome
        Of the new run.

    Raises
    ------
    UserError
        No such complete run, a setting that stored features do not allow to change, or an invalid value.
    """
    reporter = reporter or default_reporter()
    settings, opened, base = _reselection(root, run_id, reporter, changes)
    checks = load_checks(settings.checks)
    with _writing(settings, opened, reporter, do_stage, reselects=base["run_id"]) as (run, stage):
        features = stage("pool", adopt, run)
        clusters = stage("cluster", cluster, run, features)
        selection = stage("select", select, run, features, clusters)
        run_checks(run, checks, "select")
        stage("publish", publish, run, selection)
    return Outcome(run.run_id, stage.details, sentence(run.catalog, run.run_id))


def dry_reselect(root: str, run_id: str | None = None, reporter: Reporter | None = None, **changes: Any) -> Plan:
    """Plan what `reselect` would do with these arguments. Writes nothing, except for the migration of an older catalog.

    Parameters
    ----------
    root, run_id, reporter, **changes
        As for `reselect`, whose other argument has no effect on a plan.

    Returns
    -------
    Plan
        Per stage, what would be reused and what computed.

    Raises
    ------
    UserError
        As `reselect` would raise.
    """
    settings, opened, base = _reselection(root, run_id, reporter or default_reporter(), changes)
    space_id = space_of_variant(opened.catalog, settings, base, base["run_id"])
    return plan_reselect(settings, opened.catalog, base["run_id"], space_id)


def _reselection(
    root: str, run_id: str | None, reporter: Reporter, changes: dict[str, Any]
) -> tuple[Settings, Root, dict[str, Any]]:
    """(settings, root, the run that is selected from again)."""
    wrong = sorted(set(changes) - set(SELECT_FIELDS))
    if wrong:
        raise UserError(f"{', '.join(wrong)} cannot change without computing gradients again: use `tagcos run`")
    wait = changes.get("wait", Settings.model_fields["wait"].default)
    opened = open_root(root, create=False, wait_seconds=wait, on_wait=reporter.say)
    opened.catalog.upgrade()
    base = runs.complete_run(opened.catalog, run_id)
    settings = load_settings(changed_settings(base, root, changes))
    need_target(settings)
    check_predicates(settings, signals.score_names(opened.catalog, base["run_id"]))
    return settings, opened, base


def changed_settings(base: dict[str, Any], root: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return a run's settings with some of them changed. Fraction, count and tokens replace each other.

    Parameters
    ----------
    base
        The run's row of the catalog.
    root
        Folder or URL of the root.
    changes
        Settings by name; None is ignored.

    Returns
    -------
    dict
        Settings by name, without the run's own name and its checks, which a selection has only if they are asked for.
    """
    values = {**json.loads(base["config"]), "root": root, "name": None, "checks": None}
    if {"fraction", "count", "tokens"} & set(changes):
        values |= {"fraction": None, "count": None, "tokens": None}
    values |= changes
    return {name: value for name, value in values.items() if value is not None}


@dataclass
class _Stages:
    """Does stages, and keeps what each of them reports."""

    do_stage: DoStage
    details: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def __call__(self, name: str, work: Callable[..., Result], run: RunContext, /, *given: Any) -> Result:
        result = self.do_stage(name, work, run, *given)
        self.details[name] = result.detail
        return result


@contextmanager
def _writing(
    settings: Settings, root: Root, reporter: Reporter, do_stage: DoStage, reselects: str | None = None
) -> Iterator[tuple[RunContext, _Stages]]:
    """The run of these settings as the root's writer; a run that does not reach its end is recorded as failed or interrupted."""
    set_threads(settings.threads)
    with root.writer():
        run = start_or_resume(settings, root, reporter, reselects)
        try:
            with run.catalog.lingering():
                yield run, _Stages(do_stage)
        except Exception as error:  # whatever a stage raises is recorded, then raised again
            vars(error)[FAILED_RUN] = run.run_id
            runs.stop_run(root.catalog, run.run_id, "failed", str(error))
            raise
        except BaseException as error:  # Ctrl-C, SIGTERM, or a flow that is cancelled
            how = "ended by SIGTERM" if isinstance(error, SystemExit) and error.code == TERMINATED else "interrupted by the user"
            runs.stop_run(root.catalog, run.run_id, "interrupted", how)
            raise
