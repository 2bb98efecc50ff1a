"""How a target of several parts is best combined: `python -m tests.benchmarks.bench_target_mean WORK`.

WORK is that of bench_dirty_pool, run before. The pursuit chooses by stored features: towards the mean of the parts' means,
towards that of their directions, and towards each part in turn with its part of the budget; for several pairs of variants
of the pool and the target. Prints the share of bad rows and the number of datasets among the chosen; and, for one dataset
as target, the mean over the datasets of the share of bad rows and of the share of rows of that dataset.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl

from storage.arrays import segments
from storage.catalog import spaces, targets
from storage.root import Root, open_root
from tagcos_stream.selection.pursuit.omp import omp_select

PAIRS = (("adam-delta", "adam-delta"), ("adam", "adam"), ("sgd", "sgd"), ("adam", "sgd"), ("adam-delta", "sgd"))
FRACTION = 0.1


def read(root: Root, space: str, rows: pl.DataFrame) -> np.ndarray:
    """(n, D) float32 features of rows in order of segment and row."""
    return segments.open_features(root.files, space, rows).gather(np.arange(len(rows))).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return scaled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    root = open_root(str(parser.parse_args().work / "root"), create=False)
    wanted = targets.known(root.catalog, "clean").target_id
    run = root.catalog.read("SELECT run_id FROM runs WHERE target_id = ? ORDER BY started_at LIMIT 1", [wanted]).item()
    known = dict(root.catalog.read("SELECT variant, space_id FROM feature_spaces").iter_rows())
    kinds = root.catalog.read("SELECT example_id, any_value(split_part(source_id, '/', 2)) AS kind FROM occurrences GROUP BY ALL")
    for pool_variant, target_variant in PAIRS:
        pool = spaces.features_pool(root.catalog, run, known[pool_variant])
        bad = (pool.join(kinds, on="example_id", how="left", maintain_order="left")["kind"] != "clean").to_numpy()
        datasets = pool["dataset"].to_numpy()
        rows = read(root, known[pool_variant], pool)
        examples = targets.with_features(root.catalog, wanted, known[target_variant]).sort("segment", "row")
        near, names = read(root, known[target_variant], examples), sorted(examples["part"].unique())
        means = np.array([near[(examples["part"] == name).to_numpy()].mean(axis=0) for name in names], np.float64)
        budget = round(FRACTION * len(pool))
        pooled = means.mean(axis=0)
        directions = unit(means).mean(axis=0)
        directions *= np.linalg.norm(pooled) / np.linalg.norm(directions)  # the ridge depends on the length
        left, taken = np.ones(len(rows), bool), []
        for place, mean in enumerate(means):
            here = np.flatnonzero(left)
            own = budget // len(names) + (place < budget % len(names))
            chosen = here[omp_select(rows[here], mean, own).indices]
            left[chosen] = False
            taken += chosen.tolist()
        ways = {
            "mean of means": omp_select(rows, pooled, budget).indices,
            "mean of directions": omp_select(rows, directions, budget).indices,
            "parts in turn": np.array(taken),
        }
        found = [f"{way} {bad[at].mean():.3f}, {len(set(datasets[at]))}" for way, at in ways.items()]
        single = [omp_select(rows, mean, budget).indices for mean in means]
        right = np.mean([(datasets[at] == name).mean() for name, at in zip(names, single, strict=True)])
        found.append(f"one dataset {np.mean([bad[at].mean() for at in single]):.3f}, {right:.3f}")
        print(f"{pool_variant} pool, {target_variant} target: {'; '.join(found)}", flush=True)


if __name__ == "__main__":
    main()
