"""What the compressed batches of an Arrow file unpack to, read from its metadata before any of them is unpacked.

Metadata are flatbuffers, of which only the fields needed here are read. A compressed buffer begins with its unpacked length, and
readers make exactly that much room for it.
Source: Arrow columnar format, "Serialization and Interprocess Communication", and its schemas Message.fbs and File.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain

import pyarrow as pa

CONTINUES = b"\xff\xff\xff\xff"  # what a message begins with, and before Arrow 0.15 did not
DICTIONARY, BATCH = 2, 3  # kinds of messages
MAGIC = b"ARROW1"


class _Bytes:
    """Little-endian numbers in some bytes; ValueError outside of them."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def number(self, form: str, at: int) -> int:
        if not 0 <= at <= len(self._data) - struct.calcsize(form):
            raise ValueError("metadata point outside of themselves")
        return int(struct.unpack_from(f"<{form}", self._data, at)[0])

    def root(self) -> int:
        return self.number("I", 0)

    def field(self, table: int, n: int) -> int | None:
        """Where field n of a table lies; None if it is not there."""
        slots = table - self.number("i", table)
        if 4 + 2 * n >= self.number("H", slots):
            return None
        offset = self.number("H", slots + 4 + 2 * n)
        return table + offset if offset else None

    def pointed(self, at: int) -> int:
        """The table or vector that a field points to."""
        return at + self.number("I", at)

    def structs(self, table: int, n: int, size: int) -> Iterator[int]:
        """Where each struct of a vector lies."""
        at = self.field(table, n)
        if at is None:
            return iter(())
        first = self.pointed(at) + 4
        count = self.number("I", first - 4)
        if first + count * size > len(self._data):
            raise ValueError("a list in the metadata is cut off")
        return iter(range(first, first + count * size, size))


class BatchSizes:
    """Walks over a file's batches in the order in which they are read.

    Parameters
    ----------
    source
        The file, which must allow seeking; its position is not changed.
    is_file
        Whether it is in the file format, otherwise a stream.
    """

    def __init__(self, source: pa.NativeFile, *, is_file: bool) -> None:
        self._source = source
        self._sizes = self._of_file() if is_file else self._of_stream()

    def next(self) -> int:
        """Read what the next batch, with the dictionaries that are read before it, unpacks to.

        Returns
        -------
        int
            Bytes; 0 where nothing is compressed, and after the last batch.

        Raises
        ------
        ValueError
            The metadata are damaged.
        """
        before = self._source.tell()
        try:
            return next(self._sizes, 0)
        finally:
            self._source.seek(before)

    def _at(self, position: int, size: int) -> bytes:
        if not 0 <= position <= self._source.size():
            raise ValueError("metadata point outside of the file")
        self._source.seek(position)
        return bytes(self._source.read(size))

    def _of_file(self) -> Iterator[int]:
        end = self._source.size() - len(MAGIC) - 4
        length = _Bytes(self._at(end, 4)).number("I", 0)
        footer = _Bytes(self._at(end - length, length))
        dictionaries, batches = (list(footer.structs(footer.root(), field, 24)) for field in (2, 3))
        places = [footer.number("q", block) for block in chain(dictionaries, batches)]
        sizes = (self._message(place) for place in places)
        held = sum(next(sizes)[1] for _ in dictionaries)
        for _kind, size, _end in sizes:
            yield held + size
            held = 0

    def _of_stream(self) -> Iterator[int]:
        held = place = 0
        while True:
            kind, size, place = self._message(place)
            held += size
            if kind == 0:
                return
            if kind == BATCH:
                yield held
                held = 0

    def _message(self, place: int) -> tuple[int, int, int]:
        """Kind (0: the end), unpacked bytes and end of the message at `place`."""
        head = self._at(place, 8)
        prefix = 8 if head[:4] == CONTINUES else 4
        if len(head) < prefix:
            return 0, 0, place
        length = _Bytes(head).number("i", prefix - 4)
        if length <= 0:
            return 0, 0, place
        body = place + prefix + length
        found = _Bytes(self._at(place + prefix, length))
        message = found.root()
        kind, header, size = (found.field(message, n) for n in (1, 2, 3))
        if kind is None or header is None:
            raise ValueError("a message has no content")
        end = body + (0 if size is None else max(0, found.number("q", size)))
        batch, made = found.pointed(header), 0
        if (what := found.number("B", kind)) == DICTIONARY:
            data = found.field(batch, 1)
            batch = batch if data is None else found.pointed(data)
        if what in (DICTIONARY, BATCH) and found.field(batch, 3) is not None:
            for buffer in found.structs(batch, 2, 16):
                if found.number("q", buffer + 8) > 0:
                    made += max(0, _Bytes(self._at(body + found.number("q", buffer), 8)).number("q", 0))
        return what, made, end
