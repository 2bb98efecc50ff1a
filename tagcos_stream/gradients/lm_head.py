"""The language-model head at target positions only, a chunk at a time: logits of all tokens never exist at once.

Dimension letters: B rows of a batch, T tokens, H hidden size, N target tokens of the batch, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from tagcos_stream.gradients.memory import HEAD_TOKENS


def find_decoder(model: Any) -> tuple[Any, Any] | None:
    """Return (decoder, head) of a causal language model whose head is only a linear layer on top of the decoder; else None.

    Some models scale or cap logits after the head, so this is established by computing both, not by the model's class.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    decoder = getattr(base, getattr(base, "base_model_prefix", "") or "model", None)
    head = base.get_output_embeddings()
    if decoder is None or head is None or any("lora_" in name for name, _ in head.named_modules()):
        return None
    with torch.no_grad():
        ids = torch.arange(4, device=next(head.parameters()).device)[None]
        output = decoder(input_ids=ids, use_cache=False)
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None:
            return None
        whole, alone = model(input_ids=ids, use_cache=False).logits, head(hidden)
    same = alone.shape == whole.shape and torch.allclose(alone.float(), whole.float(), rtol=1e-3, atol=1e-4)
    return (decoder, head) if same else None


def head_losses(
    head: Any, hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (weights * cross-entropy (N,), the gradient of their sum by hidden (N, H)).

    For hidden states `hidden` (N, H) of any dtype, labels (N,) and weights (N,) float32 or float64. Logits and their gradient
    exist for HEAD_TOKENS targets at a time; the head's own weights get no gradient.
    """
    losses, gradient = torch.empty_like(weights), torch.empty_like(hidden)
    for begin in range(0, len(labels), HEAD_TOKENS):
        part = slice(begin, begin + HEAD_TOKENS)
        leaf = hidden[part].detach().requires_grad_()
        with torch.enable_grad():
            each = cross_entropy(head(leaf), labels[part]).to(weights.dtype) * weights[part]
        losses[part] = each.detach()
        (gradient[part],) = torch.autograd.grad(each.sum(), leaf)
    return losses, gradient


def forward_losses(head: Any, hidden: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute the losses of `head_losses` alone, without a gradient.

    Parameters
    ----------
    head, hidden, labels, weights
        As for `head_losses`.

    Returns
    -------
    torch.Tensor
        (N,) weights * cross-entropy.
    """
    losses = torch.empty_like(weights)
    for begin in range(0, len(labels), HEAD_TOKENS):
        part = slice(begin, begin + HEAD_TOKENS)
        losses[part] = cross_entropy(head(hidden[part]), labels[part]).to(weights.dtype) * weights[part]
    return losses


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(N,) from logits (N, V), in float32 at least.

    The layout is (tokens, vocabulary), contiguous: the transposed one of F.cross_entropy is 30 times less accurate in float32.
    """
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), labels, reduction="none")
