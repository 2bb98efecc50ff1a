"""Instruction data of any common shape to blocks of canonical examples and rejects: every row of a file ends in one of the two."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import polars as pl

from .canonical import OCCURRENCES, example_id
from .frames import can_convert, convert_frame, parse_block, parse_texts
from .open_file import open_blocks
from .readers import Limits, Raw
from .rows import rejects_frame, row_by_row
from .sources import SourceFile, SourceSpec, resolve_sources
from .tree_file import has_trees, tree_blocks
from .types import IngestBlock

__all__ = ["IngestBlock", "Limits", "SourceFile", "SourceSpec", "example_id", "read_file", "resolve_sources"]

BLOCK_ROWS = 8192
T = TypeVar("T")


def read_file(
    file: SourceFile, *, start_row: int = 0, block_rows: int = BLOCK_ROWS, limits: Limits | None = None
) -> Iterator[IngestBlock]:
    """Blocks of a file from row `start_row` on; at least one block, the last one with `last` set.

    Every row is an occurrence or a reject (OASST trees give an occurrence a thread, all with the tree's row; blank lines of JSONL are neither).
    Where reading goes on after an interruption does not change what a row gives. UserError where nothing of the file can be read.
    """
    limits = limits or Limits()
    if start_row < 0 or block_rows < 1:
        raise ValueError(f"start_row {start_row} must be 0 or more, block_rows {block_rows} 1 or more")
    if has_trees(file, limits):
        yield from tree_blocks(file, start_row, block_rows, limits)
        return
    held: Raw | None = None
    stop = file.spec.limit
    for raw in ahead(_parsed(open_blocks(file, start_row, block_rows, limits), file, limits)):
        if held is not None:
            yield _block(held, file, last=False)
        held = raw if stop is None else _cut(raw, stop)
        if stop is not None and held.next_row >= stop:
            break
    assert held is not None
    yield _block(held, file, last=True)


def _parsed(blocks: Iterator[Raw], file: SourceFile, limits: Limits) -> Iterator[Raw]:
    fast = can_convert(file.spec.options)
    for raw in blocks:
        if fast and raw.block is not None and len(raw.block) <= limits.max_row_bytes and (frame := parse_block(raw.block)) is not None:
            raw.frame, raw.rows = frame, list(range(raw.first, raw.first + frame.height))
        else:
            raw.cut(limits)
            raw.frame = parse_texts(raw.texts) if fast and raw.texts else raw.frame
        yield raw


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, the next one made in a second thread meanwhile: reading and parsing leave the interpreter free most of the time."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item


def _cut(raw: Raw, stop: int) -> Raw:
    """The block without the rows from `stop` on."""
    keep = bisect_left(raw.rows, stop)
    return Raw(
        min(raw.next_row, stop),
        raw.bytes_read,
        raw.rows[:keep],
        None if raw.texts is None else raw.texts[:keep],
        None if raw.frame is None else raw.frame[:keep],
        [r for r in raw.rejects if r.row < stop],
        raw.block,
        raw.first,
    )


def _block(raw: Raw, file: SourceFile, last: bool) -> IngestBlock:
    rows, rejects = np.asarray(raw.rows, np.int64), list(raw.rejects)
    if raw.frame is not None and can_convert(file.spec.options):
        fast, done = convert_frame(raw.frame, rows, file.dataset)
    else:
        fast, done = pl.DataFrame(schema=OCCURRENCES), np.zeros(len(rows), bool)
    slow = pl.DataFrame(schema=OCCURRENCES)
    if not done.all():
        slow = row_by_row(raw, np.flatnonzero(~done), file.spec.options, file.dataset, rejects)
    occurrences = pl.concat([fast, slow]).sort("row", maintain_order=True) if len(slow) else fast
    return IngestBlock(occurrences, rejects_frame(rejects), raw.next_row, raw.bytes_read, last)
