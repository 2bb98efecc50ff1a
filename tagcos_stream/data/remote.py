"""Object stores and the Hugging Face hub: what lies under a URL, and files there as seekable streams."""

from __future__ import annotations

import fnmatch
import glob
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from tagcos_stream.credentials import refuse_credentials
from tagcos_stream.store_errors import store_error
from tagcos_stream.types import UserError

SCHEMES = ("s3", "gs", "az", "hf")
FETCHED = 4 << 20  # bytes that a request asks for at least
Fetch = Callable[[int, int], Any]  # (first byte, bytes to give) -> bytes or another buffer


class Remote(NamedTuple):
    """A file under a URL: size in bytes, and what the store says of its content."""

    url: str
    size: int
    digest: str


def is_remote(path: str) -> bool:
    """Whether a path is a URL. UserError for a scheme that is not read."""
    scheme, separator, _ = path.partition("://")
    if not separator:
        return False
    refuse_credentials(path)
    if scheme not in SCHEMES:
        raise UserError(
            f"source {path}: scheme {scheme!r} is not read; there are {', '.join(s + '://' for s in SCHEMES)} and local paths"
        )
    return True


def list_files(url: str) -> list[Remote]:
    """Return the files at a URL by name: the file itself, all below it, or those that a glob matches, as locally.

    Below a folder, names that begin with a dot or an underscore are left out. UserError where the store refuses, TransientError
    where it does not answer.
    """
    scheme, _, base = base_of(url).partition("://")
    with _telling(url):
        found = _hub(base) if scheme == "hf" else _store_files(scheme, base)
    if glob.has_magic(url):
        return sorted(f for f in found if _matches(f.url.split("/"), url.split("/")))
    below = url.rstrip("/") + "/"
    hidden = (".", "_")
    return sorted(
        f for f in found if not any(part.startswith(hidden) for part in f.url.removeprefix(below).split("/") if f.url != url)
    )


def base_of(url: str) -> str:
    """Return the part of a URL before its first folder or name with a character of a pattern; all of it where none has."""
    found = re.search(r"[*?\[]", url)
    return url[: found.start()].rpartition("/")[0] if found else url


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a pattern matches as in `glob`: ** any number of folders, * none, and neither a dot that begins a name."""
    if not patterns or not parts:
        return not patterns and not parts
    if patterns[0] == "**":
        dotted = parts[0].startswith(".")
        return _matches(parts, patterns[1:] or ["*"]) or (not dotted and _matches(parts[1:], patterns))
    if parts[0].startswith(".") and not patterns[0].startswith("."):
        return False
    return fnmatch.fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def open_remote(url: str) -> IO[bytes]:
    """A file of an object store or of the hub, with read, seek and tell; bytes are fetched as they are read.

    UserError where the store refuses, TransientError where it does not answer, from this and from every read.
    """
    with _telling(url):
        size, fetch = _hub_file(url) if url.startswith("hf://") else _object(url)
    return io.BufferedReader(_Fetched(url, size, fetch), FETCHED)


@contextmanager
def _telling(url: str) -> Iterator[None]:
    """Say in one line what a store or the hub refused; every one has its own kinds of errors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        failed, remedy = f"source {url}: {type(error).__name__}", "check the address and credentials, then run again"
        raise store_error(failed, error, remedy, _unanswered(url)) from None


def _unanswered(url: str) -> type[Exception]:
    """The error of a store's library for a lost connection."""
    if url.startswith("hf://"):
        from huggingface_hub.errors import HTTPError  # its HTTP client's, which changed

        return HTTPError
    from obstore.exceptions import GenericError

    return GenericError


class _Fetched(io.RawIOBase):
    """A file that lies elsewhere, by requests for ranges of it."""

    def __init__(self, url: str, size: int, fetch: Fetch) -> None:
        self._url, self._size, self._fetch, self._at = url, size, fetch, 0

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), self._size - self._at)
        if size <= 0:
            return 0
        with _telling(self._url):
            found = memoryview(self._fetch(self._at, size))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def _object(url: str) -> tuple[int, Fetch]:
    """(size of an object, how ranges of it are asked for)."""
    import obstore

    scheme, _, rest = url.partition("://")
    store, path = _store(scheme, rest)
    return obstore.head(store, path)["size"], lambda at, size: obstore.get_range(store, path, start=at, length=size)


def _hub_file(url: str) -> tuple[int, Fetch]:
    """(size of a file on the hub, how ranges of it are asked for)."""
    file = _hub_files().open(url.removeprefix("hf://"), "rb", block_size=8 << 20)

    def fetch(at: int, size: int) -> bytes:
        file.seek(at)
        return bytes(file.read(size))

    return file.size, fetch


def _store(scheme: str, rest: str) -> tuple[Any, str]:
    """(bucket's store, path in it); credentials, region and endpoint come from the store's usual environment variables."""
    from obstore.store import from_url

    bucket, _, path = rest.partition("/")
    return from_url(f"{scheme}://{bucket}"), path


def _store_files(scheme: str, rest: str) -> list[Remote]:
    import obstore

    store, path = _store(scheme, rest)
    root = f"{scheme}://{rest.partition('/')[0]}/"
    if path and not path.endswith("/"):
        try:
            meta = obstore.head(store, path)
            return [Remote(root + meta["path"], meta["size"], _etag(meta))]
        except FileNotFoundError:
            pass
    return [
        Remote(root + meta["path"], meta["size"], _etag(meta))
        for batch in obstore.list(store, path.rstrip("/") or None)
        for meta in batch
    ]


def _etag(meta: Any) -> str:
    return f"etag:{meta['size']}:{meta.get('e_tag') or meta['last_modified'].isoformat()}"


def _hub_files() -> Any:
    try:
        from huggingface_hub import HfFileSystem
    except ImportError:
        raise UserError("hf:// sources need the package huggingface_hub: pip install huggingface_hub") from None
    return HfFileSystem()


def _hub(base: str) -> list[Remote]:
    """The blob's id on the hub is a content hash: SHA-256 for large files, Git's SHA-1 for others."""
    files = _hub_files()
    info = files.info(base)
    found = [info] if info["type"] == "file" else [i for i in files.find(base, detail=True).values() if i["type"] == "file"]
    return [
        Remote("hf://" + i["name"], i["size"], f"hub:{(i.get('lfs') or {}).get('sha256') or i.get('blob_id')}") for i in found
    ]
