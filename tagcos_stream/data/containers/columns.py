"""What Parquet and Arrow files share: which columns are read, and blocks of them as frames."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any
from uuid import UUID

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tagcos_stream.data.containers.base import LimitReached, Limits, Raw, Unpacked
from tagcos_stream.data.oasst import FLAT_FIELDS
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.rejects import Reject, Rejects
from tagcos_stream.data.shapes import CHAT_FIELDS, ID_FIELDS, REQUIRED, ROW_FIELDS
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile


def framed(part: pa.RecordBatch, first: int, bytes_read: int) -> Raw:
    """Rows of a batch; those whose text is not UTF-8, which nothing downstream checks again, are rejects."""
    if any(_has_objects(field.type) for field in part.schema):
        return _meant_rows(part, first, bytes_read)
    for i, field in enumerate(part.schema):
        if _is_extension(field.type, "arrow.uuid"):
            texts = pa.array([None if value is None else str(value) for value in part.column(i).to_pylist()], pa.string())
            part = part.set_column(i, field.name, texts)
    rows = list(range(first, first + part.num_rows))
    frame = _checked(part)
    bad: list[int] = []
    if frame is None:
        good = [i for i in range(part.num_rows) if _checked(part.take(pa.array([i]))) is not None]
        bad = sorted(set(range(part.num_rows)) - set(good))
        rows = [rows[i] for i in good]
        frame = _checked(part.take(pa.array(good, pa.int64())))
        assert frame is not None
    casts = [pl.col(n).cast(pl.String) for n, t in frame.schema.items() if t in (pl.Categorical, pl.Enum)]
    rejects = Rejects(*(Reject(first + i, "bad_encoding", "a column holds text that is not UTF-8", "") for i in bad))
    return Raw(first + part.num_rows, bytes_read, rows=rows, frame=frame.with_columns(casts), rejects=rejects)


def plain_bytes(part: pa.RecordBatch) -> int:
    """Bytes of the rows once values that a dictionary or a view shares among them are written out for each."""
    return sum(map(_plain_bytes, part.columns))


def _plain_bytes(values: pa.Array) -> int:
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_bytes(values.storage)
    if pa.types.is_dictionary(kind) and _is_text(kind.value_type):
        lengths = pc.cast(pc.binary_length(values.dictionary), pa.int64()).take(values.indices)
        return int(values.indices.nbytes) + int(pc.sum(lengths).as_py() or 0)
    if pa.types.is_string_view(kind):
        return 16 * len(values) + int(pl.Series(values).str.len_bytes().cast(pl.Int64).sum())
    if pa.types.is_struct(kind):
        return len(values) // 8 + sum(map(_plain_bytes, values.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return 4 * len(values) + _plain_bytes(values.flatten())
    return int(values.nbytes)


def joined(batches: Iterator[pa.RecordBatch], rows: int, size: int) -> Iterator[pa.RecordBatch]:
    """The batches joined until they have that many rows or bytes; what came before an error is given before it is raised.

    No more rows than that or twice the bytes, but where one batch has more, which is not copied.
    """
    held: list[pa.RecordBatch] = []
    count = made = 0
    error: Exception | None = None
    while error is None:
        try:
            part = next(batches)
        except StopIteration:
            break
        except (pa.ArrowException, OSError, ValueError, LimitReached) as e:
            error = e
            break
        part_size = plain_bytes(part)
        if held and (count + part.num_rows > rows or made + part_size > 2 * size):
            yield from _one_of(held)
            held, count, made = [], 0, 0
        held.append(part)
        count, made = count + part.num_rows, made + part_size
        if count >= rows or made >= size:
            yield from _one_of(held)
            held, count, made = [], 0, 0
    yield from _one_of(held)
    if error is not None:
        raise error


def _one_of(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """The batches as one, or as they are where their dictionaries together have too many values for their indices."""
    try:
        return [pa.concat_batches(batches)] if len(batches) > 1 else batches
    except pa.ArrowException:
        return batches


def longest(part: pa.RecordBatch) -> int:
    """Bytes of the longest text of each dictionary in the batch, all together."""
    return sum(map(_longest, part.columns))


def _longest(values: pa.Array) -> int:
    kind = values.type
    if pa.types.is_dictionary(kind) and _is_text(kind.value_type):
        return int(pc.max(pc.binary_length(values.dictionary)).as_py() or 0)
    if pa.types.is_struct(kind):
        return sum(_longest(values.field(i)) for i in range(kind.num_fields))
    return _longest(values.values) if pa.types.is_list(kind) or pa.types.is_large_list(kind) else 0


def _is_text(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary))


def _is_extension(kind: pa.DataType, name: str) -> bool:
    return isinstance(kind, pa.BaseExtensionType) and kind.extension_name == name


def _has_objects(kind: pa.DataType) -> bool:
    """Whether the type is or holds a map or text that means a value, the JSON extension (arrow.json) of `datasets` and DuckDB."""
    if isinstance(kind, pa.BaseExtensionType):
        return _is_extension(kind, "arrow.json")
    return pa.types.is_map(kind) or any(_has_objects(kind.field(i).type) for i in range(kind.num_fields))


def _without_extensions(kind: pa.DataType) -> pa.DataType:
    """The type with what an extension is stored as in its place."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    if pa.types.is_struct(kind):
        return pa.struct([kind.field(i).with_type(_without_extensions(kind.field(i).type)) for i in range(kind.num_fields)])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(_without_extensions(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(_without_extensions(kind.key_type), _without_extensions(kind.item_type))
    return kind


def _meant_rows(part: pa.RecordBatch, first: int, bytes_read: int) -> Raw:
    """Rows of a batch with JSON or maps in it as rows of JSON: what the text means, not the text, is the row."""
    raw = Raw(first + part.num_rows, bytes_read, texts=[])
    assert raw.texts is not None
    for i in range(part.num_rows):
        try:
            (row,) = part.slice(i, 1).to_pylist()
            # objects have the keys of all rows' objects: those that are null are not the row's own
            own = [f for f in part.schema if row[f.name] is not None and not (f.name in ID_FIELDS and type(row[f.name]) is bytes)]
            raw.texts.append(_dumped({f.name: _meant(row[f.name], f.type) for f in own}))
            raw.rows.append(first + i)
        except RowError as e:
            raw.rejects.add(Reject(first + i, e.reason, e.detail, ""))
        except UnicodeError:
            raw.rejects.add(Reject(first + i, "bad_encoding", "a column holds text that is not UTF-8", ""))
    return raw


def _dumped(row: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(row, default=str)
    except orjson.JSONEncodeError:  # numbers of more than 64 bits, halves of surrogate pairs
        return json.dumps(row, default=str).encode()


def _meant(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, bytes):
        raise RowError("wrong_type", "a column that is read holds bytes: write it as text")
    if value is None or isinstance(value, UUID):
        return None if value is None else str(value)
    if isinstance(kind, pa.BaseExtensionType):
        try:
            return json.loads(value) if _is_extension(kind, "arrow.json") else value
        except ValueError:
            return value
    if pa.types.is_map(kind):
        return {str(key): _meant(item, kind.item_type) for key, item in value if item is not None}
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return {f.name: _meant(value[f.name], f.type) for f in fields if value.get(f.name) is not None}
    if isinstance(value, list):
        return [_meant(item, kind.value_type) for item in value]
    return value


def _checked(part: pa.RecordBatch) -> pl.DataFrame | None:
    """The batch as a frame, or None where some of its text is not UTF-8."""
    try:
        part.validate(full=True)
        frame = pl.from_arrow(pa.Table.from_batches([part]))
    except (pa.ArrowInvalid, pl.exceptions.PanicException):
        # Polars also looks at bytes that stand under a null, which Arrow's check leaves out, and panics: a copy has none
        return None
    assert isinstance(frame, pl.DataFrame)
    return frame


def short(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def unreadable(
    raw: IO[bytes], file: SourceFile, kind: str, magic: tuple[bytes, ...], error: Exception, limits: Limits
) -> UserError:
    """The error that says what a file is that its reader refused, or else why.

    Parameters
    ----------
    raw
        The file, to be read from its begin.
    file
        Its name.
    kind
        What it should be: Parquet or Arrow.
    magic
        What such a file may begin with, and a damaged one, too.
    error
        Of the reader.
    limits
        Of unpacking.

    Returns
    -------
    UserError
        To be raised.
    """
    raw.seek(0)
    if found := Unpacked(raw, limits).instead_of_table(magic):
        return UserError(f"{file.url}: the file is {found}")
    return UserError(f"{file.url}: is not a readable {kind} file: {short(error)}")


def wanted(schema: pa.Schema, file: SourceFile, limits: Limits) -> list[str]:
    """Return the names of the columns that are read; embeddings, and scores that the source does not name, stay on disk.

    UserError where there are not enough, or more than the limit.
    """
    if len(schema) > limits.max_columns:
        raise UserError(f"{file.url}: has {len(schema):,} columns, limit max_columns {limits.max_columns:,}")
    try:
        every = schema.names
    except UnicodeDecodeError as e:
        raise UserError(f"{file.url}: a column's name is not UTF-8: {e}") from None
    check_columns(every, file)
    options = file.spec.options
    read = {*ROW_FIELDS, *CHAT_FIELDS, *ID_FIELDS, *FLAT_FIELDS, "message_tree_id", "deleted"}
    if "metadata" in every and not _may_hold_tools(schema.field("metadata").type):
        read.remove("metadata")
    read |= {*options.columns.values(), *options.scores}
    names = [n for n in every if n in read or n.lower() in read or options.shape == "any"]
    for name in names:
        try:
            field = schema.field(name)
            pl.from_arrow(pa.schema([field.with_type(_without_extensions(field.type))]).empty_table())
        except (pl.exceptions.PolarsError, pa.ArrowException, ValueError, NotImplementedError) as e:
            raise UserError(
                f"{file.url}: column {name!r} has the type {schema.field(name).type}, which cannot be read: {short(e)}"
            ) from None
    return names


def _may_hold_tools(kind: pa.DataType) -> bool:
    """Whether a column of `metadata` is text or has tools; of others nothing is read."""
    kind = _without_extensions(kind)
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("tools") >= 0)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def check_columns(names: list[str], file: SourceFile) -> None:
    """UserError where a table's columns cannot make any shape, or a mapped column is not there."""
    options = file.spec.options
    if options.shape == "any" and len(set(names)) == len(names):
        return
    there = ", ".join(names[:20]) or "none"
    if twice := {n for n, count in Counter(names).items() if count > 1}:
        raise UserError(f"{file.url}: column {', '.join(sorted(twice)[:20])} occurs more than once; rename one")
    turn_keys = ("role", "content", "train", "train_detail")
    for ours, theirs in options.columns.items():
        if theirs not in names and ours not in (*turn_keys, theirs):
            raise UserError(f"{file.url}: no column {theirs!r} (mapped to {ours}); the file has: {there}")
    have = {*names, *map(str.lower, names), *options.columns}
    if "chosen" in have and options.shape is None:
        return  # preference pairs: rejected row by row, or read where the source asks for it
    wanted = [fields for shape, fields in (*REQUIRED, ("oasst_messages", FLAT_FIELDS)) if options.shape in (None, shape)]
    if not any(have.issuperset(fields) for fields in wanted) and (options.shape is None or wanted):
        raise UserError(
            f"{file.url}: columns {there} make no known shape (turns, as under messages, or a prompt and its answer, as under "
            'question and answer); map them with `columns`, as in `columns = {prompt = "...", response = "..."}`'
        )
