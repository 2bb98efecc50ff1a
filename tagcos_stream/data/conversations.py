"""Rows that hold a whole conversation in one field: message lists, Gemini's contents, xLAM's calls, UltraChat's list of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tagcos_stream.data.calls import parsed_json, spelled_calls
from tagcos_stream.data.content import one_text, text_of
from tagcos_stream.data.pairs import read_system, with_system
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import Record, RowOptions
from tagcos_stream.data.turns import read_turns
from tagcos_stream.types import Message


def read_messages(row: Record, fields: Sequence[str], options: RowOptions) -> list[Message]:
    """OpenAI messages and ShareGPT alike: a list of turns; names of keys and roles are those in `turns`."""
    return with_system(row, read_turns(row[fields[0]], options.turns, fields[0]))


def read_gemini(row: Record, fields: Sequence[str], options: RowOptions) -> list[Message]:
    """Gemini's contents: turns of `parts`, each with text, a functionCall or a functionResponse; systemInstruction before."""
    contents = row[fields[0]]
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
    if call := part.get("functionCall") or part.get("function_call"):
        return {"type": "tool_use", "id": call.get("id"), "name": call.get("name"), "input": call.get("args")}
    if answer := part.get("functionResponse") or part.get("function_response"):
        import json

        response = answer.get("response")
        text = response if isinstance(response, str) else json.dumps(response, ensure_ascii=False)
        return {"type": "tool_result", "tool_use_id": answer.get("id"), "name": answer.get("name"), "content": text}
    if not isinstance(part.get("text"), str):
        raise RowError("unsupported_content", f"{what} has a part of {', '.join(part) or 'nothing'}, which is not read")
    return {"type": "thinking" if part.get("thought") else "text", "text": part["text"]}


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


def read_data(row: Record, fields: Sequence[str], options: RowOptions) -> list[Message]:
    """UltraChat's data: texts by user and assistant in turn."""
    texts = [text_of(text, "data") for text in row["data"]]
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return with_system(row, read_turns(turns, options.turns, "data"))
