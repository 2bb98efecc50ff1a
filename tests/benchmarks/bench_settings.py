"""How far each setting changes what is selected: `python -m tests.benchmarks.bench_settings FOLDER WORK --model MODEL`.

FOLDER holds one Parquet file per dataset with a `messages` column. WORK gets a pool of equally many short exchanges of every
dataset and a root with one run for each setting that needs features of its own; what is there already is used, so the same
command continues. The pool is one cluster, as below 15,000 rows by default.

Prints for each setting, compared with the defaults: the Jaccard similarity of the two selections; the relative error of the
pool's mean feature, with equal and with fitted weights, on reserved dimensions of a feature space that neither was selected
by (defaults with another feature seed); and the processor seconds that computing the features took. The first row is another
feature seed, which shows what chance alone changes; the last a random selection.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from flows import pipeline
from flows.progress import SilentReporter
from storage.arrays import segments
from storage.catalog import runs, spaces
from storage.root import Root, open_root
from tagcos_stream.config import load_settings
from tagcos_stream.selection.match import fitted_weights, relative_error, reserved_dimensions
from tagcos_stream.selection.pursuit.omp import omp_select
from tests.benchmarks.pools import arguments, single_exchanges, write_rows

DEFAULT = "adam-delta"  # of `gradient` when the table was made
VARIANTS = ("adam", "adam-corrected", "preconditioned", "sgd", "sign")
JUDGE = {"feature_seed": 1}
CHOICES: dict[str, dict[str, Any]] = {
    **{f"`gradient` {variant}": {"gradient": variant} for variant in VARIANTS},
    **{f"`ridge` {value:g}": {"ridge": value} for value in (0.01, 0.1, 10.0)},
    **{f"`clusters` {count}": {"clusters": count} for count in (2, 5, 20)},
    "`method` random": {"method": "random"},
}
DIMENSIONS = (1024, 2048, 4096)


def with_features(layers: int) -> dict[str, dict[str, Any]]:
    """Changes that each need features of their own, for a Llama of so many layers."""
    last_third = range(layers - layers // 3, layers)
    projections = tuple(f"layers.{n}.self_attn.{name}_proj" for n in last_third for name in "qkvo")
    return {
        "`feature_seed` 2": {"feature_seed": 2},
        "`dtype` bfloat16": {"dtype": "bfloat16"},
        "`lora_rank` 128": {"lora_rank": 128},
        "`warmup_examples` 16": {"warmup_examples": 16},
        "`warmup_examples` 256": {"warmup_examples": 256},
        "adapters in the last third of the layers": {"lora_targets": projections},
        "`max_length` 128": {"max_length": 128},
        "`projection` rademacher": {"projection": "rademacher"},
        "`checkpoints` 3": {"checkpoints": 3},
        "`gradient` hidden": {"gradient": "hidden"},
    }


class Bench:
    """The runs of a root, compared with that of the defaults."""

    def __init__(self, root: str, base: dict[str, Any]) -> None:
        self.root, self.base = root, base
        self.default, self.seconds = self.run({})
        self.judge = self.run(JUDGE)[0]
        opened = open_root(root, create=False)
        self.ids, self.rows = self._features(opened, self.judge)
        held = reserved_dimensions(self.rows.shape[1])
        self.seen, self.held = ~held, held
        self.mean = self.rows.mean(axis=0, dtype=np.float64)
        self.chosen = self._selected(self.default)

    def run(self, changes: dict[str, Any]) -> tuple[str, float]:
        """(run, processor seconds of the whole run) with these settings; seconds are 0 if it is there already."""
        start = time.process_time()
        done = pipeline.run(load_settings(self.base | changes), SilentReporter())
        return done.run_id, time.process_time() - start

    def reselect(self, changes: dict[str, Any]) -> str:
        return pipeline.reselect(self.root, self.default, SilentReporter(), **changes).run_id

    def report(self, name: str, run_id: str, seconds: float | None = None) -> None:
        self.line(name, self._selected(run_id), seconds)

    def line(self, name: str, chosen: set[str], seconds: float | None = None) -> None:
        """Print the row of a selection."""
        shared = len(chosen & self.chosen) / len(chosen | self.chosen)
        rows = self.rows[[self.ids[example] for example in chosen if example in self.ids]]
        equal = relative_error(rows[:, self.held].mean(axis=0, dtype=np.float64), self.mean[self.held])
        weights = fitted_weights(rows[:, self.seen], self.mean[self.seen], 1.0)
        fitted = relative_error(weights @ rows[:, self.held].astype(np.float64), self.mean[self.held])
        print(f"| {name} | {shared:.2f} | {equal:.2f} | {fitted:.2f} | {f'{seconds:.0f}' if seconds else ''} |", flush=True)

    def narrow(self, dim: int) -> set[str]:
        """Ids that the defaults select by `dim` dimensions: sums of those stored, as a sparse projection to so many has them."""
        ids, rows = self._features(open_root(self.root, create=False), self.default)
        part = rows.reshape(len(rows), -1, dim).sum(axis=1)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
        names = list(ids)
        return {names[i] for i in omp_select(part, part.mean(axis=0, dtype=np.float64), len(self.chosen)).indices}

    def _features(self, root: Root, run_id: str) -> tuple[dict[str, int], np.ndarray]:
        """({example id: row}, features (N, D) float32) of a run."""
        space = runs.complete_run(root.catalog, run_id)["space_id"]
        pool = spaces.features_pool(root.catalog, run_id, space)
        found = segments.open_features(root.files, space, pool).gather(np.arange(len(pool))).astype(np.float32)
        return {example: row for row, example in enumerate(pool["example_id"])}, found

    def _selected(self, run_id: str) -> set[str]:
        catalog = open_root(self.root, create=False).catalog
        return set(catalog.read("SELECT example_id FROM selections WHERE run_id = ?", [run_id])["example_id"])


def main() -> None:
    parser = arguments(__doc__, 700)
    parser.add_argument("--fraction", type=float, default=0.2)
    parser.add_argument("--each", type=int, default=33, help="rows of each dataset")
    parser.add_argument("--layers", type=int, default=30, help="of the model")
    parser.add_argument("--threads", type=int)
    chosen = parser.parse_args()
    for path in sorted(chosen.folder.glob("*.parquet")):
        rows = single_exchanges(path, chosen.each, chosen.characters)
        if len(rows) == chosen.each:
            write_rows(chosen.work / "pool" / path.name.replace(".parquet", ".jsonl"), path.stem, rows)
    root = str(chosen.work / "root")
    base: dict[str, Any] = {
        "sources": (str(chosen.work / "pool"),), "root": root, "model": chosen.model, "max_length": 256,
        "gradient": DEFAULT, "also_gradients": VARIANTS, "fraction": chosen.fraction, "threads": chosen.threads,
    }  # fmt: skip
    bench = Bench(root, base)
    print(f"{len(bench.ids)} examples, {len(bench.chosen)} selected")
    print("| | Jaccard | error, equal weights | fitted weights | processor, s |")
    print("|---|--:|--:|--:|--:|")
    bench.report("defaults", bench.default, bench.seconds)
    bench.report("`feature_seed` 1", bench.judge)
    for name, changes in CHOICES.items():
        bench.report(name, bench.reselect(changes))
    for dim in DIMENSIONS:
        bench.line(f"`dim` {dim:,}", bench.narrow(dim))
    for name, changes in with_features(chosen.layers).items():
        bench.report(name, *bench.run({"also_gradients": ()} | changes))


if __name__ == "__main__":
    main()
