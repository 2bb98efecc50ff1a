"""Loading a GGUF file without reading it three times.

transformers 5.23 parses all fields of the file, the vocabulary's 49,000 strings among them, once for the configuration, once for
the tokenizer and once for the weights, and builds the table of tensor names anew for every module: half of the load. What is
read is the same; it is read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache


@contextmanager
def gguf_once() -> Iterator[None]:
    """While it lasts, gguf's reader and name table are made once a file and architecture. Not for several threads."""
    import gguf

    kept = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, made in kept.items():
            setattr(gguf, name, lru_cache(maxsize=2)(made))
        yield
    finally:
        for name, made in kept.items():
            setattr(gguf, name, made)
