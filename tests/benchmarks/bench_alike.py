"""How near the nearest other row is in the stored features of a root, by kind of row: what a threshold of `alike` finds.

    python -m tests.benchmarks.bench_alike ROOT [--variant adam-delta] [--words 0.5]

ROOT is that of tests.benchmarks.bench_dirty_pool, or any other. Kinds are the second part of the rows' ids
(`DATASET/KIND/NUMBER`), or `row`; and, of rows of kind `clean` or `row`, those whose texts share at least `--words` of their
3-word shingles (Jaccard) with another such row. Prints quantiles of the cosine with the nearest other row, the share of rows
at or above each threshold, and the share of rows with two such rows or more (`alike >= 3`). Writes nothing but a migration of the
catalog: give it a copy.
"""

from __future__ import annotations

import argparse

import numpy as np
import polars as pl

from storage.arrays import segments
from storage.examples import example_reader
from tagcos_stream.data.shingles import find_words, runs
from tagcos_stream.selection.nearest import unit_rows
from tests.benchmarks.stored_features import stored_features

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def near_texts(texts: list[str], words: float) -> np.ndarray:
    """(n,) bool: texts that share at least `words` of their 3-word shingles with another."""
    hashes, starts = runs(find_words(texts), 3)
    frame = pl.DataFrame({"text": np.repeat(np.arange(len(texts)), np.diff(starts)), "hash": hashes}).unique()
    sizes = frame.group_by("text").len("size")
    pairs = frame.join(frame, on="hash").filter(pl.col("text") < pl.col("text_right")).group_by("text", "text_right").len("both")
    pairs = pairs.join(sizes, on="text").join(sizes.rename({"text": "text_right", "size": "other"}), on="text_right")
    near = pairs.filter(pl.col("both") / (pl.col("size") + pl.col("other") - pl.col("both")) >= words)
    found = np.zeros(len(texts), bool)
    found[near["text"].to_numpy()] = found[near["text_right"].to_numpy()] = True
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--variant", default="adam-delta")
    parser.add_argument("--words", type=float, default=0.5)
    chosen = parser.parse_args()
    root, space, pool = stored_features(chosen.root, chosen.variant)
    ids = root.catalog.read("SELECT example_id, any_value(source_id) AS id FROM occurrences GROUP BY example_id")
    named = pool.join(ids, on="example_id", how="left", maintain_order="left")
    parts = [str(one).split("/") for one in named["id"].to_list()]
    kinds = np.array([part[1] if len(part) == 3 else "row" for part in parts])
    texts = pl.concat(example_reader(root).iterate(pool.select("segment", "row", "example_id"))).select(
        "example_id", text=pl.col("messages").list.eval(pl.element().struct.field("content")).list.join("\n")
    )
    words = near_texts(pool.join(texts, on="example_id", how="left", maintain_order="left")["text"].to_list(), chosen.words)
    rows = segments.open_features(root.files, space, pool)
    unit = unit_rows(rows.gather(np.arange(rows.n_rows)).astype(np.float32))
    nearest, alike = np.empty(len(unit), np.float32), np.empty((len(unit), len(THRESHOLDS)), np.int64)
    for start in range(0, len(unit), 1024):
        cosines = unit[start : start + 1024] @ unit.T
        cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -1
        nearest[start : start + 1024] = cosines.max(axis=1)
        alike[start : start + 1024] = np.stack([1 + (cosines >= t).sum(axis=1) for t in THRESHOLDS], axis=1)
    good = np.isin(kinds, ("clean", "row"))
    groups = {"all": np.ones(len(kinds), bool), "good, no text like it": good & ~words, "good, near duplicate": good & words}
    groups |= {kind: kinds == kind for kind in sorted(set(kinds.tolist()) - {"clean", "row"})}
    print(f"{len(pool)} rows of {rows.dim} dimensions, {chosen.variant}")
    print("rows | n | median | 95% | 99% | largest | " + " | ".join(f">= {t}" for t in THRESHOLDS))
    for name, mine in groups.items():
        if mine.any():
            marks = [f"{q:.2f}" for q in (*np.quantile(nearest[mine], (0.5, 0.95, 0.99)), nearest[mine].max())]
            print(f"{name} | {mine.sum()} | " + " | ".join([*marks, *(f"{(nearest[mine] >= t).mean():.3f}" for t in THRESHOLDS)]))
            print(f"{name}, alike >= 3 | | | | | | " + " | ".join(f"{share:.3f}" for share in (alike[mine] >= 3).mean(axis=0)))


if __name__ == "__main__":
    main()
