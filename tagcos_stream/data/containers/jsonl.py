"""A .jsonl file: a JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from tagcos_stream.data.containers.base import BOM, LimitReached, Limits, Raw, Unpacked
from tagcos_stream.data.containers.content import bare_returns
from tagcos_stream.data.containers.json_list import is_object, is_value, read_json
from tagcos_stream.data.containers.lines import read_lines
from tagcos_stream.data.rejects import Reject, Rejects

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile

SPACE = b" \t\r\n"
HEAD = 1 << 20  # bytes that are looked at to tell what a file is


def read(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Rows of a JSONL file; one that holds a list, or objects over several lines, is read as the .json file that it is."""
    stream = Unpacked(raw, limits)
    try:
        head = stream.read(HEAD)
        if found := bare_returns(head):
            raise LimitReached("wrong_container", f"the file has {found}")
    except LimitReached as e:
        yield Raw(1, stream.bytes_read, rejects=Rejects(Reject(0, e.args[0], e.args[1], "")) if start_row == 0 else Rejects())
        return
    if _is_json(head):
        yield from read_json(stream, file, start_row, block_rows, limits, head)
    else:
        yield from read_lines(stream, start_row, block_rows, limits, head)


def _is_json(head: bytes) -> bool:
    """Whether a file's first bytes are those of a list of objects, or of an object written over several lines."""
    text = head.removeprefix(BOM).lstrip(SPACE)
    first, _, rest = text.partition(b"\n")
    second, _, third = rest.lstrip(SPACE).partition(b"\n")
    match first.strip(SPACE):
        case b"{":  # else a first row of which no more is left
            return second[:1] in (b'"', b"}")
        case b"[":
            return not (is_object(second) and third.lstrip(SPACE)[:1] == b"{")  # rows without a comma between them
    if first[:1] != b"[" or first[1:].lstrip(SPACE)[:1] != b"{":
        return False
    if not second or is_value(first):
        return not second  # else each line is a list
    return second[:1] != b"[" and not (is_object(second) and third.lstrip(SPACE)[:1] == b"{")
