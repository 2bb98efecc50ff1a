"""A .csv or .tsv file: cells under a header line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, cast

import polars as pl

from tagcos_stream.data.containers.base import REST, LimitReached, Limits, Raw, Unpacked, blank_lines, snippet
from tagcos_stream.data.containers.columns import check_columns
from tagcos_stream.data.containers.content import bare_returns, kind_of_text
from tagcos_stream.data.containers.json_list import is_object
from tagcos_stream.data.rejects import Reject
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile

_QUOTES = 'quotes in a cell must be doubled (""): write the file so, not with backslashes, or as .jsonl'
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
    if is_object(lines.first_line):
        raise UserError(f"{file.url}: the file is {kind_of_text(lines.first_line, stream.within)}")
    check_columns(names := _decoded(header, file, limits), file)
    row, held, blank = 0, 0, 0
    block = Raw(start_row, 0)
    cells: list[str] = []  # of all records, one after the other: a list for each record would be visited by the garbage collector
    while True:
        problem: tuple[str, str] | None = None
        stream.rows = row
        lines.begin_record()
        try:
            record = next(records)
        except StopIteration:
            break
        except csv.Error as e:
            record, problem = [], ("oversized_row" if "field larger" in str(e) else "wrong_type", f"csv: {e}")
            lines.open_end = lines.open_end or "unexpected end" in str(e)  # within quotes, where a line feed ends no row
            if "expected after" in str(e) and not lines.end_with_record(records.dialect.delimiter, len(names)):
                problem = ("corrupt_file", f"csv: {e}; {_QUOTES}; {REST}")
        except LimitReached as e:
            record, problem = [], (e.args[0], e.args[1])
        if problem is not None and problem[0] == "oversized_row" and not lines.read_over_record():
            problem = ("corrupt_file", f"{problem[1]}, within a quoted cell whose end is not found; {REST}")
        ended = problem is not None and problem[0] not in ("oversized_row", "wrong_type")
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
    """Text lines of a stream for the csv module, with their ends, none longer than the limit.

    Those of a record are kept until the next one begins: after an error they tell where the record ends.
    """

    def __init__(self, stream: Unpacked, limits: Limits) -> None:
        self._stream, self._limit, self.first_line = stream, limits.max_row_bytes, b""
        self._carry, self._ready, self._first = b"", cast("Iterator[str]", iter(())), True
        self.ascii = True  # all lines so far
        self.open_end = False  # the file ends without a line feed
        self._of_record: list[str] = []
        self._dropped_quotes = 0  # of the record's line that is longer than the limit

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._ready, None)
        if line is None:
            line = self._first_of_more()
        self._of_record.append(line)
        return line

    def begin_record(self) -> None:
        """Keep the lines from here on as those of a record."""
        self._of_record.clear()
        self._dropped_quotes = 0

    def end_with_record(self, delimiter: str, cells: int) -> bool:
        """Whether a record in which a quote is misplaced surely ends with its line, so that no cell goes on in the next one."""
        if len(self._of_record) > 1 or '\\"' in (line := self._of_record[0]) or line.count('"') % 2:
            return False
        try:
            return len(next(csv.reader([line], delimiter=delimiter, strict=False))) == cells
        except csv.Error:
            return False

    def read_over_record(self) -> bool:
        """Go on behind the line of an oversized record that ends outside of quotes; return whether there is one."""
        inside = (sum(line.count('"') for line in self._of_record) + self._dropped_quotes) % 2
        while inside:
            self.begin_record()
            try:
                inside ^= next(self).count('"') % 2
            except StopIteration:
                return False
            except LimitReached as e:
                if e.args[0] != "oversized_row":
                    return True  # met again, and then reported, by the next read
                inside ^= self._dropped_quotes % 2
        return True

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
                self._read_over_line()
                raise LimitReached("oversized_row", f"more than max_row_bytes {self._limit:,}")
            if whole:
                break
        self.first_line = self.first_line or whole[: whole.find(b"\n") + 1] or whole
        self.ascii = self.ascii and whole.isascii()
        self._ready = iter(_cut(whole.decode("utf-8", "surrogateescape")))
        return next(self._ready)

    def _read_over_line(self) -> None:
        """Go on behind the line that is carried; only its quotes are counted."""
        quotes, rest = self._carry.count(b'"'), b""
        try:
            while chunk := self._stream.read(1 << 20):
                line, newline, rest = chunk.partition(b"\n")
                quotes += line.count(b'"')
                if newline:
                    break
        except LimitReached:
            pass  # met again, and then reported, by the next read
        self._carry, self._dropped_quotes = rest, quotes


def _cut(text: str) -> list[str]:
    """Lines with their ends, which are line feeds alone; `text` is not empty."""
    lines = text.split("\n")
    last = lines.pop()
    lines = [line + "\n" for line in lines]
    return [*lines, last] if last else lines
