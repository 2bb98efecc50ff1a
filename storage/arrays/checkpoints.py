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
from tagcos_stream.types import UserError

FORMAT = 1
ROLES = ("weights", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class StoredCheckpoint:
    """Adapter and Adam moments, dictionaries by parameter name, after `step` warm-up steps."""

    step: int
    learning_rate: float
    adam_steps: int
    weights: dict[str, np.ndarray]
    exp_avg: dict[str, np.ndarray]
    exp_avg_sq: dict[str, np.ndarray]


@dataclass(frozen=True)
class SavedFile:
    """What the catalog keeps of a file."""

    path: str
    bytes: int
    digest: str


def checkpoint_key(space_id: str, step: int) -> str:
    return f"spaces/{space_id}/step-{step:06d}.safetensors"


def save_checkpoint(files: Files, space_id: str, checkpoint: StoredCheckpoint) -> SavedFile:
    arrays = {f"{role}/{name}": array for role in ROLES for name, array in getattr(checkpoint, role).items()}
    key = checkpoint_key(space_id, checkpoint.step)
    # repr keeps a float to the last bit
    metadata = {
        "step": str(checkpoint.step),
        "learning_rate": repr(float(checkpoint.learning_rate)),
        "adam_steps": str(checkpoint.adam_steps),
    }
    digest, size = save_arrays(files, key, arrays, metadata)
    return SavedFile(key, size, digest)


def load_checkpoint(files: Files, space_id: str, step: int, digest: str | None = None) -> StoredCheckpoint:
    """Give the catalog's digest where there is one: a changed adapter would mean another space."""
    key = checkpoint_key(space_id, step)
    try:
        arrays, metadata = load_arrays(files, key, digest)
    except FileNotFoundError:
        raise DamagedStore(f"{files.place(key)} is missing: restore it, or run with a new --root to warm up again") from None
    by_role: dict[str, dict[str, np.ndarray]] = {role: {} for role in ROLES}
    for name, array in arrays.items():
        role, _, parameter = name.partition("/")
        by_role[role][parameter] = array
    return StoredCheckpoint(int(metadata["step"]), float(metadata["learning_rate"]), int(metadata["adam_steps"]), **by_role)


def save_space(files: Files, space_id: str, fingerprint: Mapping[str, Any]) -> None:
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
