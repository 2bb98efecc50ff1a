"""The check at the start of every gradient run: the optimised path against plain autograd, one example at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.extract import GradientExtractor, moments_of
from tagcos_stream.gradients.hidden import HIDDEN
from tagcos_stream.gradients.variants import transform
from tagcos_stream.types import Checkpoint

# Relative error allowed. The two paths differ in the order of additions only: by the base model's precision.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-3, torch.bfloat16: 0.2, torch.float16: 0.1}
# Rounding of logits moves the loss by an amount that does not shrink with it: below this loss, its error is relative to this.
NEARLY_CERTAIN = 0.1
CERTAIN = 1e-6  # a loss below which float32 cannot tell the probability from 1: gradients are rounding errors


class SelfCheckFailed(RuntimeError):
    """Batched gradient features differ from autograd's on this model: none of them can be trusted."""


def self_check(extractor: GradientExtractor, checkpoint: Checkpoint, examples: Sequence[Encoded]) -> None:
    """Compare loss, gradient length and features of a batch of two examples with autograd at batch size 1.

    Parameters
    ----------
    extractor
        Of the model.
    checkpoint
        Put in use.
    examples
        Two.

    Raises
    ------
    SelfCheckFailed
        A quantity differs by more than the model's precision explains; the message names the first one.

    Notes
    -----
    The gradient of an answer that is nearly certain is proportional to its loss, so that it may be off by the same factor.
    That of an answer that is certain is not compared.
    """
    extractor.use(checkpoint)
    batch = extractor.features(examples)
    compute = next(
        (p.dtype for p in extractor.model.parameters() if p.is_floating_point() and p.dtype != torch.float32), torch.float32
    )
    if any(type(module).__module__.startswith("bitsandbytes") for module in extractor.model.modules()):
        compute = torch.bfloat16
    tolerance = TOLERANCE[compute]
    for row, example in enumerate(examples):
        loss, norm, features = autograd_features(extractor, checkpoint, example)
        certain = float(loss) < CERTAIN
        moved = _error(batch.loss[row], loss) if float(loss) < NEARLY_CERTAIN else 0.0
        pairs = {"loss": (batch.loss[row], loss)}
        if extractor.of_gradient and not certain:
            pairs["gradient length"] = (batch.grad_norm[row], norm)
        pairs |= {
            f"{variant} feature": (batch.features[variant][row], feature)
            for variant, feature in features.items()
            if variant == HIDDEN or not certain
        }
        for what, (ours, plain) in pairs.items():
            # `sign` and the momentum-free variants amplify rounding where a gradient is all but zero.
            allowed = tolerance * (50 if what.startswith(("sign", "preconditioned", "adam-corrected")) else 1)
            allowed += 0.0 if what == "loss" or what.startswith(HIDDEN) else moved
            error = _error(ours, plain, NEARLY_CERTAIN if what == "loss" else 0.0)
            if not error <= allowed and bool(torch.isfinite(plain).all()):
                raise SelfCheckFailed(
                    f"{what} of example {row} differs from autograd at batch size 1 by {error:.2g} (allowed {allowed:.2g}, "
                    f"{compute}): this model ({type(extractor.model.get_base_model()).__name__}) does not fit batched gradients; "
                    "please report it"
                )


def _error(ours: torch.Tensor, plain: torch.Tensor, least: float = 0.0) -> float:
    """Length of the difference, relative to that of `plain` but to no less than `least`."""
    return float((ours.double() - plain.double()).norm() / plain.double().norm().clamp_min(max(least, 1e-30)))


def autograd_features(
    extractor: GradientExtractor, checkpoint: Checkpoint, example: Encoded
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Compute the features of one example with autograd: no hooks, no batch, the model's own logits.

    Parameters
    ----------
    extractor, checkpoint
        As for `self_check`.
    example
        With a target token.

    Returns
    -------
    tuple of (torch.Tensor, torch.Tensor, dict)
        Loss, gradient length, and unit features by variant.
    """
    ids = torch.from_numpy(example.input_ids.astype("int64"))[None].to(extractor.device)
    target = torch.from_numpy(example.target).to(extractor.device)
    parameters = extractor.parameters
    before = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        output = extractor.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_hidden_states=HIDDEN in extractor.variants
        )
        logits = output.logits[0, :-1]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        loss = F.cross_entropy(logits[target[1:]], ids[0, 1:][target[1:]])
        gradients = torch.autograd.grad(loss, list(parameters.values()))
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name])
    dim, like = extractor.projection.dim, gradients[0]
    sums = {variant: like.new_zeros(1, dim) for variant in extractor.of_gradient}
    for name, gradient in zip(parameters, gradients, strict=True):
        row = gradient.reshape(1, -1)
        moments = moments_of(checkpoint, name, row)
        for variant, total in sums.items():
            moved = transform(variant, row, moments, torch.empty_like(row))
            extractor.projection.add(name, moved.contiguous(), total)
    if HIDDEN in extractor.variants:
        states = output.hidden_states[-1][0].detach().to(like.dtype)  # (T, H)
        weights = torch.arange(1, len(states) + 1, device=states.device, dtype=like.dtype)
        sums[HIDDEN] = like.new_zeros(1, dim)
        extractor.projection.add(HIDDEN, (weights @ states / weights.sum())[None].contiguous(), sums[HIDDEN])
    norm = torch.stack([gradient.double().norm() for gradient in gradients]).norm()
    return loss.detach(), norm, {variant: (total / total.norm())[0] for variant, total in sums.items()}
