"""Instruction data of any common shape to blocks of examples and rejects: every row of a file ends in one of the two."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import orjson
import polars as pl

from tagcos_stream.data.canonical import OCCURRENCES, example_id
from tagcos_stream.data.containers.base import Limits, Raw
from tagcos_stream.data.containers.oasst_trees import has_trees, tree_blocks
from tagcos_stream.data.containers.registry import open_blocks
from tagcos_stream.data.convert_columns import can_convert, convert_frame
from tagcos_stream.data.convert_rows import row_by_row
from tagcos_stream.data.parse_columns import parse_block, parse_texts
from tagcos_stream.data.rejects import BROKEN, Rejects, ended_early
from tagcos_stream.data.sources import SourceFile, SourceSpec, resolve_sources
from tagcos_stream.types import IngestBlock

__all__ = ["IngestBlock", "Limits", "SourceFile", "SourceSpec", "example_id", "read_file", "resolve_sources"]

BLOCK_ROWS = 65_536  # of short rows: block_bytes ends the blocks of others
STRETCH = 256  # rows that are parsed at once where a block cannot be
LOOKED_AT = 4 * STRETCH  # rows by which a block is judged
T = TypeVar("T")


def read_file(
    file: SourceFile, *, start_row: int = 0, block_rows: int = BLOCK_ROWS, limits: Limits | None = None
) -> Iterator[IngestBlock]:
    """Blocks of a file from row `start_row` on; at least one block, the last one with `last` set.

    Every row is an occurrence or a reject (OASST trees give an occurrence a thread, all with the tree's row; blank lines of
    JSONL are neither). Where reading goes on after an interruption does not change what a row gives. UserError where nothing of
    the file can be read.
    """
    limits = limits or Limits()
    if start_row < 0 or block_rows < 1:
        raise ValueError(f"start_row {start_row} must be 0 or more, block_rows {block_rows} 1 or more")
    if has_trees(file, limits):
        yield from tree_blocks(file, start_row, block_rows, limits)
        return
    held: Parsed | None = None
    for parsed in ahead(
        _parsed(_limited(open_blocks(file, start_row, block_rows, limits), file.spec.limit, limits), file, limits)
    ):
        if held is not None:
            yield _block(held, file, limits, last=False)
        held = parsed
    assert held is not None
    yield _block(held, file, limits, last=True)


# a reader's block and its rows as columns: places in the block and a frame of these rows; further rows are converted one by one
Parts = list[tuple[np.ndarray, pl.DataFrame]]
Parsed = tuple[Raw, Parts]


def _parsed(blocks: Iterator[Raw], file: SourceFile, limits: Limits) -> Iterator[Parsed]:
    fast, scores = can_convert(file.spec.options), file.spec.options.scores
    for raw in blocks:
        if (
            fast
            and raw.block is not None
            and len(raw.block) <= limits.max_row_bytes
            and (frame := parse_block(raw.block, scores)) is not None
        ):
            raw.rows = list(range(raw.first, raw.first + frame.height))
            yield raw, [(np.arange(frame.height), frame)]
            continue
        raw.cut(limits)
        if not fast:
            yield raw, []
        elif raw.frame is not None:
            yield raw, [(np.arange(raw.frame.height), raw.frame)]
        else:
            yield raw, _columns(raw.texts or [], scores)


def _columns(texts: list[bytes], scores: Sequence[str]) -> Parts:
    """The rows that can be parsed at once: without those that are not JSON objects, or else stretches of these.

    So a bad row costs itself the fast way, or its stretch, not the block. Where none of the first stretches can be parsed, the
    rows are of another kind, and the further ones are not tried.
    """
    if len(texts) < 2:  # one row gains nothing, and may be long
        return []
    if (frame := parse_texts(texts, scores)) is not None:
        return [(np.arange(len(texts)), frame)]
    if next(_stretches(texts, _objects(texts[:LOOKED_AT]), scores), None) is None:
        return []
    index = _objects(texts)
    if len(index) < len(texts) and (frame := parse_texts([texts[i] for i in index.tolist()], scores)) is not None:
        return [(index, frame)]
    return list(_stretches(texts, index, scores))


def _stretches(texts: list[bytes], index: np.ndarray, scores: Sequence[str]) -> Iterator[tuple[np.ndarray, pl.DataFrame]]:
    for first in range(0, len(index), STRETCH):
        part = index[first : first + STRETCH]
        if (frame := parse_texts([texts[i] for i in part.tolist()], scores)) is not None:
            yield part, frame


def _objects(texts: list[bytes]) -> np.ndarray:
    """Places of the texts that are JSON objects."""
    return np.array([i for i, text in enumerate(texts) if _is_object(text)], np.int64)


def _is_object(text: bytes) -> bool:
    if text[:1] != b"{" or text[-1:] != b"}":
        return False
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items, each prepared in a second thread while the one before is used.

    Reading and parsing release the interpreter lock most of the time.
    """
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item


def _limited(blocks: Iterator[Raw], stop: int | None, limits: Limits) -> Iterator[Raw]:
    """The blocks without the rows from `stop` on."""
    for raw in blocks:
        if stop is None or raw.next_row < stop:
            yield raw
            continue
        raw.cut(limits)
        keep = bisect_left(raw.rows, stop)
        texts = None if raw.texts is None else raw.texts[:keep]
        frame = None if raw.frame is None else raw.frame[:keep]
        yield Raw(min(raw.next_row, stop), raw.bytes_read, raw.rows[:keep], texts, frame, raw.rejects.within(0, stop))
        return


def _block(parsed: Parsed, file: SourceFile, limits: Limits, last: bool) -> IngestBlock:
    raw, columns = parsed
    rows, rejects = np.asarray(raw.rows, np.int64), raw.rejects.frame()
    open_row = raw.next_row - 1 if raw.open_end else None
    early = ended_early(rejects, open_row, (*BROKEN, "wrong_type"))  # a CSV row without its last cells has a wrong type
    done = np.zeros(len(rows), bool)
    parts = [pl.DataFrame(schema=OCCURRENCES)]
    for index, frame in columns:
        part, done[index] = convert_frame(frame, rows[index], file.dataset, limits.max_turns, file.spec.options.scores)
        parts.append(part)
    if not done.all():
        found = Rejects()
        parts.append(row_by_row(raw, np.flatnonzero(~done), file.spec.options, file.dataset, found, limits.max_turns))
        converted = found.frame()
        early = early or ended_early(converted, open_row)
        rejects = pl.concat([rejects, converted]).sort("row", maintain_order=True)
    occurrences = pl.concat(parts)
    if len(parts) > 2:
        occurrences = occurrences.sort("row", maintain_order=True)
    return IngestBlock(occurrences, rejects, raw.next_row, raw.bytes_read, last, early)
