"""A warm-up of the user's own: adapter and moments from a Trainer checkpoint folder.

Trainer saves the optimizer's state keyed by a running number: first the parameters with weight decay, then those without, each
in the model's order. The numbers are turned back into names by building that order from the model, and every shape is checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tagcos_stream.gradients.adapter import adapter_parameters, adapter_weights, require_fit
from tagcos_stream.types import Checkpoint, UserError


def import_checkpoint(folder: str | Path, model: Any) -> Checkpoint:
    """The adapter weights and Adam moments in `folder` (adapter_model.safetensors, optimizer.pt), matched to `model`'s
    parameters.

    Attach the adapter with `attach_from_checkpoint` first. UserError for a missing file, an optimizer that is not Adam's, or
    names or shapes that differ, with both sides listed. optimizer.pt is read with weights_only: it cannot run code.
    """
    folder = Path(folder)
    parameters = adapter_parameters(model)
    weights = _fitting(adapter_weights(folder), parameters, folder / "adapter_model.safetensors")
    states = _by_name(_optimizer_state(folder), model, parameters, folder)
    parts = {
        part: _fitting({name: state[part] for name, state in states.items()}, parameters, folder / "optimizer.pt")
        for part in ("exp_avg", "exp_avg_sq")
    }
    steps = {int(state["step"]) for state in states.values()}
    if len(steps) != 1 or min(steps) < 1:
        raise UserError(
            f"{folder / 'optimizer.pt'}: parameters were stepped {sorted(steps)} times, expected one count of at least 1 for all"
        )
    step, rate = _progress(folder, steps.pop())
    return Checkpoint(step[0], rate, 1.0, step[1], weights, parts["exp_avg"], parts["exp_avg_sq"])


def _optimizer_state(folder: Path) -> dict[str, Any]:
    path = folder / "optimizer.pt"
    if not path.is_file():
        raise UserError(
            f"{folder}: no optimizer.pt: the moments are needed; save checkpoints without save_only_model, "
            "or run the warm-up here"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle, zip and runtime errors alike
        raise UserError(
            f"{path}: cannot be read as a plain optimizer state ({type(error).__name__}): save it with torch.save"
        ) from error
    if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
        raise UserError(
            f"{path}: no torch optimizer state (keys 'state' and 'param_groups'); DeepSpeed and FSDP shards are not supported"
        )
    return state


def _by_name(
    optimizer: dict[str, Any], model: Any, parameters: dict[str, torch.nn.Parameter], folder: Path
) -> dict[str, dict[str, torch.Tensor]]:
    """Adam's state of every parameter by name."""
    indices = [index for group in optimizer["param_groups"] for index in group["params"]]
    stated = [name for group in optimizer["param_groups"] for name in group.get("param_names", [])]
    decayed = _decayed_names(model)
    names = [name for name in parameters if name in decayed] + [name for name in parameters if name not in decayed]
    if len(indices) != len(names):
        shapes = [tuple(optimizer["state"][i]["exp_avg"].shape) for i in indices if "exp_avg" in optimizer["state"].get(i, {})]
        raise UserError(
            f"{folder / 'optimizer.pt'} holds {len(indices)} parameters (shapes {shapes[:4]} ...), "
            f"the model's adapter has {len(names)} "
            f"({', '.join(names[:3])} ...): attach the adapter that the checkpoint was trained with"
        )
    if len(stated) == len(indices):
        by_tail = {name.replace(".default.", "."): index for name, index in zip(stated, indices, strict=True)}
        if by_tail.keys() == parameters.keys():
            names, indices = list(by_tail), list(by_tail.values())
    states = {name: optimizer["state"].get(index, {}) for name, index in zip(names, indices, strict=True)}
    lacking = [name for name, state in states.items() if not {"exp_avg", "exp_avg_sq", "step"} <= state.keys()]
    if lacking:
        raise UserError(
            f"{folder / 'optimizer.pt'}: no Adam moments for {len(lacking)} parameters ({lacking[0]} ...): "
            "train with AdamW (optim adamw_torch)"
        )
    return states


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
    state = json.loads(path.read_text())
    rates = [entry["learning_rate"] for entry in state.get("log_history", []) if "learning_rate" in entry]
    return (int(state.get("global_step", adam_steps)), adam_steps), float(sum(rates) / len(rates)) if rates else 1.0
