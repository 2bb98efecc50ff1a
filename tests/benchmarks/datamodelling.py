"""What gradient features are worth: the linear datamodelling score (Park et al., TRAK, arXiv 2303.14186) of each variant.

    python -m tests.benchmarks.datamodelling FOLDER WORK --model MODEL [--examples 300] [--queries 36] [--halves 64]

FOLDER holds one Parquet file per dataset with a `messages` column. WORK gets a pool and queries of the same datasets, a root
with their features, and one file for each random half of the pool: the loss of every query after one training on that half.
What is there already is used, so the same command continues, and several processes with other --part share the halves.

The features predict that training on a half lowers the loss of a query by the sum over the half of the products with the query's
feature. The score is Spearman's rank correlation over the halves of this prediction with the loss measured, negative, as a mean
over queries ± its standard error (jackknife over halves). *All queries* is the correlation for the mean loss of all queries.
WORK/outcomes.csv gets what the table is made of.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import spearmanr

from flows import pipeline
from flows.compare.examples import texts
from flows.models import CPU_TOKENS, load_adapted
from flows.progress import SilentReporter
from storage.arrays import segments
from storage.catalog import runs, spaces, targets
from storage.examples import example_reader
from storage.root import Root, open_root
from tagcos_stream.config import load_settings
from tests.benchmarks.pools import arguments, single_exchanges, write_rows

VARIANTS = ("adam-delta", "adam", "adam-corrected", "preconditioned", "sgd", "sign", "hidden")


def make(folder: Path, work: Path, examples: int, queries: int, characters: int) -> None:
    """Write pool/ and queries/ below WORK with equally many rows of every dataset that has enough of so many characters."""
    files = sorted(folder.glob("*.parquet"))
    own, asked = -(-examples // len(files)), -(-queries // len(files))
    for path in files:
        rows = single_exchanges(path, own + asked, characters)
        if len(rows) < own + asked:
            print(f"{path.stem} is left out: {len(rows)} rows of at most {characters} characters")
            continue
        write_rows(work / "queries" / f"{path.stem}.jsonl", path.stem, rows[:asked])
        write_rows(work / "pool" / f"{path.stem}.jsonl", path.stem, rows[asked:])


def half(count: int, number: int) -> np.ndarray:
    """(count // 2,) int64 ascending: which examples the half with this number has."""
    return np.sort(np.random.default_rng([number, count]).permutation(count)[: count // 2])


def train(
    root: Root, run_id: str, work: Path, halves: range, *, batch_size: int, learning_rate: float, threads: int | None
) -> None:
    """Train on each of the halves that has no file yet, and write the losses of the queries."""
    import torch

    from tagcos_stream.evaluation.finetune import Plan, finetune
    from tagcos_stream.evaluation.losses import losses_of

    left = [number for number in halves if not _file(work, number).exists()]
    if not left:
        return
    if threads:
        torch.set_num_threads(threads)
    run = runs.complete_run(root.catalog, run_id)
    settings = load_settings(pipeline.changed_settings(run, root.files.url, {}))
    loaded = load_adapted(settings, "cpu")
    read = texts(example_reader(root), loaded, settings)
    pool = spaces.features_pool(root.catalog, run_id, run["space_id"])
    encoded = [one for one in read.encode(pool) if one is not None]
    asked = [
        one for one in read.encode(targets.with_features(root.catalog, run["target_id"], run["space_id"])) if one is not None
    ]
    plan = Plan(batch_size, learning_rate, "cosine", 0.03)
    for number in left:
        start, chosen = time.perf_counter(), half(len(pool), number)
        finetune(
            loaded.model,
            [encoded[i] for i in chosen],
            pool["example_id"].gather(chosen).to_list(),
            plan,
            steps=round(len(chosen) / batch_size),
            seed=0,
            token_budget=CPU_TOKENS,
        )
        losses = losses_of(loaded.model, asked, token_budget=CPU_TOKENS)
        _file(work, number).parent.mkdir(exist_ok=True)
        partial = _file(work, number).with_suffix(".part")
        np.savetxt(partial, losses, fmt="%.6f")
        partial.rename(_file(work, number))
        print(f"half {number}: mean loss {losses.mean():.4f}, {time.perf_counter() - start:.0f} s", flush=True)


def _file(work: Path, number: int) -> Path:
    return work / "losses" / f"{number:04d}.txt"


def spearman(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """(Q,) rank correlations of the rows of two arrays (Q, S); NaN for a prediction that is the same for all halves."""
    pairs = zip(predicted, measured, strict=True)
    return np.array([spearmanr(a, b).statistic if np.ptp(a) else np.nan for a, b in pairs])


def score(predicted: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """(mean rank correlation over the rows of two arrays (Q, S), its jackknife standard error over the columns)."""
    left_out = np.array(
        [spearman(*(np.delete(a, s, axis=1) for a in (predicted, measured))).mean() for s in range(measured.shape[1])]
    )
    error = np.sqrt((len(left_out) - 1) * left_out.var())
    return float(spearman(predicted, measured).mean()), float(error)


def main() -> None:
    parser = arguments(__doc__, 240)
    parser.add_argument("--examples", type=int, default=300)
    parser.add_argument("--queries", type=int, default=36)
    parser.add_argument("--halves", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--part", default="0/1", help="train halves n, n + m, n + 2m, ... for n/m")
    chosen = parser.parse_args()
    make(chosen.folder, chosen.work, chosen.examples, chosen.queries, chosen.characters)
    base: dict[str, Any] = {
        "sources": (str(chosen.work / "pool"),), "target": (str(chosen.work / "queries"),), "root": str(chosen.work / "root"),
        "model": chosen.model, "max_length": 256, "threads": chosen.threads,
        "gradient": VARIANTS[0], "also_gradients": VARIANTS[1:],
    }  # fmt: skip
    run_id = pipeline.run(load_settings(base), SilentReporter()).run_id
    root = open_root(base["root"], create=False)
    first, step = map(int, chosen.part.split("/"))
    options = {"batch_size": chosen.batch_size, "learning_rate": chosen.learning_rate, "threads": chosen.threads}
    train(root, run_id, chosen.work, range(first, chosen.halves, step), **options)
    rows = outcomes(root, run_id, chosen.work, chosen.halves)
    rows.write_csv(chosen.work / "outcomes.csv")
    table(rows)


def outcomes(root: Root, run_id: str, work: Path, halves: int) -> pl.DataFrame:
    """One row for each half that is there and each query: half, query, dataset, loss, and what each kind of features predicts.

    A prediction is a gain: minus a loss, in a unit of its own. Features are of unit length; `sgd, not scaled` has those of the
    pool times the length of their gradients. Two controls need no features: how many rows of the query's dataset a half has, and
    how many target tokens.
    """
    there = [number for number in range(halves) if _file(work, number).exists()]
    run = runs.complete_run(root.catalog, run_id)
    found: dict[str, Any] = {"loss": np.array([np.loadtxt(_file(work, number)) for number in there])}  # (S, Q)
    for variant, space in root.catalog.read("SELECT variant, space_id FROM feature_spaces").iter_rows():
        pool = spaces.features_pool(root.catalog, run_id, space)
        asked = targets.with_features(root.catalog, run["target_id"], space)
        products = _features(root, space, asked) @ _features(root, space, pool).T  # (Q, N)
        ways = {variant: products}
        if variant == "sgd":
            ways["sgd, not scaled"] = products * pool["norm"].to_numpy()
            ways["rows of its dataset"] = asked["part"].to_numpy()[:, None] == pool["dataset"].to_numpy()
            ways["target tokens"] = np.broadcast_to(pool["target_tokens"].to_numpy(), products.shape)
        for name, values in ways.items():
            found[name] = np.array([values[:, half(len(pool), number)].sum(axis=1) for number in there])
    queries = len(asked)
    place = {"half": np.repeat(there, queries), "query": np.tile(np.arange(queries), len(there))}
    columns = {name: values.ravel().round(6) for name, values in found.items()}
    return pl.DataFrame(place | {"dataset": asked["part"].to_list() * len(there)} | columns)


def scores(rows: pl.DataFrame) -> dict[str, tuple[float, float, float, float]]:
    """Score, its standard error, and both for the mean of all queries, of each kind of features, from `outcomes`."""

    def by_query(name: str) -> np.ndarray:
        return rows.sort("query", "half")[name].to_numpy().reshape(rows["query"].n_unique(), -1)  # (Q, S)

    found, gains = {}, -by_query("loss")
    for name in rows.columns[4:]:
        predicted = by_query(name)
        together = score(predicted.mean(axis=0, keepdims=True), gains.mean(axis=0, keepdims=True))
        found[name] = (*score(predicted, gains), *together)
    return found


def table(rows: pl.DataFrame) -> None:
    """Print the scores of `outcomes`."""
    varies = rows.group_by("query").agg(pl.col("loss").std())["loss"].to_numpy().mean()
    print(f"\n{rows['half'].n_unique()} halves, {rows['query'].n_unique()} queries; a query's loss varies by {varies:.4f}")
    print("| features | score | all queries |")
    print("|---|--:|--:|")
    for name, (mean, error, together, spread) in scores(rows).items():
        # of all queries together every half has the same number of rows
        whole = "" if np.isnan(together) else f"{together:.2f} ± {spread:.2f}"
        print(f"| `{name}` | {mean:.3f} ± {error:.3f} | {whole} |", flush=True)


def _features(root: Root, space: str, rows: Any) -> np.ndarray:
    """(n, D) float32 of rows, in their order."""
    order = rows.with_row_index("at").sort("segment", "row")
    found = segments.open_features(root.files, space, order).gather(np.arange(len(order))).astype(np.float32)
    out: np.ndarray = np.empty_like(found)
    out[order["at"].to_numpy()] = found
    return out


if __name__ == "__main__":
    main()
