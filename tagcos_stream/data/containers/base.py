"""Files as bytes: unpacked within limits, and their rows before they are interpreted."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import IO, Any

import polars as pl
import pyarrow as pa

from tagcos_stream.data.containers.content import HEAD, other_content
from tagcos_stream.data.rejects import SNIPPET, Reject, Rejects

MAGIC = {"gz": b"\x1f\x8b", "zst": b"\x28\xb5\x2f\xfd"}
REST = "rows from here on are not read"
UNPACK = f"{REST}; unpack the file to read it whole"
UNPACK_TABLE = f"{REST}; unpack the file, that is, write it as .jsonl, to read it whole"
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Limits:
    """What a file may ask of us. Rows or files beyond a limit become rejects that carry the limit's name.

    max_row_bytes: one row of the file. max_turns: messages of one row. max_columns: of a table. max_blank_lines: in succession,
    and elements of a list with nothing between their commas. max_unpacked_bytes, max_ratio: of a compressed file, the ratio
    counting from ratio_from bytes of output. max_table_ratio: likewise of a Parquet or Arrow file with its dictionaries written
    out; it is higher, since a prompt that all rows repeat is stored once. max_batch_bytes: that are unpacked at once, a
    compressed batch of an Arrow file or the largest pages of a Parquet file's columns. min_row_bytes: of a packed file or a
    table, for each of its rows on average, counting from rows_from rows. block_bytes: input that is held at once; a block ends
    there when it has not reached its rows.
    """

    max_row_bytes: int = 16 << 20
    max_turns: int = 10_000
    max_columns: int = 10_000
    max_blank_lines: int = 1_000_000
    max_unpacked_bytes: int = 4 << 40
    max_ratio: int = 400
    max_table_ratio: int = 4_000
    max_batch_bytes: int = 4 << 30
    ratio_from: int = 64 << 20
    min_row_bytes: int = 16
    rows_from: int = 600_000
    block_bytes: int = 8 << 20


@dataclass
class Raw:
    """Rows of a file before conversion, in one of three forms, and what was rejected while reading.

    texts: a JSON value a row, numbered in `rows`. block: whole lines from line `first` on, not yet cut. frame: columns,
    numbered in `rows`. open_end: the file ends here, without what marks the end of a row (a line feed, a bracket, a quote).
    """

    next_row: int
    bytes_read: int
    rows: list[int] = field(default_factory=list)
    texts: list[bytes] | None = None
    frame: pl.DataFrame | None = None
    rejects: Rejects = field(default_factory=Rejects)
    block: bytes | None = None
    first: int = 0
    open_end: bool = False

    def cut(self, limits: Limits) -> None:
        """From `block` to `texts`: blank lines left out, oversized ones rejected."""
        if self.block is None:
            return
        self.texts = []
        for row, line in enumerate(self.block.split(b"\n"), self.first):
            if len(line) > limits.max_row_bytes:
                self.rejects.add(oversized(row, line, limits))
            elif text := line.removeprefix(BOM).strip(b" \t\r"):
                self.rows.append(row)
                self.texts.append(text)
        self.block = None


class LimitReached(Exception):
    """The rest of a file is not read; args are reason and detail."""


def check_ratio(made: int, stored: float, start: float, most: int, name: str, remedy: str) -> None:
    """LimitReached where `made` bytes, more than `start`, are over `most` times the `stored` ones; `name`: of that limit."""
    if made > start and made > most * stored:
        raise LimitReached("zip_bomb", f"{made:,} bytes from {stored:,.0f}: more than {name} {most}; {remedy}")


def too_many_rows(rows: int, stored: int, limits: Limits, remedy: str) -> LimitReached:
    """Rows of which each has fewer bytes of the file than the limit, on average."""
    return LimitReached(
        "zip_bomb", f"{rows:,} rows from {stored:,} bytes: less than min_row_bytes {limits.min_row_bytes} a row; {remedy}"
    )


class Unpacked:
    """A binary stream, unpacked on the fly, that counts what was read of the file as it lies."""

    def __init__(self, raw: IO[bytes], limits: Limits) -> None:
        self._counted = _Counted(raw)
        buffered = io.BufferedReader(self._counted, 1 << 20)
        head = buffered.peek(4)[:4]
        self.packing = next((name for name, magic in MAGIC.items() if head.startswith(magic)), None)
        self._limits, self._out, self._first = limits, 0, True
        self.within = {"gz": "gzip", "zst": "zstd"}.get(self.packing or "")  # the packing in words
        self.rows = 0  # that the reader has made of what it read; set by the reader
        # pyarrow's streams bound their output, go over several members or frames, refuse windows past 128 MiB, and tell when
        # the end is missing
        self._stream: Any = buffered
        if self.packing is not None:
            self._stream = pa.CompressedInputStream(pa.PythonFile(buffered, mode="r"), self.within)

    @property
    def bytes_read(self) -> int:
        """Bytes read so far, before unpacking."""
        return self._counted.count

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end.

        LimitReached where the file is damaged, unpacks to more than the limits allow, or does not begin like text.
        """
        data = self._unpack(size)
        self._out += len(data)
        if self._first and (found := other_content(data[:HEAD], self.within)):
            raise LimitReached("wrong_container", f"the file is {found}")
        self._first = False
        if self.packing:
            if self._out > self._limits.max_unpacked_bytes:
                raise LimitReached("zip_bomb", f"unpacks to more than max_unpacked_bytes {self._limits.max_unpacked_bytes:,}")
            check_ratio(self._out, self.bytes_read, self._limits.ratio_from, self._limits.max_ratio, "max_ratio", UNPACK)
            if data and self.rows > self._limits.rows_from and self.rows * self._limits.min_row_bytes > self.bytes_read:
                raise too_many_rows(self.rows, self.bytes_read, self._limits, UNPACK)
        return data

    def instead_of_table(self, magic: tuple[bytes, ...]) -> str | None:
        """What the file is that should be a table, and what to do.

        None where that is not known, or where it begins with the magic bytes of that table, and is damaged. To be asked before
        anything is read.
        """
        try:
            head = self._unpack(HEAD)
        except LimitReached:
            return f"damaged {self.within}: download it again"
        if self.packing is None and head.startswith(magic):
            return None
        return other_content(head, self.within, table=True) or (f"{self.within}: unpack it" if self.within else None)

    def _unpack(self, size: int) -> bytes:
        try:
            # small reads: what a failing one had unpacked is lost
            return bytes(self._stream.read(size if self.packing is None else min(size, 1 << 17)))
        except (pa.ArrowException, OSError) as e:
            if self.packing is None:
                raise  # a failing disk or connection is not the data's fault: let it be tried again
            raise LimitReached("corrupt_file", f"{self.packing}: {e}") from None


class _Counted(io.RawIOBase):
    """Counts what passes; any object with `read` will do as the source."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self.count = raw, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._raw.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)


def snippet(data: bytes | str) -> str:
    """The first characters of a row, safe to print and to store."""
    if isinstance(data, str) and data.isascii():
        return data[:SNIPPET]
    text = data[: 4 * SNIPPET].decode("utf-8", "replace") if isinstance(data, bytes) else data.encode("utf-8", "replace").decode()
    return text[:SNIPPET]


def blank_lines(limits: Limits) -> LimitReached:
    """A run of blank lines, or of empty elements of a list, beyond the limit."""
    return LimitReached("blank_lines", f"more than max_blank_lines {limits.max_blank_lines:,} in succession; {REST}")


def oversized(row: int, data: bytes, limits: Limits) -> Reject:
    """Return the reject of a row that is longer than the limit."""
    return Reject(row, "oversized_row", f"more than max_row_bytes {limits.max_row_bytes:,}", snippet(data))
