"""Which layers of a model an adapter is attached to, as PEFT is asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from tagcos_stream.types import UserError

ATTENTION_PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Mistral, Qwen, Gemma, Olmo
    ("q_proj", "k_proj", "v_proj", "out_proj"),  # OPT, GPT-J, GPT-Neo
    ("q_proj", "k_proj", "v_proj", "dense"),  # Phi
    ("qkv_proj", "o_proj"),  # Phi-3
    ("query_key_value", "dense"),  # GPT-NeoX, Falcon, BLOOM
    ("c_attn", "attn.c_proj"),  # GPT-2
)


def layers_to_adapt(model: Any, wanted: str | Sequence[str]) -> str | list[str]:
    """Return the layers that PEFT is to adapt.

    Parameters
    ----------
    model
        Without an adapter.
    wanted
        `auto` for the attention projections, `all-linear`, or names and endings of names.

    Returns
    -------
    str or list of str
        `all-linear`, or endings of names; in a model with towers for images or sound, names of layers that read text.

    Raises
    ------
    UserError
        `auto`, and the attention projections of such a model are not known.
    """
    text, head = _text_decoder(model), model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {
        n: module for n, module in model.named_modules() if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    read = [name for name, module in linear.items() if text is None or name.startswith(text + ".") or module is head]
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if wanted == ["all-linear"]:
        return wanted[0] if text is None else [name for name in read if linear[name] is not head]
    endings = _attention_projections(model, read) if wanted == ["auto"] else wanted
    if text is None:
        return endings
    return [name for name in read if any(f".{name}".endswith(f".{ending}") for ending in endings)] or endings


def _text_decoder(model: Any) -> str | None:
    """Name of the part that reads text, where a model has others for images or sound: those never run here, and learn nothing."""
    config = getattr(model, "config", None)
    if config is None or config.get_text_config() is config:
        return None
    decoder = model.get_decoder()
    return next((name for name, module in model.named_modules() if module is decoder), None) or None


def _attention_projections(model: nn.Module, names: Sequence[str]) -> list[str]:
    for choice in ATTENTION_PROJECTIONS:
        if all(any(name.endswith("." + suffix) for name in names) for suffix in choice):
            return list(choice)
    endings = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
    raise UserError(f"no known attention projections in {type(model).__name__}: set lora_targets to some of {endings}")
