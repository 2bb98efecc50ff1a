"""The LoRA adapter whose gradients are the features: attached fresh or as a checkpoint describes it, named as PEFT saves it."""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tagcos_stream.gradients.adapted_layers import layers_to_adapt
from tagcos_stream.types import UserError

# Attention projections by the names that architectures give them; the first set found in a model is the default target.
NOT_LINEAR = (
    "adapts weights that are not of linear layers, such as those of a mixture's experts: gradient features cover lora_A and "
    "lora_B of linear layers only; name other layers, such as q_proj and o_proj"
)


def attach_adapter(
    model: Any,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.1,
    target_modules: str | Sequence[str] = "auto",
    seed: int,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    rslora: bool = False,
    dora: bool = False,
) -> Any:
    """Attach a new LoRA adapter in float32 to a model.

    lora_A is drawn from `seed` and its name, on the CPU per parameter, so it is the same on every device; lora_B is zero.

    Parameters
    ----------
    model
        A causal language model.
    rank, alpha, dropout
        Of the adapter.
    target_modules
        "auto" (the attention projections), "all-linear", or module names.
    seed
        Of the draws.
    rank_pattern, alpha_pattern
        Ranks and scales of single modules, as in peft.
    rslora
        Scale by alpha / sqrt(rank).
    dora
        Refused.

    Returns
    -------
    PeftModel
        The model with its adapter.

    Raises
    ------
    UserError
        DoRA is asked for, a rank is below 1, or no such module exists.
    """
    from peft import LoraConfig, get_peft_model

    if dora:
        raise UserError("DoRA is not supported: its magnitude vector ties all gradients of a layer together; use LoRA (dora off)")
    if rank < 1:
        raise UserError(f"rank is {rank}, must be at least 1")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft scales by any number
        lora_dropout=dropout,
        target_modules=layers_to_adapt(model, target_modules),
        bias="none",
        task_type="CAUSAL_LM",
        rank_pattern=dict(rank_pattern or {}),
        alpha_pattern=dict(alpha_pattern or {}),
        use_rslora=rslora,
    )
    with torch.random.fork_rng(devices=[]), _quiet():
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            of_experts = "ParamWrapper" in str(error)  # which refuses dropout
            raise UserError(f"lora_targets {target_modules!r}: {NOT_LINEAR if of_experts else error}") from error
        except re.error as error:
            raise UserError(f"ranks of single layers: {error.pattern!r} is not a regular expression: {error}") from error
    _require_linear(adapted, f"lora_targets {target_modules!r}")
    _require_matches(adapted, {**(rank_pattern or {}), **(alpha_pattern or {})})
    draw_adapter(adapted, seed)
    return adapted.eval()


def _require_linear(model: Any, what: str) -> None:
    """Refuse an adapter of weights that no linear layer holds, such as those of a mixture's experts."""
    from peft.tuners.lora.layer import ParamWrapper

    if any(isinstance(module, ParamWrapper) for module in model.modules()):
        raise UserError(f"{what}: {NOT_LINEAR}")


def _require_matches(model: Any, patterns: Iterable[str]) -> None:
    """Refuse names of single layers that no adapted layer has."""
    layers = [name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")]
    if unknown := [pattern for pattern in patterns if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in layers)]:
        endings = sorted({name.rpartition(".")[2] for name in layers})
        names = ", ".join(map(repr, unknown))
        raise UserError(f"ranks of single layers: did not match any adapted layer: {names}. Adapted are {', '.join(endings)}")


def draw_adapter(model: Any, seed: int) -> None:
    """Draw a new adapter in place of the model's own: lora_A on the CPU from `seed` and its name, lora_B zero.

    Parameters
    ----------
    model
        With an adapter, whose tensors are overwritten.
    seed
        Of the draw.
    """
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if ".lora_A." in name:
                key = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(key, "little"))
                bound = 1 / math.sqrt(parameter.shape[1])  # peft's own kaiming_uniform(a=sqrt 5)
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
            else:
                parameter.zero_()


def attach_from_checkpoint(model: Any, folder: str | Path) -> Any:
    """Attach the adapter that a PEFT or Trainer checkpoint folder describes.

    Parameters
    ----------
    model
        A causal language model.
    folder
        The checkpoint.

    Returns
    -------
    PeftModel
        The model with this adapter, trainable.

    Raises
    ------
    UserError
        The folder holds no adapter, a DoRA adapter, or one that does not fit the model.
    """
    from peft import PeftConfig, get_peft_model

    if not (Path(folder) / "adapter_config.json").is_file():
        raise UserError(f"{folder}: no adapter_config.json: give a PEFT adapter folder or a Trainer checkpoint-N folder")
    config = PeftConfig.from_pretrained(str(folder))
    if getattr(config, "use_dora", False):
        raise UserError(
            f"{folder}: a DoRA adapter, which is not supported: its magnitude vector ties all gradients of a layer together"
        )
    config.inference_mode = False
    with torch.random.fork_rng(devices=[]), _quiet():
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            raise UserError(f"{folder}: its adapter does not fit {type(model).__name__}: {error}") from error
    _require_linear(adapted, str(folder))
    parameters, weights = adapter_parameters(adapted), adapter_weights(folder)
    require_fit(weights, parameters, f"{folder}: the adapter's weights")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    return adapted.eval()


def adapter_weights(folder: str | Path) -> dict[str, torch.Tensor]:
    """Load the weights of a PEFT folder.

    Parameters
    ----------
    folder
        A PEFT adapter or Trainer checkpoint.

    Returns
    -------
    dict
        Tensor on the CPU by the name that the file gives it.

    Raises
    ------
    UserError
        The folder has no adapter_model.safetensors, or one that cannot be read as plain tensors.
    """
    for name, load in (("adapter_model.safetensors", _safetensors), ("adapter_model.bin", _plain_tensors)):
        if (path := Path(folder, name)).is_file():
            try:
                return load(path)
            except Exception as error:  # the libraries raise errors of their own, of pickle and of zip alike
                kind = type(error).__name__
                raise UserError(
                    f"{path}: cannot be read as plain tensors ({kind}): save the adapter again, as safetensors"
                ) from error
    raise UserError(f"{folder}: no adapter_model.safetensors: give a Trainer checkpoint-N folder of a PEFT training")


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _plain_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Without running what a pickle may hold."""
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def require_fit(tensors: Mapping[str, torch.Tensor | np.ndarray], parameters: Mapping[str, nn.Parameter], what: str) -> None:
    """Check that tensors have exactly the names and shapes of the model's adapter.

    Parameters
    ----------
    tensors
        To check, by name.
    parameters
        Of the adapter, by name.
    what
        Subject of the message.

    Raises
    ------
    UserError
        They differ; the message lists both sides.
    """
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if found != wanted:
        raise UserError(f"{what} do not fit the model's adapter: {_difference(found, wanted)}")


def _difference(found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], limit: int = 5) -> str:
    """What two sets of named shapes do not share, both sides listed."""

    def listed(items: set[tuple[str, tuple[int, ...]]]) -> str:
        more = f" and {len(items) - limit} more" if len(items) > limit else ""
        return (", ".join(f"{name} {shape}" for name, shape in sorted(items)[:limit]) or "nothing") + more

    only_found, only_wanted = set(found.items()) - set(wanted.items()), set(wanted.items()) - set(found.items())
    return (
        f"{len(found)} in the checkpoint, only there: {listed(only_found)}; "
        f"{len(wanted)} in the model, only there: {listed(only_wanted)}"
    )


def adapter_settings(model: Any) -> dict[str, Any]:
    """Describe an adapter apart from its weights.

    Parameters
    ----------
    model
        Any model that `attach_adapter` or `attach_from_checkpoint` returned.

    Returns
    -------
    dict
        Names of its layers, how many have which rank and scale, and its size.
    """
    layers = [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    ranks = [module.r["default"] for _, module in layers]
    scales = [round(float(module.scaling["default"]), 12) for _, module in layers]
    return {
        "targets": sorted({name.rpartition(".")[2] for name, _ in layers}),
        "ranks": dict(sorted(Counter(map(str, ranks)).items())),  # rank: how many layers have it
        "scales": dict(sorted(Counter(map(str, scales)).items())),
        "parameters": sum(parameter.numel() for parameter in adapter_parameters(model).values()),
    }


def adapter_parameters(model: Any) -> dict[str, nn.Parameter]:
    """List the trained parameters in the model's order.

    Parameters
    ----------
    model
        With an adapter.

    Returns
    -------
    dict
        Parameter by the name under which PEFT saves it.

    Raises
    ------
    UserError
        There is no adapter, or a parameter is not a LoRA matrix of a linear layer.
    """
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            found[saved_name(name)] = parameter
        elif parameter.requires_grad or ".lora_" in name:
            kind = "DoRA" if "magnitude" in name else "trained"
            raise UserError(
                f"{kind} parameter {name} is not a LoRA matrix of a linear layer: gradient features cover lora_A and lora_B only"
            )
    if not found:
        raise UserError("the model has no LoRA adapter: attach one first")
    return found


def saved_name(name: str) -> str:
    """Return the name under which PEFT saves a parameter: `...lora_A.default.weight` becomes `...lora_A.weight`.

    Parameters
    ----------
    name
        As `named_parameters` gives it.

    Returns
    -------
    str
        As the file has it.
    """
    stem, _, leaf = name.rpartition(".")
    return stem.rpartition(".")[0] + "." + leaf


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings that the user cannot act on: peft 0.21 reads attributes that transformers 5.23 has deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        # PEFT adds patterns of its own for the experts of a mixture, adapted or not; those of the user are checked here
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        yield
