"""Load a GGUF file without parsing it three times, and without native code from the hub.

transformers 5.23 parses all fields of the file, including the 49,000 strings of the vocabulary, once for the configuration, once
for the tokenizer and once for the weights, and rebuilds the table of tensor names for every module. This is half of the loading
time. With the cache the result is the same.

Where the package `kernels` is installed, it also downloads kernels of ggml for some layers, which have no backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any


@contextmanager
def gguf_loading() -> Iterator[None]:
    """Cache gguf's reader per file and its table of tensor names per architecture in the body; no kernel is fetched in it.

    Not thread-safe.
    """
    import gguf
    from transformers.integrations.gguf import kernels

    replaced: list[tuple[Any, str, Any]] = [(kernels, "kernelize_ggml_layers", lambda model: None)]
    for name in ("GGUFReader", "get_tensor_name_map"):
        replaced.append((gguf, name, lru_cache(maxsize=2)(getattr(gguf, name))))
    kept = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    try:
        for module, name, value in replaced:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)
