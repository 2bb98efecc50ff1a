"""The training and held-out passes of `tagcos evaluate` beside plain ones: `bench_gradients --parts training`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch

from tagcos_stream.evaluation.finetune import Plan, finetune, order
from tagcos_stream.evaluation.losses import losses_of
from tagcos_stream.gradients.adapter import adapter_parameters
from tagcos_stream.gradients.batching import plan_batches
from tests.benchmarks.gradient_setting import extractor, plain_inputs, plain_pass, row, setting, timed

PLAN = Plan(batch_size=8, learning_rate=3e-4, schedule="constant", rise=0.0)


def training(options: argparse.Namespace) -> None:
    """One epoch in steps of eight examples, and one pass of measuring, each beside plain passes in turns.

    Plain passes have logits at every token: over batches of like lengths, as the gradient stage plans them, and as the steps of
    the same training, each padded to its longest example, with the same optimizer.
    """
    for rank in options.ranks:
        _rank(options, rank)


def _rank(options: argparse.Namespace, rank: int) -> None:
    base, encoded = setting(options)
    encoded = encoded[: len(encoded) // PLAN.batch_size * PLAN.batch_size]
    ex, _ = extractor(base, rank, ("adam",))
    ids = [f"{i:032x}" for i in range(len(encoded))]
    batches = [[encoded[i] for i in batch] for batch in plan_batches([len(e) for e in encoded], options.token_budget)]
    places = order(ids, len(encoded), seed=0).reshape(-1, PLAN.batch_size)
    optimizer = torch.optim.AdamW(adapter_parameters(ex.model).values(), lr=PLAN.learning_rate)

    def trained() -> None:
        finetune(ex.model, encoded, ids, PLAN, steps=len(places), seed=0, token_budget=options.token_budget)

    def plain_steps() -> None:
        for step in places:
            plain_pass(ex, [encoded[i] for i in step])
            optimizer.step()

    def plain_passes() -> None:
        for batch in batches:
            plain_pass(ex, batch)

    def measured() -> None:
        losses_of(ex.model, encoded, token_budget=options.token_budget)

    def plain_forward() -> None:
        with torch.no_grad():
            for batch in batches:
                ex.model(**plain_inputs(ex, batch), use_cache=False)

    size = len(encoded), sum(map(len, encoded))
    print(f"\nr={rank}: {size[0]} examples, {size[1]} tokens")
    for runs in (
        {"training": trained, "plain steps, padded": plain_steps, "plain passes, like lengths": plain_passes},
        {"measuring": measured, "plain forward, like lengths": plain_forward},
    ):
        _compare(options.repeats, *size, runs)


def _compare(repeats: int, examples: int, tokens: int, runs: dict[str, Callable[[], None]]) -> None:
    """Print the median rate of every run and how much faster the first is; they take turns, and one round warms up."""
    rounds = [{name: timed(run) for name, run in runs.items()} for _ in range(repeats + 1)][1:]
    middle = {name: statistics.median(seconds[name] for seconds in rounds) for name in runs}
    ours = next(iter(middle.values()))
    for name, seconds in middle.items():
        row(name, seconds, examples, tokens, None if seconds is ours else ours)
