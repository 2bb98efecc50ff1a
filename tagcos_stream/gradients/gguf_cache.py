"""Load a GGUF file without parsing it three times.

transformers 5.23 parses all fields of the file, including the 49,000 strings of the vocabulary, once for the configuration, once
for the tokenizer and once for the weights, and rebuilds the table of tensor names for every module. This is half of the loading
time. With the cache the result is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache


@contextmanager
def gguf_once() -> Iterator[None]:
    """Cache gguf's reader per file and its table of tensor names per architecture in the body. Not thread-safe."""
    import gguf

    kept = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, made in kept.items():
            setattr(gguf, name, lru_cache(maxsize=2)(made))
        yield
    finally:
        for name, made in kept.items():
            setattr(gguf, name, made)
