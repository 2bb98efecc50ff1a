"""Conversations written out as one text with marks between the turns: ChatML, Llama 2 and 3, Zephyr, Vicuna, USER/ASSISTANT.

A text is taken apart at the marks of one form alone, all of it: what precedes the first mark must be white space or the
form's own head, so that no text is lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tagcos_stream.data.pairs import with_system
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.turns import read_turns
from tagcos_stream.types import Message


@dataclass(frozen=True)
class Form:
    """How a kind of transcript marks its turns.

    mark: a pattern with the group `role`, at a turn's begin; end: what may close a turn; head: what may precede them all.
    plain: whether people write the marks in ordinary text, too, so that the form is read only where the shape is asked for.
    """

    mark: re.Pattern[str]
    end: str
    head: str = ""
    plain: bool = False


FORMS: dict[str, Form] = {
    "chatml": Form(re.compile(r"<\|im_start\|>(?P<role>\w+)\n"), "<|im_end|>"),
    "llama3": Form(re.compile(r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n"), "<|eot_id|>", "<|begin_of_text|>"),
    "zephyr": Form(re.compile(r"(?:^|\n)<\|(?P<role>system|user|assistant)\|>\n"), "</s>"),
    "vicuna": Form(re.compile(r"(?:^|\n)### ?(?P<role>System|Human|User|Assistant): ?"), ""),
    "glaive": Form(re.compile(r"(?:^|\s)(?P<role>SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE): "), "<|endoftext|>", plain=True),
}
_LLAMA2 = re.compile(r"\A\s*(?:<s>)?\s*\[INST\]")
_LLAMA2_HEAD = re.compile(r"\s*(?:<s>)?\s*")
_LLAMA2_SYSTEM = re.compile(r"\A<<SYS>>\n(?P<system>.*?)\n<</SYS>>\n\n", re.DOTALL)


def looks_like_transcript(row: dict[str, Any]) -> bool:
    """Whether the row's text has unmistakable marks of a form, those of an assistant among them."""
    text = row.get("text") if row.get("text") is not None else row.get("chat")
    if not isinstance(text, str):
        return False
    if _LLAMA2.match(text):
        return "[/INST]" in text
    return any(not form.plain and _roles(form, text) >= {"assistant"} and form.mark.search(text) for form in FORMS.values())


def _roles(form: Form, text: str) -> set[str]:
    return {match["role"].lower() for match in form.mark.finditer(text)}


def read_transcript(row: dict[str, Any], fields: Sequence[str], options: RowOptions) -> list[Message]:
    """The turns of the text in the first of `fields`."""
    name = fields[0]
    text = row[name]
    if not isinstance(text, str):
        raise RowError("wrong_type", f"{name} must be the text of a conversation, got {type(text).__name__}")
    turns = _llama2(text, name) if _LLAMA2.match(text) else _marked(text, name)
    return with_system(row, read_turns(turns, options.turns, name))


def _marked(text: str, name: str) -> list[dict[str, str]]:
    for form in FORMS.values():
        marks = list(form.mark.finditer(text))
        if not marks or not any(m["role"].lower() == "assistant" for m in marks):
            continue
        before = text[: marks[0].start()].strip()
        if before and before != form.head:
            raise RowError("unread_field", f"{name} has text before the first turn: {before[:60]!r}")
        turns = []
        for mark, following in zip(marks, [*marks[1:], None], strict=True):
            content = text[mark.end() : following.start() if following else len(text)]
            turns.append({"role": _word(mark["role"]), "content": _closed(content, form.end, name)})
        while len(turns) > 1 and not turns[-1]["content"]:
            turns.pop()  # a mark that asks for the next answer
        return turns
    raise RowError("unknown_shape", f"{name} has no marks of turns that are known: {', '.join(FORMS)}, llama2")


def _word(role: str) -> str:
    return {"function response": "tool"}.get(role.lower(), role.lower())


def _closed(content: str, end: str, name: str) -> str:
    """The content without the mark that closes it, and without white space at its ends, which belongs to the form."""
    content, found, behind = content.partition(end) if end else (content, "", "")
    if found and behind.strip():
        raise RowError("unread_field", f"{name} has text behind the end of a turn: {behind.strip()[:60]!r}")
    return content.strip()


def _llama2(text: str, name: str) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    position, end, close = 0, len(text.rstrip()), -1
    while position < end:
        head = _LLAMA2_HEAD.match(text, position)
        begin = head.end() if head else position
        middle = text.find("[/INST]", begin) if text.startswith("[INST]", begin) else -1
        if middle < 0:
            raise RowError("unread_field", f"{name} has text between or behind its turns: {text[position:].strip()[:60]!r}")
        user, answer = text[begin + len("[INST]") : middle].strip(), middle + len("[/INST]")
        if not turns and (system := _LLAMA2_SYSTEM.match(user + "\n\n" if user.endswith("<</SYS>>") else user)):
            turns.append({"role": "system", "content": system["system"]})
            user = user[system.end() :].strip()
        turns.append({"role": "user", "content": user})
        # an answer ends at its mark, at the next turn, or with the text
        if close < answer:
            close = _found(text, "</s>", answer)
        following = _found(text, "[INST]", answer)
        reply = text[answer : min(close, following)].strip()
        if close < following:
            position = close + len("</s>")
        else:
            position, reply = following, reply.removesuffix("<s>").strip()
        if reply:
            turns.append({"role": "assistant", "content": reply})
    return turns


def _found(text: str, mark: str, begin: int) -> int:
    """Position of the mark from `begin` on, or the text's length."""
    found = text.find(mark, begin)
    return len(text) if found < 0 else found
