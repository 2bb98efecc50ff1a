"""Which characters of a rendered conversation are trained on, proved by rendering it twice.

The second rendering carries marks: the template prints one wherever a loop turns to another message (`template.py`), and the
texts of the messages are wrapped in others. With the marks taken out it must equal the first to the character; then their
places are places in the text, whatever the template has trimmed, split, moved or left out. Where it differs, fewer marks are
tried, and where nothing holds, the conversation is refused.

The assistant's turn is what a loop prints while it stands at the message, less what a generation prompt prints (the header of
the turn) and less any text of other messages, up to the last special token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tagcos_stream.gradients.template import ChatTemplate, TemplateFailed, TemplateRefused
from tagcos_stream.gradients.template_tracker import Marks
from tagcos_stream.types import Message

REASONING = ("reasoning_content", "thinking", "reasoning")  # names under which templates read a turn's reasoning
_MARKS = (Marks(), Marks("\uf4c1", "\uf4c2"), Marks("\U0010ff01", "\U0010ff02"))
_AFTER = -1  # the owner of text that follows another message's content within a turn

Span = tuple[int, int]


class MaskUnproved(ValueError):
    """The template prints the conversation in a way that leaves open which text belongs to which turn."""


@dataclass(frozen=True)
class Chunk:
    """A stretch of a message's content (or reasoning) that a marked rendering wraps."""

    message: int
    begin: int
    end: int
    content: bool  # not reasoning


@dataclass
class Layout:
    """Where a rendered conversation has what; the places are positions in `text`."""

    text: str
    chunks: list[Chunk]
    pieces: list[tuple[int, int, int, int]] = field(default_factory=list)  # begin, end, message, visit (0: outside of any)
    printed: list[tuple[int, int, int]] = field(default_factory=list)  # begin, end, number of the chunk
    visited: set[int] = field(default_factory=set)
    last_mark: int = 0  # where the last loop over messages ended


def locate(
    template: ChatTemplate, shown: Sequence[dict[str, Any]], variables: Mapping[str, Any], size: int = 0, probe: bool = False
) -> Layout:
    """Render a conversation and find every message in it; the parameters are those of `ChatTemplate.render`.

    Raises
    ------
    MaskUnproved
        No marked rendering agrees with the plain one.
    TemplateRefused, TemplateFailed
        The template's own errors.
    """
    text = template.render(shown, variables, size=size, probe=probe)
    marks = next((m for m in _MARKS if m.open not in text and m.close not in text), None)
    if marks is not None:
        for wrapped, structured in ((True, True), (False, True), (True, False)):
            chunks: list[Chunk] = []
            messages = [_wrapped(template, i, m, marks, chunks) if wrapped else m for i, m in enumerate(shown)]
            try:
                more = size + 40 * len(chunks)
                marked = template.render(messages, variables, marks=marks if structured else None, size=more, probe=True)
            except (TemplateRefused, TemplateFailed):
                continue
            layout = _read(marked, marks, chunks)
            if layout.text == text:
                return layout
    raise MaskUnproved("turns cannot be told apart in what it prints")


def spans(layout: Layout, messages: Sequence[Message], openers: Sequence[str], end_mark: re.Pattern[str]) -> list[Span]:
    """The characters that are trained on.

    Parameters
    ----------
    layout : Layout
        Of these messages.
    messages : sequence of Message
        Their roles and `train` ranges decide: by default every assistant turn.
    openers : sequence of str
        Texts with which an assistant's turn may begin without being its answer; the longest that fits counts.
    end_mark : pattern
        A special token, as its first group, with white space before it; or white space alone.

    Raises
    ------
    MaskUnproved
        A turn to be trained on was not found.
    """
    found: list[Span] = []
    for i, message in enumerate(messages):
        ranges = message.get("train")
        if ranges is None:
            if message["role"] == "assistant":
                turn = _turn(layout, i, openers, end_mark)
                if not turn and i not in layout.visited and (message.get("tool_calls") or not layout.chunks):
                    raise MaskUnproved("turns cannot be told apart in what it prints")
                prints_text = message["content"].strip() or _prints_reasoning(layout, message)
                if prints_text or not _lacks_calls(layout, message, turn):  # an end mark alone would teach to answer nothing
                    found += turn
        elif ranges:
            whole = _turn(layout, i, openers, end_mark)
            stop = whole[-1][1] if whole else 0
            length = len(message["content"].rstrip())
            for span in ranges:
                mapped = _mapped(layout, i, message["content"], span["begin"], span["end"])
                if mapped is not None:
                    found.append((mapped[0], max(stop, mapped[1]) if span["end"] >= length else mapped[1]))
    return [(begin, end) for begin, end in found if begin < end]


def unprinted(layout: Layout, messages: Sequence[Message], openers: Sequence[str], end_mark: re.Pattern[str]) -> bool:
    """Whether the template leaves out tool calls of a turn that is trained on, or the reasoning of the last answer.

    The parameters are those of `spans`.
    """
    answers = [(i, message) for i, message in enumerate(messages) if message["role"] == "assistant"]
    if answers and answers[-1][1].get("reasoning") and not _prints_reasoning(layout, answers[-1][1]):
        return True
    return any(
        message.get("train") is None and _lacks_calls(layout, message, _turn(layout, i, openers, end_mark))
        for i, message in answers
        if message.get("tool_calls")
    )


def _prints_reasoning(layout: Layout, message: Message) -> bool:
    reasoning = (message.get("reasoning") or "").strip()
    return bool(reasoning) and reasoning in layout.text


def _lacks_calls(layout: Layout, message: Message, turn: Sequence[Span]) -> bool:
    """Whether the template leaves a tool call out of the message's turn."""
    calls = message.get("tool_calls")
    if not calls:
        return False
    printed = "".join(layout.text[begin:end] for begin, end in turn)
    return any(call["function"]["name"] not in printed for call in json.loads(calls))


def openers(template: ChatTemplate, shown: Any, variables: Mapping[str, Any]) -> list[str]:
    """What precedes an answer: the generation prompt, and what all turns share of it.

    Parameters
    ----------
    template : ChatTemplate
    shown : callable
        Turns messages into what the template reads.
    variables : mapping
        As of the conversation, without tools.
    """
    user, answer = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    heads = []
    for probe in ([user, answer, user, answer], [user, {**answer, "reasoning": "Hm."}]):
        try:
            layout = locate(template, shown(probe), variables, probe=True)
        except (TemplateRefused, TemplateFailed, MaskUnproved):
            continue
        for i in range(1, len(probe), 2):
            begin = next((piece[0] for piece in layout.pieces if piece[2] == i and piece[3]), None)
            first = next((at for at, _, number in layout.printed if layout.chunks[number].message == i), None)
            if begin is not None and first is not None and begin <= first:
                heads.append(layout.text[begin:first])
    prompt = ""
    try:
        asked = locate(template, shown([user]), {**variables, "add_generation_prompt": True}, probe=True)
        prompt = asked.text[asked.last_mark :] if asked.last_mark else ""
    except (TemplateRefused, TemplateFailed, MaskUnproved):
        pass
    known = [prompt, _common([prompt, *heads])] if prompt else heads
    return sorted({opener for opener in known if opener}, key=len, reverse=True)


def _common(texts: Sequence[str]) -> str:
    """What all texts begin with."""
    first, last = min(texts), max(texts)
    return first[: next((i for i, character in enumerate(first) if character != last[i : i + 1]), len(first))]


def _wrapped(template: ChatTemplate, i: int, message: dict[str, Any], marks: Marks, chunks: list[Chunk]) -> dict[str, Any]:
    """The message with its texts wrapped; what the template looks for in texts, and white space at edges, stays outside."""

    def wrap(text: str, content: bool) -> str:
        pieces, cursor = [], 0
        for begin, end in _cores(text, template.looked_for):
            pieces += [text[cursor:begin], marks.chunk(len(chunks), text[begin:end])]
            chunks.append(Chunk(i, begin, end, content))
            cursor = end
        return "".join(pieces) + text[cursor:]

    new = dict(message)
    content = message.get("content")
    if isinstance(content, str):
        new["content"] = wrap(content, True)
    elif isinstance(content, list) and len(content) == 1:
        new["content"] = [{**content[0], "text": wrap(content[0]["text"], True)}]
    reasoning = [name for name in REASONING if isinstance(message.get(name), str)]
    if reasoning:
        new.update(dict.fromkeys(reasoning, wrap(message[reasoning[0]], False)))
    return new


def _cores(text: str, looked_for: re.Pattern[str] | None) -> Iterator[Span]:
    cursor = 0
    edges = [match.span() for match in looked_for.finditer(text)] if looked_for else []
    for begin, end in [*edges, (len(text), len(text))]:
        piece = text[cursor:begin]
        core = piece.strip()
        if core:
            start = cursor + len(piece) - len(piece.lstrip())
            yield start, start + len(core)
        cursor = end


def _read(marked: str, marks: Marks, chunks: list[Chunk]) -> Layout:
    """A marked rendering taken apart."""
    texts: list[str] = []
    layout = Layout("", chunks)
    stack: list[tuple[int, int, int]] = []  # loop, message, visit
    override: int | None = None
    begun: dict[int, int] = {}
    at = position = visits = 0
    for match in marks.pattern.finditer(marked):
        text = marked[at : match.start()]
        at = match.end()
        if text:
            owner = stack[-1][1:] if stack and override is None else (_AFTER if override is None else override, 0)
            layout.pieces.append((position, position + len(text), *owner))
            texts.append(text)
            position += len(text)
        kind, number = match[1], int(match[2])
        if kind in "su":
            depth = next((d for d, entry in enumerate(stack) if entry[0] == number), len(stack))
            del stack[depth:]
            if kind == "s":
                visits += 1
                stack.append((number, int(match[3]), visits))
                layout.visited.add(int(match[3]))
            override, layout.last_mark = None, position
        elif kind == "b":
            begun[number] = position
            message = chunks[number].message
            override = None if stack and stack[-1][1] == message else message
        else:
            layout.printed.append((begun.get(number, position), position, number))
            override = None if override is None else _AFTER
    if marked[at:]:
        owner = stack[-1][1:] if stack and override is None else (_AFTER if override is None else override, 0)
        layout.pieces.append((position, position + len(marked) - at, *owner))
    layout.text = "".join([*texts, marked[at:]])
    return layout


def _turn(layout: Layout, i: int, openers: Sequence[str], end_mark: re.Pattern[str]) -> list[Span]:
    """The characters of message i's turn, its end-of-turn mark included."""
    text = layout.text
    visits: dict[int, list[Span]] = {}
    for begin, end, message, visit in layout.pieces:
        if message == i:
            visits.setdefault(visit, []).append((begin, end))
    outside = visits.pop(0, [])
    visits = {visit: pieces for visit, pieces in visits.items() if any(text[a:b].strip() for a, b in pieces)}
    found: list[Span] = []
    for pieces in visits.values():
        begin, last = pieces[0][0], pieces[-1][1]
        own = [(a, b) for a, b, number in layout.printed if layout.chunks[number].message == i and begin <= a and b <= last]
        opener = next((o for o in openers if text.startswith(o, begin)), None)
        start = begin + len(opener) if opener is not None else own[0][0] if own and not openers else begin
        tail = own[-1][1] if own else start
        special = _last(end_mark, text, max(tail, start), last)
        stop = special or _following(layout, openers, end_mark, last, i) or last
        inner = [(max(a, start), b) for a, b in pieces]
        inner[-1] = (inner[-1][0], stop)
        found += [(a, b) for a, b in inner if a < b]
    if not found and outside:
        begin, end = outside[0][0], outside[-1][1]
        foreign = any(begin < a < end for a, _, number in layout.printed if layout.chunks[number].message != i)
        for a, b in outside if foreign else [(begin, end)]:
            found.append((a, b))
        begin, end = found[-1]
        found[-1] = (begin, _following(layout, openers, end_mark, end, i, blank=True) or end)
    return found


def _last(end_mark: re.Pattern[str], text: str, begin: int, end: int) -> int | None:
    """End of the last special token in a stretch of text."""
    last = None
    for match in end_mark.finditer(text, begin, end):
        if match[1]:
            last = match.end()
    return last


def _following(
    layout: Layout, openers: Sequence[str], end_mark: re.Pattern[str], at: int, i: int, blank: bool = False
) -> int | None:
    """End of the special token that comes next (or of white space that does, where `blank`).

    It is none where it stands in another message's content, or begins a turn of the assistant's.
    """
    match = end_mark.match(layout.text, at)
    if not match or not (match[1] or blank):
        return None
    if match[1] and any(opener.startswith(match[1]) for opener in openers):
        return None
    limit = min((a for a, _, number in layout.printed if a >= at and layout.chunks[number].message != i), default=match.end())
    return match.end() if match.end() <= limit else None


def _mapped(layout: Layout, i: int, content: str, begin: int, end: int) -> Span | None:
    """Where characters [begin, end) of a message's content stand in the text; None where they are not printed."""
    own = [(layout.chunks[number], a, b) for a, b, number in layout.printed if layout.chunks[number].message == i]
    places = [(chunk.begin, chunk.end, a, b) for chunk, a, b in own if chunk.content]
    if not layout.chunks and content.strip():
        core = content.strip()
        if layout.text.count(core) != 1:
            raise MaskUnproved("a trained range cannot be found in what it prints")
        first, lead = layout.text.index(core), len(content) - len(content.lstrip())
        places = [(lead, lead + len(core), first, first + len(core))]
    mapped = []
    end = min(end, len(content))
    for c_begin, c_end, a, b in places:
        while c_begin > begin and a and layout.text[a - 1] == content[c_begin - 1]:  # white space that was not trimmed
            c_begin, a = c_begin - 1, a - 1
        while c_end < end and b < len(layout.text) and layout.text[b] == content[c_end]:
            c_end, b = c_end + 1, b + 1
        low, high = max(begin, c_begin), min(end, c_end)
        if low < high:
            mapped.append((a + low - c_begin, a + high - c_begin))
    return (mapped[0][0], mapped[-1][1]) if mapped else None
