"""A .jsonl file: a JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import numpy as np

from tagcos_stream.data.containers.base import BOM, LimitReached, Limits, Raw, Reject, Unpacked, oversized, snippet

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile

SPACE = b" \t\r\n"
HEAD = 1 << 20  # bytes that are looked at to tell what a file is


def read(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Rows of a JSONL file; one that holds a list, or objects over several lines, is read as the .json file that it is."""
    from tagcos_stream.data.containers.json_list import read_json

    stream = Unpacked(raw, limits)
    try:
        head = stream.read(HEAD)
    except LimitReached as e:
        yield Raw(1, stream.bytes_read, rejects=[Reject(0, e.args[0], e.args[1], "")] if start_row == 0 else [])
        return
    if _is_json(head):
        yield from read_json(stream, start_row, block_rows, limits, file.spec.key, head)
    else:
        yield from read_lines(stream, start_row, block_rows, limits, head)


def _is_json(head: bytes) -> bool:
    """Whether a file's first bytes are those of a list of objects, or of an object written over several lines."""
    text = head.removeprefix(BOM).lstrip(SPACE)
    first, _, rest = text.partition(b"\n")
    if first.strip(SPACE) in (b"[", b"{"):
        return True
    return first[:1] == b"[" and first[1:].lstrip(SPACE)[:1] == b"{" and not rest.strip(SPACE)


def read_lines(stream: Unpacked, start_row: int, block_rows: int, limits: Limits, prefix: bytes = b"") -> Iterator[Raw]:
    """Rows of a JSONL file: row = physical line, counted from 0; blank lines count but are no rows.

    prefix: bytes that were taken off the stream's head before. At most a block and one row (limits) are held.
    """
    row, data, at_end = 0, prefix, False
    last: Raw | None = None
    ended: LimitReached | None = None
    while not at_end or data:
        want = block_rows if row >= start_row else min(block_rows, start_row - row)
        pieces, size, count = [data], len(data), data.count(b"\n")
        while not at_end and count < want and (size < limits.block_bytes or (count == 0 and size <= limits.max_row_bytes)):
            try:
                chunk = stream.read(1 << 20)
            except LimitReached as e:
                ended, chunk = e, b""
            at_end = not chunk
            pieces.append(chunk)
            size, count = size + len(chunk), count + chunk.count(b"\n")
        data = b"".join(pieces)
        if row == 0:
            data = data.removeprefix(BOM)
        if count == 0 and not at_end:
            if row >= start_row:
                last = Raw(row + 1, stream.bytes_read, rejects=[oversized(row, data, limits)])
                yield last
            data, row = _behind_line(stream), row + 1
            continue
        cut = _after_line(data, want) if count > want else data.rfind(b"\n") + 1
        n = min(count, want)
        if at_end and count <= want and ended is None and count < want and data[cut:]:
            cut, n = len(data), n + 1
        if at_end and n == 0:
            break
        block, data = data[:cut], data[cut:]
        if row >= start_row:
            last = Raw(row + n, stream.bytes_read, block=block.removesuffix(b"\n"), first=row)
            yield last
        row += n
    if ended is not None and row >= start_row:
        yield Raw(row + 1, stream.bytes_read, rejects=[Reject(row, ended.args[0], ended.args[1], snippet(data))])
    elif last is None:
        yield Raw(max(row, start_row), stream.bytes_read)


def _after_line(data: bytes, n: int) -> int:
    """Position behind the n-th newline."""
    return int(np.flatnonzero(np.frombuffer(data, np.uint8) == 10)[n - 1]) + 1


def _behind_line(stream: Unpacked) -> bytes:
    """What follows the next newline in the piece that holds it; the line before is read over, not held."""
    try:
        while chunk := stream.read(1 << 20):
            _, newline, rest = chunk.partition(b"\n")
            if newline:
                return rest
    except LimitReached:
        pass  # met again, and then reported, by the next read
    return b""
