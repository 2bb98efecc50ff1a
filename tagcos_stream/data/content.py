"""What a turn says: text, or a list of parts as OpenAI, Anthropic and LLaMA-Factory write them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tagcos_stream.data.reasons import RowError

TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("thinking", "reasoning")
CALL_PARTS = ("tool_use", "tool_call")
RESULT_PART = "tool_result"
_VALUES = ("text", "value", "thinking", "reasoning", "content")  # where a part's text may stand
# all that a part without a type may have: with other keys an object is no part but a turn, a search result, a call
_UNTYPED = ("text", "value", "train", "weight", "index", "cache_control")


@dataclass
class Content:
    """The parts of a turn's content.

    spans: (begin, end, flag or None) of the text's parts, in characters; results: (id of the call, text) of the results of tools
    within the turn.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[Any] = field(default_factory=list)
    results: list[tuple[str | None, str]] = field(default_factory=list)
    spans: list[tuple[int, int, Any]] = field(default_factory=list)


def is_empty(value: Any) -> bool:
    """Whether a key's value says nothing, as if the key were not there; 0 and false are values."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def text_of(value: Any, what: str) -> str:
    """A string, or a list of text parts joined without a separator; never trimmed."""
    content = read_content(value, what)
    if content.reasoning or content.calls or content.results:
        raise RowError("unsupported_content", f"{what} has parts that are not text")
    return content.text


def one_text(value: Any, what: str) -> str:
    """A string, or a list that holds one. RowError where there are several texts, of which only one can be meant."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        if len(value) > 1:
            raise RowError("several_texts", f"{what} is a list of {len(value)} texts where one belongs; write a row for each")
        return str(value[0])
    return text_of(value, what)


def read_content(value: Any, what: str) -> Content:
    """The parts of a turn's content. RowError where one is neither text, reasoning, a call nor a result."""
    if isinstance(value, str):
        return Content(value)
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{what} must be text, got {'null' if value is None else type(value).__name__}")
    found, texts, reasoning = Content(), _Pieces(), _Pieces()
    for part in value:
        if isinstance(part, str):
            _add_text(found, texts, part, None, what)
        else:
            _add(found, texts, reasoning, part, what)
    found.text, found.reasoning = "".join(texts.pieces), "".join(reasoning.pieces)
    return found


@dataclass
class _Pieces:
    """A text to be joined once, and its length so far."""

    pieces: list[str] = field(default_factory=list)
    length: int = 0

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.length += len(text)


def _add_text(found: Content, texts: _Pieces, text: str, flag: Any, what: str) -> None:
    if found.calls and text:
        raise RowError("unsupported_content", f"{what} has text behind a tool call, which no message can hold in that order")
    begin = texts.length
    texts.add(text)
    found.spans.append((begin, texts.length, flag))


def _add(found: Content, texts: _Pieces, reasoning: _Pieces, part: Any, what: str) -> None:
    kind = (part.get("type") or _untyped(part, what)) if isinstance(part, dict) else type(part).__name__
    text = _part_text(part, what) if isinstance(part, dict) else None
    if kind in TEXT_PARTS and text is not None:
        _add_text(found, texts, text, next((part[k] for k in ("train", "weight") if part.get(k) is not None), None), what)
    elif kind in REASONING_PARTS and text is not None:
        if texts.length:
            raise RowError("unsupported_content", f"{what} has a part of type {kind!r} behind its text")
        reasoning.add(text)
    elif kind in CALL_PARTS:
        found.calls.append(part if part.get("name") or part.get("function") else text)
    elif kind == RESULT_PART:
        content, identity = part.get("content"), part.get("tool_use_id")
        text = "" if content is None else text_of(reply(content, what), what)
        found.results.append((None if identity is None else str(identity), text))
    else:
        raise RowError("unsupported_content", f"{what} has a part of type {kind!r}, which is not read")


def _untyped(part: dict[str, Any], what: str) -> str:
    """The type of a part that names none: text. RowError where it has more than text and its flags."""
    if others := [str(key) for key, value in part.items() if key not in (*_UNTYPED, "type") and not is_empty(value)]:
        raise RowError("unsupported_content", f"{what} has a part without a type that has {', '.join(others)}, which is not read")
    return "text"


def _part_text(part: dict[str, Any], what: str) -> str | None:
    """The text of a part, None where it has none. RowError where it has several."""
    found = {key: part[key] for key in _VALUES if isinstance(part.get(key), str)}
    if isinstance(part.get("thinking"), list):  # Mistral's
        found["thinking"] = text_of(part["thinking"], what)
    if len({text for text in found.values() if text}) > 1:
        raise RowError("unsupported_content", f"{what} has a part with different texts under {' and '.join(found)}")
    return max(found.values(), default=None, key=len)


def reply(value: Any, what: str) -> Any:
    """What a tool said: an object, or a list without any part of a turn's content, as JSON text; another value as it is.

    A reply is data: a list of texts is not one text in pieces, and the fields of a search result are all meant. An empty list is
    no reply.
    """
    if not isinstance(value, dict | list) or value == [] or any(map(_is_part, value if isinstance(value, list) else [value])):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise RowError("too_deep", f"{what}: a tool's reply that is nested too deep for JSON text") from None


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and (isinstance(value.get("type"), str) or ("text" in value and set(value) <= set(_UNTYPED)))
