"""What a refresh costs.

    python -m tests.benchmarks.bench_refresh known [--examples 1000000]        a run that finds nothing new
    python -m tests.benchmarks.bench_refresh grown --data FOLDER_OR_FILE ...   1% more rows, with the demo's real model

`known` fills a root through the store's own functions with features of a seeded generator (D = 64), runs on it, and runs again.
`grown` takes --examples rows of the data (Parquet files with `messages`, or anything else that the pipeline reads), runs, adds 1%
and runs again, each in a process of its own; the table shows each stage of both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from flows import pipeline
from flows.features import recipe
from flows.job import Job, open_job, open_settings_root, run_stage
from flows.progress import SilentReporter
from storage import blocks, features, runs
from storage.root import open_root
from storage.spaces import StoredCheckpoint, fingerprint_id, save_checkpoint, save_space
from tagcos_stream.config import Settings, load_settings
from tests.benchmarks.features import Shape

DIM = 64
BLOCK = 8192


def conversations(path: Path, first: int, stop: int) -> None:
    """Short different conversations, as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(first, stop):
            turns = [
                {"role": "user", "content": f"What is {i} and {i * 7 % 1009}?"},
                {"role": "assistant", "content": f"It is {i + i * 7 % 1009}."},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


def known_settings(folder: Path, examples: int) -> Settings:
    return load_settings(
        {
            "sources": (str(folder / "pool"),),
            "root": str(folder / "root"),
            "model": "made",
            "dim": DIM,
            "block_rows": BLOCK,
            "count": max(examples // 200, 10),
        }
    )


def fill(job: Job) -> None:
    """The warm-up and gradient stages, but for the model: a space, and a feature for every example of the pool."""
    fingerprint = {"model": "made", "dim": DIM}
    space_id, variant = fingerprint_id(fingerprint), job.settings.gradient
    if blocks.find_space(job.catalog, recipe(job.settings, variant)) is None:
        nothing = {"layer": np.zeros((2, 2), np.float32)}
        saved = save_checkpoint(job.root.files, space_id, StoredCheckpoint(1, 1e-4, 1, nothing, nothing, nothing))
        save_space(job.root.files, space_id, fingerprint)
        blocks.add_space(
            job.catalog,
            job.run_id,
            space_id,
            recipe=recipe(job.settings, variant),
            variant=variant,
            dim=DIM,
            fingerprint=fingerprint,
            checkpoints=[(1, 1.0, saved)],
        )
    runs.set_run(job.catalog, job.run_id, space_id=space_id)
    plan = blocks.plan_segments(job.catalog, job.run_id, space_id, dim=DIM, block_rows=BLOCK)
    lacks = blocks.missing(job.catalog, space_id, job.run_id)
    shape = Shape(DIM, 100, 0)
    for segment, rows in plan.select("segment", "block_rows").iter_rows():
        if segment not in lacks:
            continue
        ids = blocks.segment_ids(job.catalog, segment)
        writer = features.create_segment(job.root.files, space_id, segment, example_ids=ids, dim=DIM, chunk_rows=rows)
        for block in lacks[segment]:
            start, stop = writer.block_range(block)
            checksum = writer.write_block(block, shape.block(int(segment[-5:]) * 10_000 + block, stop - start))
            n = stop - start
            measured = {"row": np.arange(start, stop), "tokens": np.full(n, 20), "target_tokens": np.full(n, 9)}
            measured |= {"loss": np.full(n, 2.0), "norm": np.full(n, 1.0), "status": ["ok"] * n}
            blocks.commit_block(
                job.catalog, job.run_id, space_id, segment, block, pl.DataFrame(measured), checksum=checksum, seconds=0.0
            )


def first_run(settings: Settings) -> str:
    root = open_settings_root(settings, SilentReporter())
    with root.writer():
        job = open_job(settings, root, SilentReporter())
        for name, stage in pipeline.STAGES.items():
            if name == "gradients":
                fill(job)
            elif name != "warm-up":
                run_stage(name, stage, job)
    return job.run_id


def known(folder: Path, examples: int) -> list[float]:
    """Seconds of two runs that find nothing new."""
    settings = known_settings(folder, examples)
    (folder / "pool").mkdir()
    conversations(folder / "pool" / "made.jsonl", 0, examples)
    start = time.perf_counter()
    first = first_run(settings)
    print(f"first run on {examples:,} examples (no model): {time.perf_counter() - start:.1f} s", flush=True)
    command = [sys.executable, "-m", "flows.cli", "run", *settings.sources]
    for name in ("root", "model", "dim", "block_rows", "count"):
        command += [f"--{name.replace('_', '-')}={getattr(settings, name)}"]
    seconds = []
    for turn in (1, 2):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        whole = time.perf_counter() - start
        catalog = open_root(settings.root, create=False).catalog
        again = catalog.read("SELECT run_id FROM latest_run").item()
        assert again != first
        assert catalog.read("FROM selection_diff(?, ?)", [first, again]).is_empty()
        taken = dict(runs.run_status(catalog, again).stages.select("stage", "seconds").rows())
        print(
            f"run {turn} that finds nothing new: {whole:.1f} s, of these " + ", ".join(f"{k} {v:.2f}" for k, v in taken.items())
        )
        size = (folder / "root" / "catalog.duckdb").stat().st_size
        print(f"catalog {size / 1e6:.0f} MB", flush=True)
        seconds.append(whole)
    return seconds


def take_rows(data: Path, count: int) -> pl.DataFrame:
    """So many rows, an equal share of every file (in order of name), spread over it."""
    files = sorted(data.glob("*.parquet")) if data.is_dir() else [data]
    taken = []
    for i, file in enumerate(files):
        share = count * (i + 1) // len(files) - count * i // len(files)
        rows = pl.scan_parquet(file).select("messages").collect()
        taken.append(rows[:: max(len(rows) // share, 1)].head(share))
    return pl.concat(taken)


def grown(folder: Path, data: Path, examples: int, max_length: int) -> None:
    from flows.demo_model import demo_model

    more = max(examples // 100, 1)
    rows = take_rows(data, examples + more).sample(fraction=1.0, shuffle=True, seed=0)
    (folder / "pool").mkdir()
    rows[:examples].write_ndjson(folder / "pool" / "first.jsonl")
    command = [sys.executable, "-m", "flows.cli", "run", str(folder / "pool"), f"--root={folder / 'root'}"]
    command += [f"--model={demo_model()}", f"--max-length={max_length}", "--warmup-examples=64", "--clusters=8"]
    results: list[dict[str, Any]] = []
    for turn in ("full", "refresh"):
        if turn == "refresh":
            rows[examples:].write_ndjson(folder / "pool" / "second.jsonl")
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        whole = time.perf_counter() - start
        print(done.stdout, flush=True)
        catalog = open_root(str(folder / "root"), create=False).catalog
        stages = runs.run_status(catalog, catalog.read("SELECT run_id FROM latest_run").item()).stages
        taken = dict(stages.select("stage", "seconds").rows())
        results.append({**taken, "start, imports, summary": whole - sum(taken.values()), "whole": whole})
    print(f"{examples} examples, then {more} more")
    for name in results[0]:
        full, again = (result[name] for result in results)
        print(f"{name:<26}{full:>9.2f} s{again:>9.2f} s{again / results[0]['whole']:>8.1%} of the full run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("known", "grown"))
    parser.add_argument("--examples", type=int)
    parser.add_argument("--data", type=Path, help="grown: a Parquet file with `messages`, or a folder of them")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="tagcos-bench-") as name:
        if chosen.what == "known":
            known(Path(name), chosen.examples or 1_000_000)
        else:
            grown(Path(name), chosen.data, chosen.examples or 800, chosen.max_length)


if __name__ == "__main__":
    main()
