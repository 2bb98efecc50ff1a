"""Lines of a stream in blocks, each a row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tagcos_stream.data.containers.base import BOM, LimitReached, Limits, Raw, Unpacked, blank_lines, oversized, snippet
from tagcos_stream.data.rejects import Reject, Rejects

SPACE = b" \t\r\n"


def read_lines(stream: Unpacked, start_row: int, block_rows: int, limits: Limits, prefix: bytes = b"") -> Iterator[Raw]:
    """Rows of a JSONL file: row = physical line, counted from 0; blank lines are counted but are not rows.

    prefix: bytes that were taken off the stream's head before. At most a block and one row (limits) are held.
    """
    block_rows = min(block_rows, limits.max_blank_lines)  # so that a run beyond the limit crosses the end of a block
    row, data, at_end = 0, prefix, False
    blank = 0  # lines right before `row`
    last: Raw | None = None
    ended: LimitReached | None = None
    while not at_end or data:
        stream.rows = row
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
        data, skipped = _without_blank_lines(data)
        row, count, blank = row + skipped, count - skipped, blank + skipped
        if blank > limits.max_blank_lines:
            row, ended = row - blank + limits.max_blank_lines, blank_lines(limits)
            break
        if skipped and (not at_end or count):
            continue
        if count == 0 and not at_end:
            if row >= start_row:
                last = Raw(row + 1, stream.bytes_read, rejects=Rejects(oversized(row, data, limits)))
                yield last
            data, row = _behind_line(stream), row + 1
            continue
        cut = _after_line(data, want) if count > want else data.rfind(b"\n") + 1
        n = min(count, want)
        open_end = at_end and ended is None and count < want and bool(data[cut:])
        if open_end:
            cut, n = len(data), n + 1
        if at_end and n == 0:
            break
        block, data = data[:cut], data[cut:]
        if row >= start_row:
            last = Raw(row + n, stream.bytes_read, block=block.removesuffix(b"\n"), first=row, open_end=open_end)
            yield last
        row += n
        blank = _blank_lines_at_end(block)
    if ended is not None and row >= start_row:
        yield Raw(row + 1, stream.bytes_read, rejects=Rejects(Reject(row, ended.args[0], ended.args[1], snippet(data))))
    elif last is None or row > last.next_row:
        yield Raw(max(row, start_row), stream.bytes_read)


def _without_blank_lines(data: bytes) -> tuple[bytes, int]:
    """(the data without the blank lines that it begins with, their number)."""
    if data[:1] not in (b"\n", b" ", b"\t", b"\r"):
        return data, 0
    end = data.rfind(b"\n", 0, len(data) - len(data.lstrip(SPACE))) + 1
    return data[end:], data.count(b"\n", 0, end)


def _blank_lines_at_end(block: bytes) -> int:
    """Of a block that ends with a newline or with the file."""
    text = len(block.rstrip(SPACE))
    return max(block.count(b"\n", text) - 1, 0) if text else block.count(b"\n")


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
