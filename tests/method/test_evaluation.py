"""Training on a selection: the method's loss, the same noise for every selection, and nothing that depends on batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tagcos_stream.evaluation import finetune as training
from tagcos_stream.evaluation.losses import ExampleLosses, losses_of
from tagcos_stream.gradients.adapter import adapter_parameters, attach_adapter, draw_adapter
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.types import UserError
from tests.models import KINDS, random_encoded, tiny_model

PLAN = training.Plan(batch_size=4, learning_rate=1e-2, schedule="cosine", rise=0.2)


def ids(n: int, seed: int = 0) -> list[str]:
    return [np.random.default_rng([seed, i]).bytes(16).hex() for i in range(n)]


def adapted(kind: str = "llama", **changes: Any) -> Any:
    return attach_adapter(tiny_model(kind), rank=4, alpha=8, dropout=0.0, seed=3, **changes)


def naive_loss(model: Any, one: Encoded) -> torch.Tensor:
    """Mean cross-entropy over the target tokens, from the model's own logits, one example at a time."""
    logits = model(input_ids=torch.from_numpy(one.input_ids.astype(np.int64))[None]).logits[0]
    at = np.flatnonzero(one.target)
    return F.cross_entropy(logits[at - 1], torch.from_numpy(one.input_ids[at].astype(np.int64)))


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def naive_finetune(model: Any, encoded: list[Encoded], places: np.ndarray, weights: np.ndarray, steps: int, seed: int) -> None:
    """The specification: one example at a time, torch's own optimizer, the rate written out."""
    draw_adapter(model, seed)
    parameters = list(adapter_parameters(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=PLAN.learning_rate, betas=(0.9, 0.999), weight_decay=0.0)
    rise = math.ceil(0.2 * steps)
    for step in range(steps):
        batch = places[4 * step : 4 * step + 4]
        optimizer.zero_grad()
        torch.stack([weights[i] * naive_loss(model, encoded[i]) / 4 for i in batch]).sum().backward()
        length = torch.sqrt(torch.stack([(gradient_of(p) ** 2).sum() for p in parameters]).sum())
        for p in parameters:
            p.grad = gradient_of(p) * min(1.0, 1.0 / float(length + 1e-6))
        share = (step + 1) / (rise + 1) if step < rise else (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * share
        optimizer.step()


def test_losses__passes_are_halved_where_device_memory_runs_out() -> None:
    model, encoded, refused = adapted(), random_encoded([30, 29, 29, 30, 28], seed=1), list[int]()
    expected = losses_of(model, encoded, token_budget=60)

    def full(module: Any, given: Any, named: dict[str, Any]) -> None:
        if (size := named["input_ids"].numel()) > limit:
            refused.append(size)
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.get_base_model().model.register_forward_pre_hook(full, with_kwargs=True)
    limit = 60
    assert losses_of(model, encoded, token_budget=160) == pytest.approx(expected, abs=2e-6)
    assert refused
    limit = 29
    with pytest.raises(UserError, match=r"out of device memory at one example a batch .* lower --max-length"):
        losses_of(model, encoded, token_budget=160)


@pytest.mark.parametrize("kind", KINDS)
def test_losses__are_those_of_one_example_at_a_time(kind: str) -> None:
    model = adapted(kind)
    draw_adapter(model, 1)
    for parameter in adapter_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(5))
    encoded = random_encoded([30, 7, 19, 12, 25, 3], seed=1)
    with torch.no_grad():
        expected = [float(naive_loss(model, one)) for one in encoded]
    for budget in (1, 40, 1000):
        assert losses_of(model, encoded, token_budget=budget) == pytest.approx(expected, abs=2e-6)
    weights = np.array([0.0, 2.0, 0.5, 1.0, 1.5, 0.1])
    parameters = adapter_parameters(model)
    measured = ExampleLosses(model).backward(encoded, weights)
    assert measured == pytest.approx(expected, abs=2e-6)
    found = {name: gradient_of(p).clone() for name, p in parameters.items()}
    for p in parameters.values():
        p.grad = None
    sum(w * naive_loss(model, one) for w, one in zip(weights, encoded, strict=True)).backward()
    for name, p in parameters.items():
        assert torch.allclose(found[name], gradient_of(p), atol=3e-6, rtol=1e-4), name


@pytest.mark.process
@pytest.mark.parametrize("weighted", [False, True])
def test_finetune__is_the_plain_training_loop(weighted: bool) -> None:
    model = adapted()
    encoded, names = random_encoded([20, 9, 14, 30, 11, 8, 17], seed=2), ids(7)
    weights = np.array([2.0, 0.0, 1.0, 0.5, 1.5, 1.0, 1.0]) if weighted else None
    steps = 5  # 20 examples: nearly three epochs
    trained = training.finetune(model, encoded, names, PLAN, steps=steps, seed=4, weights=weights, token_budget=64)
    got = {name: p.detach().clone() for name, p in adapter_parameters(model).items()}
    assert trained.losses.shape == (steps,)
    assert trained.tokens == sum(len(encoded[i]) for i in training.order(names, 20, 4))
    naive_finetune(model, encoded, training.order(names, 20, 4), np.ones(7) if weights is None else weights, steps, 4)
    for name, p in adapter_parameters(model).items():
        assert torch.allclose(got[name], p, atol=2e-5), name
        assert ".lora_B." not in name or p.abs().max() > 1e-3, "it was trained"


@pytest.mark.process
def test_finetune__repeats_and_does_not_depend_on_what_came_before() -> None:
    model = adapted()
    encoded, names = random_encoded([20, 9, 14, 30, 11], seed=2), ids(5)

    def train(seed: int, budget: int = 64) -> list[np.ndarray]:
        training.finetune(model, encoded, names, PLAN, steps=3, seed=seed, token_budget=budget)
        return [p.detach().numpy().copy() for p in adapter_parameters(model).values()]

    state = torch.random.get_rng_state()
    first, other, again = train(0), train(1), train(0)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True)), "bit for bit"
    assert not all(np.allclose(a, b) for a, b in zip(first, other, strict=True))
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(first, train(0, 1), strict=True)), "passes are no matter"
    assert torch.equal(state, torch.random.get_rng_state())


def test_finetune__a_rate_that_breaks_the_model_is_said() -> None:
    wild = training.Plan(batch_size=2, learning_rate=1e30, schedule="constant", rise=0.0)
    with pytest.raises(UserError, match=r"step . of 9: lower learning_rate, it is 1e"):
        training.finetune(adapted(), random_encoded([9, 9], seed=1), ids(2), wild, steps=9, seed=0, token_budget=64)


def test_order__epochs_are_permutations_and_selections_share_it() -> None:
    names = ids(50)
    places = training.order(names, 120, 7)
    assert sorted(places[:50]) == sorted(places[50:100]) == list(range(50))
    assert list(places[:50]) != list(places[50:100])
    assert len(set(places[100:])) == 20
    assert list(places[:30]) == list(training.order(names, 30, 7))
    assert list(places[:50]) != list(training.order(names, 50, 8))
    # what two selections share comes in the same order in both, wherever it stands in them
    some = names[40:] + names[:15]
    theirs = [some[i] for i in training.order(some, 25, 7)]
    assert theirs == [names[i] for i in places[:50] if names[i] in some]


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.02447), ("linear", 0.1), ("constant", 1.0)])
def test_rate__rises_and_falls(schedule: str, last: float) -> None:
    plan = training.Plan(batch_size=4, learning_rate=2.0, schedule=schedule, rise=0.1)
    rates = [plan.rate(step, 11) for step in range(11)]
    assert rates[0] == pytest.approx(2 / 3)
    assert rates[1] == pytest.approx(4 / 3)
    assert rates[2] == 2.0
    assert sorted(rates[2:], reverse=True) == rates[2:]
    assert plan.rate(0, 1) > 0
    assert training.Plan(4, 2.0, schedule, 0.1).rate(11, 12) / 2 == pytest.approx(last, abs=1e-3)
