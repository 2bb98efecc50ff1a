"""Turns of a conversation as people write them, and the rules that a usable conversation meets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tagcos_stream.data.canonical import canonical_json
from tagcos_stream.types import ROLES, Message, TrainRange

REASONS = {
    "broken_json": "the row is not JSON",
    "bad_encoding": "the row is not UTF-8, or has half of a surrogate pair",
    "wrong_type": "a field that is read has another type than it must have",
    "unknown_shape": "no known shape has the row's fields",
    "missing_column": "a column that the source's settings name is not there",
    "unknown_role": "a turn's role is none that is known",
    "unsupported_content": "a turn has parts that are not text (images, audio)",
    "no_assistant": "there is no assistant turn",
    "nothing_trained": "the row's train flags leave nothing to train on",
    "empty_answer": "an assistant turn has no text",
    "only_whitespace": "an assistant turn, or every other turn, is only white space",
    "role_order": "turns do not alternate, or a system turn comes later than first",
    "too_long": "more characters than max_chars",
    "oversized_row": "more bytes than the limit max_row_bytes",
    "too_deep": "nested deeper than the parser's limit (rows) or MAX_TOOLS_DEPTH (tools)",
    "corrupt_file": "the file ends early or cannot be decoded from here on; what came before was read",
    "zip_bomb": "the file unpacks to more than max_ratio times its size or max_unpacked_bytes",
    "unread_list": "a second list in a JSON object: name it with `field` to read it",
    "empty_file": "the file holds nothing",
    "tree_broken": "a message whose parent is not in its tree, or a deleted one",
    "near_duplicate": "nearly the same text as an earlier example (asked for)",
    "contaminated": "shares a run of words with an evaluation row (asked for)",
}

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
TURN_KEYS = ("name", "train", "training", "train_detail", "weight", "tool_calls", "function_call")  # what else a turn may carry


class RowError(Exception):
    """A row that cannot be used: a reason of REASONS and what exactly was met."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


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
    calls = _calls(turn)
    message: Message = {"role": role, "content": text_of("" if raw is None and calls else raw, f"turn {i}") + calls}
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


def _calls(turn: Mapping[str, Any]) -> str:
    """Tool calls as text, one `<tool_call>` element a call, as Hermes and Qwen templates print them; arguments verbatim where
    they are text.
    """
    calls = turn.get("tool_calls") or ([{"function": turn["function_call"]}] if turn.get("function_call") else [])
    if not isinstance(calls, list):
        raise RowError("wrong_type", "tool_calls must be a list")
    out = []
    for call in calls:
        function = (call.get("function") or call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError("wrong_type", "a tool call must have a function with a name")
        arguments = function.get("arguments")
        shown = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        name = json.dumps(function["name"], ensure_ascii=False)
        out.append(f'<tool_call>\n{{"name": {name}, "arguments": {shown or "{}"}}}\n</tool_call>')
    return "\n".join(out)


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


def read_tools(value: Any) -> str | None:
    """Tools as compact JSON text, from a list, an object or their JSON text; None where there are none."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise RowError("broken_json", f"tools: {e}") from None
    if not value:
        return None
    if not isinstance(value, list | dict):
        raise RowError("wrong_type", f"tools must be a list, got {type(value).__name__}")
    value = value if isinstance(value, list) else [value]
    try:
        canonical_json(value).encode()
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError as e:
        raise RowError("too_deep", str(e)) from None
    except UnicodeEncodeError as e:
        raise RowError("bad_encoding", f"tools: {e}") from None


def check(messages: Sequence[Message], train_roles: Sequence[str], order: bool, max_chars: int | None) -> None:
    """RowError where a conversation breaks a rule; the rules and their order are those of the table in docs/formats.md."""
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        raise RowError("no_assistant", f"{len(messages)} turns, none by the assistant")
    for i, m in enumerate(messages):
        if m["role"] == "assistant" and not m["content"].strip():
            raise RowError("only_whitespace" if m["content"] else "empty_answer", f"turn {i}")
    if all(m["role"] == "assistant" or not m["content"].strip() for m in messages) and len(messages) > len(answers):
        raise RowError("only_whitespace", "no turn but the assistant's has text")
    if order:
        _check_order(messages)
    if not any(m["role"] == "assistant" if (t := m.get("train")) is None else t for m in messages):
        raise RowError("nothing_trained", "every turn is excluded by its train flag, or by train_roles " + ", ".join(train_roles))
    if max_chars is not None and (n := sum(len(m["content"]) for m in messages)) > max_chars:
        raise RowError("too_long", f"{n:,} characters, limit max_chars {max_chars:,}")
    try:
        for m in messages:
            m["content"].encode()
            (m.get("name") or "").encode()
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
