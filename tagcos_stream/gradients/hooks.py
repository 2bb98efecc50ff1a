"""Per-sample gradients of LoRA matrices, from hooks in one batched backward pass.

A linear layer y = x W' has, for example b, the gradient sum over t of dy[b, t] x[b, t]' (Goodfellow, arXiv 1510.01799). The
input is kept by a forward hook, the output's gradient arrives in a tensor hook, and their product goes straight to a consumer:
no gradient of any weight is computed by autograd, and never more than one matrix's per-sample gradients exist.

Dimension letters: B rows of a batch, T tokens, I and O a matrix's inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tagcos_stream.gradients.adapter import saved_name
from tagcos_stream.types import UserError

Consumer = Callable[[str, torch.Tensor], None]


class AdapterCapture:
    """Watches every lora_A and lora_B of a model while `recording`.

    Passes (parameter name, gradients (B, O*I)) to a consumer.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = {
            saved_name(name + ".weight"): module
            for name, module in model.named_modules()
            if (".lora_A." in name or ".lora_B." in name) and isinstance(module, nn.Linear)
        }
        self._consumer: Consumer | None = None
        self._pending: dict[str, int] = {}

    @contextmanager
    def recording(self, consumer: Consumer) -> Iterator[None]:
        """Within: forward and backward passes feed the consumer, once per matrix; parameters require no gradients."""
        parameters = [p for layer in self.layers.values() for p in layer.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.requires_grad_(False)
        handles = [layer.register_forward_hook(self._forward_hook(name)) for name, layer in self.layers.items()]
        self._consumer, self._pending = consumer, {}
        try:
            yield
            left = [name for name, calls in self._pending.items() if calls]
            assert not left, f"no gradient arrived for {left[:3]}"
        finally:
            self._consumer, self._pending = None, {}
            for handle in handles:
                handle.remove()
            for parameter in parameters:
                parameter.requires_grad_(True)

    def _forward_hook(self, name: str) -> Callable[..., None]:
        def keep(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            x = inputs[0].detach()
            if x.ndim != 3:
                raise UserError(
                    f"{name}: its input has shape {tuple(x.shape)}, not (batch, tokens, inputs): "
                    "leave this layer out of lora_targets"
                )
            if name in self._pending:
                raise UserError(f"{name}: used more than once in a forward pass: leave this layer out of lora_targets")
            self._pending[name] = 1
            if not output.requires_grad:
                output.requires_grad_()  # the first adapted layer: nothing before it needs a gradient, so the graph starts here

            def consume(dy: torch.Tensor) -> None:
                self._pending[name] = 0
                with torch.no_grad():
                    gradient = torch.bmm(dy.transpose(1, 2), x.to(dy.dtype))  # (B, O, I)
                    assert self._consumer is not None
                    self._consumer(name, gradient.view(len(gradient), -1))

            output.register_hook(consume)

        return keep
