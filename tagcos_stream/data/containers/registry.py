"""The reader of each kind of file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from tagcos_stream.data.containers.json_list import read_json
from tagcos_stream.data.containers.jsonl import Limits, Raw, Reject, Unpacked, read_lines
from tagcos_stream.data.containers.tables import read_arrow, read_csv, read_parquet
from tagcos_stream.data.remote import is_remote, open_remote
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile


def open_blocks(file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Blocks of uninterpreted rows from `start_row` on, at least one. UserError where the file as a whole cannot be read."""
    with open_bytes(file.url) as raw:
        if file.size == 0:
            yield Raw(1, 0, rejects=[Reject(0, "empty_file", "the file holds nothing", "")] if start_row == 0 else [])
        elif file.format == "parquet":
            yield from read_parquet(raw, file, start_row, block_rows, limits)
        elif file.format == "arrow":
            yield from read_arrow(raw, file, start_row, block_rows, limits)
        else:
            stream = Unpacked(raw, limits)
            if file.format == "jsonl":
                yield from read_lines(stream, start_row, block_rows, limits)
            elif file.format == "json":
                yield from read_json(stream, start_row, block_rows, limits, file.spec.key)
            elif file.format in ("csv", "tsv"):
                yield from read_csv(stream, file, start_row, block_rows, limits)
            else:
                raise UserError(f"{file.url}: format {file.format!r} is unknown")


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
