"""The loss of answers behind an empty prompt, which instruction-following difficulty divides by.

Instruction-following difficulty (IFD; Li et al., arXiv 2308.12032, section 2.2) is the loss of the answer given its prompt over
its loss without the prompt. Both losses are taken under the warmed-up adapter, as the paper takes them under a model that was
trained briefly on the pool; the first is a by-product of the gradients, so that IFD costs one more forward pass of the answers.
The paper has single exchanges and scores the bare answer; here every turn but the assistant's is left empty, so that the chat
template and conversations of several turns stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tagcos_stream.gradients.batching import halving, plan_batches
from tagcos_stream.gradients.chat import Encoded, NoTargets, SpecialTokens, encode
from tagcos_stream.gradients.extract import GradientExtractor
from tagcos_stream.gradients.memory import MAX_BATCH_ROWS
from tagcos_stream.gradients.warmup import checkpoint_weights
from tagcos_stream.types import Checkpoint


def without_prompt(
    tokenizer: Any, row: Mapping[str, Any], whole: Encoded, *, max_length: int, special_tokens: SpecialTokens = "keep"
) -> Encoded | None:
    """Encode a conversation with all turns empty but the assistant's.

    Parameters
    ----------
    tokenizer
        As for `encode`.
    row
        An example: messages, tools, template_kwargs.
    whole
        The same example as it is.
    max_length, special_tokens
        As for `encode`.

    Returns
    -------
    Encoded or None
        With just the target tokens of `whole`; None where the template gives other ones, or takes no empty turn.
    """
    emptied: Any = [message if message["role"] == "assistant" else {**message, "content": ""} for message in row["messages"]]
    try:
        alone = encode(
            tokenizer, emptied, max_length=max_length, template_kwargs=row.get("template_kwargs"), special_tokens=special_tokens
        )
    except NoTargets:
        return None
    targets = np.flatnonzero(alone.target)[: whole.n_target]  # fewer where `whole` was cut off
    if not np.array_equal(alone.input_ids[targets], whole.input_ids[whole.target]):
        return None
    length = int(targets[-1]) + 1
    return Encoded(alone.input_ids[:length], alone.target[:length], whole.truncated)


def answer_losses(
    extractor: GradientExtractor, checkpoints: Sequence[Checkpoint], encoded: Sequence[Encoded], *, token_budget: int
) -> np.ndarray:
    """Compute losses by forward passes, averaged over checkpoints as the losses of the gradients are.

    Parameters
    ----------
    extractor
        Of the model with its adapter.
    checkpoints
        Of the feature space.
    encoded
        n examples, at least 1.
    token_budget
        Tokens of a pass, padding included; halved where device memory runs out.

    Returns
    -------
    np.ndarray
        (n,) float64, nats; not finite where the model's output is not.

    Raises
    ------
    UserError
        Device memory does not hold one example.
    """
    weights = checkpoint_weights([checkpoint.weight for checkpoint in checkpoints])

    def once(budget: int) -> np.ndarray:
        losses = np.zeros(len(encoded))
        batches = plan_batches(np.array([len(e) for e in encoded]), budget, MAX_BATCH_ROWS)
        for checkpoint, weight in zip(checkpoints, weights, strict=True):
            extractor.use(checkpoint)
            for batch in batches:
                losses[batch] += weight * extractor.losses([encoded[i] for i in batch]).double().cpu().numpy()
        return losses

    return halving(once, token_budget, max(len(e) for e in encoded), "lower the maximum length")[0]
