"""Everything that has not been measured on a GPU, by one command: exactness, speed, memory, then the study on a packed file.

    python -m tests.benchmarks.gpu --out RESULTS                                     (models of random weights only)
    python -m tests.benchmarks.gpu --out RESULTS --packed FILE --model FOLDER [--tasks FOLDER] [--minutes 40]

prints a table after each step and keeps RESULTS/results.json, so that a run of ten minutes leaves the first tables and the same
command continues after the last finished step: a block of features, a selection, a training. Nothing is begun that the minutes
do not allow, as far as the time of its like is known. FILE comes from `python -m tests.benchmarks.pack`. No network is used;
of packages it needs numpy, torch, transformers, peft and what the method imports (docs/measurements/gpu.md).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from tagcos_stream.evaluation.statistics import holm, paired
from tagcos_stream.gradients.model import check_device, load_model, load_tokenizer
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.types import UserError
from tests.benchmarks import gpu_checks
from tests.benchmarks.gpu_study import BASE, WEIGHTED, Sizes, Study
from tests.benchmarks.packed import read_packed, require_same_tokenizer

METHODS_COMPARED = ("random", "balanced", "tagcos", f"tagcos{WEIGHTED}", "herding-clusters", "longest")
PACKAGES = ("numpy", "torch", "transformers", "peft", "numba", "scipy")

Row = dict[str, Any]


class Results:
    """The results file: what it was made with, and each finished step by name. Replaced as a whole, so never torn."""

    def __init__(self, folder: Path, made_with: Row) -> None:
        self.path = folder / "results.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.content: Row = {"made_with": made_with, "steps": {}}
        if self.path.exists():
            self.content = json.loads(self.path.read_text(encoding="utf-8"))
            old = self.content["made_with"]
            if changed := [f"{k} {old[k]!r}, now {v!r}" for k, v in made_with.items() if old.get(k, v) != v]:
                raise UserError(f"{self.path} was made with {'; '.join(changed)}: give --out another folder")
            self.content["made_with"] = old | made_with  # the study may begin in a later run than the checks
        self.steps: dict[str, Any] = self.content["steps"]

    def put(self, name: str, value: Any) -> None:
        self.steps[name] = value
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1), encoding="utf-8")
        os.replace(partial, self.path)


class Clock:
    """Minutes left, and the longest time that each kind of step took."""

    def __init__(self, minutes: float) -> None:
        self.end, self.longest = time.monotonic() + 60 * minutes, dict[str, float]()

    def allows(self, kind: str, seconds: float = 0.0) -> bool:
        """Whether a step may begin, that takes as long as its like or `seconds`."""
        return time.monotonic() + max(seconds, self.longest.get(kind, 0.0)) < self.end

    def took(self, kind: str, seconds: float) -> None:
        self.longest[kind] = max(seconds, self.longest.get(kind, 0.0))


def table(title: str, rows: Sequence[Row]) -> None:
    """Print rows as a Markdown table, where there are any."""
    if not rows:
        return
    print(f"\n{title}\n")
    names = list(dict.fromkeys(name for row in rows for name in row))
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in rows:
        print(f"| {' | '.join(_text(row.get(name)) for name in names)} |")
    sys.stdout.flush()


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


# --- checks on models of random weights ---------------------------------------------------------------------------------


def check(chosen: argparse.Namespace, results: Results, clock: Clock) -> None:
    """Exactness, then speed and memory of every shape and rank."""
    if "exactness" not in results.steps:
        results.put("exactness", gpu_checks.exactness(chosen.device) + gpu_checks.projection_agrees(chosen.device))
    found = sorted(results.steps["exactness"], key=lambda row: row["error"] / row["limit"], reverse=True)
    worst = [{**row, "passes": "yes" if row["error"] <= row["limit"] else "NO"} for row in found]
    table("exactness: worst relative error, against autograd in float64 on the CPU, one example at a time", worst)
    rows = []
    for shape in chosen.shapes:
        for rank in chosen.ranks:
            name = f"speed {shape} r={rank}"
            if name not in results.steps and clock.allows("speed"):
                start = time.monotonic()
                results.put(name, _speed(chosen, shape, rank))
                clock.took("speed", time.monotonic() - start)
            rows.append({"shape": shape, "rank": rank, **results.steps.get(name, {"skipped": "no time left"})})
            print(f"{name}: {results.steps.get(name, 'no time left')}", flush=True)
    table("features against plain forward and backward passes: tokens a second, shares of our time, peak memory", rows)


def _speed(chosen: argparse.Namespace, shape: str, rank: int) -> Row:
    cuda = chosen.device.startswith("cuda")
    return gpu_checks.speed(
        shape,
        rank,
        chosen.device,
        examples=256 if cuda else 16,
        repeats=3 if cuda else 1,
        tokens=chosen.tokens,
        dtype=torch.bfloat16,
    )


# --- the study ------------------------------------------------------------------------------------------------------------


def study(chosen: argparse.Namespace, results: Results, clock: Clock, made: Study) -> bool:
    """Warm-up, features, then seed by seed the selections and trainings. Returns whether everything is done.

    A step whose file is not there is done again: the folder may have come from another machine without its large files.
    """
    if "warm-up" not in results.steps or not made.is_warmed_up:
        if not clock.allows("warm-up"):
            return False
        results.steps.pop("features", None)  # of another adapter
        results.put("warm-up", made.warm_up())
    table("warm-up", [results.steps["warm-up"]])
    if not made.has_features:
        results.steps.pop("features", None)
    done = made.compute_features(
        results.steps.get("features", {}),
        lambda seconds: clock.allows("features", seconds),
        lambda row: results.put("features", row),
    )
    speed = {
        "tokens_per_second": done["tokens"] / max(done["seconds"], 1e-9),
        "model_share": done["model_seconds"] / max(done["seconds"], 1e-9),
    }
    table("features", [{"pool": len(made.rows), **done, **speed}])
    if done["rows"] < len(made.rows):
        return False
    for seed in range(chosen.seeds):
        before = len(results.steps)
        for name in _trainings(chosen, seed):
            if not _trained(made, results, clock, name, seed):
                return False
        if len(results.steps) > before and seed + 1 < chosen.seeds:
            summarise(results, chosen)
    return True


def _trainings(chosen: argparse.Namespace, seed: int) -> Iterator[str]:
    if seed == 0:
        yield BASE
    yield from chosen.methods


def _trained(made: Study, results: Results, clock: Clock, name: str, seed: int) -> bool:
    """Select and train one unit unless it is there; False where no time is left for it."""
    unit, method = f"train {name} {seed}", name.removesuffix(WEIGHTED)
    choice, steps, kind = f"choose {method} {seed}", results.steps, BASE if name == BASE else "train"
    if unit not in steps:
        if name != BASE and (choice not in steps or not made.has_chosen(method, seed)):
            if not clock.allows(f"choose {method}"):
                return False
            results.put(choice, made.choose(method, seed))
            print(f"{choice}: {steps[choice]}", flush=True)
        if not clock.allows(kind):
            return False
        results.put(unit, made.train(name, seed))
        print(f"{unit}: loss {steps[unit]['loss']:.4f}, {steps[unit].get('tasks', '')}", flush=True)
    # of an earlier call, too
    clock.took(f"choose {method}", steps.get(choice, {}).get("seconds", 0.0))
    clock.took(kind, steps[unit]["train_seconds"] + steps[unit]["measure_seconds"])
    return True


def units(results: Results, name: str) -> dict[int, Row]:
    """Finished trainings of a method by seed."""
    found = (key.rsplit(" ", 1) for key in results.steps if key.startswith(f"train {name} "))
    return {int(seed): results.steps[f"{key} {seed}"] for key, seed in found}


def summarise(results: Results, chosen: argparse.Namespace) -> None:
    """A table of losses: means over seeds, and paired differences from `--against` with intervals and Holm's correction."""
    reference = units(results, chosen.against)
    rows, tested = [], []
    for name in (BASE, *chosen.methods):
        mine = units(results, name)
        if not mine:
            continue
        row: Row = {"method": name, "seeds": len(mine), "loss": float(np.mean([unit["loss"] for unit in mine.values()]))}
        row["tokens"] = int(np.mean([unit["tokens"] for unit in mine.values()]))
        seeds = [seed for seed in mine if seed in reference and np.isfinite(mine[seed]["loss"] - reference[seed]["loss"])]
        if seeds and name not in (BASE, chosen.against):
            against = paired([mine[s]["loss"] - reference[s]["loss"] for s in seeds])
            by_dataset = np.array(
                [[mine[s]["datasets"][d] - reference[s]["datasets"][d] for d in mine[s]["datasets"]] for s in seeds]
            )
            row[f"to {chosen.against}"] = _interval(against)
            row["median dataset"] = _interval(paired(np.median(by_dataset, axis=1)))
            if by_dataset.shape[1] > 1:
                without = (by_dataset.sum(axis=1, keepdims=True) - by_dataset) / (by_dataset.shape[1] - 1)
                row["worst mean without a dataset"] = _interval(paired(without[:, int(without.mean(axis=0).argmax())]))
            if against.p is not None:
                tested.append((row, against.p))
        for task in mine[min(mine)].get("tasks", {}):
            row[task] = float(np.mean([unit["tasks"][task] for unit in mine.values()]))
        rows.append(row)
    for (row, _), p in zip(tested, holm([p for _, p in tested]).tolist() if tested else [], strict=True):
        row["p (Holm)"] = p
    table(
        f"held-out loss, mean over seeds; differences from {chosen.against} of equal seeds with 95% intervals (Student t)", rows
    )


def _interval(found: Any) -> str:
    return f"{found.mean:+.4f}" + ("" if found.low is None else f" [{found.low:+.4f}, {found.high:+.4f}]")


# --- the command ----------------------------------------------------------------------------------------------------------


def options(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="RESULTS", help="folder of results.json and of what continues")
    parser.add_argument("--minutes", type=float, default=40.0, help="after which nothing is begun")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shapes", nargs="*", default=["135M", "1B", "7B"], choices=list(gpu_checks.SHAPES))
    parser.add_argument("--ranks", nargs="+", type=int, default=[8, 128])
    parser.add_argument("--tokens", type=int, help="of a pass, padding included; default 8192 on a GPU, 1024 on a CPU")
    parser.add_argument("--packed", type=Path, metavar="FILE")
    parser.add_argument("--model", metavar="FOLDER")
    parser.add_argument("--tasks", metavar="FOLDER", help="questions to answer, in the form of docs/evaluation.md")
    parser.add_argument("--task-items", type=int, help="questions of each part at most")
    parser.add_argument("--protocol", default="chat", choices=["chat", "paper"], help="how tasks are asked and scored")
    parser.add_argument("--methods", nargs="+", default=list(METHODS_COMPARED), help=f"{WEIGHTED} trains with the weights too")
    parser.add_argument("--against", default="balanced", help="method of the differences")
    parser.add_argument("--seeds", type=int, default=9)
    for name, value in asdict(Sizes()).items():
        kind = int if value is None else type(value)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=value, help=f"default {value}")
    chosen = parser.parse_args(words)
    if bool(chosen.packed) != bool(chosen.model):
        raise UserError("the study needs both --packed and --model; without them models of random weights are measured only")
    for name in (*chosen.methods, chosen.against):
        method = METHODS.get(name.removesuffix(WEIGHTED))
        if (
            method is None
            or (name.endswith(WEIGHTED) and not method.weights)
            or method.needs_target
            or {"ifd", "reference"} & set(method.columns)
        ):
            raise UserError(f"method {name}: use a method of docs/controls.md that needs no target, ifd or reference")
    if chosen.device == "auto":
        chosen.device = "cuda" if torch.cuda.is_available() else "cpu"
    check_device(chosen.device)
    if chosen.device.startswith("cuda"):
        torch.cuda.set_device(int(chosen.device.partition(":")[2] or 0))  # whose work and memory are measured
        # some images turn TensorFloat-32 on, whose products have a tenth of the digits that are checked
        torch.backends.cuda.matmul.allow_tf32 = False
    chosen.tokens = chosen.tokens or (8192 if chosen.device.startswith("cuda") else 1024)
    return chosen


def machine(device: str) -> Row:
    from importlib.metadata import version

    cuda = device.startswith("cuda")
    found: Row = {"device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine()}
    if cuda:
        found["device_gib"] = round(torch.cuda.get_device_properties(device).total_memory / gpu_checks.GIB, 1)
    return found | {"cores": os.cpu_count(), "python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def run(words: list[str] | None) -> None:
    chosen = options(words)
    clock = Clock(chosen.minutes)
    sizes = Sizes(**{name: getattr(chosen, name) for name in asdict(Sizes())})
    made_with = machine(chosen.device) | {"tokens_a_pass": chosen.tokens}
    packed, tasks = None, []
    if chosen.packed:
        from tagcos_stream.evaluation.tasks import READERS, read_tasks

        packed = read_packed(chosen.packed)
        most = dict.fromkeys(READERS, chosen.task_items) if chosen.task_items else {}
        tasks = read_tasks(chosen.tasks, (), most, chosen.protocol) if chosen.tasks else []
        if not packed.heldout.any():
            raise UserError(f"{chosen.packed} holds no example out to measure the loss on: pack with a larger --heldout")
        require_same_tokenizer(packed, load_tokenizer(chosen.model), chosen.model)  # before ten minutes of checks
        made_with |= {
            "packed": packed.digest,
            "model": packed.facts.model,
            "tasks": {task.name: task.digest for task in tasks},
            **asdict(sizes),
        }
    results = Results(chosen.out, made_with)
    print(json.dumps(results.content["made_with"]), flush=True)
    check(chosen, results, clock)
    complete = all(f"speed {shape} r={rank}" in results.steps for shape in chosen.shapes for rank in chosen.ranks)
    if packed is not None:
        loaded = load_model(chosen.model, device=chosen.device)
        complete &= study(chosen, results, clock, Study(packed, loaded, chosen.out, sizes, chosen.tokens, tasks))
        summarise(results, chosen)
    print(f"\n{results.path}: " + ("complete" if complete else "not complete, the same command continues"), flush=True)


def main(words: list[str] | None = None) -> None:
    try:
        run(words)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
