"""One record of a file, of whatever shape, to messages: a function a shape, a table of them, and the rules that every row must
meet.

`convert` is the specification of ingest: `frames.py` only does faster what gives the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tagcos_stream.data.calls import read_template_kwargs, read_tools
from tagcos_stream.data.oasst import tree_threads
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.turns import check, read_turns, text_of
from tagcos_stream.types import Message

Record = dict[str, Any]


class Converted(NamedTuple):
    """One conversation of a row: its messages, and JSON text of the tools offered and of arguments for the chat template."""

    messages: list[Message]
    tools: str | None = None
    template_kwargs: str | None = None


@dataclass(frozen=True)
class RowOptions:
    """How rows are read; the defaults recognise everything from content.

    shape: a name of SHAPES, or None. columns: our field name -> the file's column. roles: the file's role word -> one of ROLES.
    train_roles: roles whose turns are trained on where the row does not say. drop_system: leave system turns out. check_order:
    reject rows whose turns do not alternate. max_chars: reject longer conversations (characters), None for any length.
    """

    shape: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    train_roles: tuple[str, ...] = ("assistant",)
    drop_system: bool = False
    check_order: bool = True
    max_chars: int | None = None


def convert(record: object, options: RowOptions) -> list[Converted]:
    """The conversations of one record: one, or one a thread of an OASST tree.

    RowError with a reason of `reasons.REASONS` where the row cannot be used.
    """
    if not isinstance(record, dict):
        raise RowError("wrong_type", f"a row must be an object, got {type(record).__name__}")
    row = _renamed(record, options.columns)
    shape = options.shape or recognise(row)
    if shape is None:
        raise RowError("unknown_shape", "no shape has these fields: " + (", ".join(map(str, list(record)[:12])) or "none"))
    if shape == "oasst_tree":
        return [Converted(finished(thread, options)) for thread in tree_threads(row)]
    messages = finished(SHAPES[shape](row, options), options)
    return [
        Converted(messages, read_tools(_first(row, "tools", "functions")), read_template_kwargs(row.get("chat_template_kwargs")))
    ]


def finished(messages: list[Message], options: RowOptions) -> list[Message]:
    """The messages as the options want them. RowError where they break a rule."""
    if options.drop_system:
        messages = [m for m in messages if m["role"] != "system"]
    check(messages, options.train_roles, options.check_order, options.max_chars)
    return messages


def recognise(row: Record) -> str | None:
    """Name of the first shape in SHAPES whose required fields the row has, or None."""
    for name, fields in REQUIRED:
        if all(row.get(f) is not None for f in fields):
            return name
    return None


def _renamed(record: Record, columns: Mapping[str, str]) -> Record:
    if not columns:
        return record
    taken = set(columns.values())
    row = {k: v for k, v in record.items() if k not in taken}
    for ours, theirs in columns.items():
        if ours in ROW_FIELDS:
            if theirs not in record and ours in REQUIRED_FIELDS:
                raise RowError(
                    "missing_column",
                    f"no column {theirs!r} (mapped to {ours}); there are: {', '.join(map(str, list(record)[:12]))}",
                )
            row[ours] = record.get(theirs)
    return row


def _first(row: Record, *names: str) -> Any:
    return next((row[n] for n in names if row.get(n) is not None), None)


def _system(row: Record, *names: str) -> list[Message]:
    """An absent or empty system field is no turn; one within a message list is always kept."""
    text = text_of(_first(row, *names) or "", "system")
    return [{"role": "system", "content": text}] if text else []


def from_messages(row: Record, options: RowOptions) -> list[Message]:
    """OpenAI messages and ShareGPT alike: a list of turns under one of CHAT_FIELDS; key and role names are those in `turns`."""
    turns = read_turns(_first(row, *CHAT_FIELDS), options.columns, options.roles, options.train_roles)
    head = _system(row, "system", "system_prompt")
    return turns if turns and turns[0]["role"] == "system" else head + turns


def from_alpaca(row: Record, options: RowOptions) -> list[Message]:
    """instruction and input joined by a blank line; history is a list of [user, assistant] pairs before it."""
    messages = _system(row, "system", "system_prompt")
    for pair in row.get("history") or []:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise RowError("wrong_type", "history must be a list of [user, assistant] pairs")
        messages += _pair(pair[0], pair[1], options)
    return messages + _pair(_joined(row.get("instruction"), row.get("input")), row.get("output"), options)


def from_dolly(row: Record, options: RowOptions) -> list[Message]:
    """instruction and context joined by a blank line."""
    return _system(row, "system") + _pair(_joined(row.get("instruction"), row.get("context")), row.get("response"), options)


def from_prompt_completion(row: Record, options: RowOptions) -> list[Message]:
    """Two strings, or two message lists (TRL): of lists the completion's assistant turns are trained on, the prompt's are not."""
    prompt, completion = row.get("prompt"), _first(row, "completion", "response")
    if not isinstance(prompt, list) and not isinstance(completion, list):
        return _system(row, "system", "system_prompt") + _pair(prompt, completion, options)
    before = _turns_or_text(prompt, "user", options, trained=())
    for message in before:
        if message["role"] == "assistant" and message.get("train") is None:
            message["train"] = []
    return (
        _system(row, "system", "system_prompt") + before + _turns_or_text(completion, "assistant", options, options.train_roles)
    )


def from_question_answer(row: Record, options: RowOptions) -> list[Message]:
    """question or query; answer or response; OpenOrca's system_prompt."""
    return _system(row, "system", "system_prompt") + _pair(
        _first(row, "question", "query"), _first(row, "answer", "response"), options
    )


def from_input_output(row: Record, options: RowOptions) -> list[Message]:
    """input and output, without an instruction."""
    return _system(row, "system", "system_prompt") + _pair(row.get("input"), row.get("output"), options)


def _turns_or_text(value: Any, role: str, options: RowOptions, trained: tuple[str, ...]) -> list[Message]:
    if isinstance(value, list):
        return read_turns(value, options.columns, options.roles, trained)
    return [{"role": role, "content": text_of(value, role)}]


def _pair(prompt: Any, answer: Any, options: RowOptions) -> list[Message]:
    if answer is None:
        raise RowError("empty_answer", "the answer is missing")
    user: Message = {"role": "user", "content": text_of(prompt, "prompt")}
    assistant: Message = {"role": "assistant", "content": text_of(answer, "answer")}
    if "user" in options.train_roles:
        user["train"] = [{"begin": 0, "end": len(user["content"])}]
    if "assistant" not in options.train_roles:
        assistant["train"] = []
    return [user, assistant]


def _joined(instruction: Any, extra: Any) -> str:
    texts = [text_of(part, "prompt") for part in (instruction, extra) if part is not None]
    return "\n\n".join(t for t in texts if t)


CHAT_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")

SHAPES: dict[str, Callable[[Record, RowOptions], list[Message]]] = {
    "messages": from_messages,
    "alpaca": from_alpaca,
    "dolly": from_dolly,
    "prompt_completion": from_prompt_completion,
    "question_answer": from_question_answer,
    "input_output": from_input_output,
}

# in order of trial: a row that has `messages` is a conversation whatever else it carries
REQUIRED: tuple[tuple[str, tuple[str, ...]], ...] = (
    *(("messages", (name,)) for name in CHAT_FIELDS),
    ("oasst_tree", ("message_tree_id", "prompt")),
    ("alpaca", ("instruction", "output")),
    ("dolly", ("instruction", "response")),
    ("prompt_completion", ("prompt", "completion")),
    ("prompt_completion", ("prompt", "response")),
    ("question_answer", ("question", "answer")),
    ("question_answer", ("question", "response")),
    ("question_answer", ("query", "answer")),
    ("question_answer", ("query", "response")),
    ("input_output", ("input", "output")),
)
SHAPE_NAMES = (*SHAPES, "oasst_tree", "oasst_messages")  # the last: a message a row, which `oasst.flat_trees` gathers
REQUIRED_FIELDS = frozenset(f for _, fields in REQUIRED for f in fields) - {"input"}
# every top-level field that a converter reads
ROW_FIELDS = REQUIRED_FIELDS | {
    "input",
    "context",
    "system",
    "system_prompt",
    "history",
    "tools",
    "functions",
    "chat_template_kwargs",
    "dataset",
    "source_id",
}
ID_FIELDS = ("source_id", "id", "uid", "uuid", "conversation_id", "prompt_id")


def source_id_of(row: object, columns: Mapping[str, str]) -> str | None:
    """The row's own name, where it has one under `columns["source_id"]` or a name of ID_FIELDS."""
    names = (columns["source_id"],) if "source_id" in columns else ID_FIELDS
    value = next((row[n] for n in names if isinstance(row.get(n), str | int)), None) if isinstance(row, dict) else None
    return None if value is None else str(value)


def dataset_of(row: object, columns: Mapping[str, str], default: str) -> str:
    """The row's dataset name where it is a string under `columns["dataset"]` or `dataset`, else the default."""
    value = row.get(columns.get("dataset", "dataset")) if isinstance(row, dict) else None
    return value if isinstance(value, str) and value else default
