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
FULL = (errno.ENOSPC, errno.EDQUOT)

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


def write_error(place: str, error: OSError, need: int | None = None, *, unfinished: int = 0) -> CannotWrite:
    """Make an error with a remedy from a failed write.

    Parameters
    ----------
    place
        Path of the file or folder, or words for one without a path: what is free is then unknown.
    error
        What the file system answered.
    need
        Size of the whole file in bytes, where it is known.
    unfinished
        Bytes of what there is of it, which the caller will remove: they count as free.

    Returns
    -------
    CannotWrite
        To be raised from `error`.
    """
    if error.errno in FULL:
        remedy = "the disk or quota is full: free space (tagcos gc --yes removes orphans) and start the same command again"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "it is not writable: choose another --root or mend the permissions"
    else:
        remedy = "start the same command again once this is mended"
    return CannotWrite(f"cannot write {place}: {reason(place, error, need, unfinished)}; {remedy}. Nothing committed is lost.")


def reason(place: str, error: OSError, need: int | None = None, unfinished: int = 0) -> str:
    """Say why a write was refused; of a full disk also how much the file needs and how much is free.

    Parameters
    ----------
    place, error, need, unfinished
        As `write_error` has them.

    Returns
    -------
    str
        Without the place and a remedy.
    """
    said = error.strerror or str(error)
    if error.errno not in FULL:
        return said
    if error.errno == errno.EDQUOT:  # how much a quota leaves is told by no call that all systems have
        return f"{said}: this file needs {'' if need is None else f'{size_text(need)}, '}more than the quota leaves"
    found = _disk(place)
    if found is not None and found.f_files and not found.f_favail:
        return f"{said}: this file needs an inode, none is free"
    free = None if found is None else size_text(found.f_bavail * found.f_frsize + unfinished)
    if need is None:
        return said if free is None else f"{said}: this file needs more than the {free} that are free"
    return f"{said}: this file needs {size_text(need)}" + ("" if free is None else f", {free} are free")


def _disk(place: str) -> os.statvfs_result | None:
    """State of the file system that holds a path, or would."""
    folder = place
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        return os.statvfs(folder) if folder else None
    except OSError:
        return None


def size_text(count: int) -> str:
    """In the unit that suits: 512 bytes, 54.0 kB, 12.3 MB, 1.6 GB."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count} bytes"


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
