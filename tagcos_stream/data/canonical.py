r"""The canonical form of an example and the id that is a hash of it.

The form is a sequence of records, each `<key> <bytes>\n<value>\n`: key, length of the value in UTF-8 bytes as a decimal,
newline, value, newline. A message is one record whose key is its role; `name`, `train`, `reasoning`, `tool_calls` and
`tool_call_id` records stand before the message that they belong to, `tools` and `template_kwargs` records stand last. What is
absent writes no record, so a plain conversation hashes by its roles and contents only. No JSON library's choice of spaces,
escapes or float digits enters: see `canonical_json`. The id is BLAKE2b with a 16-byte digest, in hex.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from tagcos_stream.data.scores import SCORES, Score
from tagcos_stream.types import ROLES, Message

TRAIN = pl.List(pl.Struct({"begin": pl.Int64, "end": pl.Int64}))
MESSAGE = {
    "role": pl.String(),
    "content": pl.String(),
    "name": pl.String(),
    "train": TRAIN,
    "reasoning": pl.String(),
    "tool_calls": pl.String(),
    "tool_call_id": pl.String(),
}
TEXT_KEYS = ("reasoning", "content", "tool_calls")
MESSAGES = pl.List(pl.Struct(MESSAGE))
OCCURRENCES = pl.Schema(
    {
        "row": pl.UInt64(),
        "example_id": pl.String(),
        "dataset": pl.String(),
        "source_id": pl.String(),
        "messages": MESSAGES,
        "tools": pl.String(),
        "template_kwargs": pl.String(),
        "scores": SCORES,
    }
)
EXAMPLE_COLUMNS = ("example_id", "dataset", "messages", "tools", "template_kwargs")  # what is stored of an occurrence
REJECTS = pl.Schema({"row": pl.UInt64, "reason": pl.String, "detail": pl.String, "snippet": pl.String})
KEPT = 1000  # rejects of one reason that are listed of one file; further ones are counted

_ARROW_TRAIN = pa.large_list(pa.struct([("begin", pa.int64()), ("end", pa.int64())]))
_ARROW_MESSAGES = pa.large_list(pa.struct([(name, _ARROW_TRAIN if name == "train" else pa.large_string()) for name in MESSAGE]))
REPEATING = 32  # bytes of an example, on average, up to which each distinct one of a block is hashed once
MAX_TOOLS_DEPTH = 64  # of nested lists and objects; a JSON schema of a tool has under ten


def example_id(messages: Sequence[Message], tools: str | None = None, template_kwargs: str | None = None) -> str:
    """32 lower-case hex digits: BLAKE2b-128 of `canonical_bytes`.

    `tools` and `template_kwargs` are JSON text or None. Raises UnicodeEncodeError for text that is not Unicode (a lone
    surrogate), ValueError for broken JSON.
    """
    return blake2b(canonical_bytes(messages, tools, template_kwargs), digest_size=16).hexdigest()


def canonical_bytes(messages: Sequence[Message], tools: str | None = None, template_kwargs: str | None = None) -> bytes:
    """The bytes that an example's id hashes; the module's docstring defines them."""
    out: list[bytes] = []
    for message in messages:
        if (name := message.get("name")) is not None:
            out.append(_record("name", name))
        if (train := message.get("train")) is not None:
            out.append(_record("train", ",".join(f"{r['begin']}-{r['end']}" for r in train)))
        if (reasoning := message.get("reasoning")) is not None:
            out.append(_record("reasoning", reasoning))
        if (calls := message.get("tool_calls")) is not None:
            out.append(_record("tool_calls", canonical_json(json.loads(calls), keep_null=True)))
        if (call_id := message.get("tool_call_id")) is not None:
            out.append(_record("tool_call_id", call_id))
        out.append(_record(message["role"], message["content"]))
    if tools is not None:
        out.append(_record("tools", canonical_json(json.loads(tools))))
    if template_kwargs is not None:
        out.append(_record("template_kwargs", canonical_json(json.loads(template_kwargs), keep_null=True)))
    return b"".join(out)


def _record(key: str, value: str) -> bytes:
    data = value.encode()
    return b"%s %d\n%s\n" % (key.encode(), len(data), data)


def canonical_json(value: Any, depth: int = 0, keep_null: bool = False) -> str:
    """Return the one text of a JSON value.

    Keys in order of code points, null members left out unless `keep_null`, whole floats below 2**53 as integers, other floats in
    C99 hexadecimal, strings with their length in characters in front instead of escapes. RecursionError past MAX_TOOLS_DEPTH.

    Tools leave null members out, as a schema means the same without them; arguments of calls keep them, as they are trained on.
    """
    if depth > MAX_TOOLS_DEPTH:
        raise RecursionError(f"nested deeper than {MAX_TOOLS_DEPTH}")
    match value:
        case None:
            return "null;"
        case bool():
            return "true;" if value else "false;"
        case str():
            return f"s{len(value)}:{value};"
        case float() if not (value.is_integer() and abs(value) < 2**53):
            return f"f{value.hex()};"
        case int() | float():
            return f"i{int(value)};"
        case dict():
            members = ((k, v) for k, v in sorted(value.items()) if keep_null or v is not None)
            return "{" + "".join(canonical_json(k) + canonical_json(v, depth + 1, keep_null) for k, v in members) + "}"
        case list():
            return "[" + "".join(canonical_json(v, depth + 1, keep_null) for v in value) + "]"
    raise TypeError(f"no JSON value: {type(value).__name__}")


def characters(message: Message) -> int:
    """Of the turn's content, reasoning and calls."""
    return len(message["content"]) + len(message.get("reasoning") or "") + len(message.get("tool_calls") or "")


def message_text(message: Mapping[str, Any]) -> str:
    """All text of the turn, for those who compare or show texts: its reasoning, its content and its calls, a line each."""
    return "\n".join(message[key] for key in TEXT_KEYS if message.get(key))


def occurrences_frame(
    rows: Sequence[int],
    messages: Sequence[Sequence[Message]],
    tools: Sequence[str | None],
    template_kwargs: Sequence[str | None],
    datasets: Sequence[str],
    source_ids: Sequence[str | None],
    scores: Sequence[list[Score] | None] | None = None,
) -> pl.DataFrame:
    """The occurrences of OCCURRENCES' schema from converted rows, ids computed one by one; `scores` None if no row has any."""
    nested = pl.from_arrow(pa.array(messages, type=_ARROW_MESSAGES))
    assert isinstance(nested, pl.Series)
    ids = [example_id(*parts) for parts in zip(messages, tools, template_kwargs, strict=True)]
    columns = {"row": rows, "example_id": ids, "dataset": datasets, "source_id": source_ids, "messages": nested}
    columns |= {"tools": tools, "template_kwargs": template_kwargs, "scores": [None] * len(ids) if scores is None else scores}
    return pl.DataFrame(columns, schema=OCCURRENCES)


def stored_examples(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame of EXAMPLE_COLUMNS from one that may have been stored before messages had reasoning and calls: nulls there."""
    if "template_kwargs" not in frame.columns:
        frame = frame.with_columns(template_kwargs=pl.lit(None, pl.String))
    if frame.schema["messages"] == MESSAGES:
        return frame
    kind = frame.schema["messages"]
    assert isinstance(kind, pl.List)
    assert isinstance(kind.inner, pl.Struct)
    there = {field.name for field in kind.inner.fields}
    keys = [
        pl.element().struct.field(name) if name in there else pl.lit(None, dtype).alias(name) for name, dtype in MESSAGE.items()
    ]
    return frame.with_columns(pl.col("messages").list.eval(pl.struct(keys)).cast(MESSAGES))


def plain_ids(role_codes: np.ndarray, contents: pl.Series, starts: np.ndarray) -> list[str]:
    """Ids of plain conversations (roles and contents only), equal to `example_id`, without a Python object a message.

    role_codes (n_messages,) integers into ROLES; contents (n_messages,) String; starts (N + 1,): messages of example i are
    [starts[i], starts[i + 1]).
    """
    frame = pl.DataFrame({"role": pl.Series(list(ROLES), dtype=pl.String).gather(role_codes), "content": contents})
    record = pl.concat_str(
        pl.col("role"), pl.lit(" "), pl.col("content").str.len_bytes(), pl.lit("\n"), pl.col("content"), pl.lit("\n")
    )
    text = frame.select(record).to_series().to_arrow(compat_level=pl.CompatLevel.oldest())
    assert isinstance(text, pa.LargeStringArray)
    _, offsets, data = text.buffers()
    ends = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1][starts].tolist()
    # records of one example lie side by side in the column's buffer: an example is one slice of it
    view = memoryview(data) if data is not None else memoryview(b"")
    if len(ends) > 1 and ends[-1] - ends[0] <= REPEATING * (len(ends) - 1):
        pieces = [bytes(view[a:b]) for a, b in pairwise(ends)]
        digests = {piece: blake2b(piece, digest_size=16).hexdigest() for piece in set(pieces)}
        return [digests[piece] for piece in pieces]
    return [blake2b(view[a:b], digest_size=16).hexdigest() for a, b in pairwise(ends)]


def plain_messages(role_codes: np.ndarray, contents: pl.Series, starts: np.ndarray) -> pl.Series:
    """Column of MESSAGES type, one list an example, from flat roles and contents laid out as in `plain_ids`."""
    roles = pl.Series(list(ROLES), dtype=pl.String).gather(role_codes)
    n = len(contents)
    absent = [pl.lit(None, dtype).alias(name) for name, dtype in MESSAGE.items() if name not in ("role", "content")]
    flat = pl.DataFrame({"role": roles, "content": contents}).with_columns(absent)
    struct = flat.to_struct("messages").to_arrow(compat_level=pl.CompatLevel.oldest())
    assert len(struct) == n
    offsets = pl.Series(starts, dtype=pl.Int64).to_arrow()  # pa.array imports pandas for an array of numpy, where it is installed
    nested = pl.from_arrow(pa.LargeListArray.from_arrays(offsets, struct))
    assert isinstance(nested, pl.Series)
    return nested.cast(MESSAGES)
