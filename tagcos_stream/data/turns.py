"""Turns of a conversation as people write them, and the rules that a usable conversation meets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tagcos_stream.data.calls import CALL_KEYS, parsed_json, read_call_text, read_calls, spelled_calls
from tagcos_stream.data.canonical import characters
from tagcos_stream.data.content import Content, read_content, reply, text_of
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.train_flags import DETAIL, FLAGS, read_train
from tagcos_stream.types import Message

ROLE_WORDS = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user", "instruction": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant",
    "chatbot": "assistant", "bard": "assistant", "bing": "assistant", "ai": "assistant", "function_call": "assistant",
    "function-call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
    "function-response": "tool", "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message", "utterance")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
MEDIA_KEYS = ("images", "videos", "audios", "image", "video", "audio")
THOUGHTS = ("thought", "thoughts")  # agents write them into the content, too
# of a turn: text that no message holds
UNREAD_KEYS = ("refusal", "tools", "functions", *THOUGHTS, "tool_result", "tool_results", "tool_responses")
# what else a turn may carry
TURN_KEYS = ("name", *FLAGS, DETAIL, *CALL_KEYS, "tool_call_id", *REASONING_KEYS, *MEDIA_KEYS, *UNREAD_KEYS)
CALL_WORDS = ("function_call", "function-call", "tool_call")  # roles of turns whose text is a call
# keys of an item that is an exchange, and their roles: XTuner's, and Firefly's
EXCHANGES = (
    {"system": "system", "input": "user", "output": "assistant"},
    {"system": "system", "human": "user", "assistant": "assistant"},
)
_PLAIN = {"role", "content"}
_THOUGHT = re.compile(r"\A\s*<think>\n?(.*?)\n?</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class TurnOptions:
    """How the turns of a file are named.

    keys: our key (role, content, train, train_detail) -> the file's; roles: the file's role -> one of ROLES, or one of CALL_WORDS
    where the text of its turns is a call; train_roles: roles that are trained on where a turn does not say.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    train_roles: Sequence[str] = ("assistant",)


def read_turns(value: Any, options: TurnOptions, what: str = "messages") -> list[Message]:
    """Messages of a list of turns (or of its JSON text, as in a CSV cell); `what` is the field that holds it."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = parsed_json(value, what)
    value = from_columns(value) or value
    if not isinstance(value, list):
        raise RowError("wrong_type", f"{what} must be a list of turns, got {type(value).__name__}")
    out: list[Message] = []
    calls: list[str] = []  # of the last message, and of the turns that are nothing but further ones
    for i, turn in enumerate(value):
        plain = _plain(turn, options)
        for message, is_call in ((plain, False),) if plain is not None else _turn(turn, f"{what}: turn {i}", options):
            if is_call and out and _joins(out[-1], message):
                calls += _calls(message)
                continue
            if out:
                out[-1] = _with_calls(out[-1], calls)
            out.append(message)
            calls = _calls(message)
    if out:
        out[-1] = _with_calls(out[-1], calls)
    return out


def from_columns(value: Any) -> list[dict[str, Any]] | None:
    """The turns of an object of lists, which `datasets` makes of a Sequence of objects; None where the value is none."""
    if not isinstance(value, dict) or value.keys().isdisjoint(ROLE_KEYS):
        return None
    if not all(isinstance(column, list) and len(column) == len(next(iter(value.values()))) for column in value.values()):
        return None
    return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]


def _joins(before: Message, call: Message) -> bool:
    """Whether a turn that is nothing but calls belongs to the assistant's turn before it."""
    return before["role"] == "assistant" and before.get("train") == call.get("train") and before.get("name") == call.get("name")


def _calls(message: Message) -> list[str]:
    text = message.get("tool_calls")
    return [text] if text else []


def _with_calls(message: Message, calls: list[str]) -> Message:
    """The message with all these lists of calls as one."""
    if not calls or calls == _calls(message):
        return message
    joined = message.copy()
    joined["tool_calls"] = "[" + ",".join(text[1:-1] for text in calls) + "]"
    return joined


def _plain(turn: Any, options: TurnOptions) -> Message | None:
    """The message of a turn that is a role and a text under our names and nothing else, None for others: `_turn` tells.

    It skips what would be looked for in vain, which takes ten times as long.
    """
    if options.keys or not isinstance(turn, dict) or turn.keys() != _PLAIN:
        return None
    word, content = turn["role"], turn["content"]
    if not isinstance(word, str) or not isinstance(content, str):
        return None
    plain = word.strip().lower()
    mapped = options.roles.get(word, plain)
    role = ROLE_WORDS.get(mapped)
    if role is None or plain in CALL_WORDS or mapped in CALL_WORDS:
        return None
    is_trained, by_default = role in options.train_roles, role == "assistant"
    return _message(role, content) if is_trained == by_default else None


def _turn(turn: Any, what: str, options: TurnOptions) -> Iterator[tuple[Message, bool]]:
    """The messages of a turn, and whether each is a call alone: several of an exchange, or where it has results of tools."""
    if not isinstance(turn, dict):
        raise RowError("wrong_type", f"{what} must be an object, got {type(turn).__name__}")
    turn = {key: value for key, value in turn.items() if not (isinstance(value, float) and value != value)}  # NaN is no value
    word = next((turn[k] for k in _names(options.keys, "role", ROLE_KEYS) if turn.get(k) is not None), None)
    exchange = next((keys for keys in EXCHANGES if turn.keys() >= keys.keys() - {"system"}), None)
    if word is None and exchange is not None:
        for part in _exchange(turn, exchange, what, options.keys):
            yield from _turn(part, what, options)
        return
    if not isinstance(word, str):
        raise RowError("wrong_type", f"{what} has no role as text")
    plain = word.strip().lower()
    mapped = options.roles.get(word, plain)
    role = ROLE_WORDS.get(mapped)
    if role is None:
        raise RowError("unknown_role", f"{what} has role {word[:60]!r}; map it with `roles`")
    _refuse_unread(turn, what)
    calls = read_calls(turn, what)
    given = _content(turn, what, options, bool(calls))
    content = read_content(reply(given, what) if role == "tool" else given, what)
    is_call = calls is None and role == "assistant" and not {plain, mapped}.isdisjoint(CALL_WORDS)
    if is_call:
        calls, content = _call_text(content, what)
    elif content.calls:
        if calls:
            raise RowError("wrong_type", f"{what} has tool calls both in its parts and under tool_calls")
        calls = spelled_calls(content.calls, what)
    for identity, text in content.results:
        yield _message("tool", text) | ({"tool_call_id": identity} if identity else {}), False
    if content.results and role in ("user", "tool") and not content.text:
        return
    message = _message(role, content.text)
    _structure(message, turn, content, calls, what)
    if (train := read_train(turn, message, content.spans, options.keys, options.train_roles, what)) is not None:
        message["train"] = train
    yield message, is_call and not message.get("reasoning")


def _exchange(item: Mapping[str, Any], roles: Mapping[str, str], what: str, keys: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The turns of an item of EXCHANGES, whose keys have these roles; flags, reasoning and calls are its answer's."""
    role_key, content_key = _names(keys, "role", ROLE_KEYS)[0], _names(keys, "content", CONTENT_KEYS)[0]
    rest = {key: value for key, value in item.items() if key not in roles}
    known = {*TURN_KEYS, *keys.values()} - {content_key}
    if others := [str(key) for key, value in rest.items() if value and isinstance(value, str | list | dict) and key not in known]:
        _, user, assistant = roles
        raise RowError("unread_field", f"{what} has {', '.join(others)} besides {user} and {assistant}")
    for key, role in roles.items():
        if key != "system" or item.get(key) not in (None, ""):
            yield {**(rest if role == "assistant" else {}), role_key: role, content_key: item.get(key)}


def _call_text(content: Content, what: str) -> tuple[str | None, Content]:
    """The calls that a turn's text is, and what is left of the turn: its reasoning, which may stand before them in the text."""
    if content.calls or content.results:
        raise RowError("wrong_type", f"{what} is a function call with parts that are not its text")
    thought = None if content.reasoning else _THOUGHT.match(content.text)
    calls = read_call_text(content.text[thought.end() :] if thought else content.text, what)
    return calls, Content(reasoning=thought[1] if thought else content.reasoning)


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _content(turn: Mapping[str, Any], what: str, options: TurnOptions, has_calls: bool) -> Any:
    """The turn's content. RowError where another key holds other text."""
    names = _names(options.keys, "content", CONTENT_KEYS)
    found = {k: turn[k] for k in names if turn.get(k) is not None}
    if len(found) > 1 and any(value and value != next(iter(found.values())) for value in found.values()):
        raise RowError("unread_field", f"{what} has different texts under {' and '.join(found)}")
    return next(iter(found.values()), "" if has_calls else None)


def _refuse_unread(turn: Mapping[str, Any], what: str) -> None:
    texts = [text for key in CONTENT_KEYS if isinstance(text := turn.get(key), str)]
    for name in UNREAD_KEYS:
        value = turn.get(name)
        repeated = name in THOUGHTS and isinstance(value, str) and any(value.strip() in text for text in texts)
        if value and not repeated:
            raise RowError(
                "unread_field", f"{what} has {name}, which no message holds: remove it, or name it as a key that is read"
            )
    for name in MEDIA_KEYS:
        if turn.get(name):
            raise RowError("unsupported_content", f"{what} has {name}, only text is read")


def _structure(message: Message, turn: Mapping[str, Any], content: Content, calls: str | None, what: str) -> None:
    role = message["role"]
    if reasoning := _reasoning(turn, content, what):
        message["reasoning"] = reasoning
    if calls:
        message["tool_calls"] = calls
    if role != "assistant" and (reasoning or calls):
        kind = "tool calls" if calls else "reasoning"
        raise RowError("wrong_type", f"{what} by {role} has {kind}, which only an assistant's may")
    if (call_id := turn.get("tool_call_id")) is not None and call_id != "":
        if role != "tool":
            raise RowError("wrong_type", f"{what} by {role} has a tool_call_id, which only a tool's may")
        message["tool_call_id"] = str(call_id)
    name = turn.get("name")
    if name is not None and not isinstance(name, str):
        raise RowError("wrong_type", f"{what} has a name that is not text")
    if name:
        message["name"] = name


def _reasoning(turn: Mapping[str, Any], content: Content, what: str) -> str | None:
    found = {key: text_of(turn[key], f"{what}: {key}") for key in REASONING_KEYS if turn.get(key) not in (None, "", [])}
    if content.reasoning:
        found["content"] = content.reasoning
    if len(set(found.values())) > 1:
        raise RowError("wrong_type", f"{what} has different texts under {' and '.join(found)}")
    return next(iter(found.values()), None)


def _names(keys: Mapping[str, str], ours: str, default: Sequence[str]) -> Sequence[str]:
    return (keys[ours],) if ours in keys else default


def check(messages: Sequence[Message], train_roles: Sequence[str], order: bool, max_chars: int | None) -> None:
    """RowError where a conversation breaks a rule; the rules and their order are those of the table in docs/formats.md."""
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        raise RowError("no_assistant", f"{len(messages)} turns, none by the assistant")
    for i, m in enumerate(messages):
        if m["role"] == "assistant" and not m["content"].strip() and not m.get("tool_calls"):
            reasoned = " has reasoning but no content" if m.get("reasoning") else ""
            raise RowError("only_whitespace" if m["content"] else "empty_answer", f"turn {i}{reasoned}")
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
            m["content"].encode()
            for key in ("name", "reasoning", "tool_call_id") if len(m) > len(_PLAIN) else ():
                str(m.get(key) or "").encode()
    except UnicodeEncodeError as e:
        raise RowError("bad_encoding", str(e)) from None


def _check_order(messages: Sequence[Message]) -> None:
    """Check the order of roles.

    A system turn at most first; then user and assistant in turn. A tool's turn follows an assistant's or another tool's, and
    takes the place of a user's.
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
