"""Does a selection teach more than chance? The experiment of docs/evaluation.md at any size, from files, in one go.

    python -m tests.benchmarks.experiment --root DISK/experiment --model FOLDER [--tasks FOLDER] [--transfer FOLDER]
        [--config RUN.toml] [--fraction 0.05] [--seeds 3] [--pool-methods] SOURCE... [-- OPTIONS OF tagcos evaluate]

Runs the pipeline with both gradient variants and rows held out, trains on what each method selects, measures loss and tasks,
records the diagnostics, trains another model on the same selections where one is given, and prints all tables. Every step is a
`tagcos` command, printed before it runs; after an interruption the same line goes on where it was. On a GPU nothing else is to be
said; --pool-methods adds those that work on the whole pool at once (kcenter, herding, omp), for pools of some ten thousand.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from storage.root import open_root

METHODS = ("random", "stratified", "longest", "herding-clusters", "full")
POOL_METHODS = ("kcenter", "herding")
COLUMNS = (
    "measure", "method", "gradient", "setting", "weighted", "fraction", "regime", "seeds", "datasets ahead", "mean", "to random",
    "median dataset to random",
)  # fmt: skip
LINES = """
    SELECT measure, method, gradient, setting, weighted, fraction, regime, seeds,
        coalesce(datasets_ahead || ' of ' || datasets, '') AS ahead,
        value, se, vs_random, vs_random_se, median_vs_random, median_vs_random_se
    FROM evaluation_of(?) WHERE part IS NULL ORDER BY measure, regime, fraction, value, method, gradient, setting, weighted
"""


def named(flag: str, values: tuple[str, ...]) -> list[str]:
    return [word for value in values for word in (flag, value)]


def steps(chosen: argparse.Namespace) -> list[list[str]]:
    """The words after `tagcos`, in order."""
    root, fraction = ["--root", str(chosen.root)], ["--fraction", str(chosen.fraction)]
    run = ["run", *chosen.sources, *root, *fraction, "--heldout", str(chosen.heldout), "--also-gradients", "adam"]
    run += ["--model", chosen.model, *(["--config", str(chosen.config)] if chosen.config else [])]
    evaluate = ["evaluate", *root, *fraction, "--seeds", str(chosen.seeds)]
    evaluate += [*(["--tasks", str(chosen.tasks)] if chosen.tasks else []), *chosen.options]
    done = [
        run,
        [*evaluate, "--weights", *named("--method", ("random", "tagcos", *(("omp",) if chosen.pool_methods else ())))],
        [*evaluate, *named("--method", (*METHODS, *(POOL_METHODS if chosen.pool_methods else ())))],
        [*evaluate, "--gradient", "adam", *named("--method", ("random", "tagcos"))],
        ["diagnose", *root, *fraction, "--seeds", str(chosen.seeds)],
    ]
    if chosen.transfer:
        done.append([*evaluate, "--model", str(chosen.transfer), *named("--method", ("random", "tagcos", "full"))])
    return done


def complete(root: Path) -> bool:
    """Whether the run is done: another would be another pool's to the comparisons."""
    if not (root / "catalog.duckdb").exists():
        return False
    return not open_root(str(root), create=False).catalog.read("SELECT run_id FROM latest_run").is_empty()


def tables(root: Path) -> None:
    catalog = open_root(str(root), create=False).catalog
    for identity, model in catalog.read("SELECT evaluation_id, model FROM evaluations ORDER BY started_at").iter_rows():
        print(f"\n{model}, evaluation {identity}\n")
        print(f"| {' | '.join(COLUMNS)} |")
        print(f"|{'---|' * len(COLUMNS)}")
        for row in catalog.read(LINES, [identity]).iter_rows():
            spreads = [spread(*row[at : at + 2]) for at in (9, 11, 13)]
            print(f"| {' | '.join(map(str, [*row[:9], *spreads]))} |")


def spread(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    own, options = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--transfer", type=Path, help="another model to train on the same selections")
    parser.add_argument("--tasks", type=Path)
    parser.add_argument("--config", type=Path, help="TOML file with more settings of the run")
    parser.add_argument("--heldout", type=float, default=0.05)
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pool-methods", action="store_true")
    chosen = parser.parse_args(own)
    chosen.options = options
    for step in steps(chosen)[complete(chosen.root) :]:
        print(f"\n$ tagcos {shlex.join(step)}", flush=True)
        start = time.perf_counter()
        code = subprocess.run([sys.executable, "-m", "flows.cli.main", *step], check=False).returncode
        if code:
            sys.exit(code)
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)
    tables(chosen.root)


if __name__ == "__main__":
    main()
