"""What the gradient benchmarks share: the model and examples, a plain pass, and timing in turns."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tagcos_stream.gradients.adapter import attach_adapter
from tagcos_stream.gradients.chat import Encoded, NoTargets, encode
from tagcos_stream.gradients.extract import GradientExtractor
from tagcos_stream.gradients.model import load_model
from tagcos_stream.gradients.projection.projections import make_projection
from tagcos_stream.gradients.warmup import _collate
from tests.models import random_checkpoint, random_encoded

DIM = 8192
clock = time.perf_counter


def use_clock(name: str) -> None:
    """`wall`, or `cpu` for processor time on a machine with other work."""
    global clock
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[name]


def setting(options: argparse.Namespace) -> tuple[Any, list[Encoded]]:
    if options.model:
        loaded = load_model(options.model, device=options.device)
        base, tokenizer = loaded.model, loaded.tokenizer
    else:
        base, tokenizer = random_model(576, 30, 9, 3, 1536, 49152), None
    if options.data is None or tokenizer is None:
        lengths = np.random.default_rng(0).lognormal(4.8, 0.6, options.examples).clip(16, options.max_length).astype(int)
        return base, random_encoded(lengths.tolist(), vocabulary=49000)
    import polars as pl

    files = sorted(options.data.glob("*.parquet"))
    each = -(-2 * options.examples // len(files))
    frames = [pl.read_parquet(file, columns=["messages"]) for file in files]
    rows = [frame.sample(min(each, len(frame)), seed=1)["messages"].to_list() for frame in frames]
    encoded: list[Encoded] = []
    for messages in (row[i] for i in range(each) for row in rows if i < len(row)):  # the sources in turn
        try:
            encoded.append(encode(tokenizer, messages, max_length=options.max_length))
        except NoTargets:
            continue
    return base, encoded[: options.examples]


def random_model(
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    inner: int,
    vocabulary: int,
    dtype: Any = torch.float32,
    device: str = "cpu",
) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        tie_word_embeddings=hidden < 4096,
        max_position_embeddings=4096,
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    model.config.use_cache = False
    return model


def extractor(base: Any, rank: int, variants: Sequence[str]) -> tuple[GradientExtractor, Any]:
    model = attach_adapter(base, rank=rank, alpha=4 * rank, seed=1)
    ex = GradientExtractor(model, variants=variants, projection=make_projection(dim=DIM, seed=0))
    checkpoint = random_checkpoint(model)
    ex.use(checkpoint)
    return ex, checkpoint


def plain_pass(ex: GradientExtractor, batch: list[Encoded]) -> None:
    """What transformers computes in a training step: loss from the labels, gradients of the LoRA weights, nothing else."""
    ex.model.zero_grad()
    ex.model(**plain_inputs(ex, batch), use_cache=False).loss.backward()


def plain_inputs(ex: GradientExtractor, batch: list[Encoded]) -> dict[str, torch.Tensor]:
    """Ids, mask and labels, padded to the longest example, on the extractor's device."""
    return {name: tensor.to(ex.device) for name, tensor in _collate(batch).items()}


def alternate(runs: list[Callable[[list[Encoded]], Any]], batches: list[list[Encoded]], repeats: int) -> list[float]:
    """Median over repeats of each run's seconds for all batches, the runs taking turns at every batch."""
    for run in runs:
        run(batches[-1])
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        sums = [0.0] * len(runs)
        for batch in batches:
            for i, run in enumerate(runs):
                sums[i] += timed(lambda r=run, b=batch: r(b))  # type: ignore[misc]
        for i, value in enumerate(sums):
            seconds[i].append(value)
    return [statistics.median(values) for values in seconds]


def total(run: Callable[[list[Encoded]], Any], batches: list[list[Encoded]]) -> float:
    return sum(timed(lambda b=batch: run(b)) for batch in batches)  # type: ignore[misc]


def timed(run: Callable[[], Any]) -> float:
    synchronise = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronise()
    started = clock()
    run()
    synchronise()
    return clock() - started


def row(name: str, seconds: float, examples: int, tokens: int, ours: float | None = None) -> None:
    ratio = f"  ours is {seconds / ours:6.2f} times as fast" if ours else ""
    print(f"  {name:<36} {examples / seconds:8.2f} examples/s {tokens / seconds:8.0f} tokens/s{ratio}", flush=True)
