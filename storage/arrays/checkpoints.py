"""A feature space on disk: its fingerprint (space.json) and its checkpoints (safetensors, by parameter name)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.arrays.chunked import DamagedStore, read_json
from storage.arrays.safetensors_io import load_arrays, save_arrays
from storage.files.base import Files
from tagcos_stream import identity
from tagcos_stream.types import Checkpoint, UserError

FORMAT = 1


@dataclass(frozen=True)
class SavedFile:
    """What the catalog keeps of a file."""

    path: str
    bytes: int
    digest: str


def checkpoint_key(space_id: str, step: int) -> str:
    """Return the key of a checkpoint's file."""
    return f"spaces/{space_id}/step-{step:06d}.safetensors"


def save_checkpoint(files: Files, space_id: str, checkpoint: Checkpoint) -> SavedFile:
    """Write a checkpoint's arrays, step counts and learning rate; its weight belongs to the space and is kept in the catalog."""
    key = checkpoint_key(space_id, checkpoint.step)
    # repr keeps a float to the last bit
    metadata = {
        "step": str(checkpoint.step),
        "learning_rate": repr(float(checkpoint.learning_rate)),
        "adam_steps": str(checkpoint.adam_steps),
    }
    digest, size = save_arrays(files, key, checkpoint.arrays(), metadata)
    return SavedFile(key, size, digest)


def load_checkpoint(files: Files, space_id: str, step: int, *, weight: float, digest: str | None = None) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    weight
        Of the checkpoint in the space, from the catalog.
    digest
        Of the file, from the catalog: a changed adapter would mean another space.

    Raises
    ------
    DamagedStore
        The file is missing, or is not what was written.
    """
    key = checkpoint_key(space_id, step)
    try:
        arrays, metadata = load_arrays(files, key, digest)
    except FileNotFoundError:
        raise DamagedStore(f"{files.place(key)} is missing: restore it, or run with a new --root to warm up again") from None
    parts: dict[str, dict[str, np.ndarray]] = {"weights": {}, "exp_avg": {}, "exp_avg_sq": {}}
    for name, array in arrays.items():
        part, _, parameter = name.partition("/")
        parts[part][parameter] = array
    return Checkpoint(
        int(metadata["step"]), float(metadata["learning_rate"]), weight, int(metadata["adam_steps"]), **parts
    )  # fmt: skip


def save_space(files: Files, space_id: str, fingerprint: Mapping[str, Any]) -> None:
    """Write the fingerprint of a feature space next to its arrays. ValueError if it is another space's."""
    if identity.space_id(fingerprint) != space_id:
        raise ValueError(f"the fingerprint's id is {identity.space_id(fingerprint)}, not {space_id}")
    files.write(
        f"spaces/{space_id}/space.json",
        json.dumps({"format": FORMAT, "fingerprint": fingerprint}, indent=2, sort_keys=True).encode(),
    )


def load_space(files: Files, space_id: str) -> dict[str, Any]:
    """The fingerprint. Refuses another format, and a fingerprint that is not the one the space is named after."""
    key = f"spaces/{space_id}/space.json"
    found = read_json(files, key)
    if found.get("format") != FORMAT:
        raise UserError(
            f"{files.place(key)} has format {found.get('format')}, this version reads {FORMAT}: use the version that wrote it"
        )
    fingerprint = dict(found["fingerprint"])
    if identity.space_id(fingerprint) != space_id:
        raise DamagedStore(
            f"{files.place(key)} describes space {identity.space_id(fingerprint)}, not {space_id}: restore the file"
        )
    return fingerprint
