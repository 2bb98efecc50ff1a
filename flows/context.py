"""What a stage is given: the settings, the run, and the root; and how a stage is run and recorded."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol, TypeVar

from flows.models import AdaptedModel
from flows.progress import Reporter
from storage.catalog import runs, stages
from storage.catalog.methods import record_methods
from storage.database import Catalog
from storage.root import Root, open_root
from tagcos_stream.config import Settings
from tagcos_stream.identity import config_hash
from tagcos_stream.memory import GIB
from tagcos_stream.selection.methods import described

DEFAULT_MEMORY = 4.0  # GiB
UNDER_WAY = 86400.0  # seconds that a run, once begun, waits for a catalog that another process has open: it loses nothing
VERSIONED = ("tagcos-stream", "torch", "transformers", "peft", "polars", "duckdb", "zarr", "numba", "numpy", "prefect")


@dataclass(frozen=True)
class RunContext:
    """One run in progress."""

    settings: Settings
    run_id: str
    root: Root
    reporter: Reporter
    reselects: str | None = None  # the run whose pool it selects from again
    model: AdaptedModel = field(default_factory=AdaptedModel, compare=False, repr=False)  # closed after the gradients

    @property
    def catalog(self) -> Catalog:
        """The root's catalog."""
        return self.root.catalog

    @property
    def memory_limit(self) -> int:
        """Bytes that clustering and selection may take."""
        return memory_bytes(self.settings)


def memory_bytes(settings: Settings) -> int:
    """Bytes that clustering and selection may take."""
    return int((settings.memory_limit or DEFAULT_MEMORY) * GIB)


class StageResult(Protocol):
    """What a stage hands on (flows/results.py); `detail` is recorded in the catalog."""

    @property
    def detail(self) -> Mapping[str, Any]:
        """What the catalog records of the stage, as JSON values."""
        ...


Result = TypeVar("Result", bound=StageResult)


class DoStage(Protocol):
    """Does one stage, here or as a task of an orchestrator."""

    def __call__(self, name: str, work: Callable[..., Result], run: RunContext, /, *given: Any) -> Result:
        """Call `work(run, *given)` as the stage `name` and return its result."""
        ...


def open_settings_root(settings: Settings, reporter: Reporter) -> Root:
    """Open or create the root that the settings name; wait while another process has it locked."""
    return open_root(settings.root, wait_seconds=settings.wait, on_wait=reporter.say)


def start_or_resume(settings: Settings, root: Root, reporter: Reporter, reselects: str | None = None) -> RunContext:
    """The unfinished run with these settings, or a new one. The caller must hold the root's writer lock."""
    record_methods(root.catalog, described())
    run = runs.open_run(
        root.catalog,
        config=settings.model_dump(mode="json"),
        config_hash=config_hash(settings, reselects),
        versions=versions(),
        seeds={"seed": settings.seed, "feature_seed": settings.feature_seed},
        label="run" if reselects is None else "select",
        reselects=reselects,
        name=settings.name or (runs.MAIN if reselects is None else None),
    )
    if run.resumed:
        reporter.say(f"run {run.run_id} goes on where it stopped")
    patient = replace(root, wait_seconds=max(root.wait_seconds, UNDER_WAY))
    return RunContext(settings=settings, run_id=run.run_id, root=patient, reporter=reporter, reselects=reselects)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries that results depend on."""
    return {"python": platform.python_version()} | {name: _installed_version(name) for name in VERSIONED}


@cache  # each reads and parses a file of the package's
def _installed_version(name: str) -> str:
    return importlib.metadata.version(name)


def run_stage(name: str, work: Callable[..., Result], run: RunContext, /, *given: Any) -> Result:
    """Do a stage in this process and record its seconds, peak memory and detail, which attempts at it add up.

    Parameters
    ----------
    name
        Under which the catalog records it.
    work
        The stage: called with the run and `given`, the results of the stages before that it builds on.
    """
    stages.begun(run.catalog, run.run_id, name)
    start = time.perf_counter()
    result = work(run, *given)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux; of the process so far
    stages.done(run.catalog, run.run_id, name, seconds=seconds, peak_bytes=peak, detail=result.detail)
    return result
