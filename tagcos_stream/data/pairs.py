"""Rows with a prompt in one field and its answer in another: Alpaca, Dolly, prompt and completion, question and answer."""

from __future__ import annotations

from typing import Any

from tagcos_stream.data.content import one_text, text_of
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import Record, RowOptions
from tagcos_stream.data.turns import REASONING_KEYS, read_turns
from tagcos_stream.types import Message

EXTRAS = ("input", "context")  # more of the prompt, behind it and a blank line
SYSTEM_FIELDS = ("system", "system_prompt")
BESIDE_PAIR = (*SYSTEM_FIELDS, *EXTRAS, "history", *REASONING_KEYS)  # what every pair may have


def read_system(row: Record) -> list[Message]:
    """An absent or empty system field is not a turn; one within a message list is always kept."""
    found = {name: text for name in SYSTEM_FIELDS if row.get(name) is not None and (text := text_of(row[name], name))}
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
    """system, the pairs of `history`, then prompt (with EXTRAS behind it) and answer."""
    names = [prompt, *(name for name in EXTRAS if name != prompt)]
    parts = [one_text(row[name], name) for name in names if row.get(name) is not None]
    messages = read_system(row)
    for pair in _history(row.get("history")):
        messages += _exchange(text_of(pair[0], "history"), text_of(pair[1], "history"), options)
    text = one_text(row.get(answer), answer)
    if not text.strip() and not any(row.get(k) for k in REASONING_KEYS):
        raise RowError("only_whitespace" if text else "empty_answer", f"{answer} is {'only white space' if text else 'empty'}")
    messages += _exchange("\n\n".join(part for part in parts if part), text, options)
    if reasoning := _reasoning(row):
        messages[-1]["reasoning"] = reasoning
    return messages


def _history(value: Any) -> list[Any]:
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        raise RowError("wrong_type", "history must be a list of [user, assistant] pairs")
    return value


def _exchange(prompt: str, answer: str, options: RowOptions) -> list[Message]:
    user: Message = {"role": "user", "content": prompt}
    assistant: Message = {"role": "assistant", "content": answer}
    if "user" in options.train_roles:
        user["train"] = [{"begin": 0, "end": len(prompt)}]
    if "assistant" not in options.train_roles:
        assistant["train"] = []
    return [user, assistant]


def _reasoning(row: Record) -> str | None:
    found = {name: text_of(row[name], name) for name in REASONING_KEYS if row.get(name) not in (None, "", [])}
    if len(set(found.values())) > 1:
        raise RowError("unread_field", f"different texts under {' and '.join(found)}")
    return next(iter(found.values()), None)


def read_prompt_completion(row: Record, prompt: str, answer: str, options: RowOptions) -> list[Message]:
    """Two strings, or two message lists (TRL): of lists the completion's assistant turns are trained on, the prompt's are not."""
    if not _is_turns(row.get(prompt)) and not _is_turns(row.get(answer)):
        return read_pair(row, prompt, answer, options)
    for name in (*EXTRAS, "history", *REASONING_KEYS):
        if name not in (prompt, answer) and row.get(name):
            raise RowError(
                "unread_field", f"{name} is given besides {prompt}, a list of turns, which does not say where it belongs"
            )
    before = untrained(_turns_or_text(row.get(prompt), prompt, "user", options))
    return with_system(row, before) + _turns_or_text(row.get(answer), answer, "assistant", options)


def untrained(messages: list[Message]) -> list[Message]:
    """The messages as context alone, where they do not say otherwise themselves."""
    for message in messages:
        if message["role"] == "assistant" and message.get("train") is None:
            message["train"] = []
    return messages


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and (not value or not all(isinstance(v, str) for v in value))


def _turns_or_text(value: Any, name: str, role: str, options: RowOptions) -> list[Message]:
    if _is_turns(value):
        return read_turns(value, options.turns if role == "assistant" else options.context, name)
    return [{"role": role, "content": one_text(value, name)}]
