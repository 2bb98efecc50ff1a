"""Files in an object store, through obstore: every write is one put."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from storage.files.base import Seen, as_bytes, check_key
from tagcos_stream.credentials import redact
from tagcos_stream.store_errors import store_error
from tagcos_stream.types import UserError


class ObjectFiles:
    """s3://, gs:// or az:// through obstore; credentials and endpoint come from the provider's usual environment variables."""

    def __init__(self, url: str) -> None:
        try:
            import obstore
        except ImportError as error:
            raise UserError(f"{url}: object stores need the package obstore: pip install obstore") from error

        self.url = url.rstrip("/")
        self._api = obstore
        try:
            self._store = obstore.store.from_url(self.url)
        except (obstore.exceptions.BaseError, ValueError) as error:  # a URL that names no bucket, or missing settings
            raise UserError(f"cannot open {url}: {redact(str(error))}") from error

    def __reduce__(self) -> tuple[type[ObjectFiles], tuple[str]]:
        return ObjectFiles, (self.url,)  # a worker opens its own connection

    def place(self, key: str) -> str:
        """Return an object's URL, for messages."""
        return f"{self.url}/{key}"

    def _checked(self, key: str) -> str:
        """The key; UserError for one that LocalFiles refuses, too."""
        check_key(self.url, key)
        return key

    @contextmanager
    def _telling(self, what: str, key: str) -> Iterator[None]:
        """Say in one line what the store refused; that an object is missing is for the caller to answer."""
        try:
            yield
        except self._api.exceptions.BaseError as error:
            raise self._refused(what, key, error) from error

    def _refused(self, what: str, key: str, error: Exception) -> UserError:
        remedy = "check bucket, credentials and endpoint, then run again"
        return store_error(f"cannot {what} {self.place(key)}", error, remedy, self._api.exceptions.GenericError)

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes, or None."""
        try:
            with self._telling("read", key):
                return int(self._api.head(self._store, self._checked(key))["size"])
        except FileNotFoundError:
            return None

    def read(self, key: str) -> bytes:
        """Return an object's content."""
        with self._telling("read", key):
            return bytes(self._api.get(self._store, self._checked(key)).bytes())

    def read_into(self, key: str, out: np.ndarray, offset: int = 0, seen: Seen | None = None) -> int:
        """Fill an array from an object by one range request; returns the bytes read."""
        # One request, whatever the size: pieces would cost a round trip each. A range past the end is cut, or refused.
        try:
            found = self._api.get_range(self._store, self._checked(key), start=offset, length=out.size)
            got = np.frombuffer(memoryview(found), np.uint8)
        except self._api.exceptions.BaseError:  # a range past the end, or an error that this meets, too
            whole = np.frombuffer(self.read(key), np.uint8)
            got = whole[offset : offset + out.size]
        out[: got.size] = got
        if seen is not None:
            seen(out[: got.size])
        return int(got.size)

    def expect(self, key: str) -> None:
        """Do nothing but check the key: an object store has no prefetch."""
        self._checked(key)

    def read_pieces(self, key: str, pieces: Sequence[tuple[np.ndarray, int]]) -> bool:
        """Read pieces of an object by one request; False if it is missing or too short."""
        try:
            found = self._api.get_ranges(
                self._store, self._checked(key), starts=[at for _, at in pieces], lengths=[out.size for out, _ in pieces]
            )
        except (FileNotFoundError, self._api.exceptions.BaseError):
            return False  # the caller then reads the whole chunk, whose error is specific
        for (out, _), got in zip(pieces, found, strict=True):
            if len(got) != out.size:
                return False
            out[:] = np.frombuffer(memoryview(got), np.uint8)
        return True

    def adopt(self, key: str, path: Path) -> None:
        """Upload a finished local file and delete it."""
        self._put(key, path)
        path.unlink()

    def sync(self, prefix: str) -> None:
        """A put lasts."""

    def write(self, key: str, *pieces: bytes | np.ndarray, durable: bool = True) -> None:
        """Upload an object; durable when this returns, whatever `durable` is."""
        body = pieces[0] if len(pieces) == 1 and isinstance(pieces[0], bytes) else b"".join(as_bytes(piece) for piece in pieces)
        self._put(key, body)

    def _put(self, key: str, body: bytes | Path) -> None:
        try:
            self._api.put(self._store, self._checked(key), body)
        except (FileNotFoundError, self._api.exceptions.BaseError) as error:  # a missing bucket is a FileNotFoundError
            raise self._refused("write", key, error) from error

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield (key, size in bytes) of the objects below a prefix."""
        with self._telling("list", prefix):
            for page in self._api.list(self._store, self._checked(prefix) if prefix else None):
                for entry in page:
                    yield entry["path"], int(entry["size"])

    def delete(self, key: str) -> None:
        """Delete an object if it exists."""
        with suppress(FileNotFoundError), self._telling("delete", key):
            self._api.delete(self._store, self._checked(key))
