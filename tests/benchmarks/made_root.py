"""A root whose features come from a seeded generator, not a model: what comes after the gradients runs on it as on any other."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from flows.context import RunContext, open_settings_root, run_stage, start_or_resume
from flows.progress import SilentReporter
from flows.stages.cluster import cluster
from flows.stages.gradients import features_of
from flows.stages.ingest import ingest
from flows.stages.publish import publish
from flows.stages.select import select
from storage.arrays import segments
from storage.arrays.checkpoints import save_checkpoint, save_space
from storage.catalog import runs, spaces
from tagcos_stream import identity
from tagcos_stream.config import Settings, load_settings
from tagcos_stream.types import Checkpoint
from tests.benchmarks.features import Shape


def conversations(path: Path, first: int, stop: int) -> None:
    """Short different conversations, as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(first, stop):
            turns = [
                {"role": "user", "content": f"What is {i} and {i * 7 % 1009}?"},
                {"role": "assistant", "content": f"It is {i + i * 7 % 1009}."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


def made_settings(folder: Path, **values: Any) -> Settings:
    return load_settings({"sources": (str(folder / "pool"),), "root": str(folder / "root"), "model": "made", **values})


def run_command(settings: Settings, *fields: str) -> list[str]:
    """Words after `python` that run these settings; `fields` are those that differ from the defaults."""
    words = ["-m", "flows.cli.main", "run", *settings.sources]
    return words + [f"--{name.replace('_', '-')}={getattr(settings, name)}" for name in ("root", "model", *fields)]


def fill(run: RunContext, shape: Shape, threads: int = 2) -> str:
    """The warm-up and gradient stages without a model: a space, whose id is returned, and a feature for every example."""
    settings = run.settings
    fingerprint = {"model": "made", "dim": settings.dim}
    space_id, variant = identity.space_id(fingerprint), settings.gradient
    if spaces.find_space(run.catalog, identity.space_recipe(settings, variant)) is None:
        nothing = {"layer": np.zeros((2, 2), np.float32)}
        checkpoint = Checkpoint(1, 1e-4, 1.0, 1, nothing, nothing, nothing)
        saved = save_checkpoint(run.root.files, space_id, checkpoint)
        save_space(run.root.files, space_id, fingerprint)
        spaces.add_space(
            run.catalog,
            run.run_id,
            space_id,
            recipe=identity.space_recipe(settings, variant),
            variant=variant,
            dim=settings.dim,
            fingerprint=fingerprint,
            checkpoints=[(checkpoint, saved)],
        )
    runs.set_run(run.catalog, run.run_id, space_id=space_id)
    plan = spaces.plan_segments(run.catalog, run.run_id, space_id, dim=settings.dim, block_rows=settings.block_rows)
    lacks = spaces.missing(run.catalog, space_id, run.run_id)
    for segment, rows in plan.select("segment", "block_rows").iter_rows():
        if segment not in lacks:
            continue
        ids = spaces.segment_ids(run.catalog, segment)
        writer = segments.create_segment(run.root.files, space_id, segment, example_ids=ids, dim=settings.dim, chunk_rows=rows)

        def make(block: int, segment: str = segment, writer: segments.SegmentWriter = writer) -> tuple[int, range, int]:
            rows = range(*writer.block_range(block))
            return block, rows, writer.write_block(block, shape.block(int(segment[-5:]) * 10_000 + block, len(rows)))

        with ThreadPoolExecutor(threads) as pool:
            for block, rows_made, checksum in _in_order(pool, make, lacks[segment], ahead=2 * threads):
                n = len(rows_made)
                measured: dict[str, Any] = {"row": np.array(rows_made), "tokens": np.full(n, 20), "target_tokens": np.full(n, 9)}
                measured |= {"loss": np.full(n, 2.0), "norm": np.full(n, 1.0), "status": ["ok"] * n}
                spaces.commit_block(
                    run.catalog, run.run_id, space_id, segment, block, pl.DataFrame(measured), checksum=checksum, seconds=0.0
                )
    return space_id


def _in_order(pool: ThreadPoolExecutor, work: Any, items: Iterable[int], ahead: int) -> Iterable[Any]:
    """Results of work(item) in order, at most so many begun and not yet taken."""
    left = iter(items)
    begun = deque(pool.submit(work, item) for item in islice(left, ahead))
    while begun:
        yield begun.popleft().result()
        begun.extend(pool.submit(work, item) for item in islice(left, 1))


def start_run(settings: Settings, shape: Shape, *, whole: bool = True) -> str:
    """A run with made features, in this process, up to them or whole; returns its id. The same settings go on from there."""
    root = open_settings_root(settings, SilentReporter())
    with root.writer():
        run = start_or_resume(settings, root, SilentReporter())
        run_stage("ingest", ingest, run)
        space_id = fill(run, shape)
        if whole:
            features = features_of(run, space_id, {})
            clusters = run_stage("cluster", cluster, run, features)
            run_stage("publish", publish, run, run_stage("select", select, run, features, clusters))
    return run.run_id
