"""A .csv or .tsv file: cells under a header line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, cast

import polars as pl

from tagcos_stream.data.containers.base import LimitReached, Limits, Raw, Unpacked, blank_lines, snippet
from tagcos_stream.data.containers.columns import check_columns
from tagcos_stream.data.containers.content import bare_returns
from tagcos_stream.data.rejects import Reject
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile

_SURROGATES = frozenset(chr(c) for c in range(0xDC80, 0xDD00))  # what surrogateescape makes of bytes that are not UTF-8


def read(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Records of a CSV or TSV file behind its header line; row = record, counted from 0. Quoted cells may hold line breaks."""
    stream = Unpacked(raw, limits)
    # the csv module's limit is the process's: set to ours, which is also the one that its error names
    csv.field_size_limit(limits.max_row_bytes)
    lines = _Lines(stream, limits)
    records = csv.reader(lines, delimiter="\t" if file.format == "tsv" else ",", strict=True)
    try:
        header = next(records)
    except LimitReached as e:
        raise UserError(f"{file.url}: {e.args[1]}") from None
    except (StopIteration, csv.Error) as e:
        why = bare_returns(lines.first_line) or e
        raise UserError(f"{file.url}: has no readable header line ({why})") from None
    check_columns(names := _decoded(header, file, limits), file)
    row, held, blank = 0, 0, 0
    block = Raw(start_row, 0)
    cells: list[str] = []  # of all records, one after the other: a list for each record would be visited by the garbage collector
    while True:
        problem: tuple[str, str] | None = None
        ended, stream.rows = False, row
        try:
            record = next(records)
        except StopIteration:
            break
        except csv.Error as e:
            record, problem = [], ("oversized_row" if "field larger" in str(e) else "wrong_type", f"csv: {e}")
            lines.open_end = lines.open_end or "unexpected end" in str(e)  # within quotes, where a line feed ends no row
        except LimitReached as e:
            record, problem, ended = [], (e.args[0], e.args[1]), e.args[0] != "oversized_row"
        if problem is None and len(record) == 0:  # a blank line, as the csv module sees it
            blank += 1
            if blank <= limits.max_blank_lines:
                continue
            problem, ended = blank_lines(limits).args, True
        blank = 0
        if row >= start_row:
            if problem is None and len(record) != len(names):
                problem = ("wrong_type", f"{len(record)} cells, the header has {len(names)}")
            if problem is None and not lines.ascii and any(not c.isascii() and not _SURROGATES.isdisjoint(c) for c in record):
                problem = ("bad_encoding", "is not UTF-8")
            if problem is not None:
                if block.rejects.full(problem[0]):
                    block.rejects.add_row(problem[0], row)
                else:
                    block.rejects.add(Reject(row, *problem, snippet(",".join(record))))
            else:
                block.rows.append(row)
                cells += record
                held += sum(map(len, record))
            block.next_row = row + 1
        row += 1
        if ended:
            break
        if row - start_row >= block_rows or held >= limits.block_bytes:
            yield _filled(block, names, cells, stream, lines.open_end)
            start_row, held = row, 0
            block, cells = Raw(row, 0), []
    yield _filled(block, names, cells, stream, lines.open_end)


def _decoded(header: list[str], file: SourceFile, limits: Limits) -> list[str]:
    """The columns' names. UserError for more than the limit."""
    if len(header) > limits.max_columns:
        raise UserError(f"{file.url}: the header has {len(header):,} columns, limit max_columns {limits.max_columns:,}")
    return [name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for name in header]


def _filled(block: Raw, names: list[str], cells: list[str], stream: Unpacked, open_end: bool) -> Raw:
    columns = {name: cells[i :: len(names)] for i, name in enumerate(names)}
    block.frame = pl.DataFrame(columns, schema=dict.fromkeys(names, pl.String))
    block.bytes_read, block.open_end = stream.bytes_read, open_end
    return block


class _Lines:
    """Text lines of a stream for the csv module, with their ends, none longer than the limit."""

    def __init__(self, stream: Unpacked, limits: Limits) -> None:
        self._stream, self._limit, self.first_line = stream, limits.max_row_bytes, b""
        self._carry, self._ready, self._first = b"", cast("Iterator[str]", iter(())), True
        self.ascii = True  # all lines so far
        self.open_end = False  # the file ends without a line feed

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._ready, None)
        return self._first_of_more() if line is None else line

    def _first_of_more(self) -> str:
        """Read on until a line is whole, and return it."""
        while True:
            chunk = self._stream.read(1 << 20)
            data = self._carry + chunk
            if self._first:
                data, self._first = data.removeprefix(b"\xef\xbb\xbf"), False
            whole = data[: data.rfind(b"\n") + 1] if chunk else data
            self._carry = data[len(whole) :]
            self.open_end = self.open_end or (not chunk and bool(data))
            if not data and not chunk:
                raise StopIteration
            if len(self._carry) > self._limit:
                self._carry = b""
                raise LimitReached("oversized_row", f"more than max_row_bytes {self._limit:,}")
            if whole:
                break
        self.first_line = self.first_line or whole[: whole.find(b"\n") + 1] or whole
        self.ascii = self.ascii and whole.isascii()
        self._ready = iter(_cut(whole.decode("utf-8", "surrogateescape")))
        return next(self._ready)


def _cut(text: str) -> list[str]:
    """Lines with their ends, which are line feeds alone; `text` is not empty."""
    lines = text.split("\n")
    last = lines.pop()
    lines = [line + "\n" for line in lines]
    return [*lines, last] if last else lines
