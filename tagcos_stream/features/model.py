"""The language model, its tokenizer and the LoRA adapter whose gradients are the features."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tagcos_stream.features.gguf_once import gguf_once
from tagcos_stream.types import UserError

# Attention projections by the names that architectures give them; the first set found in a model is the default target.
ATTENTION_PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj", "o_proj"),  # Llama, Mistral, Qwen, Gemma, Olmo
    ("q_proj", "k_proj", "v_proj", "out_proj"),  # OPT, GPT-J, GPT-Neo
    ("q_proj", "k_proj", "v_proj", "dense"),  # Phi
    ("qkv_proj", "o_proj"),  # Phi-3
    ("query_key_value", "dense"),  # GPT-NeoX, Falcon, BLOOM
    ("c_attn", "attn.c_proj"),  # GPT-2
)


@dataclass
class LoadedModel:
    model: Any  # a transformers causal language model, in eval mode
    tokenizer: Any
    name: str  # as the user gave it
    fingerprint: str  # of weights, configuration and tokenizer: 32 hex digits, independent of where the files lie
    max_positions: int  # longest sequence that the configuration allows
    device: str
    dtype: str


def load_model(
    ref: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantize: str | None = None,
) -> LoadedModel:
    """A causal language model from a hub id, a folder, or a single .gguf file.

    device "auto": CUDA where there is one, else the CPU. dtype "auto": bfloat16 on CUDA, float32 on the CPU (bfloat16 is slower
    there). quantize "8bit" or "4bit" holds the base weights in bitsandbytes' formats; gradients stay float32. UserError where
    nothing can be loaded under that name.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    dtype = ("bfloat16" if device.startswith("cuda") else "float32") if dtype == "auto" else dtype
    if dtype not in ("float32", "bfloat16", "float16", "float64"):
        raise UserError(f"dtype is {dtype!r}: use auto, float32, bfloat16 or float16")
    source, options = _source(ref)
    options |= {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        with gguf_once() if "gguf_file" in options else nullcontext():
            tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
            options |= {"dtype": getattr(torch, dtype), **_quantization(quantize, dtype, device)}
            model: Any = AutoModelForCausalLM.from_pretrained(source, **options)
    except UserError:
        raise
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model {ref!r} could not be loaded: {reason} (give a hub id, a folder with config.json, or a .gguf file; "
            "a private hub model needs `hf auth login`)"
        ) from error
    if "gguf_file" in options:  # dequantised on loading, and yet still said to be quantised, which bars training and saving it
        model.hf_quantizer, model.is_quantized = None, False
        for owner, attribute in ((model, "quantization_method"), (model.config, "quantization_config")):
            owner.__dict__.pop(attribute, None)
    if quantize is None:
        model.to(device)
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    return LoadedModel(model, tokenizer, ref, model_fingerprint(model, tokenizer), int(positions), device, dtype)


def _source(ref: str) -> tuple[str, dict[str, Any]]:
    path = Path(ref).expanduser()
    if ref.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"model {ref!r}: no such file")
        return str(path.parent), {"gguf_file": path.name}
    if ref.strip() and path.is_dir():
        return str(path), {}
    if ref.startswith((".", "/", "~")) or ref.count("/") > 1 or not ref.strip():
        raise UserError(f"model {ref!r}: no such folder (a hub id has the form owner/name)")
    return ref, {}


def _quantization(quantize: str | None, dtype: str, device: str) -> dict[str, Any]:
    if quantize is None:
        return {}
    if quantize not in ("8bit", "4bit"):
        raise UserError(f"quantize is {quantize!r}: use 8bit or 4bit, or leave it out")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(f"quantize {quantize!r} needs the package bitsandbytes: pip install bitsandbytes") from error
    from transformers import BitsAndBytesConfig

    four = {"load_in_4bit": True, "bnb_4bit_compute_dtype": getattr(torch, dtype), "bnb_4bit_quant_type": "nf4"}
    return {
        "quantization_config": BitsAndBytesConfig(**(four if quantize == "4bit" else {"load_in_8bit": True})),
        "device_map": device,
    }


def model_fingerprint(model: Any, tokenizer: Any) -> str:
    """Hash of what the model computes: every weight as it lies in memory, the configuration, and the tokenizer's content."""
    tensors = sorted((name, tensor.detach()) for name, tensor in model.state_dict().items())
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        digests = list(pool.map(lambda item: _tensor_digest(item[1]), tensors))
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version", "use_cache")}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    for (name, _), content in zip(tensors, digests, strict=True):
        digest.update(name.encode() + b"\0" + content)
    if tokenizer is not None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        # Padding and truncation are state that calls leave behind, not what the tokenizer is.
        words = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
        words = {k: v for k, v in words.items() if k not in ("padding", "truncation")}
        digest.update(json.dumps([words, tokenizer.chat_template], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _tensor_digest(tensor: torch.Tensor) -> bytes:
    digest = hashlib.blake2b(f"{tuple(tensor.shape)}{tensor.dtype}".encode(), digest_size=16)
    flat = tensor.reshape(-1)
    flat = flat.view(torch.uint8) if flat.numel() else flat.to(torch.uint8)
    for start in range(0, flat.numel(), 1 << 26):  # 64 MiB at a time: a tensor on a device is not copied whole
        digest.update(flat[start : start + (1 << 26)].cpu().contiguous().numpy().data)
    return digest.digest()


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
    """The model with a fresh LoRA adapter in float32 (lora_A drawn from `seed` and its name, lora_B zero), as a PeftModel.

    target_modules: "auto" (the attention projections), "all-linear", or module names. Patterns give single modules their own rank
    and alpha, as in peft. The draw is made on the CPU per parameter, so it is the same on every device.
    """
    from peft import LoraConfig, get_peft_model

    if dora:
        raise UserError("DoRA is not supported: its magnitude vector ties all gradients of a layer together; use LoRA (dora off)")
    if rank < 1:
        raise UserError(f"rank is {rank}, must be at least 1")
    targets = _targets(model, target_modules)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft scales by any number
        lora_dropout=dropout,
        target_modules=targets,
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
            raise UserError(f"target_modules {target_modules!r}: {error}") from error
    with torch.no_grad():
        for name, parameter in adapter_parameters(adapted).items():
            if ".lora_A." in name:
                key = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=7).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(key, "little"))
                bound = 1 / math.sqrt(parameter.shape[1])  # peft's own kaiming_uniform(a=sqrt 5)
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
    return adapted.eval()


def attach_from_checkpoint(model: Any, folder: str | Path) -> Any:
    """The model with the adapter that a PEFT or Trainer checkpoint folder describes, trainable, as a PeftModel."""
    from peft import PeftConfig, PeftModel

    if not (Path(folder) / "adapter_config.json").is_file():
        raise UserError(f"{folder}: no adapter_config.json: give a PEFT adapter folder or a Trainer checkpoint-N folder")
    config = PeftConfig.from_pretrained(str(folder))
    if getattr(config, "use_dora", False):
        raise UserError(
            f"{folder}: a DoRA adapter, which is not supported: its magnitude vector ties all gradients of a layer together"
        )
    with _quiet():
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    adapter_parameters(adapted)
    return adapted.eval()


def adapter_parameters(model: Any) -> dict[str, nn.Parameter]:
    """The trained parameters by the names under which PEFT saves them, in the model's order. UserError for a kind that is no
    LoRA matrix."""
    found: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            found[saved_name(name)] = parameter
        elif parameter.requires_grad or ".lora_" in name:
            kind = "DoRA" if "magnitude" in name else "trained"
            raise UserError(
                f"{kind} parameter {name} is no LoRA matrix of a linear layer: gradient features cover lora_A and lora_B only"
            )
    if not found:
        raise UserError("the model has no LoRA adapter: attach one first")
    return found


def saved_name(name: str) -> str:
    """'...lora_A.default.weight' as PEFT saves it: '...lora_A.weight'."""
    stem, _, leaf = name.rpartition(".")
    return stem.rpartition(".")[0] + "." + leaf


@contextmanager
def _quiet() -> Iterator[None]:
    """peft 0.21 reads attributes that transformers 5.23 has deprecated; neither is the user's doing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _targets(model: nn.Module, wanted: str | Sequence[str]) -> str | list[str]:
    if wanted == "all-linear":
        return wanted
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"]
    if wanted != "auto":
        return [wanted] if isinstance(wanted, str) else list(wanted)
    for choice in ATTENTION_PROJECTIONS:
        if all(any(name.endswith("." + suffix) for name in names) for suffix in choice):
            return list(choice)
    endings = sorted({name.rpartition(".")[2] for name in names})
    raise UserError(
        f"no known attention projections in {type(model).__name__}: set target_modules to some of {', '.join(endings)}"
    )
