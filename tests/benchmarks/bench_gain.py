"""Gain per row against gain per token, at equal target tokens, on the stored features of a root.

    python -m tests.benchmarks.bench_gain ROOT [--variant adam-delta] [--clean]

`omp` chooses on seven eighths of the dimensions for budgets in target tokens; prints the number of rows chosen and the relative
error of the pool's mean on the reserved eighth, with the method's weights and with equal ones. With `--clean` only rows of kind
`clean` (of tests.benchmarks.bench_dirty_pool) are the pool. Writes nothing but a migration of the catalog: give it a copy.
"""

from __future__ import annotations

import argparse

import numpy as np
import polars as pl

from storage.arrays import segments
from tagcos_stream.selection.match import reserved_dimensions
from tagcos_stream.selection.methods import METHODS, Group, Limits
from tagcos_stream.selection.tokens import choose_within
from tests.benchmarks.stored_features import stored_features

FRACTIONS = (0.02, 0.05, 0.1, 0.2)
SETTINGS = {"ridge": 1.0, "tol": 1e-4, "sticky": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--variant", default="adam-delta")
    parser.add_argument("--clean", action="store_true")
    chosen = parser.parse_args()
    root, space, pool = stored_features(chosen.root, chosen.variant)
    if chosen.clean:
        ids = root.catalog.read("SELECT example_id FROM occurrences WHERE split_part(source_id, '/', 2) = 'clean'")["example_id"]
        pool = pool.filter(pl.col("example_id").is_in(ids.implode()))
    found = segments.open_features(root.files, space, pool)
    rows = found.gather(np.arange(found.n_rows)).astype(np.float32)
    held = reserved_dimensions(found.dim)
    seen, measured = np.ascontiguousarray(rows[:, ~held]), rows[:, held].astype(np.float64)
    mean, costs = measured.mean(axis=0), pool["target_tokens"].to_numpy().astype(np.int64)
    print(f"{len(pool)} rows, {costs.mean():.0f} target tokens on average, {costs.max()} at most; {chosen.variant}")
    print("share of tokens | gain per | rows | error with weights | error with equal weights")
    for fraction in FRACTIONS:
        for gain in ("row", "token"):
            group = Group(features=seen, mean=seen.mean(axis=0), costs=costs)
            choice = choose_within(METHODS["omp"], group, round(fraction * costs.sum()), {**SETTINGS, "gain_per": gain}, Limits())
            errors = []
            for weights in (choice.weights, np.full(len(choice.indices), 1 / len(choice.indices))):
                assert weights is not None
                errors.append(np.linalg.norm(weights @ measured[choice.indices] - mean) / np.linalg.norm(mean))
            print(f"{fraction:.0%} | {gain} | {len(choice.indices)} | {errors[0]:.3f} | {errors[1]:.3f}", flush=True)


if __name__ == "__main__":
    main()
