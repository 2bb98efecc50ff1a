"""The stages as functions on arrays and frames, for use from Python without a root: nothing is written.

Their arguments and results are held in memory; `tagcos run` does the same streamed, resumable and recorded. N examples, T tokens,
D feature dimension, K clusters.
"""

from __future__ import annotations

import math
import os
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


def read_pool(*sources: str | os.PathLike[str], limit: int | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Read instruction data of any known shape (docs/formats.md).

    Parameters
    ----------
    sources
        Files, folders, globs, URLs, or files that list sources.
    limit
        Stop after about this many rows. None: read everything.

    Returns
    -------
    examples : pl.DataFrame
        example_id (32 hex digits), dataset, messages (list of `Message`), tools and template_kwargs (JSON or null). Every
        distinct conversation once, in the order of first occurrence.
    rejects : pl.DataFrame
        url, row (0-based), reason, detail and snippet of every row that is not an example. Detail and snippet are null beyond the
        first 1,000 rows that a block of a file rejects for one reason.

    Raises
    ------
    UserError
        A source does not exist, nothing in a file can be read, or no source is named.
    """
    from tagcos_stream.data.canonical import EXAMPLE_COLUMNS
    from tagcos_stream.data.read import read_file, resolve_sources

    found: list[pl.DataFrame] = []
    rejects: list[pl.DataFrame] = []
    rows = 0
    if not sources:
        raise UserError("no source is named: give files, folders, globs or URLs")
    for file in resolve_sources([os.fspath(source) for source in sources]):
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
    """Encode conversations as tokens and loss mask with the model's chat template.

    Parameters
    ----------
    loaded
        From `load_model`.
    examples
        N rows with messages and tools, as returned by `read_pool`.
    max_length
        Tokens after which an example is truncated; limited by the model's maximum length.

    Returns
    -------
    list of Encoded or None
        N items: input_ids (T,) int32 and target (T,) bool. None for an example without a token to train on.

    Raises
    ------
    UserError
        The tokenizer or its chat template cannot be used.
    """
    from tagcos_stream.gradients.chat import NoTargets, encode

    if max_length < 1:
        raise UserError(f"max_length is {max_length}, must be at least 1")
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
    """Attach a LoRA adapter to the model and train it for one epoch over a sample of the pool.

    Afterwards `loaded.model` is the model with the adapter. The adapter of an earlier warm-up is taken off first.

    Parameters
    ----------
    loaded
        From `load_model`; changed in place.
    sample
        Encoded examples; those that are None are skipped. About 5% of the pool, at least 64 examples, are enough.
    rank, alpha
        Rank and scale of the adapter.
    batch_size
        Examples per optimizer step.
    learning_rate
        Peak learning rate of the linear schedule.
    checkpoints
        Number of checkpoints, evenly spaced over the steps; the last step is one of them.
    token_budget
        Tokens per forward and backward pass; bounds the memory.
    seed
        Seed of the adapter's initial weights and of the order of examples.

    Returns
    -------
    list of Checkpoint
        Adapter weights and Adam moments (float32), in the order of steps.

    Raises
    ------
    UserError
        No example can be trained on, there are more checkpoints than steps, an argument is below 1, or the loss is not finite.
    """
    from tagcos_stream.gradients.adapter import attach_adapter
    from tagcos_stream.gradients.warmup import checkpoint_steps, run_warmup

    good = [e for e in sample if e is not None]
    if not good:
        raise UserError(f"none of {len(sample)} examples has a token to train on: sample more, or raise max_length")
    for name, value in {"batch_size": batch_size, "checkpoints": checkpoints, "token_budget": token_budget}.items():
        if value < 1:
            raise UserError(f"{name} is {value}, must be at least 1")
    steps = math.ceil(len(good) / batch_size)
    at = checkpoint_steps(steps, checkpoints)
    if hasattr(loaded.model, "unload"):  # a PeftModel
        loaded.model = loaded.model.unload()
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
    variant: str = "sgd",
    dim: int = 8192,
    projection: str = "sparse",
    seed: int = 0,
    token_budget: int = 1024,
) -> tuple[np.ndarray, pl.DataFrame]:
    """Compute a feature from each example's gradient with respect to the adapter (docs/method.md).

    Parameters
    ----------
    loaded
        The model with its adapter, after `warm_up`.
    encoded
        N examples from `encode_pool`.
    checkpoints
        From `warm_up`; features are averaged over them, weighted by learning rate.
    variant
        sgd (the plain gradient), sign, adam (as published), adam-delta, adam-corrected, preconditioned, or hidden (hidden
        states, no gradient).
    dim
        D.
    projection
        Random projection: sparse or rademacher.
    seed
        Seed of the projection.
    token_budget
        Tokens per forward and backward pass; bounds the memory.

    Returns
    -------
    features : np.ndarray
        (N, D) float16, rows of unit length (averages over several checkpoints are shorter); NaN in the rows of examples
        without a usable gradient.
    measured : pl.DataFrame
        N rows: tokens, target_tokens, loss (nats) and norm (of the gradient; NaN with hidden); null where there is no feature.

    Raises
    ------
    SelfCheckFailed
        On this model the batched gradients of two examples differ from those of plain autograd.
    UserError
        The variant or the projection is unknown, or the checkpoints do not fit the adapter or are none.
    """
    from tagcos_stream.gradients.extract import GradientExtractor, block_features
    from tagcos_stream.gradients.projection.projections import make_projection
    from tagcos_stream.gradients.verify import self_check

    if not checkpoints:
        raise UserError("no checkpoint is given: make some with warm_up")
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
    """Cluster feature rows by k-means; clusters that are too large are then split and those too small dissolved.

    Parameters
    ----------
    features
        (N, D) floating point, finite; may be a memmap.
    n_clusters
        K. Default: N / 10,000, at least 1.
    seed
        Seed of all random choices.
    min_cluster_rows, max_cluster_rows
        Bounds on the size of a cluster, in rows; the first at most half of the second.
    keys
        (N,) uint64, which distribute equal rows over clusters. Default: the row numbers.

    Returns
    -------
    Clustering
        labels (N,) int32, centroids and means (K, D) float32, sizes (K,) int64, distances (N,) float32 and
        inertia (K,) float64.

    Raises
    ------
    UserError
        There is no row, one is not finite, n_clusters is below 1, or the bounds contradict each other.
    """
    from tagcos_stream.clustering import kmeans

    rows = ArrayRows(_finite(features))
    k = min(kmeans.default_clusters(rows.n_rows) if n_clusters is None else n_clusters, rows.n_rows)
    *_, state = kmeans.fit(rows, k, seed=seed)
    return kmeans.finalise(rows, state, keys, min_cluster_rows=min_cluster_rows, max_cluster_rows=max_cluster_rows, seed=seed)


def select_rows(
    features: np.ndarray, clustering: Clustering, budget: int | float, *, ridge: float = 1.0, tol: float = 1e-4
) -> pl.DataFrame:
    """Select a coreset: in each cluster the rows whose weighted sum best matches the cluster's mean, by matching pursuit.

    Parameters
    ----------
    features
        (N, D), those that were clustered.
    clustering
        From `cluster_rows`.
    budget
        Number of rows to select, or a fraction of N below 1; divided among the clusters in proportion to their sizes.
    ridge
        Ridge penalty (lambda) of the pursuit.
    tol
        Relative residual at which a round of the pursuit stops.

    Returns
    -------
    pl.DataFrame
        One line per selected row, ordered by cluster and rank: row (of features), cluster, rank (from 0), round,
        correlation, residual_after, weight (in the cluster) and share (weight in the pool's mean: weight times the cluster's
        fraction of all rows).

    Raises
    ------
    UserError
        The budget is neither a fraction below 1 nor a whole number from 1 to N, a row is not finite, or the rows are not as many
        as were clustered.
    """
    from tagcos_stream.selection.pursuit.omp import omp_select

    n = len(_finite(features))
    if n != len(clustering.labels):
        raise UserError(f"there are {n} feature rows, and {len(clustering.labels)} were clustered: give the same ones")
    if isinstance(budget, float) and budget == 1:
        raise UserError(f"budget 1.0 could mean one row or all: give 1, or {n}")
    total = max(1, round(float(budget) * n)) if 0 < budget < 1 else budget
    if not 1 <= total <= n or int(total) != total:
        raise UserError(f"budget {budget} of {n} rows: give a share below 1, or a number from 1 to {n}")
    parts = []
    for k, number in enumerate(allocate(clustering.sizes, int(total))):
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
    if not len(features):
        raise UserError("there is no feature row: none of the examples has a usable gradient, or none was given")
    for start in range(0, len(features), 4096):
        bad = ~np.isfinite(features[start : start + 4096]).all(axis=1)
        if bad.any():
            row = start + int(np.flatnonzero(bad)[0])
            raise UserError(f"feature row {row} is not finite: leave out examples without a gradient first")
    return features
