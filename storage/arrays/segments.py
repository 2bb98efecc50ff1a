"""Feature segments: (n, D) float16 rows with their example ids, written block by block, read as RowBlocks.

A block is one chunk file: absent or complete, checksummed, written by one worker. Whether a block counts is the catalog's to
say (storage.catalog.spaces); NaN fills what was never written and marks rejected rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl

from storage.arrays.chunked import (
    ArraySpec,
    check_declaration,
    create_group,
    declare,
    read_array,
    read_attributes,
    read_chunk,
    read_shape,
    write_array,
    write_chunk,
    write_declaration,
)
from storage.arrays.read_ahead import ReadAhead
from storage.files.base import Files

FORMAT = 1
BLOCK_ROWS = 256
_HALF_EXPONENT = np.uint16(0x7C00)  # all ones in a float16 that is infinite or not a number


def segment_group(space_id: str, segment: str) -> str:
    """Return the key of a segment's Zarr group."""
    return f"spaces/{space_id}/segments/{segment}.zarr"


def features_spec(rows: int, dim: int, chunk_rows: int) -> ArraySpec:
    """Describe the array of features."""
    return ArraySpec(
        "features",
        (rows, dim),
        chunk_rows,
        "float16",
        float("nan"),
        ("example", "feature"),
        "gradient features; a row of NaN is a rejected or not yet computed example",
    )


def ids_spec(rows: int) -> ArraySpec:
    """Describe the array of example ids."""
    return ArraySpec(
        "example_ids", (rows, 16), 65_536, "uint8", 0, ("example", "byte"), "the 128-bit example ids, big-endian as in hex"
    )


class SegmentWriter:
    """Writes whole blocks of one segment; several workers may, each its own blocks."""

    def __init__(self, files: Files, space_id: str, segment: str, spec: ArraySpec) -> None:
        self._files = files
        self._group = segment_group(space_id, segment)
        self.spec = spec
        self.n_blocks = spec.n_chunks

    def block_range(self, block: int) -> tuple[int, int]:
        """Return the first row of a block and the row after its last."""
        return self.spec.chunk_range(block)

    def write_block(self, block: int, features: np.ndarray) -> int:
        """Write rows block_range(block), (rows, D) float16, and return their crc32c for the catalog.

        A rejected row is NaN throughout; a row with some non-finite numbers is the caller's mistake: ValueError.
        """
        odd = (np.ascontiguousarray(features).view(np.uint16) & _HALF_EXPONENT) == _HALF_EXPONENT
        if odd.any():
            bad = np.flatnonzero(odd.any(axis=1) & ~np.isnan(features).all(axis=1))
            if bad.size:
                raise ValueError(
                    f"block {block} of {self._group}: rows {bad[:5].tolist()} are partly non-finite: reject them whole, as NaN"
                )
        return write_chunk(self._files, self._group, self.spec, block, features)


def create_segment(
    files: Files, space_id: str, segment: str, *, example_ids: Sequence[str] | pl.Series, dim: int, chunk_rows: int = BLOCK_ROWS
) -> SegmentWriter:
    """Presize a segment for these examples (32 hex digits each, in row order). Idempotent; another shape is refused."""
    group, raw = segment_group(space_id, segment), _raw_ids(example_ids)
    if len(raw) == 0:
        raise ValueError(f"segment {segment} has no rows")
    specs = [features_spec(len(raw), dim, chunk_rows), ids_spec(len(raw))]
    if files.size(f"{group}/zarr.json") is None:
        write_array(files, group, specs[1], raw)
    create_group(files, group, specs, _attributes(space_id, segment))
    return SegmentWriter(files, space_id, segment, specs[0])


def rewrite_metadata(
    files: Files, space_id: str, segment: str, *, example_ids: Sequence[str] | pl.Series, dim: int, chunk_rows: int
) -> None:
    """Write a segment's zarr.json files and example ids anew, as the catalog has them. Blocks of features stay as they are."""
    group, raw = segment_group(space_id, segment), _raw_ids(example_ids)
    specs = [features_spec(len(raw), dim, chunk_rows), ids_spec(len(raw))]
    write_array(files, group, specs[1], raw)
    write_declaration(files, group, declare(specs, _attributes(space_id, segment)))


def _raw_ids(example_ids: Sequence[str] | pl.Series) -> np.ndarray:
    return np.frombuffer(bytes.fromhex("".join(example_ids)), np.uint8).reshape(-1, 16)


def _attributes(space_id: str, segment: str) -> dict[str, str | int]:
    return {"format": FORMAT, "kind": "tagcos feature segment", "space_id": space_id, "segment": segment}


def _opened(files: Files, space_id: str, segment: str) -> ArraySpec:
    group = segment_group(space_id, segment)
    attributes = read_attributes(files, group, FORMAT)
    (rows, dim), chunk_rows = read_shape(files, group, "features", 2)
    spec = features_spec(rows, dim, chunk_rows)
    check_declaration(files, group, declare([spec, ids_spec(rows)], attributes))
    return spec


def open_writer(files: Files, space_id: str, segment: str) -> SegmentWriter:
    """In a worker: the segment was created by the driver."""
    return SegmentWriter(files, space_id, segment, _opened(files, space_id, segment))


class SegmentReader:
    """Verified reads of one segment. Cheap to open, safe to share between threads."""

    def __init__(self, files: Files, space_id: str, segment: str, spec: ArraySpec) -> None:
        self._files = files
        self._group = segment_group(space_id, segment)
        self._verified: set[int] = set()
        self.segment = segment
        self.spec = spec
        self.shape = spec.shape
        self.chunk_rows = spec.chunk_rows
        self.remedy = f"run `tagcos check --repair` to have block(s) of segment {segment} computed again, then the same command"

    def chunk_key(self, block: int) -> str:
        """Return the key of a block's file."""
        return self.spec.chunk_key(self._group, block)

    def read_block(self, block: int) -> np.ndarray:
        """(rows, D) float16, read-only, verified."""
        return self.read_block_checksum(block)[0]

    def expect_block(self, block: int) -> None:
        """Prefetch a block where the store can."""
        self._files.expect(self.chunk_key(block))

    def read_block_checksum(self, block: int) -> tuple[np.ndarray, int]:
        """Return a block (r, D) float16, verified, and its CRC-32C."""
        found = read_chunk(self._files, self._group, self.spec, block, remedy=self.remedy)
        self._verified.add(block)
        return found

    def gather(self, rows: np.ndarray, *, verify: bool = True) -> np.ndarray:
        """(len(rows), D) float16 in the order asked. `verify` reads a block whole the first time this reader meets it."""
        rows = np.asarray(rows, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < self.shape[0]):
            raise ValueError(f"segment {self.segment} has {self.shape[0]} rows, asked for {rows.min()} to {rows.max()}")
        out = np.empty((len(rows), self.shape[1]), np.float16)
        bytes_out = out.view(np.uint8)
        blocks, within = np.divmod(rows, self.chunk_rows)
        order = np.argsort(blocks, kind="stable")
        runs = np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1) if rows.size else []
        for run in runs:
            block = int(blocks[run[0]])
            if verify and block not in self._verified:
                out[run] = self.read_block(block)[within[run]]
                continue
            pieces = [(bytes_out[position], int(within[position]) * self.spec.row_bytes) for position in run]
            if not self._files.read_pieces(self.chunk_key(block), pieces):
                out[run] = self.read_block(block)[within[run]]  # or says what is wrong with the file
        return out

    def example_ids(self) -> list[str]:
        """32 hex digits a row, as the segment itself holds them."""
        raw = read_array(self._files, self._group, ids_spec(self.shape[0]), remedy=self.remedy).tobytes().hex()
        return [raw[i : i + 32] for i in range(0, len(raw), 32)]


def open_segment(files: Files, space_id: str, segment: str) -> SegmentReader:
    """Open a segment for reading. DamagedStore if its metadata are missing or of another format."""
    return SegmentReader(files, space_id, segment, _opened(files, space_id, segment))


class FeatureRows:
    """RowBlocks over chosen rows of several segments, in order of segment and row; a block of ours is a block of a segment."""

    def __init__(self, segments: Sequence[SegmentReader], masks: Sequence[np.ndarray]) -> None:
        self._readers = list(segments)
        self._masks = [np.ascontiguousarray(mask, bool) for mask in masks]
        self.dim = self._readers[0].shape[1] if self._readers else 0
        self._blocks: list[tuple[int, int]] = []
        counts: list[int] = []
        for index, (reader, mask) in enumerate(zip(self._readers, self._masks, strict=True)):
            if mask.shape != reader.shape[:1] or reader.shape[1] != self.dim:
                raise ValueError(f"segment {reader.segment} has shape {reader.shape}, mask {mask.shape}, dimension {self.dim}")
            kept = np.add.reduceat(mask, np.arange(0, len(mask), reader.chunk_rows), dtype=np.int64)
            for block in np.flatnonzero(kept):
                self._blocks.append((index, int(block)))
                counts.append(int(kept[block]))
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.n_rows = int(self.starts[-1])
        self._ahead = ReadAhead(self._load, len(self._blocks), self._expect)

    @property
    def segments(self) -> list[str]:
        """Names of the segments, in order."""
        return [reader.segment for reader in self._readers]

    @cached_property
    def locations(self) -> np.ndarray:
        """(N, 2) int64: (index into `segments`, row) of every row."""
        found = [np.stack([np.full(mask.sum(), i), np.flatnonzero(mask)], axis=1) for i, mask in enumerate(self._masks)]
        return np.concatenate(found).astype(np.int64) if found else np.zeros((0, 2), np.int64)

    def read(self, block: int) -> np.ndarray:
        """(rows, D) float16, verified, finite, read-only; read ahead where blocks are asked for in order."""
        return self._ahead.get(block)

    def _expect(self, block: int) -> None:
        index, own = self._blocks[block]
        self._readers[index].expect_block(own)

    def _load(self, block: int) -> np.ndarray:
        index, own = self._blocks[block]
        rows = self._readers[index].read_block(own)
        first, last = self._readers[index].spec.chunk_range(own)
        mask = self._masks[index][first:last]
        if not mask.all():
            rows = rows[mask]
            rows.flags.writeable = False
        return rows

    def gather(self, indices: np.ndarray, *, verify: bool = True) -> np.ndarray:
        """(len(indices), D) float16: any rows, by position in this object's order."""
        where = self.locations[indices]
        out = np.empty((len(where), self.dim), np.float16)
        for index in np.unique(where[:, 0]):
            mine = where[:, 0] == index
            out[mine] = self._readers[index].gather(where[mine, 1], verify=verify)
        return out


def open_features(files: Files, space_id: str, rows: pl.DataFrame) -> FeatureRows:
    """The features of `rows` (segment, row), which must be in order of segment and row: positions then agree."""
    readers, masks = [], []
    for (segment,), part in rows.group_by("segment", maintain_order=True):
        reader = open_segment(files, space_id, str(segment))
        chosen = part["row"].to_numpy()
        if np.any(np.diff(chosen.astype(np.int64)) <= 0):
            raise ValueError(f"rows of segment {segment} are not in ascending order")
        mask = np.zeros(reader.shape[0], bool)
        mask[chosen] = True
        readers.append(reader)
        masks.append(mask)
    if [reader.segment for reader in readers] != sorted(reader.segment for reader in readers):
        raise ValueError("rows are not in order of segment")
    return FeatureRows(readers, masks)
