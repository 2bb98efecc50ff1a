"""Rows with a prompt in one field and its answer in another: Alpaca, Dolly, prompt and completion, question and answer.

Either may be turns: a list of them, its JSON text as in a cell of a table, or, of a prompt, a transcript that ends where the
answer begins. An answer that is text is read for turns only where the prompt is turns, too: behind a plain text it is data about
chats. Turns of a prompt are context: no answer among them is trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tagcos_stream.data.calls import parsed_json, python_hint
from tagcos_stream.data.content import one_text
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import Record, RowOptions
from tagcos_stream.data.transcripts import BEGINS, continued
from tagcos_stream.data.turns import REASONING_KEYS, ROLE_KEYS, TurnOptions, read_turns
from tagcos_stream.types import Message

EXTRAS = ("input", "context")  # more of the prompt, behind it and a blank line
SYSTEM_FIELDS = ("system", "system_prompt", "system_message")
BESIDE_PAIR = (*SYSTEM_FIELDS, *EXTRAS, "history", *REASONING_KEYS)  # what every pair may have
_TURNS_TEXT = r"""^[ \t\r\n]*\[[ \t\r\n]*\{[\s\S]*["'](?:role|from)["'][ \t\r\n]*:"""
# text of a pair that may be turns, also for Polars: `convert_columns` leaves it to us
MORE_THAN_TEXT = f"{_TURNS_TEXT}|{BEGINS}"
_TURNS = re.compile(_TURNS_TEXT)
_BY_DEFAULT = RowOptions()
_LITERALS = re.compile(r"'(?:content|value)'\s*:")


def read_system(row: Record) -> list[Message]:
    """An absent or empty system field is not a turn; one within a message list is always kept."""
    found = {name: text for name in SYSTEM_FIELDS if row.get(name) is not None and (text := _text(row[name], name))}
    if len(set(found.values())) > 1:
        raise RowError("unread_field", f"different texts under {' and '.join(found)}")
    return [{"role": "system", "content": next(iter(found.values()))}] if found else []


def with_system(row: Record, turns: list[Message]) -> list[Message]:
    """The turns behind the row's system field. RowError where they begin with a system turn that says something else."""
    head = read_system(row)
    if not head or not turns or turns[0]["role"] != "system":
        return head + turns
    if head[0]["content"] != turns[0]["content"]:
        name = next(name for name in SYSTEM_FIELDS if row.get(name))
        raise RowError("unread_field", f"{name} differs from the system turn that the messages begin with")
    return turns


def read_pair(row: Record, prompt: str, answer: str, options: RowOptions) -> list[Message]:
    """The row's system field, its prompt and its answer."""
    before, after = read_halves(row, prompt, answer, options)
    return with_system(row, before) + after


def read_halves(row: Record, prompt: str, answer: str, options: RowOptions) -> tuple[list[Message], list[Message]]:
    """The messages before a row's answer, and those of the answer.

    Parameters
    ----------
    row
        The record.
    prompt, answer
        The fields that hold them.
    options
        How rows are read.

    Returns
    -------
    tuple
        The prompt's turns; or the pairs of `history` and the prompt with EXTRAS behind it. Then the answer's.

    Raises
    ------
    RowError
        A field is of no form that is read, or does not say where it belongs.
    """
    given, said, keys = row.get(prompt), row.get(answer), options.context
    turns, after = turns_in(given, prompt, options), None
    no_turns = given == [] or (isinstance(given, str) and isinstance(said, str) and given.strip() == "[]")
    if turns is not None or no_turns or not isinstance(said, str):
        after = turns_in(said, answer, options)
    if no_turns and after is not None:
        turns = []
    if isinstance(given, str) and isinstance(said, str) and (parts := continued(given, said, (prompt, answer))):
        turns, said = parts
        keys = TurnOptions({}, options.roles, ())
    if turns is None:
        before = _prompt(row, prompt, options)
    else:
        _refuse_beside(row, prompt, [name for name in (*EXTRAS, "history") if name not in (prompt, answer)])
        before = untrained(read_turns(turns, keys, prompt))
    if after is None:
        return before, _answer(row, said, answer, options)
    _refuse_beside(row, answer, REASONING_KEYS)
    return before, read_turns(after, options.turns, answer)


def turns_in(value: Any, name: str, options: RowOptions) -> list[Any] | None:
    """Find turns where a text may stand.

    Parameters
    ----------
    value
        Of the field.
    name
        Of the field, for messages.
    options
        The names of roles and contents, where the file has its own.

    Returns
    -------
    list or None
        The turns of a list, of the JSON text of one, or the one turn that the value is; None for text and its parts.

    Raises
    ------
    RowError
        The text is a list of turns as Python prints it.
    """
    roles: Sequence[str] = (options.columns["role"],) if "role" in options.columns else ROLE_KEYS
    if isinstance(value, dict):
        return [value] if any(role in value for role in roles) else None
    if isinstance(value, list):
        return value if any(isinstance(part, dict) and any(role in part for role in roles) for part in value) else None
    if not isinstance(value, str) or not (_TURNS.match(value) or ("role" in options.columns and value.lstrip()[:1] == "[")):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        hint = python_hint(value)
        if hint and value.rstrip().endswith("]") and _LITERALS.search(value):
            raise RowError("broken_json", f"{name}: a list of turns{hint}") from None
        return None
    roles = (options.columns.get("role", "role"), "from")  # the rarer words are names of other data in JSON, too
    contents = (options.columns.get("content", "content"), "value")
    if not isinstance(found, list) or not all(isinstance(t, dict) and any(role in t for role in roles) for t in found):
        return None
    return found if any(content in turn for turn in found for content in contents) else None


def untrained(messages: list[Message]) -> list[Message]:
    """The messages as context alone, where they do not say otherwise themselves."""
    for message in messages:
        if message["role"] == "assistant" and message.get("train") is None:
            message["train"] = []
    return messages


def _prompt(row: Record, prompt: str, options: RowOptions) -> list[Message]:
    """Read a prompt that is text: the pairs of `history`, then the prompt with EXTRAS behind it, which are never turns."""
    extras = [name for name in EXTRAS if name != prompt and row.get(name) is not None]
    parts = [_text(row[prompt], prompt), *(one_text(row[name], name) for name in extras)]
    messages = []
    for user, assistant in _history(row.get("history")):
        messages += [
            _said("user", one_text(user, "history"), options),
            _said("assistant", one_text(assistant, "history"), options),
        ]
    return [*messages, _said("user", "\n\n".join(part for part in parts if part), options)]


def _answer(row: Record, value: Any, name: str, options: RowOptions) -> list[Message]:
    """An answer that is text, with the reasoning that stands in a field of its own."""
    text, reasoning = one_text(value, name), _reasoning(row)
    if not text.strip() and not reasoning:
        raise RowError("only_whitespace" if text else "empty_answer", f"{name} is {'only white space' if text else 'empty'}")
    message = _said("assistant", text, options)
    if reasoning:
        message["reasoning"] = reasoning
    return [message]


def _refuse_beside(row: Record, turns: str, names: Sequence[str]) -> None:
    for name in names:
        if row.get(name):
            raise RowError(
                "unread_field", f"{name} is given besides {turns}, which holds turns and does not say where it belongs"
            )


def _said(role: str, text: str, options: RowOptions) -> Message:
    message: Message = {"role": role, "content": text}
    if (role in options.train_roles) != (role == "assistant"):
        message["train"] = [] if role == "assistant" else [{"begin": 0, "end": len(text)}]
    return message


def _text(value: Any, name: str) -> str:
    """The one text of a field that may not hold turns."""
    if isinstance(value, str) and turns_in(value, name, _BY_DEFAULT) is not None:
        raise RowError("unread_field", f"{name} is a list of turns where one text belongs")
    return one_text(value, name)


def _history(value: Any) -> list[Any]:
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = parsed_json(value, "history")
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        raise RowError("wrong_type", "history must be a list of [user, assistant] pairs")
    return value


def _reasoning(row: Record) -> str | None:
    found = {name: text for name in REASONING_KEYS if row.get(name) and (text := one_text(row[name], name))}
    if len(set(found.values())) > 1:
        raise RowError("unread_field", f"different texts under {' and '.join(found)}")
    return next(iter(found.values()), None)
