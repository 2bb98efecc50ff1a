"""Rows with a whole conversation in one field: message lists, Gemini's contents, xLAM's calls, UltraChat's texts, transcripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tagcos_stream.data.calls import parsed_json, spelled_calls
from tagcos_stream.data.content import one_text
from tagcos_stream.data.pairs import read_system, with_system
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import Record, RowOptions
from tagcos_stream.data.transcripts import has_plain_marks, transcript_turns
from tagcos_stream.data.turns import ROLE_KEYS, ROLE_WORDS, from_columns, read_turns
from tagcos_stream.types import Message

CHAT_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")


def holds_turns(value: object) -> bool:
    """Whether a field's value is a conversation: a list, its JSON text, or an object of lists.

    Counts and names stand under CHAT_FIELDS, too.
    """
    if isinstance(value, str):
        text = value.strip()
        return text.startswith("[") and text != "[]"
    return bool(value if isinstance(value, list) else from_columns(value))


def is_question(value: object) -> bool:
    """Whether a field's value is a list of turns by the system and the user alone, whose answer may stand elsewhere."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return False
    words = [next((turn[key] for key in ROLE_KEYS if turn.get(key) is not None), None) for turn in value]
    return bool(words) and all(ROLE_WORDS.get(str(word).strip().lower()) in ("system", "user") for word in words)


def read_messages(row: Record, fields: Sequence[str], options: RowOptions) -> list[Message]:
    """OpenAI messages and ShareGPT alike: a list of turns; names of keys and roles are those in `turns`.

    A list of texts under `conversations`, LIMA's, is by user and assistant in turn; under other names it may be anybody's.
    """
    name, value = fields[0], row[fields[0]]
    if name == "conversations" and isinstance(value, str) and value.lstrip()[:1] == "[":
        value = parsed_json(value, name)
    if name == "conversations" and is_data(value):
        return with_system(row, read_turns(_in_turn(value), options.written_turns, name))
    if isinstance(value, str) and has_plain_marks(value):
        raise RowError("unknown_shape", f'{name} is text with the marks of a transcript: `shape = "transcript"` reads it')
    return with_system(row, read_turns(value, options.turns, name))


def read_gemini(row: Record, fields: Sequence[str], options: RowOptions) -> list[Message]:
    """Gemini's contents: turns of `parts`, each with text, a functionCall or a functionResponse; systemInstruction before."""
    contents = row[fields[0]]
    if isinstance(contents, str) and contents.lstrip()[:1] == "[":
        contents = parsed_json(contents, fields[0])
    if not isinstance(contents, list):
        raise RowError("wrong_type", f"{fields[0]} must be a list of turns, got {type(contents).__name__}")
    turns = [_gemini_turn(turn, f"{fields[0]}: turn {i}") for i, turn in enumerate(contents)]
    given = next((row[n] for n in ("systemInstruction", "system_instruction") if row.get(n)), None)
    if given is not None:
        parts = given.get("parts") if isinstance(given, dict) else given
        turns.insert(0, {"role": "system", "content": parts if isinstance(parts, str | list) else [parts]})
    return with_system(row, read_turns(turns, options.turns, fields[0]))


def _gemini_turn(turn: Any, what: str) -> Any:
    if not isinstance(turn, dict) or not isinstance(turn.get("parts"), list):
        raise RowError("wrong_type", f"{what} must be an object with a list of parts")
    rest = {k: v for k, v in turn.items() if k != "parts"}
    return {"role": "user", **rest, "content": [_gemini_part(part, what) for part in turn["parts"]]}


def _gemini_part(part: Any, what: str) -> Any:
    if not isinstance(part, dict):
        return part
    held = [name for name in _GEMINI_PARTS if part.get(name)]
    if len(held) > 1:
        raise RowError("unsupported_content", f"{what} has a part with {' and '.join(held)}, of which only one can be read")
    if call := part.get("functionCall") or part.get("function_call"):
        call = _mapping(call, held[0], what)
        return {"type": "tool_use", "id": call.get("id"), "name": call.get("name"), "input": call.get("args")}
    if answer := part.get("functionResponse") or part.get("function_response"):
        answer = _mapping(answer, held[0], what)
        response = answer.get("response")
        try:
            text = response if isinstance(response, str) else json.dumps(response, ensure_ascii=False)
        except RecursionError:
            raise RowError("too_deep", f"{what}: {held[0]} is nested too deep for JSON text") from None
        return {"type": "tool_result", "tool_use_id": answer.get("id"), "name": answer.get("name"), "content": text}
    if not isinstance(part.get("text"), str):
        raise RowError("unsupported_content", f"{what} has a part of {', '.join(part) or 'nothing'}, which is not read")
    return {"type": "thinking" if part.get("thought") else "text", "text": part["text"]}


_GEMINI_PARTS = ("text", "functionCall", "function_call", "functionResponse", "function_response")


def _mapping(value: Any, name: str, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise RowError("wrong_type", f"{what}: {name} must be an object, got {type(value).__name__}")
    return value


def read_xlam(row: Record, fields: Sequence[str], options: RowOptions) -> list[Message]:
    """Read xLAM's query and answers: the answers are the calls of the tools that the row offers."""
    calls = row["answers"]
    if isinstance(calls, str):
        calls = parsed_json(calls, "answers")
    if not isinstance(calls, list) or not calls:
        raise RowError("empty_answer" if not calls else "wrong_type", "answers must be a list of calls with name and arguments")
    assistant: Message = {"role": "assistant", "content": "", "tool_calls": spelled_calls(calls, "answers")}
    user: Message = {"role": "user", "content": one_text(row["query"], "query")}
    if "user" in options.train_roles:
        user["train"] = [{"begin": 0, "end": len(user["content"])}]
    if "assistant" not in options.train_roles:
        assistant["train"] = []
    return [*read_system(row), user, assistant]


def is_data(value: object) -> bool:
    """Whether the value of `data` is UltraChat's list of texts: tables and records stand under this name, too."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def read_data(row: Record, fields: Sequence[str], options: RowOptions) -> list[Message]:
    """UltraChat's data: texts by user and assistant in turn."""
    if not is_data(row["data"]):
        raise RowError("wrong_type", "data must be a list of texts, by user and assistant in turn")
    return with_system(row, read_turns(_in_turn(row["data"]), options.written_turns, "data"))


def _in_turn(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def read_transcript(row: Record, fields: Sequence[str], options: RowOptions) -> list[Message]:
    """The turns of the text in the first of `fields`."""
    text = row[fields[0]]
    if not isinstance(text, str):
        raise RowError("wrong_type", f"{fields[0]} must be the text of a conversation, got {type(text).__name__}")
    turns = read_turns(transcript_turns(text, fields[0]), options.written_turns, fields[0])
    if fields[0] == "chat" and isinstance(given := row.get("system"), str):
        row = {**row, "system": given.removeprefix("SYSTEM: ")}  # Glaive's chats begin in a field of their own
    return with_system(row, turns)
