"""A plain LoRA training on a selection: AdamW, the method's loss, and an order of examples that all selections share.

Seeds are common random numbers: the adapter is drawn from the seed alone, and the place of an example in an epoch from its id,
the seed and the epoch, so that what two selections share comes in the same order in both. Differences between selections of
one seed then hold less noise than the values themselves.

Dimension letters: n examples of a selection, S steps, B examples of a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tagcos_stream.evaluation.losses import ExampleLosses
from tagcos_stream.gradients.adapter import adapter_parameters, draw_adapter
from tagcos_stream.gradients.batching import halving, plan_batches
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.random_bits import draws
from tagcos_stream.types import UserError

MAX_GRAD_NORM = 1.0
_ORDER = 1_000_003  # keeps the draws of the order apart from those of selections, which count seeds from 0


@dataclass(frozen=True)
class Plan:
    """How to train, whatever on."""

    batch_size: int
    learning_rate: float
    schedule: str  # cosine, linear or constant
    rise: float  # share of the steps

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0..steps-1: a linear rise to the peak, then the schedule."""
        rise = math.ceil(self.rise * steps)
        if step < rise:
            return self.learning_rate * (step + 1) / (rise + 1)
        if self.schedule == "constant":
            return self.learning_rate
        done = (step - rise) / max(1, steps - rise)
        return self.learning_rate * (0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1 - done)


@dataclass(frozen=True)
class Trained:
    """The course of a training."""

    losses: np.ndarray  # (S,) float64: mean loss of each step's examples, not weighted, before the step
    tokens: int  # without padding
    token_budget: int  # halved where device memory ran out


def order(example_ids: Sequence[str], count: int, seed: int) -> np.ndarray:
    """(count,) int64: positions in the order of training, epoch after epoch, each a permutation; the last may be cut short."""
    epochs = [
        np.argsort(draws(example_ids, _ORDER * (seed + 1) + epoch), kind="stable")
        for epoch in range(math.ceil(count / len(example_ids)))
    ]
    return np.concatenate(epochs)[:count]


def finetune(
    model: Any,
    encoded: Sequence[Encoded],
    example_ids: Sequence[str],
    plan: Plan,
    *,
    steps: int,
    seed: int,
    weights: np.ndarray | None = None,
    token_budget: int,
    progress: Callable[[int], None] = lambda tokens: None,
) -> Trained:
    """Train the adapter of `model` (a PeftModel; initialized here) for S steps of B examples; the model keeps it.

    Parameters
    ----------
    model
        The model; changed in place.
    encoded
        The selection (n).
    example_ids
        Of each (n), which decide the order.
    weights
        (n,) not negative, of mean 1; None for equal weights. A step's loss is sum(weights * losses) / B, so that weights
        move the emphasis between examples and not the size of a step.
    token_budget
        Padded tokens of a pass; a step accumulates as many passes as it takes.
    progress
        Called with the tokens done.

    Raises
    ------
    UserError
        The loss is not a number any more, or device memory does not hold one example.
    """
    draw_adapter(model, seed)
    parameters = list(adapter_parameters(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=0.0)
    own = np.ones(len(encoded)) if weights is None else np.asarray(weights, np.float64)
    places = order(example_ids, steps * plan.batch_size, seed)
    measured, found, tokens = ExampleLosses(model), np.empty(steps), 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of dropout, where there is any
        model.train()
        try:
            for step in range(steps):
                batch = places[step * plan.batch_size : (step + 1) * plan.batch_size]
                losses, token_budget = _step(measured, encoded, own, batch, token_budget, parameters)
                torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
                for group in optimizer.param_groups:
                    group["lr"] = plan.rate(step, steps)
                optimizer.step()
                found[step] = losses.mean()
                if not np.isfinite(found[step]):
                    raise UserError(
                        f"the loss became {found[step]} at step {step + 1} of {steps}: lower learning_rate, it is "
                        f"{plan.learning_rate:g}"
                    )
                tokens += sum(len(encoded[i]) for i in batch)
                progress(tokens)
        finally:
            model.eval()
    return Trained(found, tokens, token_budget)


def _step(
    measured: ExampleLosses,
    encoded: Sequence[Encoded],
    weights: np.ndarray,
    batch: np.ndarray,
    token_budget: int,
    parameters: Sequence[torch.nn.Parameter],
) -> tuple[np.ndarray, int]:
    """(losses (B,), the token budget that was enough); leaves the gradient of the step in the parameters."""

    def once(budget: int) -> np.ndarray:
        for parameter in parameters:
            parameter.grad = None
        losses = np.empty(len(batch))
        for part in plan_batches([len(encoded[i]) for i in batch], budget):
            chosen = batch[part]
            losses[part] = measured.backward([encoded[i] for i in chosen], weights[chosen] / len(batch))
        return losses

    longest = max(len(encoded[i]) for i in batch)
    return halving(once, token_budget, longest, "lower --max-length or --lora-rank")
