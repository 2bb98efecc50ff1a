"""One record of a file, of whatever shape, to messages: the shapes, each a function and its fields, and the rules for every row.

`convert` is the specification of ingest: `convert_columns` only does faster what gives the same rows. A new shape is a function
(record, fields matched, options) -> messages and an entry of SHAPES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tagcos_stream.data.calls import read_template_kwargs, read_tools
from tagcos_stream.data.conversations import read_data, read_gemini, read_messages, read_xlam
from tagcos_stream.data.oasst import tree_threads
from tagcos_stream.data.pairs import BESIDE_PAIR, SYSTEM_FIELDS, read_pair, read_prompt_completion
from tagcos_stream.data.preferences import PREFERENCE_FIELDS, chosen_answer, refuse_marked, refuse_media
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import Record, RowOptions
from tagcos_stream.data.transcripts import looks_like_transcript, read_transcript
from tagcos_stream.data.turns import CONTENT_KEYS, MEDIA_KEYS, check
from tagcos_stream.types import Message


class Converted(NamedTuple):
    """One conversation of a row: its messages, and JSON text of the tools offered and of arguments for the chat template."""

    messages: list[Message]
    tools: str | None = None
    template_kwargs: str | None = None


@dataclass(frozen=True)
class Shape:
    """A form of row and how it is read.

    fields: what a row must have, one alternative after the other. read: (row, the fields matched, options) -> messages.
    also_read: other fields that it reads. fits: a further condition on a row that has the fields.
    """

    name: str
    fields: tuple[tuple[str, ...], ...]
    read: Callable[[Record, tuple[str, ...], RowOptions], list[Message]]
    also_read: tuple[str, ...] = ()
    fits: Callable[[Record], bool] | None = None


def _pair(row: Record, fields: tuple[str, ...], options: RowOptions) -> list[Message]:
    return read_pair(row, fields[0], fields[1], options)


CHAT_FIELDS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")

# in order of trial: a row that has `messages` is a conversation whatever else it carries
SHAPES: tuple[Shape, ...] = (
    Shape("messages", tuple((name,) for name in CHAT_FIELDS), read_messages, SYSTEM_FIELDS),
    Shape("gemini", (("contents",),), read_gemini, (*SYSTEM_FIELDS, "systemInstruction", "system_instruction")),
    Shape("xlam", (("query", "tools", "answers"),), read_xlam, SYSTEM_FIELDS),
    Shape("alpaca", (("instruction", "output"),), _pair, BESIDE_PAIR),
    Shape("dolly", (("instruction", "response"),), _pair, BESIDE_PAIR),
    Shape(
        "prompt_completion",
        (("prompt", "completion"), ("prompt", "response")),
        lambda row, fields, options: read_prompt_completion(row, fields[0], fields[1], options),
        BESIDE_PAIR,
    ),
    Shape(
        "question_answer",
        (("question", "answer"), ("question", "response"), ("query", "answer"), ("query", "response")),
        _pair,
        BESIDE_PAIR,
    ),
    Shape("input_output", (("input", "output"),), _pair, BESIDE_PAIR),
    Shape("ultrachat", (("data",),), read_data, SYSTEM_FIELDS, lambda row: isinstance(row["data"], list)),
    Shape("transcript", (("text",), ("chat",)), read_transcript, SYSTEM_FIELDS, looks_like_transcript),
)
BY_NAME = {shape.name: shape for shape in SHAPES}
TREE_FIELDS = ("message_tree_id", "prompt")
SHAPE_NAMES = (*BY_NAME, "oasst_tree", "oasst_messages")  # a tree a row, and a message a row, which `oasst.flat_trees` gathers
REQUIRED: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((shape.name, fields) for shape in SHAPES for fields in shape.fields),
    ("oasst_tree", TREE_FIELDS),
)
REQUIRED_FIELDS = frozenset(name for _, fields in REQUIRED for name in fields) - {"input", "tools"}
# fields known to carry text of a prompt or an answer: what a shape leaves unread of them rejects the row
TEXT_FIELDS = (
    frozenset(name for shape in SHAPES for fields in (*shape.fields, shape.also_read) for name in fields)
    | {"choices", "options", "suffix", *PREFERENCE_FIELDS}
) - {"tools"}
# every top-level field that a converter reads
ROW_FIELDS = (
    TEXT_FIELDS | REQUIRED_FIELDS | {"tools", "functions", "chat_template_kwargs", "dataset", "source_id", "label", *MEDIA_KEYS}
)
ID_FIELDS = ("source_id", "id", "uid", "uuid", "conversation_id", "prompt_id")


def convert(record: object, options: RowOptions) -> list[Converted]:
    """The conversations of one record: one, or one a thread of an OASST tree.

    RowError with a reason of `reasons.REASONS` where the row cannot be used.
    """
    if not isinstance(record, dict):
        raise RowError("wrong_type", f"a row must be an object, got {type(record).__name__}")
    row = _renamed(record, options.columns)
    if options.shape == "oasst_tree" or (options.shape is None and _is_tree(row)):
        threads = [finished(thread, options) for thread in tree_threads(row)]
        _refuse_unread(row, {"prompt"}, [message for thread in threads for message in thread])
        return [Converted(thread) for thread in threads]
    refuse_media(row)
    refuse_marked(row)
    if found := chosen_answer(row, options):
        messages, read = found
    else:
        shape, fields = _shape_of(row, options)
        messages, read = shape.read(row, fields, options), {*fields, *shape.also_read}
    try:
        messages = finished(messages, options)
    except RowError as e:
        raise RowError(e.reason, f"{' and '.join(name for name in row if name in read)}: {e.detail}") from None
    _refuse_unread(row, read, messages)
    return [Converted(messages, _tools(row), read_template_kwargs(row.get("chat_template_kwargs")))]


def finished(messages: list[Message], options: RowOptions) -> list[Message]:
    """The messages as the options want them. RowError where they break a rule."""
    if options.drop_system:
        messages = [m for m in messages if m["role"] != "system"]
    check(messages, options.train_roles, options.check_order, options.max_chars)
    return messages


def recognise(row: Record) -> str | None:
    """Name of the first shape whose fields the row has, or None."""
    if _is_tree(row):
        return "oasst_tree"
    found = _recognised(row, SHAPES)
    return found[0].name if found else None


def _is_tree(row: Record) -> bool:
    whole = row.get("message_tree_id") is not None and isinstance(row.get("prompt"), dict)
    return whole and not any(row.get(name) for name in CHAT_FIELDS)


def _recognised(row: Record, shapes: tuple[Shape, ...]) -> tuple[Shape, tuple[str, ...]] | None:
    """The first shape whose fields the row has, and those fields; an empty list of turns only where nothing else fits."""
    empty = None
    if REQUIRED_FIELDS.isdisjoint(row):
        return None
    for shape in shapes:
        for fields in shape.fields:
            if fields[0] not in row or any(row.get(name) is None for name in fields):
                continue
            if shape.fits is not None and not shape.fits(row):
                continue
            if fields[0] in CHAT_FIELDS and not row[fields[0]]:
                empty = empty or (shape, fields)
                continue
            return shape, fields
    return empty


def _shape_of(row: Record, options: RowOptions) -> tuple[Shape, tuple[str, ...]]:
    if options.shape is not None:
        shape = BY_NAME[options.shape]
        named = next((f for f in shape.fields if all(row.get(name) is not None for name in f)), None)
        if named is not None:
            return shape, named
    elif found := _recognised(row, SHAPES):
        return found
    tried = () if REQUIRED_FIELDS.isdisjoint(row) else SHAPES if options.shape is None else (BY_NAME[options.shape],)
    for shape in tried:
        for fields in shape.fields:
            if len(fields) == 1 or fields[-1] not in row:
                continue
            missing = [name for name in fields if row.get(name) is None]
            if missing == [fields[-1]]:
                raise RowError("empty_answer", f"{fields[-1]} is null")
            if missing and set(missing) < set(fields) and all(name in row for name in fields):
                raise RowError("wrong_type", f"{' and '.join(missing)} is null")
    there = ", ".join(map(str, list(row)[:12])) or "none"
    asked = "" if options.shape is None else f" of shape {options.shape}"
    raise RowError("unknown_shape", f"no shape has these fields{asked}: {there}")


def _refuse_unread(row: Record, read: set[str], messages: list[Message]) -> None:
    """RowError where a field with text was not read and does not stand in the messages either."""
    unread = [name for name in row if name in TEXT_FIELDS and name not in read and row[name] and _is_text(name, row[name])]
    for name in unread:
        if name == "text" and isinstance(row[name], str):
            parts = [part for field in row if field in read for part in _texts(row[field])]
            if _holds(row[name], parts):
                continue  # the conversation as its template prints it
        if not _stand_in(list(_texts(row[name])), messages):
            raise RowError("unread_field", f"{name} has text that this row's shape leaves out; say what to read with `columns`")


def _is_text(name: str, value: Any) -> bool:
    """Whether the value is text of a prompt or an answer: other things stand under these names, too."""
    if name == "data" and not isinstance(value, str):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if name == "text" and isinstance(value, int | float):
        return False
    return next(_texts(value), None) is not None


def _holds(text: str, parts: list[str]) -> bool:
    """Whether the text contains every part; parts that are not in order are searched for up to a bound on the work."""
    position, again = 0, 0
    for part in parts:
        if (found := text.find(part, position)) >= 0:
            position = found + len(part)
            continue
        again += len(text)
        if again > SEARCHED or part not in text:
            return False
    return True


def _stand_in(texts: list[str], messages: list[Message]) -> bool:
    """Return whether every text is that of a message or part of one, searched up to a bound on the work.

    Short texts occur anywhere by chance.
    """
    contents = {m["content"].strip() for m in messages}
    rest = [text for text in texts if text not in contents]
    if any(len(text) < LONG for text in rest) or len(rest) * sum(map(len, contents)) > SEARCHED:
        return False
    return all(any(text in content for content in contents) for text in rest)


def _texts(value: Any) -> Iterator[str]:
    """Texts of a field, of a list of them, or of a list of turns, without white space at their ends."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if text := value.strip():
                yield text
        elif isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, dict):
            waiting += reversed([value[k] for k in CONTENT_KEYS if value.get(k)] or [*value.values()])
        elif value is not None:
            yield str(value)


def _tools(row: Record) -> str | None:
    found = [read_tools(row[name]) for name in ("tools", "functions") if row.get(name)]
    if len({text for text in found if text}) > 1:
        raise RowError("unread_field", "tools and functions differ")
    return next((text for text in found if text), None)


def _renamed(record: Record, columns: Mapping[str, str]) -> Record:
    """The row under our names. Where a shape's field is mapped, what is not mapped does not count."""
    if not columns:
        return record
    taken = set(columns.values())
    chosen = bool(REQUIRED_FIELDS & set(columns))
    row = {k: v for k, v in record.items() if k not in taken and (not chosen or k in KEPT_FIELDS)}
    for ours, theirs in columns.items():
        if ours in ROW_FIELDS:
            if theirs not in record and ours in REQUIRED_FIELDS:
                raise RowError(
                    "missing_column",
                    f"no column {theirs!r} (mapped to {ours}); there are: {', '.join(map(str, list(record)[:12]))}",
                )
            row[ours] = record.get(theirs)
    return row


SEARCHED = 100_000_000  # characters that are searched for the texts of a field, a tenth of a second
LONG = 16  # characters of a text that counts as the same one where a message contains it
KEPT_FIELDS = {"dataset", *ID_FIELDS}  # read of a row whose fields are mapped


def source_id_of(row: object, columns: Mapping[str, str]) -> str | None:
    """The row's own name, where it has one under `columns["source_id"]` or a name of ID_FIELDS."""
    names = (columns["source_id"],) if "source_id" in columns else ID_FIELDS
    value = next((row[n] for n in names if isinstance(row.get(n), str | int)), None) if isinstance(row, dict) else None
    return None if value is None else str(value)


def dataset_of(row: object, columns: Mapping[str, str], default: str) -> str:
    """The row's dataset name where it is a string under `columns["dataset"]` or `dataset`, else the default."""
    value = row.get(columns.get("dataset", "dataset")) if isinstance(row, dict) else None
    return value if isinstance(value, str) and value else default
