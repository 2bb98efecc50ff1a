"""A .json file: a list of rows, an object that holds such a list, one row alone, or rows one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import numpy as np
import orjson

from tagcos_stream.data.containers.base import BOM, LimitReached, Limits, Raw, Unpacked, blank_lines, oversized, snippet
from tagcos_stream.data.containers.json_scan import ENDED, find_list, new_state, scan_elements
from tagcos_stream.data.containers.lines import read_lines
from tagcos_stream.data.rejects import Reject, Rejects
from tagcos_stream.data.shapes import CHAT_FIELDS

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile

CHUNK = 1 << 20
SPACE = b" \t\r\n"
_SPACES = re.compile(rb"[ \t\r\n]*")
_LONGEST_KEY = 4096
_PARTS_OF_A_ROW = frozenset(CHAT_FIELDS) | {
    "tools",
    "functions",
    "history",
    "replies",
    "prompt",
    "completion",
    "content",
    "output",
}


def read(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Rows of a .json file."""
    yield from read_json(Unpacked(raw, limits), start_row, block_rows, limits, file.spec.key)


def read_json(
    stream: Unpacked, start_row: int, block_rows: int, limits: Limits, key: str | None = None, head: bytes = b""
) -> Iterator[Raw]:
    """Rows of a .json file; row = element of the list, counted from 0.

    key: which list of an object to read; without it the first list of objects, and further ones become a reject. head: bytes
    that were taken off the stream before. A list that ends early or whose brackets do not close ends in a reject.
    """
    ended: LimitReached | None = None
    try:
        while len(head.removeprefix(BOM).lstrip(SPACE)) < CHUNK and (chunk := stream.read(CHUNK)):
            head += chunk
            if len(head) > limits.max_row_bytes:
                break
    except LimitReached as e:
        ended = e
    head = head.removeprefix(BOM).lstrip(SPACE)
    if ended is not None and len(head) < CHUNK:
        rejects = Rejects(Reject(0, ended.args[0], ended.args[1], snippet(head))) if start_row == 0 else Rejects()
        yield Raw(1, stream.bytes_read, rejects=rejects)
    elif head[:1] == b"[":
        yield from _elements(stream, head[1:], start_row, block_rows, limits, level=1)
    elif _is_lines(head):
        yield from read_lines(stream, start_row, block_rows, limits, head)
    else:
        yield from _object(stream, head, start_row, block_rows, limits, key)


def _is_lines(head: bytes) -> bool:
    """Whether the first line is a whole JSON value and another follows."""
    line, newline, rest = head.partition(b"\n")
    if not newline or not rest.strip(SPACE):
        return False
    try:
        orjson.loads(line)
    except ValueError:
        # a broken first row does not make the file one object: look at the second
        return is_object(rest.lstrip(SPACE).partition(b"\n")[0])
    return True


def is_object(line: bytes) -> bool:
    """Whether a line is a whole JSON object."""
    try:
        return isinstance(orjson.loads(line), dict)
    except ValueError:
        return False


def _elements(
    stream: Unpacked, head: bytes, start_row: int, block_rows: int, limits: Limits, level: int, tail: list[bytes] | None = None
) -> Iterator[Raw]:
    """Blocks of a list's elements; `head` starts behind its bracket. What follows the list is put into `tail`."""
    state, cuts = new_state(level), np.empty(4096, np.int64)
    row, carry, data, skipped, empty = 0, b"", head, False, 0
    block, held = Raw(start_row, 0, texts=[]), 0
    broken: tuple[str, str] | None = None
    nothing = Reject(0, "broken_json", "nothing between two commas of the list", "")
    while True:
        view, position, begin, why = np.frombuffer(data, np.uint8), 0, 0, 0
        while position < len(data) and why != ENDED:
            found, position, why = scan_elements(view, position, state, level, cuts)
            for cut in cuts[:found].tolist():
                text = (carry + data[begin:cut]).strip(SPACE)
                carry, begin = b"", cut + 1
                final = why == ENDED and cut == position - 1
                if final and not text and not skipped:
                    continue  # an empty list, or a comma behind the last element
                empty = 0 if text or skipped else empty + 1
                if empty > limits.max_blank_lines:
                    broken = blank_lines(limits).args
                    break
                if row >= start_row:
                    if skipped or len(text) > limits.max_row_bytes:
                        if not skipped:
                            block.rejects.add(oversized(row, text, limits))
                    elif not text:
                        block.rejects.add(nothing._replace(row=row))
                    else:
                        block.rows.append(row)
                        block.texts.append(text)  # type: ignore[union-attr]
                        held += len(text)
                skipped = False
                row += 1
                block.next_row = max(row, start_row)
                if row - start_row >= block_rows or held >= limits.block_bytes:
                    block.bytes_read = stream.bytes_read
                    yield block
                    start_row = row
                    block, held = Raw(start_row, 0, texts=[]), 0
            if broken:
                break
        if broken:
            rest = b""
            break
        if why == ENDED:
            rest = data[position:]
            break
        carry += data[begin:]
        if skipped or len(carry) > limits.max_row_bytes:
            if not skipped and row >= start_row:
                block.rejects.add(oversized(row, carry, limits))
            skipped, carry = True, b""
        stream.rows = row
        try:
            data = stream.read(CHUNK)
        except LimitReached as e:
            broken, data = (e.args[0], e.args[1]), b""
        if not data:
            rest = b""
            block.open_end = broken is None
            broken = broken or ("broken_json", f"the list does not end: row {row} cannot be separated from what follows it")
            break
    if broken and row >= start_row:
        block.rejects = block.rejects.within(0, row)
        block.rejects.add(Reject(row, *broken, snippet(carry)))
        block.next_row = row + 1
    elif tail is None and row >= start_row and rest.strip(SPACE):
        block.rejects.add(Reject(row, "broken_json", "more text behind the end of the list", snippet(rest.strip(SPACE))))
        block.next_row = row + 1
    if tail is not None:
        tail.append(rest)
    block.bytes_read = stream.bytes_read
    yield block


def _object(stream: Unpacked, head: bytes, start_row: int, block_rows: int, limits: Limits, key: str | None) -> Iterator[Raw]:
    """An object: the list that it holds, or the object itself as row 0."""
    state, data, before, done = new_state(0), head, b"", False
    whole: bytes | None = head  # while it may be one row
    rejects: list[Reject] = []
    next_row = start_row
    while data:
        position = 0
        while position < len(data):
            at, position = find_list(np.frombuffer(data, np.uint8), position, state)
            if at < 0:
                break
            space = _SPACES.match(data, at + 1)
            following = data[space.end() : space.end() + 1] if space else b""
            if key is None and following != b"{":
                continue
            found = _key_before((before + data[max(0, at - _LONGEST_KEY) : at])[-_LONGEST_KEY:])
            if found == key or (key is None and found not in _PARTS_OF_A_ROW):
                if done:
                    rejects.append(Reject(next_row, "unread_list", f"list {found!r}: set `key` to read it instead", ""))
                    next_row += 1
                    continue
                tail: list[bytes] = []
                for raw in _elements(stream, data[at + 1 :], start_row, block_rows, limits, level=2, tail=tail):
                    next_row = raw.next_row
                    yield raw
                done, whole = True, None
                state[0] -= 1
                data, before, position = tail[0], b"", 0
        before = (before + data[-_LONGEST_KEY:])[-_LONGEST_KEY:]
        try:
            data = stream.read(CHUNK)
        except LimitReached as e:
            rejects.append(Reject(next_row, e.args[0], e.args[1], ""))
            next_row += 1
            break
        if whole is not None:
            whole = whole + data if len(whole) <= limits.max_row_bytes else whole
    if whole is not None and not rejects and start_row == 0:
        text = whole.strip(SPACE)
        raw = Raw(1, stream.bytes_read, rows=[0], texts=[text], open_end=not text.endswith(b"}"))
        yield (
            raw if len(whole) <= limits.max_row_bytes else Raw(1, stream.bytes_read, rejects=Rejects(oversized(0, whole, limits)))
        )
    else:
        yield Raw(max(next_row, start_row), stream.bytes_read, rejects=Rejects(*(r for r in rejects if r.row >= start_row)))


def _key_before(text: bytes) -> str:
    """The key that ends the text of an object, before its value; empty where none does."""
    name = text.rstrip(SPACE)
    if not name.endswith(b":") or not (name := name[:-1].rstrip(SPACE)).endswith(b'"'):
        return ""
    begin = end = len(name) - 1
    while (begin := name.rfind(b'"', 0, begin)) >= 0:
        before = name[:begin]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:  # the quote is not escaped
            return name[begin + 1 : end].decode("utf-8", "replace")
    return ""
