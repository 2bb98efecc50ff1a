"""A Parquet file, by its row groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tagcos_stream.data.containers.base import REST, UNPACK_TABLE, LimitReached, Limits, Raw, check_ratio, too_many_rows
from tagcos_stream.data.containers.columns import framed, joined, longest, plain_bytes, short, unreadable, wanted
from tagcos_stream.data.containers.parquet_pages import TooManyValues, held_at_once
from tagcos_stream.data.rejects import Reject, Rejects
from tagcos_stream.data.remote import is_remote

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile

BATCH_ROWS = 256  # that are decoded at once where the longest text is not known
MAX_DECODED = 64 << 20  # bytes of a batch, had each of its texts the length of the longest in its dictionary
HEADER_VALUES = 100_000  # of page headers that are looked at, beside one for every 8 bytes of the file
MAX_LOST = 1_000_000  # rows of a damaged row group that are rejected one by one; a damaged file may claim any number


def read(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Rows of a Parquet file; row = its number in the file. Pages are read as they are needed, whatever the size of a row group.

    The ratio is that of a row group to its part of the file, so that it does not depend on the row that reading goes on from.
    Where a row group is damaged, its rows from there on are rejects, and reading goes on with the next.
    """
    try:
        table = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as e:
        raise unreadable(raw, file, "Parquet", (b"PAR1",), e, limits) from None
    columns = wanted(table.schema_arrow, file, limits)
    meta = table.metadata
    total = max(1, sum(meta.row_group(i).num_rows for i in range(meta.num_row_groups)))
    stored = [_stored(meta.row_group(i)) for i in range(meta.num_row_groups)]
    most_rows = max(limits.rows_from, file.size // limits.min_row_bytes)
    end, done = 0, start_row
    for group in range(meta.num_row_groups):
        n = meta.row_group(group).num_rows
        row, end = end, end + n
        if end <= start_row:
            continue
        share = stored[group] / max(1, sum(stored))
        part_size, start = share * file.size, share * limits.ratio_from
        mean = max(meta.row_group(group).total_byte_size // max(n, 1), 1)
        most = max(1, min(block_rows, limits.block_bytes // mean))
        made = 0
        try:
            chunks = _chunks(meta.row_group(group), columns)
            _check_pages(raw, chunks, is_remote(file.url), int(share * HEADER_VALUES + part_size / 8), limits)
            batch = min(most, rows_at_once(raw, table, group, columns, most))
            for part in joined(table.iter_batches(batch, row_groups=[group], columns=columns), most, limits.block_bytes):
                part = part.slice(0, max(0, most_rows - row))
                skip = max(start_row - row, 0)
                row += part.num_rows
                if skip < part.num_rows:
                    yield framed(part.slice(skip), row - part.num_rows + skip, int(file.size * row / total))
                    done = row
                made += plain_bytes(part)
                if row < total:
                    check_ratio(made, part_size, start, limits.max_table_ratio, "max_table_ratio", UNPACK_TABLE)
                if row == most_rows < total:
                    raise too_many_rows(total, file.size, limits, UNPACK_TABLE)
        except LimitReached as e:
            found = Rejects(Reject(row, e.args[0], e.args[1], "")) if row >= start_row else Rejects()
            yield Raw(max(row + 1, start_row), int(file.size * row / total), rejects=found)
            return
        except (pa.ArrowException, OSError) as e:
            if end - row > MAX_LOST:
                detail = f"parquet: {short(e)}; {REST}"
                yield Raw(
                    max(row, start_row) + 1, file.size, rejects=Rejects(Reject(max(row, start_row), "corrupt_file", detail, ""))
                )
                return
            for first in range(max(row, start_row), end, block_rows):
                lost = range(first, min(first + block_rows, end))
                rejects = Rejects(*(Reject(i, "corrupt_file", f"parquet: {short(e)}", "") for i in lost))
                yield Raw(lost.stop, int(file.size * lost.stop / total), rejects=rejects)
                done = lost.stop
    yield Raw(done, file.size)


def _chunks(group: pq.RowGroupMetaData, columns: list[str]) -> list[pq.ColumnChunkMetaData]:
    """Those of the columns to read, which may be nested."""
    chunks = (group.column(i) for i in range(group.num_columns))
    return [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns]


def _stored(group: pq.RowGroupMetaData) -> int:
    return sum(max(0, group.column(i).total_compressed_size) for i in range(group.num_columns))


def _check_pages(raw: IO[bytes], chunks: list[pq.ColumnChunkMetaData], is_far: bool, values: int, limits: Limits) -> None:
    """LimitReached where pages would take more memory than the limit.

    A header costs a request in an object store, so that the sizes that the footer of a remote file states are taken for true.
    """
    if is_far and sum(chunk.total_uncompressed_size for chunk in chunks) <= limits.max_batch_bytes:
        return
    try:
        size = held_at_once(raw, chunks, values)
    except TooManyValues:
        raise LimitReached("zip_bomb", f"a row group has more page headers than its size is worth; {REST}") from None
    if size > limits.max_batch_bytes:
        over = f"more than max_batch_bytes {limits.max_batch_bytes:,}; {REST}; write the file in smaller pages to read it whole"
        raise LimitReached("zip_bomb", f"the largest pages of a row group unpack to {size:,} bytes: {over}")


def rows_at_once(raw: IO[bytes], table: pq.ParquetFile, group: int, columns: list[str], most: int) -> int:
    """Rows of a group, `most` or fewer, that fit in memory even if each has the longest text of every dictionary.

    What a dictionary's text takes in memory is not in the metadata, so that it is read once with its first row.
    """
    meta = table.metadata.row_group(group)
    coded = [chunk for chunk in _chunks(meta, columns) if chunk.has_dictionary_page]
    part = min(most / max(1, meta.num_rows), 1.0)
    if sum(part * c.num_values * c.total_uncompressed_size for c in coded) <= MAX_DECODED:
        return most
    try:
        paths = [c.path_in_schema for c in coded]
        probe = pq.ParquetFile(raw, metadata=table.metadata, read_dictionary=paths, buffer_size=1 << 20, pre_buffer=False)
        first = next(probe.iter_batches(1, row_groups=[group], columns=columns))
    except (pa.ArrowException, OSError, StopIteration):
        return BATCH_ROWS  # met again, and then reported, where the rows are read
    values = max(c.num_values for c in coded) // max(1, meta.num_rows) + 1
    return max(1, min(most, MAX_DECODED // max(1, values * longest(first))))
