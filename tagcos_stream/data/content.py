"""What a turn says: text, or a list of parts as OpenAI, Anthropic and LLaMA-Factory write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tagcos_stream.data.reasons import RowError

TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("thinking", "reasoning")
CALL_PARTS = ("tool_use", "tool_call")
RESULT_PART = "tool_result"
_VALUES = ("text", "value", "thinking", "reasoning", "content")  # where a part's text may stand


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


def text_of(value: Any, what: str) -> str:
    """A string, or a list of text parts joined without a separator; never trimmed."""
    content = read_content(value, what)
    if content.reasoning or content.calls or content.results:
        raise RowError("unsupported_content", f"{what} has parts that are not text")
    return content.text


def one_text(value: Any, what: str) -> str:
    """A string, or a list that holds one. RowError where there are several texts, of which only one can be meant."""
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
        _add(found, texts, reasoning, {"text": part} if isinstance(part, str) else part, what)
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


def _add(found: Content, texts: _Pieces, reasoning: _Pieces, part: Any, what: str) -> None:
    kind = part.get("type") or "text" if isinstance(part, dict) else type(part).__name__
    text = next((part[k] for k in _VALUES if isinstance(part.get(k), str)), None) if isinstance(part, dict) else None
    if kind in TEXT_PARTS and text is not None:
        if found.calls and text:
            raise RowError("unsupported_content", f"{what} has text behind a tool call, which no message can hold in that order")
        begin = texts.length
        texts.add(text)
        found.spans.append((begin, texts.length, next((part[k] for k in ("train", "weight") if part.get(k) is not None), None)))
    elif kind in REASONING_PARTS and text is not None:
        if texts.length:
            raise RowError("unsupported_content", f"{what} has a part of type {kind!r} behind its text")
        reasoning.add(text)
    elif kind in CALL_PARTS:
        arguments = part.get("input") if kind == "tool_use" else None
        found.calls.append({k: part.get(k) for k in ("id", "name")} | {"arguments": arguments} if kind == "tool_use" else text)
    elif kind == RESULT_PART:
        content = part.get("content")
        identity = part.get("tool_use_id")
        found.results.append((None if identity is None else str(identity), text_of("" if content is None else content, what)))
    else:
        raise RowError("unsupported_content", f"{what} has a part of type {kind!r}, which is not read")
