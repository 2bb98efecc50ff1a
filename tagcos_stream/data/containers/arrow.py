"""An Arrow IPC file or stream."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import pyarrow as pa

from tagcos_stream.data.containers.arrow_sizes import MAGIC, BatchSizes
from tagcos_stream.data.containers.base import REST, UNPACK_TABLE, LimitReached, Limits, Raw, check_ratio, too_many_rows
from tagcos_stream.data.containers.columns import framed, plain_bytes, short, wanted
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
        count = opened.num_record_batches if is_file else sys.maxsize
        sizes = BatchSizes(source, is_file=is_file)
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{file.url}: is not a readable Arrow file: {short(e)}") from None
    columns = wanted(opened.schema, file, limits)
    most_rows = max(limits.rows_from, file.size // limits.min_row_bytes)
    over = f"more than max_batch_bytes {limits.max_batch_bytes:,}; {REST}; write the file in smaller batches to read it whole"
    row, done, made = 0, start_row, 0
    for i in range(count):
        try:
            if (size := sizes.next()) > limits.max_batch_bytes:
                raise LimitReached("zip_bomb", f"a batch unpacks to {size:,} bytes: {over}")
            whole = opened.get_batch(i) if is_file else opened.read_next_batch()
            whole = whole.select(columns)
            whole.validate(full=True)
        except StopIteration:
            break
        except UserError:  # of the store, which says nothing of the data
            raise
        except (pa.ArrowException, OSError, ValueError, LimitReached) as e:
            if row >= start_row:
                reason, detail = e.args if isinstance(e, LimitReached) else ("corrupt_file", f"arrow: {short(e)}; {REST}")
                yield Raw(row + 1, file.size, rejects=Rejects(Reject(row, reason, detail, "")))
                done = row + 1
            break
        step = max(1, min(block_rows, limits.block_bytes // max(plain_bytes(whole) // max(whole.num_rows, 1), 1)))
        offset = 0
        while offset < whole.num_rows:
            try:
                check_ratio(made, file.size, limits.ratio_from, limits.max_table_ratio, "max_table_ratio", UNPACK_TABLE)
                if row == most_rows:
                    raise too_many_rows(row + whole.num_rows - offset, file.size, limits, UNPACK_TABLE)
            except LimitReached as e:
                found = Rejects(Reject(row, e.args[0], e.args[1], "")) if row >= start_row else Rejects()
                yield Raw(max(row + 1, start_row), file.size, rejects=found)
                return
            part = whole.slice(offset, min(step, most_rows - row))
            while (size := plain_bytes(part)) > 2 * limits.block_bytes and part.num_rows > 1:
                part = part.slice(0, part.num_rows // 2)
            made, offset = made + size, offset + part.num_rows
            skip = max(start_row - row, 0)
            if skip < part.num_rows:
                read = file.size * (i + offset / whole.num_rows) / count if is_file else source.tell()
                yield framed(part.slice(skip), row + skip, min(int(read), file.size))
                done = row + part.num_rows
            row += part.num_rows
    yield Raw(done, file.size)
