"""Peak memory of warm-up and gradient stage as formulae over integers, to be checked before work starts.

Dimension letters: n rows of a block, B rows of a batch, T tokens of a batch (padded), L layers, H hidden size, I inner size of
the MLP, V vocabulary, P adapter parameters, D feature dimension, C checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_BATCH_ROWS = 128  # of a batch, however short its examples: bounds one matrix's per-sample gradients
HEAD_TOKENS = 256  # target tokens whose logits exist at once


@dataclass(frozen=True)
class ModelShape:
    """What the formula needs to know of a model with its adapter."""

    weight_bytes: int  # of all parameters and buffers as they lie in memory
    element_bytes: int  # of an activation: 4 for float32, 2 for bfloat16
    layers: int
    hidden: int
    inner: int
    vocabulary: int
    adapter_parameters: int  # P
    widest_matrix: int  # parameters of the largest lora_A or lora_B
    adapter_tokens: int  # numbers that the adapters keep for each token: ranks, and inputs of others than attention projections
    adapter_inputs: int  # inputs of all lora_A together


def model_shape(model: Any) -> ModelShape:
    """Read the sizes that the memory formulae need.

    Parameters
    ----------
    model
        PeftModel with LoRA adapters, on any device, "meta" included.

    Returns
    -------
    ModelShape
        Its sizes.
    """
    config = model.config.get_text_config()
    adapters = [(name, p) for name, p in model.named_parameters() if ".lora_" in name]
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    kept = sum(p.shape[0] + (p.shape[1] if "mlp" in name else 0) for name, p in adapters if ".lora_A." in name)
    base = next(p for name, p in model.named_parameters() if ".lora_" not in name and p.is_floating_point())
    return ModelShape(
        weight_bytes=sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())),
        element_bytes=base.element_size(),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        inner=inner,
        vocabulary=config.vocab_size,
        adapter_parameters=sum(p.numel() for _, p in adapters),
        widest_matrix=max(p.numel() for _, p in adapters),
        adapter_tokens=kept,
        adapter_inputs=sum(p.shape[1] for name, p in adapters if ".lora_A." in name),
    )


def pass_bytes(shape: ModelShape, tokens: int) -> int:
    """Estimate the memory of a forward and backward pass, without what becomes of the gradients.

    Activations kept for the backward pass, per token and layer: 14 H + 5 I (norm inputs, queries, keys, values, attention
    output, gate, up, their product, and what allocation rounds up; fitted to measured peaks), and what one layer's backward
    pass allocates and frees. Logits and three more arrays of their size for 256 targets.

    Parameters
    ----------
    shape
        Of the model.
    tokens
        Of the pass, padding included.

    Returns
    -------
    int
        Bytes.
    """
    layer = (14 * shape.hidden + 5 * shape.inner) * shape.element_bytes
    # adapters compute in float32 whatever the base does: their inputs are kept as such
    kept = shape.layers * (layer + (2 * shape.hidden * 4 if shape.element_bytes < 4 else 0)) + shape.adapter_tokens * 4
    activations = tokens * (kept + 6 * max(shape.hidden * 4, shape.inner) * shape.element_bytes)
    return activations + 4 * HEAD_TOKENS * shape.vocabulary * 4 + 2 * tokens * shape.hidden * 4


def working_bytes(
    shape: ModelShape, *, token_budget: int, max_length: int, block_rows: int, dim: int, variants: int, adam: bool = True
) -> int:
    """Estimate the memory beyond weights and checkpoints while a block of features is computed.

    A pass, one matrix's per-sample gradients and the scratch of the variants, the features of batch and block.

    Parameters
    ----------
    shape
        Of the model.
    token_budget, max_length
        Tokens of a pass, and of an example.
    block_rows, dim, variants
        Rows of a block, D, and number of variants.
    adam
        Whether a variant reads moments.

    Returns
    -------
    int
        Bytes.
    """
    tokens = max(token_budget, max_length)
    rows = min(block_rows, MAX_BATCH_ROWS, tokens)
    module = rows * shape.widest_matrix * 4 * (3 if adam else 2)
    features = variants * dim * (2 * rows * 4 + block_rows * (4 + 2))
    return pass_bytes(shape, tokens) + module + features


def warmup_bytes(shape: ModelShape, max_length: int, token_budget: int, *, dropout: bool, checkpoints: int = 1) -> int:
    """Estimate the memory beyond weights while the adapter is trained.

    A pass over a micro-batch (with dropout, the input of every lora_A again and its mask), gradients, moments and the
    optimizer's scratch, and the checkpoints taken.

    Parameters
    ----------
    shape, max_length, token_budget
        As for `working_bytes`.
    dropout
        Whether the adapter has any.
    checkpoints
        Number of checkpoints kept in memory.

    Returns
    -------
    int
        Bytes.
    """
    tokens = max(token_budget, max_length)
    dropped = tokens * shape.adapter_inputs * (4 + 1) if dropout else 0
    return pass_bytes(shape, tokens) + dropped + (5 + 3 * checkpoints) * 4 * shape.adapter_parameters


def peak_bytes(
    shape: ModelShape, *, token_budget: int, max_length: int, block_rows: int, dim: int, variants: int, checkpoints: int = 1
) -> int:
    """Estimate the memory of the whole stage: weights, checkpoints (adapter and two moments each, float32), and working memory.

    Parameters
    ----------
    shape
        Of the model.
    token_budget, max_length, block_rows, dim, variants
        As for `working_bytes`.
    checkpoints
        Number of checkpoints in memory.

    Returns
    -------
    int
        Bytes.
    """
    working = working_bytes(
        shape, token_budget=token_budget, max_length=max_length, block_rows=block_rows, dim=dim, variants=variants
    )
    return shape.weight_bytes + checkpoints * 3 * 4 * shape.adapter_parameters + working
