"""A whole run on a root without any model: features are a seeded function of the example id, so all runs must agree.

Also a program, for tests with real processes: python -m tests.storage.tiny ROOT [--examples N] [--stop-after STEP].
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl

from storage.arrays.checkpoints import save_checkpoint, save_space
from storage.arrays.grouped import regroup, write_centroids
from storage.arrays.grouped_reader import ClusteringReader
from storage.arrays.segments import create_segment, open_features
from storage.catalog import choices, clusterings, diagnostics, methods, pool, runs, selections, spaces, stages
from storage.examples import example_reader
from storage.root import Root, open_root
from tagcos_stream import identity
from tagcos_stream.data.canonical import MESSAGES, OCCURRENCES
from tagcos_stream.selection.methods import described
from tagcos_stream.selection.stands import stands_for
from tagcos_stream.types import Checkpoint, IngestBlock

DIM, BLOCK_ROWS, CLUSTERS = 16, 64, 4
BLOCKS = 5  # of the 286 different ones among 300 examples


def example_id(number: int) -> str:
    return np.random.default_rng([7, number]).bytes(16).hex()


def ingest_block(first: int, numbers: list[int], *, last: bool, rejected: int = 0, dataset: str = "red") -> IngestBlock:
    """Rows first, first + 1, ... of a file: one example a number, then `rejected` bad rows."""
    rows = range(first, first + len(numbers))
    conversations = [
        [
            {"role": "user", "content": f"question {n}", "name": None, "train": None},
            {"role": "assistant", "content": f"answer {n}", "name": None, "train": None},
        ]
        for n in numbers
    ]
    occurrences = pl.DataFrame(
        {
            "row": pl.Series(rows, dtype=pl.UInt64),
            "example_id": [example_id(n) for n in numbers],
            "dataset": [dataset if n % 3 else "blue" for n in numbers],
            "source_id": pl.Series([None] * len(numbers), dtype=pl.String),
            "messages": pl.Series(conversations, dtype=MESSAGES),
            "tools": pl.Series([None] * len(numbers), dtype=pl.String),
            "template_kwargs": pl.Series([None] * len(numbers), dtype=pl.String),
            "scores": pl.Series([None] * len(numbers), dtype=OCCURRENCES["scores"]),
        }
    )
    bad = range(first + len(numbers), first + len(numbers) + rejected)
    rejects = pl.DataFrame(
        {
            "row": pl.Series(bad, dtype=pl.UInt64),
            "reason": ["no-answer"] * rejected,
            "detail": ["x"] * rejected,
            "snippet": ["{"] * rejected,
        },
        schema={"row": pl.UInt64, "reason": pl.String, "detail": pl.String, "snippet": pl.String},
    )
    return IngestBlock(occurrences, rejects, first + len(numbers) + rejected, 0, last)


def feature(identity: str) -> np.ndarray:
    """(DIM,) float16, unit length; about one in thirty is NaN: a rejected example."""
    generator = np.random.default_rng(list(bytes.fromhex(identity)))
    vector = generator.standard_normal(DIM)
    return (
        np.full(DIM, np.nan, np.float16) if generator.random() < 1 / 30 else (vector / np.linalg.norm(vector)).astype(np.float16)
    )


@dataclass
class Outcome:
    run_id: str
    resumed: bool
    blocks_computed: int
    selection: pl.DataFrame


def run(
    root: Root,
    *,
    examples: int = 300,
    step: Callable[[str], None] = lambda name: None,
    file_rows: int = 150,
    block_rows: int = BLOCK_ROWS,
) -> Outcome:
    """Ingest, features, clustering, selection: the pipeline's calls in the pipeline's order. `step` hears of every commit."""
    with root.writer():
        return _run(root, examples, step, file_rows, block_rows)


def _run(root: Root, examples: int, step: Callable[[str], None], file_rows: int, block_rows: int) -> Outcome:
    catalog, files = root.catalog, root.files
    methods.record_methods(catalog, described())
    config = {"examples": examples, "method": "tagcos"}
    opened = runs.open_run(
        catalog, config=config, config_hash=str(examples), versions={"tiny": 1}, seeds={"all": 7}, label="tiny", name="main"
    )
    run_id = opened.run_id
    step("open")
    given = pl.DataFrame({"source": ["made"], "url": ["made.jsonl"], "digest": [str(examples)], "size": [1], "format": ["jsonl"]})
    for file in pool.add_files(catalog, run_id, given).iter_rows(named=True):
        done = file["rows_done"]
        while not file["complete"] and done < examples + 3:
            numbers = [n if n % 20 else 0 for n in range(done, min(done + file_rows, examples))]  # every twentieth is a duplicate
            last = done + len(numbers) == examples
            pool.commit_ingest(root, run_id, file["file_id"], ingest_block(done, numbers, last=last, rejected=3 if last else 0))
            done += len(numbers) + (3 if last else 0)
            step("ingest")

    fingerprint = {"model": "none", "dim": DIM}
    space_id = identity.space_id(fingerprint)
    if spaces.find_space(catalog, "tiny") is None:
        weights = {"layer": np.arange(6, dtype=np.float32).reshape(2, 3)}
        checkpoint = Checkpoint(10, 1e-5, 1.0, 10, weights, weights, weights)
        saved = save_checkpoint(files, space_id, checkpoint)
        save_space(files, space_id, fingerprint)
        spaces.add_space(
            catalog,
            run_id,
            space_id,
            recipe="tiny",
            variant="adam",
            dim=DIM,
            fingerprint=fingerprint,
            checkpoints=[(checkpoint, saved)],
        )
        step("space")
    runs.set_run(catalog, run_id, space_id=space_id)

    computed = 0
    reader = example_reader(root)
    for segment in spaces.plan_segments(catalog, run_id, space_id, dim=DIM, block_rows=block_rows).iter_rows(named=True):
        name = segment["segment"]
        writer = create_segment(
            files, space_id, name, example_ids=spaces.segment_ids(catalog, name), dim=DIM, chunk_rows=segment["block_rows"]
        )
        step("segment")
        for block in spaces.missing(catalog, space_id, run_id).get(name, []):
            start, stop = writer.block_range(block)
            ids = reader.read(name, start, stop)["example_id"].to_list()
            features = np.stack([feature(identity) for identity in ids])
            checksum = writer.write_block(block, features)
            step("written")
            bad = np.isnan(features).any(axis=1)
            rows = pl.DataFrame(
                {
                    "row": np.arange(start, stop),
                    "tokens": np.full(stop - start, 9),
                    "target_tokens": np.full(stop - start, 4),
                    "loss": np.where(bad, np.nan, 2.0),
                    "norm": np.where(bad, np.nan, 1.0),
                    "status": np.where(bad, "non-finite", "ok"),
                }
            )
            spaces.commit_block(catalog, run_id, space_id, name, block, rows, checksum=checksum, seconds=0.0)
            computed += 1
            step("block")

    pooled = spaces.features_pool(catalog, run_id, space_id)
    clustering_id = f"{run_id}-clusters"
    if opened.clustering_id is None:
        stored = open_features(files, space_id, pooled)
        x = np.concatenate([stored.read(b) for b in range(len(stored.starts) - 1)]).astype(np.float64)
        labels = np.argmax(x[:, :CLUSTERS], axis=1)
        centroids = np.stack([x[labels == k].mean(axis=0) for k in range(CLUSTERS)]).astype(np.float32)
        distances = np.linalg.norm(x - centroids[labels], axis=1).astype(np.float32)
        sizes = np.bincount(labels, minlength=CLUSTERS)
        inertia = np.bincount(labels, distances.astype(np.float64) ** 2, minlength=CLUSTERS)
        sums = np.stack([x[labels == k].sum(axis=0) for k in range(CLUSTERS)])
        write_centroids(files, clustering_id, centroids)
        info = regroup(files, clustering_id, stored, labels, distances=distances, sums=sums, squares=np.zeros(CLUSTERS, np.int64))
        step("regrouped")
        clusterings.add_clustering(
            catalog,
            run_id,
            clustering_id,
            space_id,
            clusters=pl.DataFrame({"cluster": np.arange(CLUSTERS), "size": sizes, "inertia": inertia}),
            rows=pooled.select("segment", "row", cluster=labels, distance=distances),
            part=info,
            config={"seed": 7},
        )
        step("clustering")

    clustering = ClusteringReader(files, clustering_id, clusterings.parts(catalog, clustering_id))
    sums, sizes, _ = clustering.totals()
    for cluster in sorted(set(range(CLUSTERS)) - choices.groups_done(catalog, run_id)):
        where = clustering.cluster_rows(cluster)
        rows_of = clustering.cluster(cluster)
        x = np.concatenate([rows_of.read(b) for b in range(len(rows_of.starts) - 1)]).astype(np.float64)
        margins = x @ (sums[cluster] / sizes[cluster])
        budget = max(len(x) // 10, 1)
        best = np.argsort(-margins, kind="stable")[:budget]
        stands = stands_for(rows_of, best, threads=1)
        chosen = (
            pooled[where[best]]
            .select("example_id")
            .with_columns(
                rank=pl.int_range(budget),
                round=pl.lit(0),
                score=margins[best],
                residual_after=np.linspace(0.9, 0.5, budget),
                weight=np.full(budget, 1.0),
            )
        )
        choices.commit_group(
            catalog,
            run_id,
            cluster,
            budget=budget,
            residual=0.5,
            seconds=0.0,
            stats={"rounds": 1},
            inertia=1.0,
            selection=chosen,
            candidates=pooled[where].select(
                "segment",
                "row",
                margin=margins,
                representative=pl.Series(stands.places, dtype=pl.Int32),
                cosine=pl.Series(stands.cosines),
            ),
        )
        step("cluster")
    for seed, dimensions in ((0, "seen"), (0, "reserved"), (1, "reserved")):
        diagnostics.commit(
            catalog,
            run_id,
            method="tagcos",
            fraction=0.1,
            seed=seed,
            dimensions=dimensions,  # type: ignore[arg-type]
            rows=measured(seed),
            seconds=0.0,
        )
    stages.done(catalog, run_id, "selection", seconds=0.1, peak_bytes=1, detail={"clusters": CLUSTERS})
    runs.finish_run(catalog, run_id)
    step("finished")
    return Outcome(run_id, opened.resumed, computed, selections.selection(catalog, run_id).drop("run_id"))


def measured(seed: int) -> pl.DataFrame:
    """Diagnostics of a pool of 20 in two clusters; two seeds share one of three chosen."""
    return pl.DataFrame(
        {
            "cluster": [None, 0, 1],
            "size": [20, 15, 5],
            "selected": [2, 1, 1],
            "error_plain": [0.5, 0.6, 0.7],
            "error_weighted": [0.4, 0.5, 0.6],
            "error_fitted": [0.3 + 0.1 * seed, None, None],
            "datasets_reached": [1.0, None, None],
            "clusters_reached": [1.0, None, None],
            "chosen": pl.Series([[3, 7 + seed], None, None], dtype=pl.List(pl.UInt32)),
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--die-at", type=int, default=0, help="kill this process, hard, at the n-th step")
    parser.add_argument("--wait", type=float, default=60.0)
    arguments = parser.parse_args()
    steps = 0

    def step(name: str) -> None:
        nonlocal steps
        steps += 1
        print(name, flush=True)
        if steps == arguments.die_at:
            os.kill(os.getpid(), 9)

    root = open_root(arguments.root, wait_seconds=arguments.wait)
    outcome = run(root, examples=arguments.examples, step=step)
    print(f"done {outcome.run_id} {outcome.blocks_computed}", file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
