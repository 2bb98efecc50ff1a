"""Clustering, regrouping and 5% selection of a store larger than memory, cold.

    python -m tests.benchmarks.bench_whole [--rows 1000000] [--folder DISK]

Writes a root of made features (float16, D = 8,192: 16.4 GB at a million rows, and as much again when they are regrouped),
for a tenth of the rows and then for all, drops it from the page cache and lets `tagcos run` go on after the gradients, in a
process of its own whose peak memory is the kernel's figure. Beside each stage stand the seconds that its matrix products and
bytes would take at this machine's own rates, measured just before.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from storage.root import open_root
from tests.benchmarks.bench_storage import BLOCK_BYTES, drop_cache, plain_read, plain_write, timed
from tests.benchmarks.features import Shape
from tests.benchmarks.made_root import conversations, made_settings, run_command, start_run

GROUPS = 100  # of the made population
MEMORY = 4  # GiB, the default
PROGRESS = re.compile(r"(?P<stage>[\w-]+): (?P<done>[\d.]+)(?P<scale>[kMG]?)(?:/\S+)? (?:rows|chosen), .*?(?P<seconds>\d+) s")
SCALES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True)
class Machine:
    flops: float  # float32 operations a second of a large matrix product
    read: float  # bytes a second of a cold file
    write: float

    @classmethod
    def measured(cls, folder: Path, size: int = 4 << 30) -> Machine:
        left, right = torch.rand(4096, 8192), torch.rand(8192, 4096)
        product = min(timed(lambda: left @ right) for _ in range(5))
        path = folder / "plain"
        noise = np.frombuffer(os.urandom(BLOCK_BYTES), np.uint8)
        written = timed(lambda: plain_write(path, [noise], size // BLOCK_BYTES))
        drop_cache(path)
        read = timed(lambda: plain_read(path))
        path.unlink()
        return cls(2 * 4096 * 8192 * 4096 / product, size / read, size / written)


def made(folder: Path, rows: int, dim: int) -> list[str]:
    """A root with features of so many rows, and the words after `python` that go on from there."""
    folder.mkdir()
    (folder / "pool").mkdir()
    conversations(folder / "pool" / "made.jsonl", 0, rows)
    settings = made_settings(folder, dim=dim, block_rows=1024, memory_limit=MEMORY)
    start = time.perf_counter()
    start_run(settings, Shape(dim, GROUPS, 0), whole=False)
    print(f"{rows:,} rows ingested, features made and stored: {time.perf_counter() - start:.0f} s", flush=True)
    return run_command(settings, "dim", "block_rows", "memory_limit")


def go_on(command: list[str], log: Path) -> tuple[float, int]:
    """(seconds, peak bytes) of the rest of the run; its progress goes to `log`."""
    with log.open("w") as file:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=file)
        _, status, usage = os.wait4(process.pid, 0)
        whole = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"the run ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    return whole, usage.ru_maxrss * 1024


def parts(log: str) -> dict[str, list[tuple[float, float]]]:
    """(work done, seconds), by what the run's progress lines call it."""
    found: dict[str, list[tuple[float, float]]] = {}
    for match in PROGRESS.finditer(log):
        line = float(match["done"]) * SCALES[match["scale"]], float(match["seconds"])
        found.setdefault(match["stage"], []).append(line)
    return found


def table(root: Path, log: str, whole: float, peak: int, machine: Machine, rows: int, dim: int) -> None:
    catalog = open_root(str(root), create=False).catalog
    run_id = catalog.read("SELECT run_id FROM latest_run").item()
    clusters = catalog.read("FROM coverage_of(?)", [run_id])
    stages = dict(catalog.read("SELECT stage, seconds FROM stages WHERE run_id = ?", [run_id]).rows())
    k, size, done = len(clusters), 2 * rows * dim, parts(log)
    most = done["k-means"][-1][0]  # the last line says all, however few passes were needed
    passes = math.ceil(max((worked for worked, _ in done["k-means"] if worked < most), default=0) / rows)
    columns = 2 * dim * float((clusters["size"] * clusters["selected"]).sum())
    needs = {
        "k-means": (passes * 2 * rows * k * dim, passes * size, 0),
        "assign": (2 * rows * k * dim, size, 0),
        "regroup": (0, size, size),
        "select": (columns, size, 0),
    }
    print(f"{rows:,} rows, {k} clusters, {clusters['selected'].sum():,} selected; {passes} passes of k-means")
    print(f"  {'':<34}{'seconds':>9}{'products':>10}{'bytes':>9}")
    for name, (operations, read, written) in needs.items():
        moved = read / machine.read + written / machine.write
        print(f"  {name:<34}{done[name][-1][1]:>9.0f}{operations / machine.flops:>10.1f}{moved:>9.1f}")
    measured = sum(lines[-1][1] for lines in done.values())
    print(f"  {'start, catalog, match, publishing':<34}{whole - measured:>9.0f}")
    print(f"  {'whole':<34}{whole:>9.0f}   peak {peak / 2**30:.2f} GiB, memory_limit {MEMORY} GiB")
    print("  stages in the catalog: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in stages.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    chosen = parser.parse_args()
    seconds = []
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="tagcos-bench-") as name:
        for rows in (chosen.rows // 10, chosen.rows):
            folder = Path(name) / str(rows)
            command = made(folder, rows, chosen.dim)
            machine = Machine.measured(Path(name))
            print(
                f"this machine: {machine.flops / 1e9:.0f} GFLOP/s float32, {machine.read / 1e9:.2f} GB/s read cold, "
                f"{machine.write / 1e9:.2f} GB/s written",
                flush=True,
            )
            drop_cache(folder)
            whole, peak = go_on(command, folder / "log")
            table(folder / "root", (folder / "log").read_text(), whole, peak, machine, rows, chosen.dim)
            seconds.append(whole)
    print(f"ten times the rows took {seconds[1] / seconds[0]:.1f} times as long")


if __name__ == "__main__":
    main()
