"""A .json file: a list of rows, an object that holds such a list, one row alone, or rows one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import numpy as np
import orjson

from tagcos_stream.data.containers.base import BOM, REST, LimitReached, Limits, Raw, Unpacked, blank_lines, oversized, snippet
from tagcos_stream.data.containers.json_scan import (
    BEHIND_VALUE,
    DEPTH,
    ENDED,
    EXPECTED,
    MISPLACED,
    OF_OBJECTS,
    find_list,
    new_state,
    scan_elements,
)
from tagcos_stream.data.containers.lines import read_lines
from tagcos_stream.data.pairs import SYSTEM_FIELDS
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
    "contents",
    "input",
    "output",
    "answers",
    "chosen",
    "rejected",
}
_OF_EVERY_ROW = frozenset({*SYSTEM_FIELDS, "definition", "instruction", "prompt", "context"})  # in any case


def read(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Rows of a .json file."""
    yield from read_json(Unpacked(raw, limits), file, start_row, block_rows, limits)


def read_json(
    stream: Unpacked, file: SourceFile, start_row: int, block_rows: int, limits: Limits, head: bytes = b""
) -> Iterator[Raw]:
    """Rows of a .json file; row = element of the list, counted from 0.

    Of an object, the list is read that the source's `key` names; without it the first list of objects, and further ones become a
    reject, but where rows of any shape are asked for, all of them are read. head: bytes that were taken off the stream before. A
    list that ends early or whose brackets do not close ends in a reject, and so does text that does not belong behind it.
    """
    ended: LimitReached | None = None
    try:
        while len(head.removeprefix(BOM).lstrip(SPACE)) < CHUNK and (chunk := stream.read(CHUNK)):
            head += chunk
            if len(head) > limits.max_row_bytes:
                break
        # objects one after the other are told by their second line
        while not _has_second_line(head) and len(head) <= limits.max_row_bytes and _begins(head) == b"{":
            if not (chunk := stream.read(CHUNK)):
                break
            head += chunk
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
        yield from _object(stream, head, start_row, block_rows, limits, file.spec.key, every=file.spec.options.shape == "any")


def _begins(head: bytes) -> bytes:
    return head[:64].removeprefix(BOM).lstrip(SPACE)[:1]


def _has_second_line(head: bytes) -> bool:
    at = head.find(b"\n")
    return at >= 0 and bool(head[at:].strip(SPACE))


def _is_lines(head: bytes) -> bool:
    """Whether the first line is a whole JSON value and another follows."""
    line, _, rest = head.partition(b"\n")
    if not _has_second_line(head):
        return False
    # a broken first row does not make the file one object: look at the second
    return is_value(line) or is_object(rest.lstrip(SPACE).partition(b"\n")[0])


def is_value(line: bytes) -> bool:
    """Whether a line is a whole JSON value."""
    try:
        orjson.loads(line)
    except ValueError:
        return False
    return True


def is_object(line: bytes) -> bool:
    """Whether a line is a whole JSON object."""
    try:
        return isinstance(orjson.loads(line), dict)
    except ValueError:
        return False


def _elements(
    stream: Unpacked,
    head: bytes,
    start_row: int,
    block_rows: int,
    limits: Limits,
    level: int,
    tail: list[tuple[int, bytes]] | None = None,
    row: int = 0,
) -> Iterator[Raw]:
    """Blocks of a list's elements, from number `row` on; `head` starts behind its bracket.

    `tail` takes the number that follows the last element's and what is read of the bytes behind the list, if it ends; without a
    `tail` there must be none.
    """
    state, cuts = new_state(level), np.empty(4096, np.int64)
    carry, data, skipped, empty = b"", head, False, 0
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
    elif tail is not None and not broken:
        tail.append((row, rest))
    elif not broken and (behind := _behind(stream, rest, row)) is not None and row >= start_row:
        block.rejects.add(behind)
        block.next_row, block.open_end = row + 1, True
    block.bytes_read = stream.bytes_read
    yield block


def _behind(stream: Unpacked, rest: bytes, row: int) -> Reject | None:
    """What stands behind the end of a list, as a reject; None for nothing but white space."""
    try:
        while not (text := rest.strip(SPACE)) and (rest := stream.read(CHUNK)):
            pass
    except LimitReached as e:
        return Reject(row, e.args[0], e.args[1], "")
    return Reject(row, "broken_json", f"more text behind the end of the list; {REST}", snippet(text)) if text else None


def _object(
    stream: Unpacked, head: bytes, start_row: int, block_rows: int, limits: Limits, key: str | None, *, every: bool
) -> Iterator[Raw]:
    """An object: the list that it holds, or every one, or the object itself as row 0."""
    state, data, before, done = new_state(0), head, b"", False
    state[OF_OBJECTS] = key is None
    whole: bytes | None = head  # while it may be one row
    rejects: list[Reject] = []
    beside: str | None = None
    next_row, cut = start_row, False
    while data and not cut:
        position, held = 0, b""
        while position < len(data):
            at, position = find_list(np.frombuffer(data, np.uint8), position, state)
            if at == MISPLACED:
                detail = f"behind a list, the object does not go on as JSON does; {REST}"
                rejects.append(Reject(next_row, "broken_json", detail, snippet(data[position:])))
                next_row, cut = next_row + 1, True
            if at < 0:
                break
            if key is None and _SPACES.fullmatch(data, at + 1):  # what the list holds is not read yet
                held, state[DEPTH] = data[at:], state[DEPTH] - 1
                break
            found = _key_before((before + data[max(0, at - _LONGEST_KEY) : at])[-_LONGEST_KEY:])
            if found == key or (key is None and found not in _PARTS_OF_A_ROW):
                if done and not every:
                    rejects.append(Reject(next_row, "unread_list", f"list {found!r}: set `key` to read it instead", ""))
                    next_row += 1
                    continue
                if not (every or done or before):  # what stands beside a list that begins further behind is not looked at
                    beside = beside or _text_before(data[:at])
                if beside:
                    detail = f"{beside} is text for every row of the list {found!r} beside it: write it into the rows"
                    rejects.append(Reject(len(rejects), "unread_field", detail, ""))
                    next_row = max(next_row, len(rejects))
                    continue
                tail: list[tuple[int, bytes]] = []
                first = next_row if done else 0
                for raw in _elements(stream, data[at + 1 :], start_row, block_rows, limits, level=2, tail=tail, row=first):
                    yield raw
                if not tail:
                    return  # the list does not end
                done, whole = True, None
                state[DEPTH], state[EXPECTED] = state[DEPTH] - 1, BEHIND_VALUE
                (next_row, data), before, position = tail[0], b"", 0
        if cut:
            break
        before = (before + data[: len(data) - len(held)][-_LONGEST_KEY:])[-_LONGEST_KEY:]
        try:
            chunk = stream.read(CHUNK)
        except LimitReached as e:
            rejects.append(Reject(next_row, e.args[0], e.args[1], ""))
            next_row += 1
            break
        if not chunk and done and state[DEPTH]:
            rejects.append(Reject(next_row, "broken_json", "the object does not end behind its list", ""))
            next_row, cut = next_row + 1, True
        if whole is not None:
            whole = whole + chunk if len(whole) <= limits.max_row_bytes else whole
        data = held + chunk if chunk else b""
    if whole is not None and not rejects and start_row == 0:
        text = whole.strip(SPACE)
        raw = Raw(1, stream.bytes_read, rows=[0], texts=[text], open_end=not text.endswith(b"}"))
        yield (
            raw if len(whole) <= limits.max_row_bytes else Raw(1, stream.bytes_read, rejects=Rejects(oversized(0, whole, limits)))
        )
    else:
        own = Rejects(*(r for r in rejects if r.row >= start_row))
        yield Raw(max(next_row, start_row), stream.bytes_read, rejects=own, open_end=cut)


def _text_before(text: bytes) -> str | None:
    """The first field with text of a prompt in an object up to a value, None without one, or where the value is deeper."""
    try:
        fields = orjson.loads(text + b"null}")
    except ValueError:
        return None
    texts = (
        name for name, value in fields.items() if isinstance(value, str | list) and any(isinstance(t, str) and t for t in value)
    )
    return next((name for name in texts if name.lower() in _OF_EVERY_ROW), None)


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
