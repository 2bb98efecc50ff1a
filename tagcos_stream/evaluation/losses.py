"""The loss of examples under a model, as the method defines it: the mean cross-entropy over an example's target tokens.

Batches are padded on the right; under causal attention nothing reaches an example from its padding or its batch mates. The
language-model head is computed at target positions only.

Dimension letters: n examples, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tagcos_stream.gradients.adapter import adapter_parameters
from tagcos_stream.gradients.batching import halving, plan_batches
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.extract import collate
from tagcos_stream.gradients.lm_head import cross_entropy, find_decoder, head_losses
from tagcos_stream.gradients.memory import HEAD_TOKENS


class ExampleLosses:
    """Losses of batches under `model` (a PeftModel) as it is at the moment, with or without their gradient."""

    def __init__(self, model: Any) -> None:
        self.model = model
        first = next(iter(adapter_parameters(model).values()))
        self.device, self.dtype = first.device, first.dtype
        self._decoder = find_decoder(model)

    def forward(self, batch: Sequence[Encoded]) -> np.ndarray:
        """(B,) float64, without gradients."""
        ids, rows, positions, labels, weights = (part.to(self.device) for part in collate(batch))
        each = torch.empty(len(labels), dtype=self.dtype, device=self.device)
        with torch.no_grad():
            if self._decoder is None:
                each[:] = cross_entropy(self.model(input_ids=ids, use_cache=False).logits[rows, positions], labels)
            else:
                decoder, head = self._decoder
                hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state[rows, positions]
                for begin in range(0, len(labels), HEAD_TOKENS):
                    part = slice(begin, begin + HEAD_TOKENS)
                    each[part] = cross_entropy(head(hidden[part]), labels[part])
        return _by_row(rows, each.double() * weights.double(), len(batch))

    def backward(self, batch: Sequence[Encoded], weights: np.ndarray) -> np.ndarray:
        """Add the gradient of sum(weights * losses) to the parameters'; returns the losses (B,) float64, not weighted."""
        ids, rows, positions, labels, shares = (part.to(self.device) for part in collate(batch))
        own = torch.as_tensor(weights, dtype=self.dtype, device=self.device)[rows]
        shares = shares.to(self.dtype)
        if self._decoder is None:
            each = cross_entropy(self.model(input_ids=ids, use_cache=False).logits[rows, positions], labels).to(self.dtype)
            (each * shares * own).sum().backward()
            return _by_row(rows, (each * shares).detach().double(), len(batch))
        decoder, head = self._decoder
        hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state[rows, positions]
        each, gradient = head_losses(head, hidden, labels, shares)
        hidden.backward(gradient * own[:, None].to(gradient.dtype))  # head and weight act on each target alone
        return _by_row(rows, each.double(), len(batch))


def _by_row(rows: torch.Tensor, values: torch.Tensor, n: int) -> np.ndarray:
    return torch.zeros(n, dtype=torch.float64, device=values.device).index_add_(0, rows, values).cpu().numpy()


def losses_of(
    model: Any, encoded: Sequence[Encoded], *, token_budget: int, progress: Callable[[int], None] = lambda tokens: None
) -> np.ndarray:
    """Return the loss (n,) float64 of every example under the model in eval mode; `progress` gets the tokens done.

    The batches depend on the examples alone, so that two models are measured by the same ones; where device memory runs out they
    are halved. UserError where it does not hold one example.
    """
    model.eval()
    measured = ExampleLosses(model)

    def once(budget: int) -> np.ndarray:
        found, done = np.empty(len(encoded)), 0
        for batch in plan_batches([len(e) for e in encoded], budget):
            found[batch] = measured.forward([encoded[i] for i in batch])
            done += sum(len(encoded[i]) for i in batch)
            progress(done)
        return found

    return halving(once, token_budget, max(map(len, encoded), default=0), "lower --max-length")[0]
