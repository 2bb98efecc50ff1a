"""Named bytes under one root: a local folder or an object store, with the same few verbs.

A write is atomic and durable when it returns: locally a temporary file, fsync, rename, fsync of the folder; in an object
store one put. Keys use '/' whatever the platform.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from tagcos_stream.types import UserError

TEMPORARY = ".tmp-"

Seen = Callable[[np.ndarray], None]


class Files(Protocol):
    """The seam: LocalFiles and ObjectFiles, held to one contract suite (tests/storage/test_files.py)."""

    @property
    def url(self) -> str: ...

    def place(self, key: str) -> str:
        """What a message calls the file: a path or a URL."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes, or None where there is no such file."""
        ...

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        ...

    def read_into(self, key: str, out: np.ndarray, offset: int = 0, seen: Seen | None = None) -> int:
        """Fill `out` (uint8) from `offset`; `seen` gets every piece as it arrives. Returns the bytes read (fewer at the end)."""
        ...

    def expect(self, key: str) -> None:
        """Prefetch hint. Does nothing if the file is missing or the store cannot prefetch."""
        ...

    def read_pieces(self, key: str, pieces: Sequence[tuple[np.ndarray, int]]) -> bool:
        """Fill every (uint8 array, offset); False where the file is missing or too short."""
        ...

    def write(self, key: str, *pieces: bytes | np.ndarray, durable: bool = True) -> None:
        """Atomic; with durable=False only `sync` makes it last: for many files that one transaction names."""
        ...

    def sync(self, prefix: str) -> None:
        """Make every file under the folder last."""
        ...

    def adopt(self, key: str, path: Path) -> None:
        """Make a finished local file (on the root's disk, where that is one) this key; the file itself is gone afterwards."""
        ...

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(key, bytes) of every file under the folder `prefix` ('' is the root), in no particular order."""
        ...

    def delete(self, key: str) -> None:
        """Absent is fine: a sweep may be repeated."""
        ...


def write_error(place: str, error: OSError) -> UserError:
    """What a failed write means to the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "the disk or quota is full: free space (tagcos gc --yes removes orphans) and start the same command again"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "it is not writable: choose another --root or mend the permissions"
    else:
        remedy = "start the same command again once this is mended"
    return UserError(f"cannot write {place}: {error.strerror or error}; {remedy}. Nothing committed is lost.")


def as_bytes(piece: bytes | np.ndarray) -> memoryview:
    return (piece.data if isinstance(piece, np.ndarray) else memoryview(piece)).cast("B")


def sync_path(path: Path) -> None:
    """Of a file or a folder: a rename is durable only once its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
