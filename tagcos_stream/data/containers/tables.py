"""Tables: Parquet, Arrow and CSV files as blocks of columns or cells."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tagcos_stream.data.containers.jsonl import LimitReached, Limits, Raw, Reject, Unpacked, snippet
from tagcos_stream.data.oasst import FLAT_FIELDS
from tagcos_stream.data.remote import is_remote
from tagcos_stream.data.shapes import CHAT_FIELDS, ID_FIELDS, REQUIRED, ROW_FIELDS
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile

MAX_LOST = 1_000_000  # rows of a damaged row group that are rejected one by one; a damaged file may claim any number


def read_parquet(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Rows of a Parquet file; row = its number in the file. Pages are read as they are needed, whatever the size of a row group.

    Where a row group is damaged, its rows from there on are rejects, and reading goes on with the next.
    """
    try:
        table = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{file.url}: is no readable Parquet file: {_short(e)}") from None
    columns = _wanted(table.schema_arrow, file)
    meta = table.metadata
    total = max(1, sum(meta.row_group(i).num_rows for i in range(meta.num_row_groups)))
    end, done = 0, start_row
    for group in range(meta.num_row_groups):
        n = meta.row_group(group).num_rows
        row, end = end, end + n
        if end <= start_row:
            continue
        batch = max(1, min(block_rows, limits.block_bytes // max(meta.row_group(group).total_byte_size // max(n, 1), 1)))
        try:
            for part in table.iter_batches(batch, row_groups=[group], columns=columns):
                skip = max(start_row - row, 0)
                row += part.num_rows
                if skip < part.num_rows:
                    yield _framed(part.slice(skip), row - part.num_rows + skip, int(file.size * row / total))
                    done = row
        except (pa.ArrowException, OSError) as e:
            if end - row > MAX_LOST:
                detail = f"parquet: {_short(e)}; rows from here on are not read"
                yield Raw(max(row, start_row) + 1, file.size, rejects=[Reject(max(row, start_row), "corrupt_file", detail, "")])
                return
            for first in range(max(row, start_row), end, block_rows):
                lost = range(first, min(first + block_rows, end))
                rejects = [Reject(i, "corrupt_file", f"parquet: {_short(e)}", "") for i in lost]
                yield Raw(lost.stop, int(file.size * lost.stop / total), rejects=rejects)
                done = lost.stop
    yield Raw(done, file.size)


def read_arrow(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Rows of an Arrow IPC file or stream (what `datasets` caches), or a Feather file of version 2.

    A batch is checked in full before anything of it is touched: offsets out of a damaged file would be followed out of memory.
    """
    # mapped, a batch of any size costs no memory of ours; only its text that is looked at
    source = pa.PythonFile(raw, mode="r") if is_remote(file.url) else pa.memory_map(file.url)
    try:
        magic = source.read(6)
        source.seek(0)
        opened = pa.ipc.open_file(source) if magic == b"ARROW1" else pa.ipc.open_stream(source)
        count = opened.num_record_batches if magic == b"ARROW1" else sys.maxsize
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{file.url}: is no readable Arrow file: {_short(e)}") from None
    columns = _wanted(opened.schema, file)
    row, done = 0, start_row
    for i in range(count):
        try:
            whole = opened.get_batch(i) if magic == b"ARROW1" else opened.read_next_batch()
            whole = whole.select(columns)
            whole.validate(full=True)
        except StopIteration:
            break
        except (pa.ArrowException, OSError) as e:
            if row >= start_row:
                detail = f"arrow: {_short(e)}; rows from here on are not read"
                yield Raw(row + 1, file.size, rejects=[Reject(row, "corrupt_file", detail, "")])
                done = row + 1
            break
        step = max(1, min(block_rows, limits.block_bytes // max(whole.nbytes // max(whole.num_rows, 1), 1)))
        for offset in range(0, whole.num_rows, step):
            part = whole.slice(offset, step)
            skip = max(start_row - row, 0)
            if skip < part.num_rows:
                read = (
                    file.size * (i + (offset + part.num_rows) / whole.num_rows) / count if magic == b"ARROW1" else source.tell()
                )
                yield _framed(part.slice(skip), row + skip, min(int(read), file.size))
                done = row + part.num_rows
            row += part.num_rows
    yield Raw(done, file.size)


def _framed(part: pa.RecordBatch, first: int, bytes_read: int) -> Raw:
    """Rows of a batch; those whose text is not UTF-8, which nothing downstream checks again, are rejects."""
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
    rejects = [Reject(first + i, "bad_encoding", "a column holds text that is not UTF-8", "") for i in bad]
    return Raw(first + part.num_rows, bytes_read, rows=rows, frame=frame.with_columns(casts), rejects=rejects)


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


def _short(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def read_csv(stream: Unpacked, file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Records of a CSV or TSV file behind its header line; row = record, counted from 0. Quoted cells may hold line breaks."""
    # the csv module's limit is the process's: set to ours, which is also the one that its error names
    csv.field_size_limit(limits.max_row_bytes)
    lines = _Lines(stream, limits)
    records = csv.reader(lines, delimiter="\t" if file.format == "tsv" else ",", strict=True)
    try:
        names = [n.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for n in next(records)]
    except (StopIteration, csv.Error, LimitReached) as e:
        raise UserError(f"{file.url}: has no readable header line ({e})") from None
    check_columns(names, file)
    row, held = 0, 0
    block, cells = Raw(start_row, 0), []
    while True:
        problem: tuple[str, str] | None = None
        ended = False
        try:
            record = next(records)
        except StopIteration:
            break
        except csv.Error as e:
            record, problem = [], ("oversized_row" if "field larger" in str(e) else "wrong_type", f"csv: {e}")
        except LimitReached as e:
            record, problem, ended = [], (e.args[0], e.args[1]), e.args[0] != "oversized_row"
        if problem is None and len(record) == 0:
            continue  # a blank line, as the csv module sees it
        if row >= start_row:
            if problem is None and len(record) != len(names):
                problem = ("wrong_type", f"{len(record)} cells, the header has {len(names)}")
            if problem is None and any(_SURROGATES & set(cell) for cell in record if not cell.isascii()):
                problem = ("bad_encoding", "is not UTF-8")
            if problem is not None:
                block.rejects.append(Reject(row, *problem, snippet(",".join(record))))
            else:
                block.rows.append(row)
                cells.append(record)
                held += sum(map(len, record))
            block.next_row = row + 1
        row += 1
        if ended:
            break
        if row - start_row >= block_rows or held >= limits.block_bytes:
            yield _filled(block, names, cells, stream)
            start_row, held = row, 0
            block, cells = Raw(row, 0), []
    yield _filled(block, names, cells, stream)


_SURROGATES = frozenset(chr(c) for c in range(0xDC80, 0xDD00))  # what surrogateescape makes of bytes that are not UTF-8


def _filled(block: Raw, names: list[str], cells: list[list[str]], stream: Unpacked) -> Raw:
    columns = zip(*cells, strict=True) if cells else [[] for _ in names]
    block.frame = pl.DataFrame({n: list(c) for n, c in zip(names, columns, strict=True)}, schema=dict.fromkeys(names, pl.String))
    block.bytes_read = stream.bytes_read
    return block


class _Lines:
    """Text lines of a stream for the csv module, with their ends, none longer than the limit."""

    def __init__(self, stream: Unpacked, limits: Limits) -> None:
        self._stream, self._limit = stream, limits.max_row_bytes
        self._carry, self._ready, self._first = b"", cast("Iterator[bytes]", iter(())), True

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._ready, None)
        while line is None:
            chunk = self._stream.read(1 << 20)
            data = self._carry + chunk
            if self._first:
                data, self._first = data.removeprefix(b"\xef\xbb\xbf"), False
            lines = data.splitlines(keepends=True) if b"\n" not in data else data.split(b"\n")
            if b"\n" in data:
                self._carry = lines.pop()
                lines = [text + b"\n" for text in lines]
            else:
                self._carry = data
                lines = []
            if not chunk:
                if self._carry:
                    lines.append(self._carry)
                    self._carry = b""
                if not lines:
                    raise StopIteration
            elif len(self._carry) > self._limit:
                self._carry = b""
                raise LimitReached("oversized_row", f"more than max_row_bytes {self._limit:,}")
            self._ready = iter(lines)
            line = next(self._ready, None)
        return line.decode("utf-8", "surrogateescape")


def _wanted(schema: pa.Schema, file: SourceFile) -> list[str]:
    """Names of the columns that are read: a table's images and embeddings stay on disk. UserError where there are not enough."""
    try:
        every = schema.names
    except UnicodeDecodeError as e:
        raise UserError(f"{file.url}: a column's name is not UTF-8: {e}") from None
    check_columns(every, file)
    options = file.spec.options
    read = {*ROW_FIELDS, *CHAT_FIELDS, *ID_FIELDS, *FLAT_FIELDS, "message_tree_id", "deleted", *options.columns.values()}
    names = [n for n in every if n in read or options.shape == "any"]
    for name in names:
        try:
            pl.from_arrow(pa.schema([schema.field(name)]).empty_table())
        except (pl.exceptions.PolarsError, pa.ArrowException, ValueError, NotImplementedError) as e:
            raise UserError(
                f"{file.url}: column {name!r} has the type {schema.field(name).type}, which cannot be read: {_short(e)}"
            ) from None
    return names


def check_columns(names: list[str], file: SourceFile) -> None:
    """UserError where a table's columns cannot make any shape, or a mapped column is not there."""
    options = file.spec.options
    if options.shape == "any" and len(set(names)) == len(names):
        return
    there = ", ".join(names[:20]) or "none"
    if twice := {n for n in names if names.count(n) > 1}:
        raise UserError(f"{file.url}: column {', '.join(sorted(twice))} stands there more than once; rename one")
    turn_keys = ("role", "content", "train", "train_detail")
    for ours, theirs in options.columns.items():
        if theirs not in names and ours not in turn_keys:
            raise UserError(f"{file.url}: no column {theirs!r} (mapped to {ours}); the file has: {there}")
    have = {*names, *options.columns}
    wanted = [fields for shape, fields in (*REQUIRED, ("oasst_messages", FLAT_FIELDS)) if options.shape in (None, shape)]
    if not any(have.issuperset(fields) for fields in wanted) and (options.shape is None or wanted):
        known = "; ".join(f"{shape}: {' + '.join(fields)}" for shape, fields in REQUIRED)
        raise UserError(f"{file.url}: columns {there} make no known shape ({known}); map them with `columns`")
