"""How batches and checkpoints are best arranged: padding, packing instead of padding, one checkpoint at a time or per batch."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import numpy as np
import torch

from tagcos_stream.config import Settings
from tagcos_stream.gradients.batching import plan_batches
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.extract import GradientExtractor, collate
from tagcos_stream.gradients.lm_head import head_losses
from tagcos_stream.gradients.memory import MAX_BATCH_ROWS
from tests.benchmarks.gradient_setting import alternate, extractor, setting, timed
from tests.models import random_checkpoint
from tests.naive import padding_share

PASSED = 16  # examples that go through the model; the others show the padding only


def plans(options: argparse.Namespace) -> None:
    base, encoded = setting(options)
    ex, _ = extractor(base, options.ranks[-1], ("adam",))
    padding(encoded)
    packing(ex, encoded[:PASSED], options)
    checkpoints(ex, encoded[:PASSED], options)


def padding(encoded: list[Encoded]) -> None:
    """Of blocks of the default size made of these examples' lengths; give many examples, and the default maximum length."""
    lengths = np.array([len(e) for e in encoded])
    rows = Settings().block_rows
    if len(lengths) < rows:
        print(f"\npadding: {len(lengths)} examples are less than a block of {rows}: give --examples 2560 --max-length 1024")
        return
    print()
    for budget in (1024, 2048, 4096, 8192):
        blocks = [lengths[i : i + rows] for i in range(0, len(lengths) - rows + 1, rows)]
        each = [plan_batches(block, budget, MAX_BATCH_ROWS) for block in blocks]
        computed = sum(int(block[batch].max()) * len(batch) for block, plan in zip(blocks, each, strict=True) for batch in plan)
        real = sum(int(block.sum()) for block in blocks)
        print(
            f"padding, {len(blocks)} blocks of {rows}, budget {budget}: {1 - real / computed:.1%}, "
            f"{real / sum(map(len, each)):.0f} tokens a batch"
        )


def packing(ex: GradientExtractor, encoded: list[Encoded], options: argparse.Namespace) -> None:
    """Forward and backward of padded batches, and of rows without padding in which positions begin anew at each example."""
    lengths = [len(e) for e in encoded]
    plan = plan_batches(lengths, options.token_budget, MAX_BATCH_ROWS)
    batches = [[encoded[i] for i in batch] for batch in plan]
    padded, packed = alternate([partial(plain_backward, ex), partial(packed_backward, ex)], batches, options.repeats)
    print(
        f"\npacking, budget {options.token_budget}: packed rows take {packed / padded:.2f} of the time of padded batches "
        f"(padding {padding_share(lengths, plan):.1%}), forward and backward passes alone"
    )


def plain_backward(ex: GradientExtractor, batch: list[Encoded]) -> None:
    ids, rows, positions, labels, weights = (part.to(ex.device) for part in collate(batch))
    backward(ex, {"input_ids": ids}, rows, positions, labels, weights)


def packed_backward(ex: GradientExtractor, batch: list[Encoded]) -> None:
    _, rows, positions, labels, weights = (part.to(ex.device) for part in collate(batch))
    ids = torch.from_numpy(np.concatenate([e.input_ids for e in batch]).astype(np.int64))[None].to(ex.device)
    starts = np.cumsum([0, *(len(e) for e in batch[:-1])])
    restarted = torch.from_numpy(np.concatenate([np.arange(len(e)) for e in batch]))[None].to(ex.device)
    begin = torch.from_numpy(starts).to(ex.device)
    backward(ex, {"input_ids": ids, "position_ids": restarted}, torch.zeros_like(rows), begin[rows] + positions, labels, weights)


def backward(ex: GradientExtractor, inputs: dict[str, Any], rows: Any, positions: Any, labels: Any, weights: Any) -> None:
    assert ex._decoder is not None
    decoder, head = ex._decoder
    hidden = decoder(**inputs, attention_mask=None, use_cache=False).last_hidden_state[rows, positions]
    _, gradient = head_losses(head, hidden, labels, weights.to(ex.dtype))
    ex.model.zero_grad()
    hidden.backward(gradient)


def checkpoints(ex: GradientExtractor, encoded: list[Encoded], options: argparse.Namespace) -> None:
    """Three checkpoints: each over all batches in turn, or all three at every batch."""
    several = [random_checkpoint(ex.model, seed=seed) for seed in range(3)]
    plan = plan_batches([len(e) for e in encoded], options.token_budget, MAX_BATCH_ROWS)
    batches = [[encoded[i] for i in batch] for batch in plan]

    def one_at_a_time() -> None:
        for checkpoint in several:
            ex.use(checkpoint)
            for batch in batches:
                ex.features(batch)

    def every_batch() -> None:
        for batch in batches:
            for checkpoint in several:
                ex.use(checkpoint)
                ex.features(batch)

    swap = min(timed(lambda c=checkpoint: ex.use(c)) for checkpoint in several * 3)  # type: ignore[misc]
    first, second = np.median([[timed(one_at_a_time), timed(every_batch)] for _ in range(options.repeats)], axis=0)
    print(
        f"\ncheckpoints, r={options.ranks[-1]}: three over {len(batches)} batches, all at every batch takes {second / first:.3f} "
        f"of the time of one at a time; changing the adapter takes {1000 * swap:.1f} ms"
    )
