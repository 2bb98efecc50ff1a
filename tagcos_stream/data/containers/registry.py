"""The kinds of files that are read: a new one is a module with a function `read`, and a line of CONTAINERS."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

from tagcos_stream.data.containers import arrow, csv, json_list, jsonl, parquet
from tagcos_stream.data.containers.base import Limits, Raw
from tagcos_stream.data.rejects import Reject, Rejects
from tagcos_stream.data.remote import is_remote, open_remote
from tagcos_stream.types import TransientError, UserError

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile

Read = Callable[[IO[bytes], "SourceFile", int, int, Limits], Iterator[Raw]]

CONTAINERS: dict[str, tuple[tuple[str, ...], Read]] = {  # name -> endings of its files, reader
    "json": ((".json",), json_list.read),
    "jsonl": ((".jsonl", ".ndjson"), jsonl.read),
    "csv": ((".csv",), csv.read),
    "tsv": ((".tsv",), csv.read),
    "parquet": ((".parquet", ".pq"), parquet.read),
    "arrow": ((".arrow", ".feather", ".ipc"), arrow.read),
}


def open_blocks(file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Blocks of uninterpreted rows from `start_row` on, at least one. UserError where the file as a whole cannot be read."""
    if file.format not in CONTAINERS:
        raise UserError(f"{file.url}: format {file.format!r} is unknown; there are {', '.join(CONTAINERS)}")
    with open_bytes(file.url) as raw:
        if file.size == 0:
            yield Raw(
                1, 0, rejects=Rejects(Reject(0, "empty_file", "the file holds nothing", "")) if start_row == 0 else Rejects()
            )
        else:
            yield from CONTAINERS[file.format][1](raw, file, start_row, block_rows, limits)


def open_bytes(url: str) -> IO[bytes]:
    """Open a local file or one behind a URL for reading.

    The only place where ingest opens a file; paths never come from data.
    """
    if is_remote(url):
        return open_remote(url)
    try:
        return cast("IO[bytes]", _LocalFile(url, "rb"))
    except OSError as e:
        raise UserError(f"{url}: cannot be read: {e.strerror}") from None


class _LocalFile(io.FileIO):
    """A file whose failing disk or connection is not taken for damaged data, which the readers of containers reject."""

    def read(self, size: int | None = -1, /) -> bytes:
        with self._telling():
            return super().read(-1 if size is None else size)

    def readall(self) -> bytes:
        with self._telling():
            return super().readall()

    def readinto(self, buffer: Any, /) -> int:
        with self._telling():
            return super().readinto(buffer)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            raise TransientError(
                f"{self.name}: cannot be read on: {e.strerror}; mend the disk or its connection, then run again"
            ) from None
