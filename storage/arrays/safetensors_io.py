"""Named arrays in one safetensors file: adapters, moments, the state of k-means. No pickle anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from storage.arrays.chunked import DamagedStore
from storage.files.base import Files
from tagcos_stream.identity import content_digest


def save_arrays(
    files: Files, key: str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> tuple[str, int]:
    """Write atomically; returns (digest, bytes) of the file. Scalars are arrays of shape () and keep their dtype."""
    data = save(
        {name: np.asarray(array, order="C") for name, array in arrays.items()}, metadata={"format": "1", **(metadata or {})}
    )
    files.write(key, data)
    return content_digest(data), len(data)


def load_arrays(files: Files, key: str, digest: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(arrays, metadata). FileNotFoundError where there is none, DamagedStore where it is not what was written."""
    data = files.read(key)
    if digest is not None and content_digest(data) != digest:
        raise DamagedStore(
            f"{files.place(key)} is not what was written (digest {content_digest(data)}, catalog {digest}); run `tagcos check`"
        )
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise DamagedStore(
            f"{files.place(key)} is not a whole safetensors file ({error}); delete it and start the same command again"
        ) from error
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return arrays, dict(header.get("__metadata__", {}))
