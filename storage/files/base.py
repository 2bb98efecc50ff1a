"""Files under a root, by key: one interface to a local folder or an object store.

A write is atomic and durable when it returns: locally a temporary file, fsync, rename, fsync of the folder; in an object
store one put. Keys use '/' whatever the platform. What a disk or store refuses is a UserError, and a TransientError where the
store does not answer; only that a file is missing is a FileNotFoundError.
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
    """Interface of LocalFiles and ObjectFiles; both pass one contract suite (tests/storage/test_files.py)."""

    @property
    def url(self) -> str:
        """Folder or object-store URL of the root."""
        ...

    def place(self, key: str) -> str:
        """Return the path or URL of a file, for messages."""
        ...

    def size(self, key: str) -> int | None:
        """Return the size of a file in bytes; None if it does not exist."""
        ...

    def read(self, key: str) -> bytes:
        """Return the content of a file; FileNotFoundError if it does not exist."""
        ...

    def read_into(self, key: str, out: np.ndarray, offset: int = 0, seen: Seen | None = None) -> int:
        """Read bytes of a file into an array.

        Parameters
        ----------
        key
            The file.
        out
            (n,) uint8, filled from its start.
        offset
            Position in the file, in bytes.
        seen
            Called with every piece (uint8) as it arrives.

        Returns
        -------
        int
            Bytes read: n, or fewer at the end of the file.
        """
        ...

    def expect(self, key: str) -> None:
        """Prefetch hint. Does nothing if the file is missing or the store cannot prefetch."""
        ...

    def read_pieces(self, key: str, pieces: Sequence[tuple[np.ndarray, int]]) -> bool:
        """Read several (uint8 array, offset) pieces of a file. Returns False if it is missing or too short."""
        ...

    def write(self, key: str, *pieces: bytes | np.ndarray, durable: bool = True) -> None:
        """Write a file atomically.

        Parameters
        ----------
        key
            The file; replaced if it exists.
        pieces
            Its content, in order.
        durable
            Return only when the file is durable. With False a later `sync` makes it durable, which is faster for many
            files that one transaction commits.
        """
        ...

    def sync(self, prefix: str) -> None:
        """Make all files under the folder durable."""
        ...

    def adopt(self, key: str, path: Path) -> None:
        """Move a finished local file to this key."""
        ...

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield (key, size in bytes) of all files under the folder `prefix` ('' is the root), in no particular order."""
        ...

    def delete(self, key: str) -> None:
        """Delete a file if it exists."""
        ...


class CannotWrite(UserError):
    """A write that the file system refuses: the rest of a command would fail likewise."""


def write_error(place: str, error: OSError) -> CannotWrite:
    """Make an error with a remedy from a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "the disk or quota is full: free space (tagcos gc --yes removes orphans) and start the same command again"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "it is not writable: choose another --root or mend the permissions"
    else:
        remedy = "start the same command again once this is mended"
    return CannotWrite(f"cannot write {place}: {error.strerror or error}; {remedy}. Nothing committed is lost.")


def read_error(place: str, error: OSError) -> UserError:
    """Make a UserError with a remedy from a failed read."""
    return UserError(
        f"cannot read {place}: {error.strerror or error}; mend the permissions or the disk, then start the same command again"
    )


def check_key(url: str, key: str) -> None:
    """Refuse a key that is not one below the root. Keys are made of ids and paths in the catalog, which others may have written.

    Parameters
    ----------
    url
        The root, for the message.
    key
        Parts separated by '/'; may end in one.

    Raises
    ------
    UserError
        The key is absolute, or has an empty part, '.', '..', or a NUL.
    """
    if "\0" in key or any(part in ("", ".", "..") for part in key.removesuffix("/").split("/")):
        raise UserError(
            f"the catalog names {key!r}, which is not a file of the root {url}: it was changed by hand or made to mislead; "
            "restore catalog-snapshot.duckdb, or use a root that you trust"
        )


def as_bytes(piece: bytes | np.ndarray) -> memoryview:
    """View bytes or a contiguous array as bytes."""
    return (piece.data if isinstance(piece, np.ndarray) else memoryview(piece)).cast("B")


def sync_path(path: Path) -> None:
    """Call fsync on a file or a folder; a rename is durable only after fsync of the folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
