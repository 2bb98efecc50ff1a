"""A Parquet file, by its row groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from tagcos_stream.data.containers.base import Limits, Raw
from tagcos_stream.data.containers.columns import framed, short, wanted
from tagcos_stream.data.rejects import Reject, Rejects
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile

MAX_LOST = 1_000_000  # rows of a damaged row group that are rejected one by one; a damaged file may claim any number


def read(raw: IO[bytes], file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[Raw]:
    """Rows of a Parquet file; row = its number in the file. Pages are read as they are needed, whatever the size of a row group.

    Where a row group is damaged, its rows from there on are rejects, and reading goes on with the next.
    """
    try:
        table = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{file.url}: is not a readable Parquet file: {short(e)}") from None
    columns = wanted(table.schema_arrow, file, limits)
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
                    yield framed(part.slice(skip), row - part.num_rows + skip, int(file.size * row / total))
                    done = row
        except (pa.ArrowException, OSError) as e:
            if end - row > MAX_LOST:
                detail = f"parquet: {short(e)}; rows from here on are not read"
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
