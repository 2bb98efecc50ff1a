"""What a refresh costs.

    python -m tests.benchmarks.bench_refresh known [--examples 1000000]        a run that finds nothing new
    python -m tests.benchmarks.bench_refresh grown --data FOLDER_OR_FILE ...   1% more rows, with the demo's real model

`known` fills a root through the store's own functions with features of a seeded generator (D = 64), runs on it, and runs again.
`grown` takes --examples rows of the data (Parquet files with `messages`, or anything else that the pipeline reads), runs, adds 1%
and runs again, each in a process of its own; the table shows each stage of both.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from storage.catalog import runs
from storage.root import open_root
from tagcos_stream.config import Settings
from tests.benchmarks.features import Shape
from tests.benchmarks.made_root import conversations, made_settings, run_command, start_run

DIM = 64
BLOCK = 8192


def known_settings(folder: Path, examples: int) -> Settings:
    return made_settings(folder, dim=DIM, block_rows=BLOCK, count=max(examples // 200, 10))


def known(folder: Path, examples: int) -> list[float]:
    """Seconds of two runs that find nothing new."""
    settings = known_settings(folder, examples)
    (folder / "pool").mkdir()
    conversations(folder / "pool" / "made.jsonl", 0, examples)
    start = time.perf_counter()
    first = start_run(settings, Shape(DIM, 100, 0))
    print(f"first run on {examples:,} examples (no model): {time.perf_counter() - start:.1f} s", flush=True)
    command = [sys.executable, *run_command(settings, "dim", "block_rows", "count")]
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
    from flows.demo.model import demo_model

    more = max(examples // 100, 1)
    rows = take_rows(data, examples + more).sample(fraction=1.0, shuffle=True, seed=0)
    (folder / "pool").mkdir()
    rows[:examples].write_ndjson(folder / "pool" / "first.jsonl")
    command = [sys.executable, "-m", "flows.cli.main", "run", str(folder / "pool"), f"--root={folder / 'root'}"]
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
