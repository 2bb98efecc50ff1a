"""What the pages of a Parquet file unpack to, read from their headers before any of them is unpacked.

A reader holds one page of every column at a time, and makes as much room for it as its header says; the sizes in the file's
footer need not agree with it. Headers are Thrift structures in the compact protocol, of which only two numbers are kept.
Source: Apache Parquet format, parquet.thrift, PageHeader; Apache Thrift, "Thrift compact protocol encoding".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO

import pyarrow.parquet as pq

WINDOW = 1 << 12  # bytes of a file that are read at first for a header
MAX_HEADER = 16 << 20  # bytes, the most that Arrow reads; a header may quote the smallest and the largest text of its page
MAX_DEPTH = 64  # structures within each other, as in Thrift
_UNPACKED, _PACKED = 2, 3  # fields of PageHeader
_TRUE, _FALSE, _BYTE, _I32, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT, _UUID = 1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13


class TooManyValues(Exception):
    """Headers have more values than what is read of the file is worth."""


class _Allowance:
    """How many more values may be read."""

    def __init__(self, values: int) -> None:
        self._left = values

    def use(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooManyValues


class _Compact:
    """Values of the compact protocol, one after the other; EOFError at the end of the bytes, ValueError where they are none.

    Numbers are cut to the bits of their type, as Arrow's reader does: else a header could say one thing here and another there.
    """

    def __init__(self, data: bytes, allowance: _Allowance) -> None:
        self._data, self._allowance = data, allowance
        self.at = 0

    def varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number has more than 64 bits")
        return value | byte << shift

    def number(self) -> int:
        """A signed number of 32 bits, in zigzag form."""
        value = self.varint() & 0xFFFFFFFF
        return value >> 1 ^ -(value & 1)

    def count(self) -> int:
        """How many bytes or values follow."""
        value = self.varint() & 0xFFFFFFFF
        if value >= 1 << 31:
            raise ValueError("a count is negative")
        return value

    def pass_over(self, kind: int, depth: int = 0, *, in_list: bool = False) -> None:
        """Leave out a value of a type."""
        self._allowance.use()
        if depth > MAX_DEPTH:
            raise ValueError("a header nests too deep")
        if kind in (_TRUE, _FALSE):
            self._pass(int(in_list))  # in a structure the type is the value
        elif kind == _BYTE:
            self._pass(1)
        elif kind < _DOUBLE:
            self.varint()
        elif kind == _DOUBLE:
            self._pass(8)
        elif kind == _BINARY:
            self._pass(self.count())
        elif kind in (_LIST, _SET):
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 < 15 else self.count()):
                self.pass_over(head & 15, depth + 1, in_list=True)
        elif kind == _MAP:
            size = self.count()
            kinds = self._byte() if size else 0
            for _ in range(size):
                self.pass_over(kinds >> 4, depth + 1, in_list=True)
                self.pass_over(kinds & 15, depth + 1, in_list=True)
        elif kind == _UUID:
            self._pass(16)
        elif kind == _STRUCT:
            for _field, inner in self.fields():
                self.pass_over(inner, depth + 1)
        else:
            raise ValueError(f"no type has the number {kind}")

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a structure; its value is to be read before the next."""
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self.number()
            field = (field + 0x8000 & 0xFFFF) - 0x8000  # 16 bits
            yield field, head & 15

    def _byte(self) -> int:
        self._pass(1)
        return self._data[self.at - 1]

    def _pass(self, count: int) -> None:
        self.at += count
        if self.at > len(self._data):
            raise EOFError


def _header(data: bytes, allowance: _Allowance) -> tuple[int, int, int]:
    """Bytes of a page's header, and of the page unpacked and as it lies in the file."""
    found = _Compact(data, allowance)
    sizes = {_UNPACKED: -1, _PACKED: -1}
    for field, kind in found.fields():
        if field in sizes and kind == _I32:
            sizes[field] = found.number()
        else:
            found.pass_over(kind)
    if min(sizes.values()) < 0:
        raise ValueError("a page has no size")
    return found.at, sizes[_UNPACKED], sizes[_PACKED]


def _pages(raw: IO[bytes], start: int, end: int, allowance: _Allowance) -> Iterator[int]:
    """What each page between two places unpacks to. It ends early at a header that is damaged, as reading the pages does."""
    window = WINDOW
    while 0 <= start < end:
        raw.seek(start)
        data = raw.read(min(window, end - start))
        try:
            head, unpacked, packed = _header(data, allowance)
        except EOFError:
            if len(data) < window or window >= MAX_HEADER:
                return
            window *= 16
            continue
        except ValueError:
            return
        yield unpacked
        start, window = start + head + packed, WINDOW


def held_at_once(raw: IO[bytes], chunks: Sequence[pq.ColumnChunkMetaData], most_values: int) -> int:
    """Bound what reading a row group holds unpacked: the largest page of every column.

    Parameters
    ----------
    raw
        The file; its position is changed.
    chunks
        Metadata of the columns that are read, in this row group.
    most_values
        Values to read of page headers at most, in addition to a few for each column.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    TooManyValues
        The headers have more values.
    """
    allowance = _Allowance(most_values + 64 * len(chunks))
    total = 0
    for chunk in chunks:
        start = chunk.data_page_offset
        if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
            start = chunk.dictionary_page_offset
        total += max(_pages(raw, start, start + chunk.total_compressed_size, allowance), default=0)
    return total
