"""What methods choose from a pool with bad rows, with and without clean examples as target.

    python -m tests.benchmarks.bench_dirty_pool FOLDER WORK --model MODEL [--each 88] [--clean 11] [--held 16] [--bad 0.3]

FOLDER holds one Parquet file per dataset with a `messages` column. WORK gets the pool (a share of the rows of every dataset
made bad, as tests.benchmarks.pools does), the clean examples of the same datasets, clean rows to measure trained models on
(heldout/, for `tagcos evaluate`), and a root; what is there already is used. Prints how well signals tell bad rows from good
ones (area under the ROC curve) and what the preset `clean` lets pass; for each method and gradient variant, the share of bad
rows among the chosen, first for the pool's mean, then for the clean examples of all datasets as target; and for the default
variant, with the clean examples of one dataset as target (mean over the datasets), the share of bad rows and the share of
rows of that dataset.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from flows import pipeline
from flows.progress import SilentReporter
from storage.root import open_root
from tagcos_stream.config import PRESETS, load_settings
from tests.benchmarks.ifd import area
from tests.benchmarks.pools import WAYS, arguments, single_exchanges, spoil, write_rows

VARIANTS = ("adam-delta", "adam", "sgd")
METHODS = ("random", "perplexity", "kcenter", "herding", "omp")
TARGETED = ("herding", "omp", "less", "rds")
CLUSTERS = 6  # of the runs of tagcos


def make(chosen: argparse.Namespace) -> list[str]:
    """Write pool/, clean/ and heldout/ below WORK, a file for each dataset; ids are DATASET/KIND/NUMBER. Returns the datasets."""
    names = []
    for path in sorted(chosen.folder.glob("*.parquet")):
        name = path.stem
        rows = single_exchanges(path, chosen.each + chosen.clean + chosen.held, chosen.characters)
        clean, held, pool = rows[: chosen.clean], rows[chosen.clean :][: chosen.held], rows[chosen.clean + chosen.held :]
        if len(pool) < chosen.each // 2:
            print(f"{name} is left out: {len(rows)} rows of at most {chosen.characters} characters")
            continue
        names.append(name)
        for kind, part in (("pool", spoil(pool, name, chosen.bad, 0)), ("clean", clean), ("heldout", held)):
            write_rows(chosen.work / kind / f"{name}.jsonl", name, part)
    return names


def shares(root: str, run_id: str, dataset: str | None) -> tuple[float, float]:
    """Share of bad rows among the chosen, and of rows of a dataset."""
    found = open_root(root, create=False).catalog.read(
        """SELECT any_value(split_part(o.source_id, '/', 2)) <> 'clean' AS bad, any_value(o.dataset) AS dataset
        FROM selections s JOIN occurrences o USING (example_id) WHERE s.run_id = ? GROUP BY s.example_id""",
        [run_id],
    )
    return float(found["bad"].mean() or 0), float((found["dataset"] == (dataset or "")).mean() or 0)  # type: ignore[arg-type]


def print_signals(root: str, run_id: str) -> None:
    catalog = open_root(root, create=False).catalog
    judged = """FROM signals_of(?) JOIN (
        SELECT example_id, any_value(split_part(source_id, '/', 2)) AS kind FROM occurrences GROUP BY ALL) USING (example_id)"""
    found = catalog.read(f"SELECT kind, ifd, loss, norm, 1.0 * repeated AS repeated {judged}", [run_id])
    print("signal | all | " + " | ".join(WAYS))
    for name in ("ifd", "loss", "norm", "repeated"):
        values = {kind: found.filter(kind=kind)[name].drop_nulls().to_numpy() for kind in ("clean", *WAYS)}
        bad = [values[way] for way in WAYS]
        areas = [area(part, values["clean"]) for part in (np.concatenate(bad), *bad)]
        print(f"{name} | " + " | ".join(f"{value:.3f}" for value in areas))
    for name, condition in (("all", "true"), ("clean", str(PRESETS["clean"]["where"]))):
        good, rows = catalog.read(f"SELECT count(*) FILTER (kind = 'clean'), count(*) {judged} WHERE {condition}", [run_id]).row(
            0
        )
        print(f"{name}: {rows} rows, {1 - good / rows:.3f} of them bad; {good} good ones", flush=True)


def main() -> None:
    parser = arguments(__doc__, 700)
    parser.add_argument("--each", type=int, default=88, help="rows of each dataset in the pool")
    parser.add_argument("--clean", type=int, default=11, help="clean examples of each dataset")
    parser.add_argument("--held", type=int, default=0, help="clean rows of each dataset to measure trained models on")
    parser.add_argument("--bad", type=float, default=0.3, help="share of bad rows")
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--warmup-examples", type=int, default=64)
    chosen = parser.parse_args()
    datasets = make(chosen)
    root, clean = str(chosen.work / "root"), chosen.work / "clean"
    base: dict[str, Any] = {
        "sources": (str(chosen.work / "pool"),), "root": root, "model": chosen.model, "max_length": 256,
        "warmup_examples": chosen.warmup_examples, "gradient": VARIANTS[0], "also_gradients": VARIANTS[1:],
        "fraction": chosen.fraction, "method": "random", "ifd": True,
    }  # fmt: skip

    def run(target: Path | None) -> str:
        return pipeline.run(load_settings(base | ({"target": (str(target),)} if target else {})), SilentReporter()).run_id

    def again(of: str, dataset: str | None = None, **changes: Any) -> tuple[float, float]:
        return shares(root, pipeline.reselect(root, of, SilentReporter(), **changes).run_id, dataset)

    whole = run(clean)
    print_signals(root, whole)
    print("variant | method | bad: pool's mean | bad: clean target")
    for variant in VARIANTS:
        for method in dict.fromkeys((*METHODS, *TARGETED, "tagcos")):
            changes: dict[str, Any] = {"gradient": variant, "method": method}
            changes |= {"clusters": CLUSTERS} if method == "tagcos" else {}
            plain = "" if method in ("less", "rds") else f"{again(whole, target=('none',), **changes)[0]:.3f}"
            aimed = f"{again(whole, **changes)[0]:.3f}" if method in (*TARGETED, "tagcos") else ""
            print(f"{variant} | {method} | {plain} | {aimed}", flush=True)
    print("variant | method | bad: target of one dataset | of that dataset")
    runs = {name: run(clean / f"{name}.jsonl") for name in datasets}
    for method in (*TARGETED, "tagcos"):
        changes = {"method": method} | ({"clusters": CLUSTERS} if method == "tagcos" else {})
        found = [again(runs[name], name, **changes) for name in datasets]
        bad, right = (sum(pair[n] for pair in found) / len(found) for n in (0, 1))
        print(f"{VARIANTS[0]} | {method} | {bad:.3f} | {right:.3f}", flush=True)


if __name__ == "__main__":
    main()
