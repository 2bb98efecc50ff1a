"""What selecting for a target costs: `python -m tests.benchmarks.bench_target WORK [--rows 20000] [--dim 8192] [--target 100]`.

A root with made features, selected from again for the pool's mean, for a target that the pool was compared with before, and for
the same target as if it were new, several times in turn. Each selection has a process of its own, whose peak memory is printed
beside the seconds of the stage select and those of the processor.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from flows import pipeline
from flows.progress import SilentReporter
from storage.root import open_root
from tests.benchmarks.features import Shape
from tests.benchmarks.gradient_memory import status
from tests.benchmarks.made_root import conversations, made_settings, start_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--target", type=int, default=100)
    parser.add_argument("--clusters", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    (chosen.work / "pool").mkdir(parents=True, exist_ok=True)
    conversations(chosen.work / "pool" / "pool.jsonl", 0, chosen.rows)
    conversations(chosen.work / "wanted.jsonl", chosen.rows, chosen.rows + chosen.target)
    values: dict[str, Any] = {"dim": chosen.dim, "clusters": chosen.clusters, "target": (str(chosen.work / "wanted.jsonl"),)}
    settings = made_settings(chosen.work, **values)
    base = start_run(settings, Shape(chosen.dim, 8, 0))
    print("target | stage select, seconds | processor, seconds | peak memory, MiB")
    for _ in range(chosen.repeats):
        for name, target in {"none": "none", "known": "wanted", "new": "wanted"}.items():
            if name == "new":
                with open_root(settings.root, create=False).catalog.transaction() as connection:
                    connection.execute("DELETE FROM target_nearest")  # what was compared
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                spent = alone.submit(select, settings.root, base, target).result()
            print(" | ".join([name, *spent]), flush=True)


def select(root: str, base: str, target: str) -> tuple[str, str, str]:
    """Select with a ridge that no run had, so that no choice is copied."""
    ridge = 1 + 1e-6 * open_root(root, create=False).catalog.read("SELECT count(*) FROM runs").item()
    began = time.process_time()
    run_id = pipeline.reselect(root, base, SilentReporter(), target=(target,), ridge=ridge).run_id
    spent = time.process_time() - began
    found = open_root(root, create=False).catalog.read(
        "SELECT seconds, detail FROM stages WHERE stage = 'select' AND run_id = ?", [run_id]
    )
    assert json.loads(found["detail"][0])["copied"] == 0
    peak = status("VmHWM") / 2**20
    return f"{found['seconds'][0]:.1f}", f"{spent:.1f}", f"{peak:.0f}"


if __name__ == "__main__":
    main()
