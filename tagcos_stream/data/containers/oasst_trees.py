"""Files with one message of an OASST tree a row: the only shape whose examples take more than one row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from tagcos_stream.data.canonical import occurrences_frame
from tagcos_stream.data.containers.base import Limits
from tagcos_stream.data.containers.registry import open_blocks
from tagcos_stream.data.convert_rows import loads, records, reject
from tagcos_stream.data.oasst import FLAT_FIELDS, flat_trees, is_flat
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.rejects import Rejects, ended_early
from tagcos_stream.data.scores import Score, read_scores
from tagcos_stream.data.shapes import finished
from tagcos_stream.types import IngestBlock, Message

if TYPE_CHECKING:
    from tagcos_stream.data.sources import SourceFile


def has_trees(file: SourceFile, limits: Limits) -> bool:
    """Whether the file has a message of an OASST tree in each row: as set, or by its first row."""
    if file.spec.options.shape is not None or file.spec.options.columns:
        return file.spec.options.shape == "oasst_messages"
    raw = next(open_blocks(file, 0, 1, limits))
    raw.cut(limits)
    first = next(records(raw, np.arange(min(len(raw.rows), 1))), None)
    if isinstance(first, bytes) and b"\\" not in first and not all(name.encode() in first for name in FLAT_FIELDS):
        return False  # without escapes a field's name stands in the text as it is, which need not be parsed
    try:
        return is_flat(loads(first) if isinstance(first, bytes) else first)
    except RowError:
        return False


def tree_blocks(file: SourceFile, start_row: int, block_rows: int, limits: Limits) -> Iterator[IngestBlock]:
    """Yield blocks of a file that has a message a row.

    Blocks end where a tree ends; a resumed read passes over what comes before again.
    """
    options = file.spec.options
    rejected, of_threads = Rejects(), Rejects()  # rows of the file, and threads of trees whose rows came before
    given: dict[int, dict[str, Any]] = {}  # values of scores by row
    read, open_row = 0, None

    def messages_of_file() -> Iterator[tuple[int, dict[str, Any]]]:
        nonlocal read, open_row
        for raw in open_blocks(file, 0, block_rows, limits):
            raw.cut(limits)
            rejected.update(raw.rejects.within(start_row))
            for row, value in zip(raw.rows, records(raw, np.arange(len(raw.rows))), strict=True):
                if file.spec.limit is not None and row >= file.spec.limit:
                    return
                try:
                    record = loads(value, brief=rejected.full("broken_json")) if isinstance(value, bytes) else value
                    if not is_flat(record):
                        raise RowError("unknown_shape", f"a message of a tree has {', '.join(FLAT_FIELDS)}")
                except RowError as e:
                    if row >= start_row and rejected.full(e.reason):
                        rejected.add_row(e.reason, row)
                    elif row >= start_row:
                        rejected.add(reject(row, e, value))
                else:
                    if options.scores:
                        given[row] = {name: record.get(name) for name in options.scores}
                    yield row, record
            read, open_row = raw.bytes_read, raw.next_row - 1 if raw.open_end else open_row

    rows: list[int] = []
    messages: list[list[Message]] = []
    scores: list[list[Score] | None] = []

    def block(end: int, last: bool) -> IngestBlock:
        nonlocal rejected, of_threads
        n = len(rows)
        stop = math.inf if last else end
        frames = [part.within(start_row, stop).frame() for part in (rejected, of_threads)]
        ours = pl.concat(frames).sort("row", maintain_order=True)
        frame = occurrences_frame(rows, messages, [None] * n, [None] * n, [file.dataset] * n, [None] * n, scores)
        end = max(end, int(ours["row"][-1]) + 1) if last and len(ours) else end
        early = ended_early(frames[0], open_row)
        rejected, of_threads = rejected.within(end), of_threads.within(end)
        for row in [row for row in given if row < end]:
            del given[row]
        return IngestBlock(frame, ours, end, read, last, early)

    begin = end = start_row
    for tree_end, found in flat_trees(messages_of_file()):
        if tree_end - begin > block_rows and end > begin:
            yield block(end, False)
            rows, messages, scores, begin, start_row = [], [], [], end, end
        end = max(tree_end, start_row)
        for row, thread in found:
            if row < start_row:
                continue
            try:
                if isinstance(thread, RowError):
                    raise thread
                thread, scored = finished(thread, options), read_scores(given.get(row, {}), options.scores)
                messages.append(thread)
                scores.append(scored)
                rows.append(row)
            except RowError as e:
                of_threads.add(reject(row, e, "" if isinstance(thread, RowError) else thread[-1]["content"]))
    yield block(end, True)
