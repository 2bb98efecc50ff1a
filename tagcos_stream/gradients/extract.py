"""Gradient features: projected per-sample LoRA gradients of batches and blocks of examples.

Loss of an example: mean cross-entropy over its target tokens. A batch is padded on the right; under causal attention no token
sees one after it, so padding and batch mates cannot reach an example and no mask is needed (self_check and the tests hold this
against autograd one example at a time). The language-model head is computed at target positions only.

Dimension letters: n examples of a block, B rows of a batch, T tokens, H hidden size, P adapter parameters, D feature dimension.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tagcos_stream.gradients.adapter import adapter_parameters, require_fit
from tagcos_stream.gradients.batching import halving, plan_batches
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.hidden import HIDDEN, pooled
from tagcos_stream.gradients.hooks import AdapterCapture
from tagcos_stream.gradients.lm_head import cross_entropy, find_decoder, forward_losses, head_losses
from tagcos_stream.gradients.memory import MAX_BATCH_ROWS
from tagcos_stream.gradients.projection.projections import Projection
from tagcos_stream.gradients.variants import VARIANTS, Moments, transform
from tagcos_stream.gradients.warmup import checkpoint_weights
from tagcos_stream.types import Checkpoint, UserError


@dataclass(frozen=True)
class GradientBatch:
    """Features and signals of one batch, on the model's device."""

    features: dict[str, torch.Tensor]  # per variant (B, D) float32 (float64 for a float64 model), rows of unit length
    loss: torch.Tensor  # (B,) mean cross-entropy over target tokens
    grad_norm: torch.Tensor  # (B,) length of the example's whole adapter gradient, unprojected; NaN for `hidden` alone
    finite: torch.Tensor  # (B,) bool: loss, gradient and every feature are finite and the features have a direction


@dataclass(frozen=True)
class BlockFeatures:
    """Features and signals of one block, averaged over checkpoints, and what they cost."""

    features: dict[str, np.ndarray]  # per variant (n, D) float16; NaN where not finite
    loss: np.ndarray  # (n,) float32, averaged over checkpoints by weight
    norm: np.ndarray  # (n,) float32, likewise; NaN where no variant has a gradient
    finite: np.ndarray  # (n,) bool
    token_budget: int  # the one it ended with: halved on running out of device memory
    halvings: int
    model_seconds: float  # time within forward and backward passes, hooks included
    tokens: int  # of all examples, without padding, times checkpoints


class GradientExtractor:
    """Computes features with one adapter state at a time: `use` a checkpoint, then `features` of batches.

    model: a PeftModel (or a LoadedModel holding one) with LoRA adapters. It is put in eval mode (dropout off).
    """

    def __init__(self, model: Any, *, variants: Sequence[str], projection: Projection) -> None:
        unknown = [variant for variant in variants if variant not in VARIANTS]
        if unknown or not variants:
            raise UserError(f"gradient variant {unknown or 'none'}: use some of {', '.join(VARIANTS)}")
        self.model = getattr(model, "model", model) if hasattr(model, "tokenizer") else model
        self.model.eval()
        self.variants = tuple(dict.fromkeys(variants))
        self.of_gradient = tuple(variant for variant in self.variants if variant != HIDDEN)
        self.projection = projection
        self.parameters = adapter_parameters(self.model)
        self.capture = AdapterCapture(self.model)
        missing = self.parameters.keys() - self.capture.layers.keys()
        if missing:
            raise UserError(f"adapter matrices outside linear layers are not supported: {', '.join(sorted(missing)[:3])}")
        self.device = next(iter(self.parameters.values())).device
        self.dtype = next(iter(self.parameters.values())).dtype
        self._moments: dict[str, Moments] = {}
        self._checkpoint: Checkpoint | None = None
        self._decoder: Any = find_decoder(self.model)

    def use(self, checkpoint: Checkpoint) -> None:
        """Put a checkpoint's adapter weights and moments in place.

        UserError naming both sides where they do not fit the model.
        """
        if checkpoint is self._checkpoint:
            return
        for part in ("weights", "exp_avg", "exp_avg_sq"):
            require_fit(getattr(checkpoint, part), self.parameters, f"the checkpoint's {part}")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(as_tensor(checkpoint.weights[name]))
        self._moments = {name: moments_of(checkpoint, name, parameter) for name, parameter in self.parameters.items()}
        self._checkpoint = checkpoint

    def features(self, batch: Sequence[Encoded]) -> GradientBatch:
        """Return features of a batch under the checkpoint in use.

        From one forward pass and, for variants of the gradient, one backward pass.
        """
        if self._checkpoint is None:
            raise ValueError("no checkpoint in use: call use(checkpoint) first")
        sums = {v: torch.zeros(len(batch), self.projection.dim, dtype=self.dtype, device=self.device) for v in self.variants}
        if self.of_gradient:
            loss, norm, states = self._gradients(batch, sums)
        else:
            loss, states = self._forward(batch)
            norm = torch.full_like(loss, torch.nan, dtype=torch.float64)
        finite = torch.isfinite(loss)
        if self.of_gradient:
            finite &= torch.isfinite(norm)
        if states is not None:
            self.projection.add(HIDDEN, states, sums[HIDDEN])
        unit = {}
        for variant, rows in sums.items():
            length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            finite &= torch.isfinite(length[:, 0]) & (length[:, 0] > 0)
            unit[variant] = rows.div_(length)
        return GradientBatch(unit, loss, norm.to(self.dtype), finite)

    def losses(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Compute the losses of a batch under the checkpoint in use, by a forward pass.

        Parameters
        ----------
        batch
            B examples.

        Returns
        -------
        torch.Tensor
            (B,) mean cross-entropy over the target tokens, nats.
        """
        if self._checkpoint is None:
            raise ValueError("no checkpoint in use: call use(checkpoint) first")
        return self._forward(batch)[0]

    def _gradients(
        self, batch: Sequence[Encoded], sums: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Add the projected variants of the gradients to `sums` (B, D).

        Returns losses (B,), gradient lengths (B,) float64 and, where they are asked for, pooled states (B, H).
        """
        squares = torch.zeros(len(batch), dtype=torch.float64, device=self.device)
        widest = max(parameter.numel() for parameter in self.parameters.values())
        scratch = torch.empty(0 if self.of_gradient == ("sgd",) else len(batch) * widest, dtype=self.dtype, device=self.device)

        def consume(name: str, gradients: torch.Tensor) -> None:
            squares.add_(torch.linalg.vector_norm(gradients, dim=1).double().square_())
            for variant in self.of_gradient:
                target = scratch[: gradients.numel()].view_as(gradients) if variant != "sgd" else gradients
                self.projection.add(name, transform(variant, gradients, self._moments[name], target), sums[variant])

        with self.capture.recording(consume), torch.enable_grad():
            loss, states = self._backward(batch)
        return loss, squares.sqrt_(), states

    @torch.no_grad()
    def _forward(self, batch: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Losses (B,) and, where they are asked for, pooled states (B, H)."""
        ids, rows, positions, labels, weights = (part.to(self.device) for part in collate(batch))
        weights = weights.to(self.dtype)
        states, logits = self._run(ids)
        if logits is not None:
            each = cross_entropy(logits[rows, positions], labels).to(self.dtype) * weights
        else:
            each = forward_losses(self._decoder[1], states[rows, positions], labels, weights)
        loss = torch.zeros(len(batch), dtype=self.dtype, device=self.device).index_add_(0, rows, each)
        return loss, self._pooled(states, batch)

    def _backward(self, batch: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Run forward and backward of the sum over examples of their mean losses.

        Returns the losses (B,) and, where they are asked for, pooled states (B, H). Sum, not mean: a mean would make a gradient
        depend on the size of its batch.
        """
        ids, rows, positions, labels, weights = (part.to(self.device) for part in collate(batch))
        weights = weights.to(self.dtype)
        loss = torch.zeros(len(batch), dtype=self.dtype, device=self.device)
        states, logits = self._run(ids)
        kept = self._pooled(states, batch)
        if logits is not None:
            each = cross_entropy(logits[rows, positions], labels).to(self.dtype) * weights
            loss.index_add_(0, rows, each.detach())
            each.sum().backward()
            return loss, kept
        hidden = states[rows, positions]  # (targets, H)
        each, gradient = head_losses(self._decoder[1], hidden, labels, weights)
        loss.index_add_(0, rows, each)
        hidden.backward(gradient)
        return loss, kept

    def _run(self, ids: torch.Tensor) -> tuple[Any, torch.Tensor | None]:
        """Return (last hidden states (B, T, H) or None, logits (B, T, V) or None).

        Where the head can be applied to target positions only, the states alone; otherwise the logits, with the states where a
        variant reads them.
        """
        if self._decoder is not None:
            return self._decoder[0](input_ids=ids, use_cache=False).last_hidden_state, None
        pools = HIDDEN in self.variants
        output = self.model(input_ids=ids, use_cache=False, output_hidden_states=pools)
        return output.hidden_states[-1] if pools else None, output.logits

    def _pooled(self, states: Any, batch: Sequence[Encoded]) -> torch.Tensor | None:
        if HIDDEN not in self.variants:
            return None
        return pooled(states.detach().to(self.dtype), [len(example) for example in batch])


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor on the CPU; copied only where torch could not write to it."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def moments_of(checkpoint: Checkpoint, name: str, like: torch.Tensor) -> Moments:
    """A parameter's Adam moments (P,), with the device and dtype of `like`."""
    m, v = (as_tensor(part[name]).to(like.device, like.dtype).reshape(-1) for part in (checkpoint.exp_avg, checkpoint.exp_avg_sq))
    return Moments(m, v, checkpoint.adam_steps)


def collate(batch: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids (B, T) padded on the right with 0, and what describes each target token, in order.

    Its row, the position that predicts it, its id, and the weight 1 / (targets of its example).
    """
    ids = np.zeros((len(batch), max(len(e) for e in batch)), np.int64)
    rows, positions, labels, weights = [], [], [], []
    for row, example in enumerate(batch):
        ids[row, : len(example)] = example.input_ids
        targets = np.flatnonzero(example.target)
        if len(targets) == 0 or targets[0] == 0:
            raise ValueError("an example needs a target token, and its first token cannot be one: encode() sees to both")
        rows.append(np.full(len(targets), row))
        positions.append(targets - 1)
        labels.append(example.input_ids[targets].astype(np.int64))
        weights.append(np.full(len(targets), 1 / len(targets)))
    flat = (torch.from_numpy(np.concatenate(parts)) for parts in (rows, positions, labels, weights))
    return torch.from_numpy(ids), *flat  # type: ignore[return-value]


def block_features(
    extractor: GradientExtractor,
    checkpoints: Sequence[Checkpoint],
    encoded: Sequence[Encoded],
    *,
    token_budget: int,
    progress: Callable[[int, int], None] | None = None,
) -> BlockFeatures:
    """Features of a block: per example the weighted sum over checkpoints of unit rows, in the block's order.

    One checkpoint at a time over the whole block. Out of device memory: the budget is halved and the block begun again.
    """
    halvings = -1

    def once(budget: int) -> BlockFeatures:
        nonlocal halvings
        halvings += 1
        return _block_once(extractor, checkpoints, encoded, budget, halvings, progress)

    longest = max(len(e) for e in encoded)
    return halving(once, token_budget, longest, "lower the maximum length or the rank")[0]


def _block_once(
    extractor: GradientExtractor,
    checkpoints: Sequence[Checkpoint],
    encoded: Sequence[Encoded],
    token_budget: int,
    halvings: int,
    progress: Callable[[int, int], None] | None,
) -> BlockFeatures:
    n, dim = len(encoded), extractor.projection.dim
    lengths = np.array([len(e) for e in encoded])
    batches = plan_batches(lengths, token_budget, MAX_BATCH_ROWS)
    sums = {variant: np.zeros((n, dim), np.float32) for variant in extractor.variants}
    loss, norm, finite = np.zeros(n), np.zeros(n), np.ones(n, bool)
    seconds, done = 0.0, 0
    # normalised here too: a caller may leave some checkpoints of a space out
    weights = checkpoint_weights([checkpoint.weight for checkpoint in checkpoints])
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        extractor.use(checkpoint)
        for batch in batches:
            started = time.perf_counter()
            result = extractor.features([encoded[i] for i in batch])
            for variant, rows in result.features.items():
                sums[variant][batch] += np.float32(weight) * rows.cpu().numpy().astype(np.float32, copy=False)
            loss[batch] += weight * result.loss.cpu().numpy()
            norm[batch] += weight * result.grad_norm.cpu().numpy()
            finite[batch] &= result.finite.cpu().numpy()
            seconds += time.perf_counter() - started
            done += len(batch)
            if progress is not None:
                progress(done, n * len(checkpoints))
    features = {variant: rows.astype(np.float16) for variant, rows in sums.items()}
    for stored in features.values():
        stored[~finite] = np.nan
    tokens = int(lengths.sum()) * len(checkpoints)
    return BlockFeatures(
        features, loss.astype(np.float32), norm.astype(np.float32), finite, token_budget, halvings, seconds, tokens
    )
