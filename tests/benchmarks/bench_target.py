"""What selecting for a target costs: `python -m tests.benchmarks.bench_target WORK [--rows 20000] [--dim 8192] [--target 100]`.

A root with made features, selected from again for the pool's mean and for a target, several times in turn; prints seconds of the
stage select, and of the processor.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from flows import pipeline
from flows.progress import SilentReporter
from storage.root import open_root
from tests.benchmarks.features import Shape
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
    print("target | stage select, seconds | processor, seconds")
    for turn in range(chosen.repeats):
        for target in ("none", "wanted"):
            began = time.process_time()
            changes = {"target": (target,), "ridge": 1 + 1e-6 * (turn + 1)}  # another setting, so that no choice is copied
            run_id = pipeline.reselect(settings.root, base, SilentReporter(), **changes).run_id
            spent = time.process_time() - began
            found = open_root(settings.root, create=False).catalog.read(
                "SELECT seconds, detail FROM stages WHERE stage = 'select' AND run_id = ?", [run_id]
            )
            assert json.loads(found["detail"][0])["copied"] == 0
            print(f"{target} | {found['seconds'][0]:.1f} | {spent:.1f}", flush=True)


if __name__ == "__main__":
    main()
