"""The stages as functions on arrays and frames, for use from Python without a root: nothing is written.

They hold what they are given in memory; `tagcos run` does the same streamed, resumable and recorded. N examples, T tokens,
D feature dimension, K clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tagcos_stream.selection.budget import allocate
from tagcos_stream.types import ArrayRows, Checkpoint, UserError

if TYPE_CHECKING:
    from tagcos_stream.clustering.state import Clustering
    from tagcos_stream.gradients.chat import Encoded
    from tagcos_stream.gradients.model import LoadedModel


def read_pool(*sources: str, limit: int | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read instruction data of any known shape (docs/formats.md).

    Args:
        sources: files, folders, globs, URLs, or files that list sources.
        limit: stop after about so many rows.

    Returns:
        examples: example_id (32 hex digits), dataset, messages (list of `Message`), tools and template_kwargs (JSON or
            null); each different conversation once, in the order first met.
        rejects: url, row (0-based), reason, detail, snippet of every row that is no example.

    Raises:
        UserError: no such source, or a file of which nothing can be read.
    """
    from tagcos_stream.data.canonical import EXAMPLE_COLUMNS
    from tagcos_stream.data.read import read_file, resolve_sources

    found: list[pl.DataFrame] = []
    rejects: list[pl.DataFrame] = []
    rows = 0
    for file in resolve_sources(sources):
        for block in read_file(file):
            found.append(block.occurrences.select(EXAMPLE_COLUMNS))
            rejects.append(block.rejects.select(pl.lit(file.url).alias("url"), pl.all()))
            rows += len(block.occurrences) + len(block.rejects)
            if limit is not None and rows >= limit:
                break
        if limit is not None and rows >= limit:
            break
    return pl.concat(found).unique("example_id", keep="first", maintain_order=True), pl.concat(rejects)


def encode_pool(loaded: LoadedModel, examples: pl.DataFrame, *, max_length: int = 1024) -> list[Encoded | None]:
    """Conversations as tokens and loss mask, with the model's own chat template.

    Args:
        loaded: from `load_model`.
        examples: messages and tools, as `read_pool` gives them.
        max_length: tokens that an example is cut to, at most what the model takes.

    Returns:
        N encoded examples: input_ids (T,) int32, target (T,) bool; None where no token is left to train on.
    """
    from tagcos_stream.gradients.chat import NoTargets, encode

    longest = min(max_length, loaded.max_positions)
    encoded: list[Encoded | None] = []
    for row in examples.iter_rows(named=True):
        try:
            one = encode(
                loaded.tokenizer,
                row["messages"],
                max_length=longest,
                tools=row.get("tools"),
                template_kwargs=row.get("template_kwargs"),
            )
            encoded.append(one)
        except NoTargets:
            encoded.append(None)
    return encoded


def warm_up(
    loaded: LoadedModel,
    sample: Sequence[Encoded | None],
    *,
    rank: int = 8,
    alpha: float = 32,
    batch_size: int = 8,
    learning_rate: float = 1e-4,
    checkpoints: int = 1,
    token_budget: int = 1024,
    seed: int = 0,
) -> list[Checkpoint]:
    """Attach a LoRA adapter to the model and train it over the sample once; its checkpoints, evenly spaced, the last included.

    `loaded.model` is the model with its adapter from here on. Sample some 5% of the pool, at least 64 examples.

    Raises:
        UserError: nothing to train on, more checkpoints than steps, or a loss that is not finite.
    """
    from tagcos_stream.gradients.adapter import attach_adapter
    from tagcos_stream.gradients.warmup import checkpoint_steps, run_warmup

    good = [e for e in sample if e is not None]
    steps = math.ceil(len(good) / batch_size)
    if not good:
        raise UserError(f"none of {len(sample)} examples has a token to train on: sample more, or raise max_length")
    at = checkpoint_steps(steps, checkpoints)
    loaded.model = attach_adapter(loaded.model, rank=rank, alpha=alpha, dropout=0.0, seed=seed)
    done = run_warmup(
        loaded.model,
        good,
        steps=steps,
        batch_size=min(batch_size, len(good)),
        learning_rate=learning_rate,
        checkpoints=at,
        seed=seed,
        token_budget=token_budget,
    )
    return done.checkpoints


def gradient_features(
    loaded: LoadedModel,
    encoded: Sequence[Encoded | None],
    checkpoints: Sequence[Checkpoint],
    *,
    variant: str = "adam-delta",
    dim: int = 8192,
    projection: str = "sparse",
    seed: int = 0,
    token_budget: int = 1024,
) -> tuple[np.ndarray, pl.DataFrame]:
    """Every example's own gradient over the adapter, as a feature (docs/method.md).

    Args:
        loaded: with its adapter, after `warm_up`.
        encoded: N examples, from `encode_pool`.
        checkpoints: from `warm_up`; features are averaged over them by learning rate.
        variant: adam-delta, adam (as published), adam-corrected, preconditioned, sgd or sign.
        dim: D. projection, seed: the random projection, sparse or rademacher.
        token_budget: of a forward and backward pass; bounds the memory.

    Returns:
        features: (N, D) float16, NaN in the rows of examples without a usable gradient.
        measured: N rows of tokens, target_tokens, loss (nats), norm (of the gradient), null where there is none.

    Raises:
        SelfCheckFailed: the batched gradients of two examples differ from plain autograd's on this model.
    """
    from tagcos_stream.gradients.extract import GradientExtractor, block_features
    from tagcos_stream.gradients.projection.projections import make_projection
    from tagcos_stream.gradients.verify import self_check

    at = [i for i, e in enumerate(encoded) if e is not None]
    good = [e for e in encoded if e is not None]
    features = np.full((len(encoded), dim), np.nan, np.float16)
    nothing = dict.fromkeys(("tokens", "target_tokens", "loss", "norm"))
    measured: list[dict[str, Any]] = [dict(nothing) for _ in encoded]
    if good:
        extractor = GradientExtractor(
            loaded.model, variants=[variant], projection=make_projection(projection, dim=dim, seed=seed)
        )
        self_check(extractor, checkpoints[0], sorted(good, key=len)[:2])
        done = block_features(extractor, checkpoints, good, token_budget=token_budget)
        features[at] = done.features[variant]
        for i, e, loss, norm, finite in zip(at, good, done.loss, done.norm, done.finite, strict=True):
            if finite:
                measured[i] = {"tokens": len(e), "target_tokens": e.n_target, "loss": float(loss), "norm": float(norm)}
    kinds = {"tokens": pl.Int64, "target_tokens": pl.Int64, "loss": pl.Float64, "norm": pl.Float64}
    return features, pl.DataFrame(measured, schema=kinds)


def cluster_rows(
    features: np.ndarray,
    n_clusters: int | None = None,
    *,
    seed: int = 0,
    min_cluster_rows: int = 8,
    max_cluster_rows: int = 20_000,
    keys: np.ndarray | None = None,
) -> Clustering:
    """K-means on feature rows: mini-batches, exact passes, then clusters that are too large split and too small ones dissolved.

    Args:
        features: (N, D) floating, finite; a memmap will do.
        n_clusters: K; default from N (100 at a million).
        keys: (N,) uint64 that decides between equal rows; default the row numbers.

    Returns:
        A Clustering: labels (N,) int32, centroids and means (K, D) float32, sizes (K,), distances (N,), inertia (K,).

    Raises:
        UserError: a row that is not finite, or bounds that do not fit.
    """
    from tagcos_stream.clustering import kmeans

    rows = ArrayRows(_finite(features))
    k = min(n_clusters or kmeans.default_clusters(rows.n_rows), rows.n_rows)
    *_, state = kmeans.fit(rows, k, seed=seed)
    return kmeans.finalise(rows, state, keys, min_cluster_rows=min_cluster_rows, max_cluster_rows=max_cluster_rows, seed=seed)


def select_rows(
    features: np.ndarray, clustering: Clustering, budget: int | float, *, ridge: float = 1.0, tol: float = 1e-4
) -> pl.DataFrame:
    """The coreset: in each cluster the rows whose weighted sum comes nearest to the cluster's mean, by matching pursuit.

    Args:
        features: (N, D) as clustered. budget: how many, or a share of N below 1; exact, shared over clusters by their sizes.
        ridge: lambda of the pursuit. tol: relative residual at which one of its rounds ends.

    Returns:
        One line for each row chosen, by cluster and rank: row (of features), cluster, rank (from 0), round, correlation,
        residual_after, weight (within the cluster), share (of the pool's mean: weight times the cluster's share of the rows).

    Raises:
        UserError: a budget that is not between 1 and N, or a row that is not finite.
    """
    from tagcos_stream.selection.pursuit.omp import omp_select

    n = len(_finite(features))
    total = max(1, round(budget * n)) if isinstance(budget, float) and budget < 1 else int(budget)
    if not 1 <= total <= n:
        raise UserError(f"budget {budget} of {n} rows: give a share below 1, or a number from 1 to {n}")
    parts = []
    for k, number in enumerate(allocate(clustering.sizes, total)):
        members = np.flatnonzero(clustering.labels == k)
        found = omp_select(features[members], clustering.means[k], int(number), ridge=ridge, tol=tol)
        parts.append(
            pl.DataFrame(
                {
                    "row": members[found.indices],
                    "cluster": np.full(len(found.indices), k),
                    "rank": np.arange(len(found.indices)),
                    "round": found.rounds.astype(np.int64),
                    "correlation": found.correlations,
                    "residual_after": found.residuals,
                    "weight": found.weights,
                    "share": found.weights * len(members) / n,
                }
            )
        )
    return pl.concat(parts)


def _finite(features: np.ndarray) -> np.ndarray:
    if features.ndim != 2:
        raise UserError(f"features must be (N, D), got shape {features.shape}")
    for start in range(0, len(features), 4096):
        bad = ~np.isfinite(features[start : start + 4096]).all(axis=1)
        if bad.any():
            row = start + int(np.flatnonzero(bad)[0])
            raise UserError(f"feature row {row} is not finite: leave out examples without a gradient first")
    return features
