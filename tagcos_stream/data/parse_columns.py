"""Lines of JSON to frames that have the fields that mean something: a parser for many rows at once, for `convert_columns`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.json

from tagcos_stream.data.preferences import MARK_FIELDS
from tagcos_stream.data.shapes import CHAT_FIELDS, ID_FIELDS, PAIR_FIELDS, ROW_FIELDS
from tagcos_stream.data.turns import CONTENT_KEYS, MEDIA_KEYS, ROLE_KEYS, TURN_KEYS

FREE_FIELDS = {"dataset", *ID_FIELDS}  # fields that do not change what a row means
KNOWN_FIELDS = ROW_FIELDS | FREE_FIELDS | set(CHAT_FIELDS)
MEANT_KEYS = dict.fromkeys((*ROLE_KEYS, *CONTENT_KEYS, *TURN_KEYS))  # of a turn: what is not read in columns is left to `turns`
MAX_DEPTH = 900  # levels of a row that every parser reads; what is deeper is read row by row
# of values in the first row, where rows may differ from file to file
_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), list: pa.list_(pa.string())}
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)


def parse_block(block: bytes, scores: Sequence[str] = ()) -> pl.DataFrame | None:
    """One row a line, or None where any line is not plainly a JSON object whose known fields have their usual types.

    None, too, for one line alone, which gains nothing, and where the first row has no known field.

    pyarrow's parser, not Polars': that one reads numbers and lists as text where text is asked for, takes half a surrogate pair
    for a NUL, and is 2.5 times slower. What pyarrow lets pass is caught here: invalid UTF-8, and documents that share a line.
    """
    data = np.frombuffer(block, np.uint8)
    breaks = np.flatnonzero(data == ord("\n"))
    n = len(breaks) + 1
    # with braces at both ends of every line, as many documents as lines means one in each
    if n < 2 or not (
        block[:1] == b"{" and block[-1:] == b"}" and (data[breaks - 1] == ord("}")).all() and (data[breaks + 1] == ord("{")).all()
    ):
        return None
    frame = _parse(block, None, scores)
    return frame if frame is not None and frame.height == n else None


def parse_texts(texts: Sequence[bytes], scores: Sequence[str] = ()) -> pl.DataFrame | None:
    """As `parse_block`, from texts that may hold line breaks."""
    if not all(t[:1] == b"{" and t[-1:] == b"}" for t in texts):
        return None
    block = b"\n".join(texts)
    frame = _parse(block, texts, scores)
    return frame if frame is not None and frame.height == len(texts) else None


def _parse(block: bytes, texts: Sequence[bytes] | None, scores: Sequence[str]) -> pl.DataFrame | None:
    """texts: the documents of the block, None where each is a line."""
    first = block.partition(b"\n")[0] if texts is None else texts[0]
    breaks = texts is not None and block.count(b"\n") >= len(texts)
    # documents on several lines cannot be cut into parts that are parsed at once
    read = pa.json.ReadOptions(use_threads=not breaks, block_size=len(block) + 1 if breaks else max(1 << 20, len(block) // 4 + 1))
    try:
        pl.Series([block], dtype=pl.Binary).cast(pl.String)
        record = orjson.loads(first)
    except (ValueError, pl.exceptions.PolarsError):
        return None
    if KNOWN_FIELDS.isdisjoint(_keys(record)):
        return None  # rows of no shape are read one by one, whatever is parsed of them
    # most files say the same of every row: the first row's fields alone are parsed at twice the speed, and any other field
    # refuses
    for schema, others in ((_schema(record, scores, _keys(record)), "error"), (_schema(record, scores), "ignore")):
        try:
            options = pa.json.ParseOptions(schema, newlines_in_values=breaks, unexpected_field_behavior=others)
            if others == "ignore" and any(map(_is_deep, block.split(b"\n") if texts is None else texts)):
                return None  # Arrow's parser goes on at any depth within a field that is not read
            frame = pl.from_arrow(pa.json.read_json(pa.BufferReader(block), read, options))
        except pa.ArrowException:
            continue
        assert isinstance(frame, pl.DataFrame)
        return frame
    return None


def _is_deep(text: bytes) -> bool:
    """Whether a row nests deeper than MAX_DEPTH; brackets are counted before their strings are taken out."""
    if len(text) <= MAX_DEPTH or text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    brackets = np.frombuffer(_STRING.sub(b"", text), np.uint8) | 0x20  # of either kind: as braces
    depths = np.cumsum((brackets == ord("{")).astype(np.int64) - (brackets == ord("}")))
    return bool(depths.max(initial=0) > MAX_DEPTH)


def _keys(record: object) -> set[str]:
    """Names of the record's own fields and of its turns'."""
    if not isinstance(record, dict):
        return set()
    turns = [t for name in ("messages", "conversations") if isinstance(record.get(name), list) for t in record[name]]
    return set(record).union(*(t for t in turns if isinstance(t, dict)))


def _schema(record: object, scores: Sequence[str], keys: set[str] | None = None) -> pa.Schema:
    """Return every field that means something to a converter, or those of them that are in `keys`.

    A field that only names the row may be an integer.
    """
    turn = pa.struct([(k, pa.string()) for k in MEANT_KEYS if keys is None or k in keys])
    fields: dict[str, pa.DataType] = {name: pa.string() for name in sorted(KNOWN_FIELDS)}
    fields |= {"messages": pa.list_(turn), "conversations": pa.list_(turn), "history": pa.list_(pa.list_(pa.string()))}
    fields |= {name: pa.list_(pa.string()) for name in MEDIA_KEYS if name.endswith("s")}
    first = record if isinstance(record, dict) else {}
    for name in MARK_FIELDS:
        fields[name] = {str: pa.string(), int: pa.int64(), float: pa.float64()}.get(type(first.get(name)), pa.bool_())
    for name in ID_FIELDS:
        if type(first.get(name)) is int:
            fields[name] = pa.int64()
    for name in PAIR_FIELDS:
        fields[name] = _TYPES.get(type(first.get(name)), pa.string())
    if not isinstance(first.get("metadata"), str):
        fields["metadata"] = pa.struct([("tools", pa.string())])
    fields |= dict.fromkeys(scores, pa.float64())
    return pa.schema([(name, kind) for name, kind in fields.items() if keys is None or name in keys])
