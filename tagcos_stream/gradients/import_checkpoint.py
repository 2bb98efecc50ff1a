"""A warm-up of the user's own: adapter and moments from a Trainer checkpoint folder.

Where the optimizer's state names its parameters (FSDP's optimizer.bin, and state dictionaries with `param_names`), it is
matched by these names. Trainer alone saves it keyed by a running number: first the parameters with weight decay, then those
without, each in the model's order; these numbers are turned back into names by building that order from the model. Every shape
is checked.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagcos_stream.gradients.adapter import adapter_parameters, adapter_weights, require_fit
from tagcos_stream.types import Checkpoint, UserError

OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin")  # the second is FSDP's
_WRAPPERS = re.compile(r"\b(?:module|_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")


def import_checkpoint(folder: str | Path, model: Any, *, moments: bool = True) -> Checkpoint:
    """The adapter weights and Adam moments of a checkpoint folder, matched to a model's parameters.

    The optimizer's file is read with weights_only: it cannot run code.

    Parameters
    ----------
    folder : str or Path
        With adapter_model.safetensors and optimizer.pt, or FSDP's optimizer.bin.
    model : PeftModel
        With its adapter attached by `attach_from_checkpoint`.
    moments : bool
        Whether there must be moments. If not, a folder without moments that can be read gives zeros, of no optimizer step.

    Raises
    ------
    UserError
        A file is missing, damaged or in shards, the optimizer is not Adam, or names or shapes differ, with both sides listed.
    """
    folder = Path(folder)
    parameters = adapter_parameters(model)
    weights = _fitting(adapter_weights(folder), parameters, folder / "adapter_model.safetensors")
    try:
        m, v, adam_steps = _moments(folder, model, parameters)
    except UserError:
        if moments:
            raise
        m = v = {name: np.zeros_like(values) for name, values in weights.items()}
        adam_steps = 0
    (step, adam_steps), rate = _progress(folder, adam_steps)
    return Checkpoint(step, rate, 1.0, adam_steps, weights, m, v)


def _moments(
    folder: Path, model: Any, parameters: dict[str, torch.nn.Parameter]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
    """Adam's two moments by parameter, and the optimizer steps behind them."""
    path = _optimizer_file(folder)
    states = _by_name(_optimizer_state(path), model, parameters, path)
    m, v = (
        _fitting({name: state[part] for name, state in states.items()}, parameters, path) for part in ("exp_avg", "exp_avg_sq")
    )
    steps = {int(state["step"]) for state in states.values()}
    if len(steps) != 1 or min(steps) < 1:
        raise UserError(f"{path}: parameters were stepped {sorted(steps)} times, expected one count of at least 1 for all")
    return m, v, steps.pop()


def _optimizer_file(folder: Path) -> Path:
    for name in OPTIMIZER_FILES:
        if (folder / name).is_file():
            return folder / name
    shards = [path.name for path in (*folder.glob("optimizer_*"), *folder.glob("global_step*")) if path.is_dir()]
    if shards:
        raise UserError(
            f"{folder}: the optimizer's state is in shards ({shards[0]}): save it whole, with FSDP's "
            "fsdp_state_dict_type FULL_STATE_DICT (optimizer.bin) or without DeepSpeed, or run the warm-up here"
        )
    raise UserError(
        f"{folder}: no optimizer.pt or optimizer.bin, and this variant reads Adam's moments: save checkpoints without "
        "save_only_model, run the warm-up here, or use --gradient sgd"
    )


def _optimizer_state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors alike
        raise UserError(
            f"{path}: cannot be read as a plain optimizer state ({type(error).__name__}): save it with torch.save"
        ) from error
    if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
        raise UserError(f"{path}: no torch optimizer state (keys 'state' and 'param_groups'): save the optimizer's state_dict")
    return state


def _by_name(
    optimizer: dict[str, Any], model: Any, parameters: dict[str, torch.nn.Parameter], path: Path
) -> dict[str, dict[str, torch.Tensor]]:
    """Adam's state of every parameter by name."""
    keys = [key for group in optimizer["param_groups"] for key in group["params"]]
    stated = [name for group in optimizer["param_groups"] for name in group.get("param_names", [])]
    if len(keys) != len(parameters):
        shapes = [tuple(optimizer["state"][i]["exp_avg"].shape) for i in keys if "exp_avg" in optimizer["state"].get(i, {})]
        raise UserError(
            f"{path} holds {len(keys)} parameters (shapes {shapes[:4]} ...), "
            f"the model's adapter has {len(parameters)} "
            f"({', '.join(list(parameters)[:3])} ...): attach the adapter that the checkpoint was trained with"
        )
    if stated or any(isinstance(key, str) for key in keys):
        named = dict(zip(map(_plain_name, stated or keys), keys, strict=True))
        unknown, lacking = sorted(named.keys() - parameters.keys()), sorted(parameters.keys() - named.keys())
        if unknown or lacking:
            raise UserError(
                f"{path} names other parameters than the model's adapter; only there: {', '.join(unknown[:3])} ... "
                f"({len(unknown)}), only in the model: {', '.join(lacking[:3])} ... ({len(lacking)}): attach the adapter that "
                "the checkpoint was trained with, and with FSDP train with use_orig_params"
            )
        by_name = {name: named[name] for name in parameters}
    else:
        decayed = _decayed_names(model)
        order = [name for name in parameters if name in decayed] + [name for name in parameters if name not in decayed]
        by_name = dict(zip(order, keys, strict=True))
    states = {name: optimizer["state"].get(key, {}) for name, key in by_name.items()}
    without = [name for name, state in states.items() if not {"exp_avg", "exp_avg_sq", "step"} <= state.keys()]
    if without:
        raise UserError(
            f"{path}: no Adam moments for {len(without)} parameters ({without[0]} ...): train with AdamW (optim adamw_torch)"
        )
    return states


def _plain_name(name: object) -> str:
    """A parameter's name as the adapter's file has it: without what wrappers of a model put into names."""
    return _WRAPPERS.sub("", str(name)).replace(".default.", ".")


def _decayed_names(model: Any) -> set[str]:
    """Names of the parameters that Trainer puts in its first group."""
    from transformers.trainer_pt_utils import get_parameter_names

    forbidden = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decayed = get_parameter_names(model, [torch.nn.LayerNorm], forbidden)
    return {name.replace(".default.", ".") for name in decayed}


def _fitting(tensors: dict[str, torch.Tensor], parameters: dict[str, torch.nn.Parameter], path: Path) -> dict[str, np.ndarray]:
    require_fit(tensors, parameters, f"{path}: its tensors")
    return {name: tensors[name].detach().to("cpu", torch.float32).contiguous().numpy() for name in parameters}


def _progress(folder: Path, adam_steps: int) -> tuple[tuple[int, int], float]:
    """((global step, Adam steps), mean learning rate logged up to it) from trainer_state.json where there is one."""
    path = folder / "trainer_state.json"
    if not path.is_file():
        return (adam_steps, adam_steps), 1.0
    try:
        state = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}): copy the checkpoint again") from error
    if not isinstance(state, dict):
        raise UserError(f"{path}: must hold a JSON object, as Trainer writes it: copy the checkpoint again")
    rates = [entry["learning_rate"] for entry in state.get("log_history", []) if "learning_rate" in entry]
    return (int(state.get("global_step", adam_steps)), adam_steps), float(sum(rates) / len(rates)) if rates else 1.0
