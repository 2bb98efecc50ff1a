"""One record of a file, of whatever shape, to messages: the shapes, each a function and its fields, and the rules for every row.

`convert` is the specification of ingest: `convert_columns` only does faster what gives the same rows. A new shape is a function
(record, fields matched, options) -> messages and an entry of SHAPES.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import NamedTuple

from tagcos_stream.data.calls import read_template_kwargs, read_tools, tools_within
from tagcos_stream.data.conversations import (
    CHAT_FIELDS,
    holds_turns,
    is_data,
    is_question,
    read_data,
    read_gemini,
    read_messages,
    read_transcript,
    read_xlam,
)
from tagcos_stream.data.oasst import tree_threads
from tagcos_stream.data.pairs import BESIDE_PAIR, SYSTEM_FIELDS, read_pair, turns_in
from tagcos_stream.data.preferences import (
    MARK_FIELDS,
    MEDIA_FIELDS,
    PREFERENCE_FIELDS,
    chosen_answer,
    refuse_marked,
    refuse_media,
)
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import Record, RowOptions
from tagcos_stream.data.transcripts import begins_as_transcript, has_plain_marks, looks_like_transcript
from tagcos_stream.data.turns import REASONING_KEYS, check
from tagcos_stream.data.unread import refuse_unread
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
    also_read: other fields that it reads. fits: a further condition on the value of the first field.
    """

    name: str
    fields: tuple[tuple[str, ...], ...]
    read: Callable[[Record, tuple[str, ...], RowOptions], list[Message]]
    also_read: tuple[str, ...] = ()
    fits: Callable[[object], bool] | None = None


def _pair(row: Record, fields: tuple[str, ...], options: RowOptions) -> list[Message]:
    return read_pair(row, fields[0], fields[-1], options)


# words for a prompt, and for an answer that is never a reference to check one by
PROMPTS = ("instruction", "prompt", "question", "problem", "query", "input", "inputs")
ANSWERS = ("output", "response", "completion", "generated_solution", "generation", "generations")
# in order of trial: a row that has `messages` with an answer is a conversation whatever else it carries
SHAPES: tuple[Shape, ...] = (
    Shape(
        "messages_answer",
        (
            ("messages", "reasoning", "answer"),  # an `answer` alone may be a reference
            *product(("messages", "conversations"), ("output", "response", "completion")),
        ),
        _pair,
        BESIDE_PAIR,
        is_question,
    ),
    Shape("messages", tuple((name,) for name in CHAT_FIELDS), read_messages, SYSTEM_FIELDS, holds_turns),
    Shape("gemini", (("contents",),), read_gemini, (*SYSTEM_FIELDS, "systemInstruction", "system_instruction"), holds_turns),
    Shape("xlam", (("query", "tools", "answers"),), read_xlam, SYSTEM_FIELDS),
    Shape("alpaca", (("instruction", "output"),), _pair, BESIDE_PAIR),
    Shape("dolly", (("instruction", "response"),), _pair, BESIDE_PAIR),
    Shape("prompt_completion", (("prompt", "completion"), ("prompt", "response")), _pair, BESIDE_PAIR),
    Shape(
        "question_answer",
        (
            ("problem", "solution"),
            ("question", "solution"),  # whose result may stand under `answer`
            ("question", "answer"),
            ("question", "response"),
            ("query", "answer"),
            ("query", "response"),
        ),
        _pair,
        BESIDE_PAIR,
    ),
    Shape("input_output", (("input", "output"), ("inputs", "targets"), ("input", "target")), _pair, BESIDE_PAIR),
    Shape("ultrachat", (("data",),), read_data, SYSTEM_FIELDS, is_data),
    Shape("transcript", (("text",), ("chat",)), read_transcript, SYSTEM_FIELDS, looks_like_transcript),
    Shape("pair", (*product(PROMPTS, ANSWERS), ("text_input", "output"), ("input_text", "output_text")), _pair, BESIDE_PAIR),
)
SHAPE_FIELDS = frozenset(name for shape in SHAPES for fields in shape.fields for name in fields)
BY_NAME = {shape.name: shape for shape in SHAPES}
TREE_FIELDS = ("message_tree_id", "prompt")
SHAPE_NAMES = (*BY_NAME, "oasst_tree", "oasst_messages")  # a tree a row, and a message a row, which `oasst.flat_trees` gathers
REQUIRED: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((shape.name, fields) for shape in SHAPES for fields in shape.fields),
    ("oasst_tree", TREE_FIELDS),
)
REQUIRED_FIELDS = SHAPE_FIELDS.union(TREE_FIELDS) - {"input", "tools"}
# what a prompt is about, which no shape reads
ABOUT_FIELDS = ("document", "documents", "contexts", "passage", "passages", "article", "instructions", "choices", "options")
# names of system prompts and of tools that are not ours, which would be lost
OTHER_SYSTEM_FIELDS = ("meta_instruction", "systemPrompt", "sys_prompt")
OTHER_TOOL_FIELDS = ("tools_json", "available_tools", "function_description", "toolConfig")
# fields of a pair that are data about it beside a conversation, which may be made from them: what it asks, and how it is answered
PAIR_FIELDS = frozenset({
    "problem", "inputs", "text_input", "input_text", "definition", "solution", "target", "targets", "output_text",
    "rationale", "explanation", "cot", "longCOT", "complex_cot", "chain_of_thought", "think", "thought", "thoughts",
    "reasoning_trace", "thinking_trajectories", "deepseek_thinking_trajectory", "gemini_thinking_trajectory",
    "attempt", "deepseek_attempt", "gemini_attempt", "generation", "generations", "generated_solution", "r1_solution",
    "r1_generation", "reannotated_assistant_content",
})  # fmt: skip
# fields known to carry text of a prompt or an answer: what a shape leaves unread of them rejects the row
TEXT_FIELDS = (
    frozenset(name for shape in SHAPES for fields in (*shape.fields, shape.also_read) for name in fields)
    | {"suffix", *ABOUT_FIELDS, *PREFERENCE_FIELDS, *OTHER_SYSTEM_FIELDS, *OTHER_TOOL_FIELDS}
) - {"tools", *PAIR_FIELDS}
# every top-level field that a converter reads
ROW_FIELDS = (
    TEXT_FIELDS
    | PAIR_FIELDS
    | REQUIRED_FIELDS
    | {"tools", "functions", "metadata", "chat_template_kwargs", "dataset", "source_id", *MARK_FIELDS, *MEDIA_FIELDS}
)
# cells of a table in fields that hold lists, and words in fields for reasoning that say how the answer was made
EMPTY_CELLS, LIST_FIELDS = {"[]", "{}", "null"}, {"history", *ABOUT_FIELDS, *OTHER_TOOL_FIELDS, *MEDIA_FIELDS}
FLAGS = {"on", "off", "true", "false", "yes", "no", "none", "minimal", "low", "medium", "high"}
TOOL_FIELDS = {"tools", "functions", "chat_template_kwargs"}  # read beside any shape
HEAD, SHORTEST = 10_000, 16  # characters of a text that are searched for the marks of a transcript, at most and at least
ID_FIELDS = ("source_id", "id", "uid", "uuid", "conversation_id", "prompt_id")


def convert(record: object, options: RowOptions) -> list[Converted]:
    """The conversations of one record: one, or one a thread of an OASST tree.

    RowError with a reason of `reasons.REASONS` where the row cannot be used.
    """
    if not isinstance(record, dict):
        raise RowError("wrong_type", f"a row must be an object, got {type(record).__name__}")
    row = _renamed(record, options.columns)
    if options.shape != "oasst_tree" and ROW_FIELDS.isdisjoint(row) and ROW_FIELDS.isdisjoint(map(str.lower, row)):
        raise _no_shape(row, options)
    row = _without_nothing(_in_lower_case(row), options.columns)
    if options.shape == "oasst_tree" or (options.shape is None and _is_tree(row)):
        threads = [finished(thread, options) for thread in tree_threads(row)]
        refuse_unread(row, {"prompt"}, [message for thread in threads for message in thread], TEXT_FIELDS)
        return [Converted(thread) for thread in threads]
    refuse_media(row)
    refuse_marked(row)
    texts = TEXT_FIELDS
    if found := chosen_answer(row, options):
        messages, read = found
    else:
        shape, fields = _shape_of(row, options)
        messages, read = shape.read(row, fields, options), {*fields, *shape.also_read}
        if shape.read is _pair:
            texts = TEXT_FIELDS | PAIR_FIELDS
    try:
        messages = finished(messages, options)
    except RowError as e:
        raise RowError(e.reason, f"{' and '.join(name for name in row if name in read)}: {e.detail}") from None
    try:
        refuse_unread(row, read, messages, texts)
    except RowError as e:
        without = "" if options.columns else f"; `{_columns(record, row, read | TOOL_FIELDS)}` does without it"
        raise RowError(e.reason, f"{e.detail}{without}") from None
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
    found = _recognised(row)
    return found[0].name if found else None


def _is_tree(row: Record) -> bool:
    whole = row.get("message_tree_id") is not None and isinstance(row.get("prompt"), dict)
    return whole and not any(holds_turns(row.get(name)) for name in CHAT_FIELDS)


@lru_cache(maxsize=1024)
def _candidates(names: frozenset[str]) -> tuple[tuple[Shape, tuple[str, ...]], ...]:
    """Shapes and their fields that are all among the names, in order of trial; most rows of a file have the same names."""
    return tuple((shape, fields) for shape in SHAPES for fields in shape.fields if names.issuperset(fields))


def _recognised(row: Record) -> tuple[Shape, tuple[str, ...]] | None:
    """The first shape whose fields the row has, and those fields.

    An empty answer, and a conversation of another form, only where nothing else fits.
    """
    empty = other = None
    if REQUIRED_FIELDS.isdisjoint(row):
        return None
    for shape, fields in _candidates(frozenset(name for name in SHAPE_FIELDS.intersection(row) if row[name] is not None)):
        if shape.fits is None and row[fields[-1]] == "":
            empty = empty or (shape, fields)
        elif shape.fits is None or shape.fits(row[fields[0]]):
            return shape, fields
        elif shape.fits is holds_turns and not isinstance(row[fields[0]], int | float):  # the number of turns
            other = other or (shape, fields)  # its reader says what is wrong with it
    return empty or other


def _shape_of(row: Record, options: RowOptions) -> tuple[Shape, tuple[str, ...]]:
    if options.shape is not None:
        shape = BY_NAME[options.shape]
        named = next((f for f in shape.fields if all(row.get(name) is not None for name in f)), None)
        if named is not None:
            return shape, named
    elif found := _recognised(row):
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
    raise _no_shape(row, options)


def _no_shape(row: Record, options: RowOptions) -> RowError:
    def detail() -> str:
        there = ", ".join(map(str, list(row)[:12])) or "none"
        asked = "" if options.shape is None else f" of shape {options.shape}"
        return f"no shape has these fields{asked}: {there}; {_way_to_read(row, options)}"

    return RowError("unknown_shape", detail)


def _way_to_read(row: Record, options: RowOptions) -> str:
    """What to do about a row that no shape fits."""
    for name, value in row.items():
        if isinstance(value, dict) and (shape := recognise(value)):
            return f"{name} holds those of shape {shape}: write them as the row's own"
        long = isinstance(value, str) and len(value) >= SHORTEST  # half a million short rows are not searched
        if long and (begins_as_transcript(head := value[:HEAD]) or has_plain_marks(head)):
            return f'{name} has the marks of a transcript: `columns = {{text = "{name}"}}` and `shape = "transcript"` read it'
        if isinstance(value, list) and turns_in(value, name, options) is not None and not is_question(value):
            return f'{name} holds turns: `columns = {{messages = "{name}"}}` reads them and nothing else'
    prompt = next((name for name in PROMPTS if row.get(name)), None)
    example = f'`columns = {{{prompt or "prompt"} = "{prompt or "..."}", response = "..."}}`'
    within = next((f"; what is within {name} is not read" for name, value in row.items() if isinstance(value, dict)), "")
    return f"say what to read with `columns`, as in {example}{within}"


def _columns(record: Record, row: Record, names: Set[str]) -> str:
    """The setting by which nothing is read of a record but the fields that have these of our names."""
    theirs = dict(zip(row, record, strict=True))  # in their own case
    kept = (f'{name} = "{theirs[name]}"' for name, value in row.items() if name in names and value is not None)
    return f"columns = {{{', '.join(kept)}}}"


def _in_lower_case(row: Record) -> Record:
    """The row under our names where it has them in another case, as in headers of tables, and fits no shape as it is."""
    ours = {name: name.lower() for name in row if name not in ROW_FIELDS and name.lower() in ROW_FIELDS}
    if not ours or len({*row, *ours.values()}) < len(row) + len(ours) or recognise(row):
        return row
    return {ours.get(name, name): value for name, value in row.items()}


def _tools(row: Record) -> str | None:
    found = [read_tools(row[name]) for name in ("tools", "functions") if row.get(name)]
    if len({text for text in found if text}) > 1:
        raise RowError("unread_field", "tools and functions differ")
    return next((text for text in found if text), None) or read_tools(tools_within(row.get("metadata")))


def _without_nothing(row: Record, columns: Mapping[str, str]) -> Record:
    """The row with null for what says nothing: NaN, a table's cell for an empty list, a flag where reasoning may stand."""
    nothing = [name for name, value in row.items() if isinstance(value, str | int | float) and _is_nothing(name, value, columns)]
    return {**row, **dict.fromkeys(nothing)} if nothing else row


def _is_nothing(name: str, value: str | int | float, columns: Mapping[str, str]) -> bool:
    if value != value:
        return True
    if name in REASONING_KEYS and name not in columns:
        return not isinstance(value, str) or value.strip().lower() in FLAGS
    return name in LIST_FIELDS and isinstance(value, str) and value.strip() in EMPTY_CELLS


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
