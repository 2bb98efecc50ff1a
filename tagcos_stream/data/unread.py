"""Fields that a row's shape leaves out: whether their text is lost, which rejects the row, or stands in its messages, too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from typing import Any

from tagcos_stream.data.conversations import CHAT_FIELDS, is_data
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import Record
from tagcos_stream.data.transcripts import continued
from tagcos_stream.data.turns import CONTENT_KEYS
from tagcos_stream.types import Message

SEARCHED = 100_000_000  # characters that are searched for the texts of a field, a tenth of a second
LONG = 16  # characters of a text that counts as the same one where a message contains it
RENDERED = ("text", "prompt")  # may hold the whole row as a template prints it
REFERENCES = ("answer", "answers")  # may hold the short answer that the last turn ends in
_BEFORE, _BEHIND = re.compile(r"(?:\w|\d[.,])\Z"), re.compile(r"\w|[.,]\d")


def refuse_unread(row: Record, read: Set[str], messages: Sequence[Message], fields: Set[str]) -> None:
    """Refuse a row whose text is lost.

    Parameters
    ----------
    row
        The record.
    read
        Fields that its shape has read.
    messages
        What they gave.
    fields
        Names of all fields that may have text of a prompt or an answer.

    Raises
    ------
    RowError
        A field with text was not read and does not stand in the messages either.
    """
    for name in [name for name in row if name in fields and name not in read and row[name] and _is_text(name, row[name])]:
        value = row[name]
        if name in RENDERED and isinstance(value, str):
            end = "\n" if name == "prompt" else ""  # there the texts must end their lines: a prompt may only resemble the row
            if _holds(value + end, [part + end for field in row if field in read for part in _texts(row[field])]):
                continue
        if not _stand_in(name, _parts(name, value), messages):
            raise RowError("unread_field", f"{name} has text that this row's shape leaves out; say what to read with `columns`")


def _is_text(name: str, value: Any) -> bool:
    """Whether the value is text of a prompt or an answer: other things stand under these names, too."""
    if isinstance(value, int | float):
        return False
    if name == "data" and not isinstance(value, str):
        return is_data(value)
    if name in CHAT_FIELDS and isinstance(value, str) and ((text := value.strip()).isdecimal() or text == "[]"):
        return False  # the number of turns, or none, in a cell
    return next(_texts(value), None) is not None


def _parts(name: str, value: Any) -> list[str]:
    """The texts of a field, those of its turns where it is a transcript that ends where the answer begins."""
    if name == "prompt" and isinstance(value, str) and (parts := continued(value, "", (name, "the answer"))):
        return [text for turn in parts[0] if (text := turn["content"].strip())]
    return list(_texts(value))


def _holds(text: str, parts: list[str]) -> bool:
    """Whether the text contains every part; parts that are not in order are searched for up to a bound on the work."""
    position, again = 0, 0
    for part in parts:
        if (found := text.find(part, position)) >= 0:
            position = found + len(part)
            continue
        again += len(text)
        if again > SEARCHED or part not in text:
            return False
    return True


def _stand_in(name: str, texts: list[str], messages: Sequence[Message]) -> bool:
    """Return whether every text is that of a message or part of one, searched up to a bound on the work.

    Short texts occur anywhere by chance; one of REFERENCES counts where it stands in the last answer, apart from other words.
    """
    contents = {m["content"].strip() for m in messages}
    rest = [text for text in texts if text not in contents]
    if len(rest) * sum(map(len, contents)) > SEARCHED:
        return False
    last = next((m["content"] for m in reversed(messages) if m["role"] == "assistant"), "") if name in REFERENCES else ""
    return all(_stands_apart(text, last) if len(text) < LONG else any(text in content for content in contents) for text in rest)


def _stands_apart(text: str, content: str) -> bool:
    """Whether the content has the text, and neither letters nor further digits beside it."""
    begin = content.find(text)
    while begin >= 0:
        end = begin + len(text)
        if not _BEFORE.search(content[max(0, begin - 2) : begin]) and not _BEHIND.match(content, end):
            return True
        begin = content.find(text, begin + 1)
    return False


def _texts(value: Any) -> Iterator[str]:
    """Texts of a field, of a list of them, or of a list of turns, without white space at their ends."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if text := value.strip():
                yield text
        elif isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, dict):
            waiting += reversed([value[k] for k in CONTENT_KEYS if value.get(k)] or [*value.values()])
        elif value is not None:
            yield str(value)
