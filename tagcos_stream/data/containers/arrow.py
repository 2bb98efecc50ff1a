"""An Arrow IPC file or stream."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa

from tagcos_stream.data.containers.arrow_sizes import CONTINUES, MAGIC, BatchSizes
from tagcos_stream.data.containers.base import REST, UNPACK_TABLE, LimitReached, Limits, Raw, check_ratio, too_many_rows
from tagcos_stream.data.containers.columns import framed, joined, plain_bytes, short, unreadable, wanted
from tagcos_stream.data.rejects import Reject, Rejects
from tagcos_stream.data.remote import is_remote
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile


def read(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Rows of an Arrow IPC file or stream (what `datasets` caches), or a Feather file of version 2.

    A batch is unpacked whole, so what it unpacks to is read first. Then it is checked in full before anything of it is touched:
    offsets out of a damaged file would be followed out of memory.
    """
    # mapped, a batch of any size costs no memory of ours; only its text that is looked at
    source = pa.PythonFile(raw, mode="r") if is_remote(file.url) else pa.memory_map(file.url)
    try:
        magic = source.read(6)
        source.seek(0)
        is_file = magic == MAGIC
        opened = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
    except (pa.ArrowException, OSError) as e:
        raise unreadable(raw, file, "Arrow", (MAGIC, CONTINUES), e, limits) from None
    batches = _Batches(source, opened, is_file, wanted(opened.schema, file, limits))
    parts = joined(_pieces(batches, file, block_rows, limits), block_rows, limits.block_bytes)
    row, done = 0, start_row
    while True:
        try:
            part = next(parts, None)
        except UserError:  # of the store, which says nothing of the data
            raise
        except (pa.ArrowException, OSError, ValueError, LimitReached) as e:
            reason, detail = e.args if isinstance(e, LimitReached) else ("corrupt_file", f"arrow: {short(e)}; {REST}")
            found = Rejects(Reject(row, reason, detail, "")) if row >= start_row else Rejects()
            yield Raw(max(row + 1, start_row), file.size, rejects=found)
            return
        if part is None:
            break
        skip = max(start_row - row, 0)
        row += part.num_rows
        if skip < part.num_rows:
            yield framed(part.slice(skip), row - part.num_rows + skip, min(batches.bytes_read, file.size))
            done = row
    yield Raw(done, file.size)


class _Batches:
    """The batches of an open file, in order. bytes_read: of the file, for what was taken of them so far."""

    def __init__(self, source: pa.NativeFile, opened: Any, is_file: bool, columns: list[str]) -> None:
        self._source, self._opened, self._is_file, self._columns = source, opened, is_file, columns
        self._sizes = BatchSizes(source, is_file=is_file)
        self.bytes_read = self._begin = self._end = 0

    def read(self, limits: Limits) -> Iterator[pa.RecordBatch]:
        """The columns of each batch, checked in full. LimitReached for one that would take more memory than the limit."""
        over = f"more than max_batch_bytes {limits.max_batch_bytes:,}; {REST}; write the file in smaller batches to read it whole"
        count = self._opened.num_record_batches if self._is_file else sys.maxsize
        for i in range(count):
            if (size := self._sizes.next()) > limits.max_batch_bytes:
                raise LimitReached("zip_bomb", f"a batch unpacks to {size:,} bytes: {over}")
            try:
                whole = self._opened.get_batch(i) if self._is_file else self._opened.read_next_batch()
            except StopIteration:
                return
            whole = whole.select(self._columns)
            whole.validate(full=True)
            end = self._source.size() * (i + 1) // count if self._is_file else self._source.tell()
            self._begin, self._end = self._end, end
            yield whole

    def take(self, share: float) -> None:
        """Count a share of the last batch as read."""
        self.bytes_read = int(self._begin + share * (self._end - self._begin))


def _pieces(batches: _Batches, file: SourceFile, block_rows: int, limits: Limits) -> Iterator[pa.RecordBatch]:
    """The batches cut to blocks. LimitReached where the file's rows are more, in number or bytes, than it is worth."""
    most_rows = max(limits.rows_from, file.size // limits.min_row_bytes)
    row = made = 0
    for whole in batches.read(limits):
        step = max(1, min(block_rows, limits.block_bytes // max(plain_bytes(whole) // max(whole.num_rows, 1), 1)))
        offset = 0
        while offset < whole.num_rows:
            check_ratio(made, file.size, limits.ratio_from, limits.max_table_ratio, "max_table_ratio", UNPACK_TABLE)
            if row == most_rows:
                raise too_many_rows(row + whole.num_rows - offset, file.size, limits, UNPACK_TABLE)
            part = whole.slice(offset, min(step, most_rows - row))
            while (size := plain_bytes(part)) > 2 * limits.block_bytes and part.num_rows > 1:
                part = part.slice(0, part.num_rows // 2)
            made, offset, row = made + size, offset + part.num_rows, row + part.num_rows
            batches.take(offset / whole.num_rows)
            yield part
