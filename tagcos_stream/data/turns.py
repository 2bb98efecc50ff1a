"""Turns of a conversation as people write them, and the rules that a usable conversation meets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tagcos_stream.data.calls import read_call_text, read_calls
from tagcos_stream.data.canonical import characters
from tagcos_stream.data.reasons import RowError
from tagcos_stream.types import ROLES, Message, TrainRange

ROLE_WORDS = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "instruction": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "bard": "assistant", "bing": "assistant", "ai": "assistant", "function_call": "assistant", "function-call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
    "function-response": "tool", "ipython": "tool",
}  # fmt: skip
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message", "utterance")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# what else a turn may carry
TURN_KEYS = (
    "name",
    "train",
    "training",
    "train_detail",
    "weight",
    "tool_calls",
    "function_call",
    "tool_call_id",
    *REASONING_KEYS,
)
CALL_WORDS = ("function_call", "function-call")  # roles of turns whose text is a call


def text_of(value: Any, what: str) -> str:
    """A string, or a list of text parts joined without a separator; never trimmed."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_part(part, what) for part in value)
    raise RowError("wrong_type", f"{what} must be text, got {'null' if value is None else type(value).__name__}")


def _part(part: Any, what: str) -> str:
    if isinstance(part, str):
        return part
    if (
        isinstance(part, dict)
        and isinstance(part.get("text"), str)
        and part.get("type", "text") in ("text", "input_text", "output_text")
    ):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise RowError("unsupported_content", f"{what} has a part of type {kind!r}, only text is read")


def read_turns(value: Any, keys: Mapping[str, str], roles: Mapping[str, str], train_roles: Sequence[str]) -> list[Message]:
    """Messages of a list of turns (or of its JSON text, as in a CSV cell).

    keys: our key (role, content, train, train_detail) -> the file's; roles: the file's role word -> one of ROLES.
    """
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise RowError("broken_json", f"messages: {e}") from None
    if not isinstance(value, list):
        raise RowError("wrong_type", f"messages must be a list, got {type(value).__name__}")
    return [_turn(turn, i, keys, roles, train_roles) for i, turn in enumerate(value)]


def _turn(turn: Any, i: int, keys: Mapping[str, str], roles: Mapping[str, str], train_roles: Sequence[str]) -> Message:
    if not isinstance(turn, dict):
        raise RowError("wrong_type", f"turn {i} must be an object, got {type(turn).__name__}")
    word = next((turn[k] for k in _names(keys, "role", ROLE_KEYS) if turn.get(k) is not None), None)
    if not isinstance(word, str):
        raise RowError("wrong_type", f"turn {i} has no role as text")
    role = roles.get(word) or ROLE_WORDS.get(word) or ROLE_WORDS.get(word.strip().lower())
    if role not in ROLES:
        raise RowError("unknown_role", f"turn {i} has role {word[:60]!r}; map it with `roles`")
    raw = next((turn[k] for k in _names(keys, "content", CONTENT_KEYS) if turn.get(k) is not None), None)
    what = f"turn {i}"
    calls = read_calls(turn, what)
    content = text_of("" if raw is None and calls else raw, what)
    if word.strip().lower() in CALL_WORDS and calls is None:
        calls, content = read_call_text(content, what), ""
    message: Message = {"role": role, "content": content}
    if reasoning := _reasoning(turn, what):
        message["reasoning"] = reasoning
    if calls:
        message["tool_calls"] = calls
    if role != "assistant" and (reasoning or calls):
        raise RowError(
            "wrong_type", f"{what} by {role} has {'tool calls' if calls else 'reasoning'}, which only an assistant's may"
        )
    if (call_id := turn.get("tool_call_id")) is not None and call_id != "":
        if role != "tool":
            raise RowError("wrong_type", f"{what} by {role} has a tool_call_id, which only a tool's may")
        message["tool_call_id"] = str(call_id)
    name = turn.get("name")
    if name is not None and not isinstance(name, str):
        raise RowError("wrong_type", f"turn {i} has a name that is not text")
    if name:
        message["name"] = name
    train = _train(turn, message, keys, train_roles)
    if train is not None:
        message["train"] = train
    return message


def _names(keys: Mapping[str, str], ours: str, default: Sequence[str]) -> Sequence[str]:
    return (keys[ours],) if ours in keys else default


def _reasoning(turn: Mapping[str, Any], what: str) -> str | None:
    found = {key: text_of(turn[key], f"{what}: {key}") for key in REASONING_KEYS if turn.get(key) not in (None, "", [])}
    if len(set(found.values())) > 1:
        raise RowError("wrong_type", f"{what} has different texts under {' and '.join(found)}")
    return next(iter(found.values()), None)


def _train(
    turn: Mapping[str, Any], message: Message, keys: Mapping[str, str], train_roles: Sequence[str]
) -> list[TrainRange] | None:
    """What of the turn is trained on, None for its role's default (Message.train).

    A flag of the turn goes before train_roles, as in axolotl; offsets of its `train_detail` are inclusive at both ends and may
    reach past the end, and what no detail names is not trained on. OpenAI's `weight` 0 or 1 is a flag. A list of {begin, end}
    is our own form.
    """
    own = turn.get(keys.get("train", "train"))
    if own is None:
        own = turn.get("training") if turn.get("training") is not None else turn.get("weight")
    length = len(message["content"])
    if isinstance(own, list):
        return _merged([_range(r, "begin", "end", False, length) for r in own])
    if own is not None and own not in (0, 1):
        raise RowError("wrong_type", f"a train flag must be true, false or a list of ranges, got {str(own)[:60]!r}")
    detail = turn.get(keys.get("train_detail", "train_detail"))
    if detail is not None and not isinstance(detail, list):
        raise RowError("wrong_type", "train_detail must be a list")
    trained = bool(own) if own is not None else bool(detail) if detail is not None else message["role"] in train_roles
    if trained and detail:
        ranges = [
            _range(d, "begin_offset", "end_offset", True, length) for d in detail if not isinstance(d, dict) or d.get("train")
        ]
        return _merged(ranges)
    if trained == (message["role"] == "assistant"):
        return None
    return [{"begin": 0, "end": length}] if trained else []


def _range(value: Any, begin: str, end: str, inclusive: bool, length: int) -> TrainRange:
    if not (isinstance(value, dict) and type(value.get(begin)) is int and type(value.get(end)) is int):
        raise RowError("wrong_type", f"a train range must be an object with integers {begin} and {end}")
    a, b = value[begin], min(value[end] + 1, length) if inclusive else value[end]
    if not 0 <= a <= b <= length:
        raise RowError("wrong_type", f"train range [{a}, {b}) does not fit a turn of {length} characters")
    return {"begin": a, "end": b}


def _merged(ranges: list[TrainRange]) -> list[TrainRange]:
    """In order, without empty ones, those that touch joined: one spelling, so one id."""
    out: list[TrainRange] = []
    for r in sorted((r for r in ranges if r["begin"] < r["end"]), key=lambda r: (r["begin"], r["end"])):
        if out and r["begin"] <= out[-1]["end"]:
            out[-1] = {"begin": out[-1]["begin"], "end": max(out[-1]["end"], r["end"])}
        else:
            out.append(r)
    return out


def check(messages: Sequence[Message], train_roles: Sequence[str], order: bool, max_chars: int | None) -> None:
    """RowError where a conversation breaks a rule; the rules and their order are those of the table in docs/formats.md."""
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        raise RowError("no_assistant", f"{len(messages)} turns, none by the assistant")
    for i, m in enumerate(messages):
        if m["role"] == "assistant" and not m["content"].strip() and not m.get("tool_calls"):
            beside = " has reasoning but no content" if m.get("reasoning") else ""
            raise RowError("only_whitespace" if m["content"] else "empty_answer", f"turn {i}{beside}")
    if all(m["role"] == "assistant" or not m["content"].strip() for m in messages) and len(messages) > len(answers):
        raise RowError("only_whitespace", "no turn but the assistant's has text")
    if order:
        _check_order(messages)
    if not any(m["role"] == "assistant" if (t := m.get("train")) is None else t for m in messages):
        raise RowError("nothing_trained", "every turn is excluded by its train flag, or by train_roles " + ", ".join(train_roles))
    if max_chars is not None and (n := sum(map(characters, messages))) > max_chars:
        raise RowError("too_long", f"{n:,} characters, limit max_chars {max_chars:,}")
    try:
        for m in messages:
            for key in ("content", "name", "reasoning", "tool_call_id"):
                str(m.get(key) or "").encode()
    except UnicodeEncodeError as e:
        raise RowError("bad_encoding", str(e)) from None


def _check_order(messages: Sequence[Message]) -> None:
    """system at most first; then user and assistant in turn; a tool's turn follows an assistant's or another tool's, and stands
    for a user's.
    """
    before = "start"
    for i, m in enumerate(messages):
        role = m["role"]
        if role not in NEXT_ROLES[before]:
            raise RowError("role_order", f"turn {i} is by {role} after {before}")
        before = role


NEXT_ROLES: dict[str, tuple[str, ...]] = {
    "start": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant", "user"),
}
