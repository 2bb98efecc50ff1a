"""1B- and 7B-class models of random weights in bfloat16: features against plain passes, peak memory, the real stage's record."""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagcos_stream.gradients.batching import plan_batches
from tagcos_stream.gradients.memory import MAX_BATCH_ROWS, model_shape, peak_bytes
from tests.benchmarks.gradient_setting import DIM, alternate, extractor, plain_pass, random_model, row
from tests.models import random_encoded, tiny_tokenizer

# hidden, layers, heads, key-value heads, inner, vocabulary
SHAPES = {"1B": (2048, 16, 32, 8, 8192, 128256), "7B": (4096, 32, 32, 32, 11008, 32000)}
TINY = {"tiny": (64, 2, 4, 2, 96, 300)}
RANK, BUDGET, LONGEST = 128, 8192, 1024


def gpu(options: argparse.Namespace) -> None:
    for name, shape in (TINY if options.tiny else SHAPES).items():
        print(f"\n{name}, r={RANK}, bfloat16 on {options.device}, passes of at most {BUDGET} tokens", flush=True)
        features_against_plain(shape, options)
        real_stage(shape, options)


def features_against_plain(shape: tuple[int, ...], options: argparse.Namespace) -> None:
    ex, _ = extractor(random_model(*shape, dtype=torch.bfloat16, device=options.device), RANK, ("adam",))
    lengths = np.random.default_rng(0).lognormal(5, 0.6, 16 if options.tiny else 512).clip(16, LONGEST).astype(int)
    encoded = random_encoded(lengths.tolist(), vocabulary=shape[-1])
    plan = plan_batches(lengths, BUDGET, MAX_BATCH_ROWS)
    batches = [[encoded[i] for i in batch] for batch in plan]
    on_gpu = options.device.startswith("cuda")
    ours, plain = alternate([ex.features, partial(plain_pass, ex)], batches, options.repeats)
    row("ours, adam", ours, len(encoded), int(lengths.sum()))
    row("plain batched forward+backward", plain, len(encoded), int(lengths.sum()), ours)
    if on_gpu:
        ex.model.zero_grad()
        torch.cuda.reset_peak_memory_stats()
        ex.features(batches[0])
        formula = peak_bytes(
            model_shape(ex.model), token_budget=BUDGET, max_length=LONGEST, block_rows=len(batches[0]), dim=DIM, variants=1
        )
        print(f"  peak device memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, formula {formula / 2**30:.1f}")


def real_stage(shape: tuple[int, ...], options: argparse.Namespace) -> None:
    """The pipeline on a made pool, and what its gradient stage recorded: tokens a second and the share of model time."""
    from flows import pipeline
    from flows.progress import SilentReporter
    from tagcos_stream.config import load_settings

    rng = np.random.default_rng(0)
    rows = 48 if options.tiny else 2048
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        random_model(*shape, dtype=torch.bfloat16, device=options.device).save_pretrained(model)
        tiny_tokenizer().save_pretrained(model)
        with (Path(folder) / "pool.jsonl").open("w") as pool:
            for i, length in enumerate(rng.lognormal(5, 0.6, rows).clip(32, LONGEST).astype(int)):
                answer = "".join(map(chr, rng.integers(97, 123, length)))
                pool.write(json.dumps({"messages": turns(f"{i}", answer)}) + "\n")
        values: dict[str, Any] = {
            "sources": (str(Path(folder) / "pool.jsonl"),),
            "root": str(Path(folder) / "root"),
            "model": str(model),
            "device": options.device,
            "dtype": "bfloat16",
            "lora_rank": RANK,
            "warmup_examples": 8,
            "clusters": 2,
            "dim": 256 if options.tiny else DIM,
            "block_rows": 16 if options.tiny else 256,
        }
        stage = pipeline.run(load_settings(values), SilentReporter()).stages["gradients"]
    print(
        f"  the stage in the pipeline: {stage['tokens']} tokens in passes of {stage['batch_tokens']}, "
        f"{stage['model_share']:.1%} of its time in forward and backward passes, {stage['halvings']} halvings"
    )


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
