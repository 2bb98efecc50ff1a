"""The outcome of one small fixed pool, kept: `python -m tests.golden` writes it, tests/flows/test_golden.py compares with it.

A change of structure must leave every bit of it; a change of the method replaces the file, and its commit says why. The last bits
of a float32 product depend on the processor, so the file holds one outcome for each processor family it was made on.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flows import pipeline
from flows.progress import SilentReporter
from storage.catalog import selections
from storage.root import open_root
from tagcos_stream.config import load_settings
from tests.flows.conftest import SMALL, TOPICS, conversation, features_of
from tests.models import tiny_model, tiny_tokenizer

FILE = Path(__file__).parent / "golden.json"
METHODS = (
    "tagcos", "omp", "random", "stratified", "longest", "hardest", "perplexity", "kcenter", "centroid", "herding",
    "herding-clusters",
)  # fmt: skip


def processor() -> tuple[str, str]:
    """What decides the last bits here: the vector instructions that PyTorch uses, and whose processor its libraries tune for.

    The first name also has the processor's family, for those where OpenBLAS takes other kernels than for the rest of the second.
    """
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    vendor, family = (re.search(rf"{name}\s*:\s*(\w+)", text) for name in ("vendor_id", "cpu family"))
    name = f"{torch.backends.cpu.get_cpu_capability()} {vendor[1] if vendor else platform.machine()}"
    return f"{name} family {family[1] if family else 'unknown'}", name


def outcome(folder: Path) -> dict[str, Any]:
    """Run, refresh with a grown pool, and select by every method; what came out, by step."""
    torch.set_num_threads(2)
    model, pool = folder / "model", folder / "pool"
    tiny_model("llama").save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    pool.mkdir()
    for topic in TOPICS:
        _write(pool / f"{topic}.jsonl", topic, range(30))
    values = SMALL | {
        "sources": (str(pool),),
        "root": str(folder / "root"),
        "model": str(model),
        "gradient": "adam-delta",
        "also_gradients": ("adam", "sgd"),
        "threads": 2,
        "batch_tokens": 512,  # the last bits of a feature depend on the rows that are computed with it
    }
    steps = {"run": pipeline.run(load_settings(values), SilentReporter())}
    _write(pool / "more.jsonl", "sums", range(100, 112))
    (pool / "cities.jsonl").unlink()
    steps["refresh"] = pipeline.run(load_settings(values | {"sticky": 0.05, "max_retired": 0.5}), SilentReporter())
    for method in METHODS:
        steps[method] = pipeline.reselect(values["root"], None, SilentReporter(), method=method, fraction=0.15, sticky=None)
    last = list(steps.values())[-1].run_id  # the settings that it changed stay
    for variant in ("adam", "sgd"):  # outcomes made before 30 November 2026 are without sgd
        steps[variant] = pipeline.reselect(values["root"], last, SilentReporter(), method="tagcos", gradient=variant)
    root = open_root(values["root"], create=False)
    return {name: _came_out(root, step.run_id) for name, step in steps.items()}


def _write(path: Path, topic: str, numbers: range) -> None:
    path.write_text("".join(json.dumps({"messages": conversation(topic, n)}) + "\n" for n in numbers), encoding="utf-8")


def _came_out(root: Any, run_id: str) -> dict[str, Any]:
    pool, rows = features_of(root, run_id)
    labels = root.catalog.read(
        "SELECT e.example_id, c.cluster FROM candidates_of(?) AS c JOIN examples AS e USING (segment, row) ORDER BY 1", [run_id]
    )
    chosen = selections.selection(root.catalog, run_id).sort("cluster", "rank")
    return {
        "pool": hashlib.sha256("".join(pool["example_id"].to_list()).encode()).hexdigest(),
        "features": hashlib.sha256(rows.astype("<f2").tobytes()).hexdigest(),
        "groups": labels["cluster"].to_list(),
        "chosen": [
            [row["example_id"], row["cluster"], row["rank"], float(np.float64(row["weight"])).hex()]
            for row in chosen.iter_rows(named=True)
        ],
    }


def main() -> None:
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        kept[processor()[0]] = outcome(Path(folder))
    FILE.write_text(json.dumps(kept, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
