"""Rows one at a time: the exact way, which the fast one of `convert_columns` falls back on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, overload

import numpy as np
import orjson
import polars as pl

from tagcos_stream.data.calls import python_hint
from tagcos_stream.data.canonical import occurrences_frame
from tagcos_stream.data.containers.base import Raw, snippet
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.rejects import Reject, Rejects
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.scores import Score, read_scores
from tagcos_stream.data.shapes import convert, dataset_of, source_id_of

SHORT, KNOWN = 64, 4096  # bytes of a rejected text that is remembered, and how many are
# a superset of the values that are neither text, list nor object
_SCALAR = re.compile(rb"(?:[0-9.eE+-]+|true|false|null|NaN|-?Infinity)\s*")
# in a short text: what the standard library's parser may read, or call by another reason, where orjson calls it broken.
# NaN and Infinity, half a surrogate pair, numbers beyond floating point, and bytes that are not ASCII
_READ_BY_OTHERS = re.compile(rb"[NI\\\x80-\xff]|[0-9][eE]")


def row_by_row(raw: Raw, index: np.ndarray, options: RowOptions, dataset: str, rejects: Rejects, max_turns: int) -> pl.DataFrame:
    """Occurrences of the rows at `index`; what cannot be converted is added to `rejects`."""
    rows, found, datasets, ids = [], [], [], []
    scores: list[list[Score] | None] = []
    # short texts that were rejected: a file of nothing but `{}` is read at the speed of a look-up
    before: dict[bytes, Reject] = {}
    for i, row in zip(index.tolist(), records(raw, index), strict=True):
        if isinstance(row, bytes) and (same := before.get(row)) is not None:
            if rejects.full(same.reason):
                rejects.add_row(same.reason, raw.rows[i])
            else:
                rejects.add(same._replace(row=raw.rows[i]))
            continue
        brief = rejects.full("broken_json")
        if brief and isinstance(row, bytes) and is_no_value(row):
            rejects.add_row("broken_json", raw.rows[i])
            continue
        try:
            record = loads(row, brief=brief) if isinstance(row, bytes) else row
            converted = convert(record, options)
            scored = read_scores(record, options.scores)
            if (longest := max((len(one.messages) for one in converted), default=0)) > max_turns:
                raise RowError("too_many_turns", f"{longest:,} messages, limit max_turns {max_turns:,}")
        except RowError as e:
            if rejects.full(e.reason):
                rejects.add_row(e.reason, raw.rows[i])
                continue
            rejects.add(rejected := reject(raw.rows[i], e, row))
            if isinstance(row, bytes) and len(row) <= SHORT and len(before) < KNOWN:
                before[row] = rejected
            continue
        for one in converted:
            rows.append(raw.rows[i])
            found.append(one)
            datasets.append(_plain(dataset_of(record, options.columns, dataset)))
            ids.append(_plain(source_id_of(record, options.columns)))
            scores.append(scored)
    columns = ([c.messages for c in found], [c.tools for c in found], [c.template_kwargs for c in found])
    return occurrences_frame(rows, *columns, datasets, ids, scores)


def records(raw: Raw, index: np.ndarray) -> Iterator[bytes | dict[str, Any]]:
    """The rows at `index`: JSON texts, or records of a frame."""
    if raw.block is not None:
        lines = raw.block.split(b"\n")
        return (lines[i] for i in index.tolist())
    if raw.texts is not None:
        return (raw.texts[i] for i in index.tolist())
    if raw.frame is None:
        return iter(())
    rows = raw.frame[index].iter_rows(named=True)
    return ({name: _without_padding(value) for name, value in row.items()} for row in rows)


def _without_padding(value: Any) -> Any:
    """Columns give every object the keys of all rows' objects: those that are null are not the row's own."""
    if isinstance(value, dict):
        return {k: _without_padding(v) for k, v in value.items() if v is not None}
    return [_without_padding(v) for v in value] if isinstance(value, list) else value


def loads(text: bytes, *, brief: bool = False) -> Any:
    """Parse a JSON value.

    orjson first; what it refuses is tried with the standard library, which also reads NaN and distinguishes deep from broken.
    brief: the error needs no detail.
    """
    try:
        return orjson.loads(text)
    except ValueError:
        pass
    if brief and len(text) <= SHORT and not _READ_BY_OTHERS.search(text):
        raise RowError("broken_json", "")
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise RowError("bad_encoding", str(e)) from None
    except RecursionError:
        raise RowError("too_deep", "nested deeper than the JSON parsers' limit (1,000 levels)") from None
    except ValueError as e:
        raise RowError("broken_json", f"{e}{python_hint(text[:64].decode('utf-8', 'replace'))}") from None


def is_no_value(text: bytes) -> bool:
    """Whether an ASCII text is broken JSON by its first byte, or as a number or name; False where a parser must tell."""
    return text[:1] not in (b"{", b"[", b'"', b" ", b"\t", b"\r", b"\n", b"") and text.isascii() and not _SCALAR.fullmatch(text)


def reject(row: int, error: RowError, shown: object) -> Reject:
    """Return the reject of a row that could not be converted."""
    text = shown if isinstance(shown, bytes) else json.dumps(shown, ensure_ascii=False, default=str)
    return Reject(row, error.reason, _plain(error.detail)[:500], snippet(text))


@overload
def _plain(text: str) -> str: ...
@overload
def _plain(text: None) -> None: ...
def _plain(text: str | None) -> str | None:
    """The text with halves of surrogate pairs, which no file can hold, as question marks."""
    return text if text is None or text.isascii() else text.encode("utf-8", "replace").decode()
