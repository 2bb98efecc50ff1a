"""What a stage is given: the settings, the run, and the doors to what is durable."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flows.progress import Reporter
from storage.catalog import runs
from storage.catalog.methods import record_methods
from storage.database import Catalog
from storage.root import Root, open_root
from tagcos_stream.config import GIB, Settings
from tagcos_stream.identity import config_hash
from tagcos_stream.selection.methods import described

DEFAULT_MEMORY = 4.0  # GiB
VERSIONED = ("tagcos-stream", "torch", "transformers", "peft", "polars", "duckdb", "zarr", "numba", "numpy", "prefect")


@dataclass(frozen=True)
class Job:
    """One run at work."""

    settings: Settings
    run_id: str
    root: Root
    reporter: Reporter
    reselects: str | None = None  # the run whose pool it selects from again

    @property
    def catalog(self) -> Catalog:
        return self.root.catalog

    @property
    def memory_limit(self) -> int:
        return memory_bytes(self.settings)


def memory_bytes(settings: Settings) -> int:
    """Bytes that clustering and selection may take."""
    return int((settings.memory_limit or DEFAULT_MEMORY) * GIB)


Stage = Callable[[Job], dict[str, Any]]


def open_settings_root(settings: Settings, reporter: Reporter) -> Root:
    return open_root(settings.root, wait_seconds=settings.wait, on_wait=reporter.say)


def open_job(settings: Settings, root: Root, reporter: Reporter, reselects: str | None = None) -> Job:
    """The unfinished run with these settings, or a new one. The caller holds the root as its writer."""
    record_methods(root.catalog, described())
    run = runs.open_run(
        root.catalog,
        config=settings.model_dump(mode="json"),
        config_hash=config_hash(settings, reselects),
        versions=versions(),
        seeds={"seed": settings.seed, "feature_seed": settings.feature_seed},
        label="run" if reselects is None else "select",
        reselects=reselects,
    )
    if run.resumed:
        reporter.say(f"run {run.run_id} goes on where it stopped")
    return Job(settings=settings, run_id=run.run_id, root=root, reporter=reporter, reselects=reselects)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        found[name] = importlib.metadata.version(name)
    return found


def run_stage(name: str, stage: Stage, job: Job) -> dict[str, Any]:
    """Do a stage here and record its seconds, peak memory and outcome."""
    start = time.perf_counter()
    detail = stage(job)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux; of the process so far
    runs.stage_done(job.catalog, job.run_id, name, seconds=seconds, peak_bytes=peak, detail=detail)
    return detail
