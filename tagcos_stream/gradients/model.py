"""Load the language model and its tokenizer from the hub, a folder or a GGUF file, and compute their fingerprint."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tagcos_stream.credentials import redact
from tagcos_stream.gradients.gguf_loading import gguf_loading
from tagcos_stream.paths import expanded, is_hub_id
from tagcos_stream.types import UserError


@dataclass
class LoadedModel:
    """A language model with its tokenizer, as returned by `load_model`."""

    model: Any  # a transformers causal language model, in eval mode
    tokenizer: Any
    name: str  # as the user gave it
    fingerprint: str  # of weights, configuration and tokenizer: 32 hex digits, independent of the files' location
    max_positions: int  # longest sequence that the configuration allows
    device: str
    dtype: str


def load_model(
    ref: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    quantize: str | None = None,
) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Parameters
    ----------
    ref
        Hub id, folder, or path of a single .gguf file.
    device
        Torch device; "auto" is CUDA if available, otherwise the CPU.
    dtype
        Data type of the weights: float32, bfloat16, float16 or float64; "auto" is bfloat16 on CUDA and float32 on the CPU
        (where bfloat16 is slower).
    revision
        Branch, tag or commit of a hub model.
    trust_remote_code
        Allow Python code that is distributed with the model to run.
    quantize
        "8bit" or "4bit": quantize the base weights with bitsandbytes. Gradients are still float32.

    Returns
    -------
    LoadedModel
        In eval mode; no parameter requires a gradient.

    Raises
    ------
    UserError
        The model cannot be loaded, or an argument is invalid.
    """
    ref = os.fspath(ref)
    with _no_hub_kernels():
        import peft  # noqa: F401 -- with bitsandbytes, where it is installed
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    check_device(device)
    dtype = ("bfloat16" if device.startswith("cuda") else "float32") if dtype == "auto" else dtype
    if dtype not in ("float32", "bfloat16", "float16", "float64"):
        raise UserError(f"dtype is {dtype!r}: use auto, float32, bfloat16 or float16")
    source, options = _source(ref)
    if "gguf_file" not in options:
        _refuse_pickled(ref, Path(source))
        options["use_safetensors"] = True
    options |= {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        with gguf_loading() if "gguf_file" in options else nullcontext():
            tokenizer: Any = AutoTokenizer.from_pretrained(source, **options)
            if "gguf_file" in options:
                options["quantization_config"] = GgufConfig(dequantize=True)  # weights left packed have no gradients
            options |= {"dtype": getattr(torch, dtype), **_quantization(quantize, dtype, device)}
            model: Any = AutoModelForCausalLM.from_pretrained(source, **options)
    except UserError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise _not_loaded(ref, error) from error
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # bitsandbytes' 4-bit layers on a CPU: packed for inference in
            module.support_avx512bf16_for_cpu = False  # the first pass, they would silently return no gradient
    if quantize is None:
        model.to(device)
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    return LoadedModel(model, tokenizer, ref, model_fingerprint(model, tokenizer), _positions(model.config), device, dtype)


def check_device(device: str) -> None:
    """Check that torch has a device.

    Parameters
    ----------
    device
        cpu, cuda or cuda:N.

    Raises
    ------
    UserError
        It has not, or the name is another.
    """
    kind, colon, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise UserError(f"device is {device!r}: use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if kind == "cuda" and torch.cuda.is_available() else 0
    if kind == "cuda" and int(number or 0) >= count:
        found = f"{count} CUDA device{'s' * (count != 1)}" if count else "no CUDA device"
        raise UserError(
            f"device {device}: torch {torch.__version__} finds {found}; use --device cpu or auto, or install a CUDA "
            "build of torch and the driver (`tagcos doctor`)"
        )


def load_tokenizer(ref: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Load only the tokenizer of a model, without the weights.

    Parameters
    ----------
    ref, revision, trust_remote_code
        As for `load_model`.

    Returns
    -------
    tokenizer
        A transformers tokenizer.

    Raises
    ------
    UserError
        It cannot be loaded.
    """
    from transformers import AutoTokenizer

    source, options = _source(ref)
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, ImportError) as error:
        raise _not_loaded(ref, error) from error


def load_max_positions(ref: str, *, revision: str | None = None, trust_remote_code: bool = False) -> int:
    """Return `LoadedModel.max_positions` of a model, reading only its configuration.

    Parameters
    ----------
    ref
        Model folder or hub name.
    revision, trust_remote_code
        As for `load_model`.

    Returns
    -------
    int
        Tokens.

    Raises
    ------
    UserError
        The configuration cannot be loaded.
    """
    from transformers import AutoConfig

    source, options = _source(ref)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, ImportError) as error:
        raise _not_loaded(ref, error) from error
    return _positions(config)


def _positions(config: Any) -> int:
    """Longest sequence that a configuration allows, in tokens; practically unlimited if it states none."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30)


def _not_loaded(ref: str, error: Exception) -> UserError:
    if "trust_remote_code" in str(error):
        return UserError(f"model {ref!r} comes with Python code: read it, and add --trust-remote-code if it may run")
    if "backend tokenizer" in str(error) and (expanded(ref) / "config.json").is_file():
        return UserError(f"model {ref!r} has no tokenizer that can be read: save it to the same folder (tokenizer.json)")
    reason = redact(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__
    return UserError(
        f"model {ref!r} could not be loaded: {reason} (give a hub id, a folder with config.json, or a .gguf file; "
        "a private hub model needs `hf auth login`)"
    )


def _source(ref: str) -> tuple[str, dict[str, Any]]:
    path = expanded(ref)
    if ref.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"model {ref!r}: no such file")
        return str(path.parent), {"gguf_file": path.name}
    if ref.strip() and path.is_dir():
        return str(path), {}
    if not is_hub_id(ref):
        raise UserError(f"model {ref!r}: no such folder (a hub id has the form owner/name)")
    return ref, {}


def _refuse_pickled(ref: str, folder: Path) -> None:
    """Raise UserError for a folder whose weights are pickled files and nothing else."""
    pickled = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"model {ref!r}: {pickled[0]} holds pickled weights, which can run code when they are read; save the model as "
            "safetensors (save_pretrained does) in an environment where you trust the file"
        )


@contextmanager
def _no_hub_kernels() -> Iterator[None]:
    """Hide the package `kernels` from libraries imported in the body, unless USE_HUB_KERNELS is set to true.

    With it, bitsandbytes downloads native code from the hub as soon as it is imported, and runs it; without, it warns that it
    cannot. Not thread-safe.
    """
    hide = "kernels" not in sys.modules and os.environ.get("USE_HUB_KERNELS", "").upper() not in ("1", "ON", "YES", "TRUE")
    if not hide:
        yield
        return
    warning = logging.getLogger("bitsandbytes.backends.cpu.ops")
    silent = warning.disabled
    sys.modules["kernels"] = None  # type: ignore[assignment]  # an import fails as if it were not installed
    warning.disabled = True
    try:
        yield
    finally:
        del sys.modules["kernels"]
        warning.disabled = silent


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
    """Hash everything that determines what a model computes.

    Parameters
    ----------
    model
        A transformers model; all its weights are hashed as they are in memory, and its configuration.
    tokenizer
        Its vocabulary, rules and chat template are hashed; may be None.

    Returns
    -------
    str
        32 hex digits.
    """
    tensors = sorted((name, tensor.detach()) for name, tensor in model.state_dict().items())
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        digests = list(pool.map(lambda item: _tensor_digest(item[1]), tensors))
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version", "use_cache")}
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    for (name, _), content in zip(tensors, digests, strict=True):
        digest.update(name.encode() + b"\0" + content)
    if tokenizer is not None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        # Padding and truncation are settings of the last call, not part of the tokenizer.
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
