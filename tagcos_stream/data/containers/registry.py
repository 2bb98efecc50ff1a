"""The reader of each kind of file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING

from tagcos_stream.data.containers.json_list import read_json
from tagcos_stream.data.containers.jsonl import Limits, Raw, Reject, Unpacked, read_lines
from tagcos_stream.data.containers.tables import read_arrow, read_csv, read_parquet
from tagcos_stream.data.remote import is_remote, open_remote
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile


# reads an opened file from a row on: (file, what is known of it, first row, rows of a block, limits) -> blocks of rows
Reader = Callable[[IO[bytes], "SourceFile", int, int, Limits], Iterator[Raw]]


def _jsonl(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    return read_lines(Unpacked(raw, limits), start_row, block_rows, limits)


def _json(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    return read_json(Unpacked(raw, limits), start_row, block_rows, limits, file.spec.key)


def _csv(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    return read_csv(Unpacked(raw, limits), file, start_row, block_rows, limits)


# one entry for each container; the endings of file names are in sources.CONTAINERS
READERS: dict[str, Reader] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "tsv": _csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
}


def open_blocks(file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Blocks of uninterpreted rows from `start_row` on, at least one. UserError where the file as a whole cannot be read."""
    with open_bytes(file.url) as raw:
        if file.size == 0:
            yield Raw(1, 0, rejects=[Reject(0, "empty_file", "the file holds nothing", "")] if start_row == 0 else [])
        elif file.format in READERS:
            yield from READERS[file.format](raw, file, start_row, block_rows, limits)
        else:
            raise UserError(f"{file.url}: format {file.format!r} is unknown; use one of {', '.join(READERS)}")


def open_bytes(url: str) -> IO[bytes]:
    """A local file or one behind a URL, open for reading; the only place of ingest that opens what was resolved, never a path
    out of data.
    """
    if is_remote(url):
        return open_remote(url)
    try:
        return open(url, "rb", buffering=0)
    except OSError as e:
        raise UserError(f"{url}: cannot be read: {e.strerror}") from None
