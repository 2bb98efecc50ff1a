"""Zarr 3 arrays whose chunk files are raw little-endian bytes and a crc32c: written and read at the speed of plain files.

Arrays are declared by zarr-python itself, presized, cut along the first axis only, uncompressed and unsharded, so any Zarr 3
reader opens them. A chunk file is then exactly `rows * row_bytes` bytes and four more, which we write whole (atomically, so a
chunk is absent or complete) and read directly. This is not a second format: what differs from the declaration is refused.
Why these codecs and shapes: docs/measurements/storage.md.
"""

from __future__ import annotations

import json
import math
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np

from storage.files.base import Files
from tagcos_stream.types import UserError

CRC_BYTES = 4
# What two declarations must share for one to read the other's chunks.
READ_BY = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")


# Freed chunk buffers, by size. Fresh memory must be cleared page by page: a third of the time of reading a warm 4 MiB chunk.
_spare: dict[int, deque[bytearray]] = {}
_SPARE_FROM = 1 << 20


def _buffer(size: int) -> np.ndarray:
    """(size,) uint8, not cleared. It is used again once no array looks at it: numpy views keep the outermost array alive."""
    if size < _SPARE_FROM:
        return np.empty(size, np.uint8)
    spare = _spare.setdefault(size, deque(maxlen=6))
    try:
        memory = spare.pop()
    except IndexError:
        memory = bytearray(size)
    array = np.frombuffer(memory, np.uint8)
    weakref.finalize(array, spare.append, memory).atexit = False
    return array


class DamagedStore(UserError):
    """Bytes on disk are not those that were written: names file and block, and how to mend it. Never retried, never skipped."""


@dataclass(frozen=True)
class ArraySpec:
    """One array, declared once: the writer, the reader, the memory formulas and the docs read this."""

    name: str
    shape: tuple[int, ...]
    chunk_rows: int
    dtype: str
    fill: float | int
    dimensions: tuple[str, ...]
    description: str

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, uncompressed."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    @property
    def n_chunks(self) -> int:
        """Number of chunks; the last one may be shorter."""
        return -(-self.shape[0] // self.chunk_rows)

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk's file: the last one is as long as the others, filled up."""
        return self.chunk_rows * self.row_bytes + CRC_BYTES

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """Return the first row of a chunk and the row after its last. ValueError if there is no such chunk."""
        if not 0 <= chunk < self.n_chunks:
            raise ValueError(f"array {self.name} has chunks 0 to {self.n_chunks - 1}, asked for {chunk}")
        return chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.shape[0])

    def chunk_key(self, group: str, chunk: int) -> str:
        """Return the key of a chunk's file."""
        return f"{group}/{self.name}/c.{chunk}" + ".0" * (len(self.shape) - 1)


def crc32c(data: np.ndarray) -> int:
    """Return the CRC-32C of an array's bytes."""
    return int(google_crc32c.value(np.ascontiguousarray(data).reshape(-1).view(np.uint8)))


def declare(specs: Sequence[ArraySpec], attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """The zarr.json files of a group with these arrays, by zarr-python: {relative key: bytes}."""
    # 0.1 s, and only making or opening a store needs it
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.core.buffer import Buffer

    made: dict[str, Buffer] = {}
    group = zarr.create_group(zarr.storage.MemoryStore(made), attributes=dict(attributes), zarr_format=3)
    for spec in specs:
        group.create_array(
            spec.name,
            shape=spec.shape,
            chunks=(spec.chunk_rows, *spec.shape[1:]),
            dtype=spec.dtype,
            fill_value=spec.fill,
            filters=(),
            compressors=Crc32cCodec(),
            serializer=BytesCodec(endian="little") if np.dtype(spec.dtype).itemsize > 1 else "auto",
            chunk_key_encoding={"name": "default", "separator": "."},  # one folder an array, not one a chunk
            dimension_names=spec.dimensions,
            attributes={"description": spec.description},
        )
    return {key: value.to_bytes() for key, value in made.items()}


def create_group(
    files: Files, group: str, specs: Sequence[ArraySpec], attributes: Mapping[str, Any], *, durable: bool = True
) -> None:
    """Idempotent: a group that lies there with the same declaration is left alone, another one is refused."""
    declared = declare(specs, attributes)
    if files.size(f"{group}/zarr.json") is not None:
        check_declaration(files, group, declared)
        return
    write_declaration(files, group, declared, durable=durable)


def write_declaration(files: Files, group: str, declared: Mapping[str, bytes], *, durable: bool = True) -> None:
    """Write the zarr.json files of a group, in place of any that lie there."""
    # The group's own zarr.json last: while it is absent the group is not there.
    for key in sorted(declared, key=lambda key: key.count("/"), reverse=True):
        files.write(f"{group}/{key}", declared[key], durable=durable)


def check_declaration(files: Files, group: str, declared: Mapping[str, bytes]) -> None:
    """Compare the stored metadata of an array with what this version writes. DamagedStore if they differ."""
    for key, expected in declared.items():
        wanted, found = json.loads(expected), read_json(files, f"{group}/{key}")
        for field in READ_BY:
            if wanted.get(field) != found.get(field):
                raise DamagedStore(
                    f"{files.place(group)}/{key}: {field} is {found.get(field)!r}, this version writes and reads "
                    f"{wanted.get(field)!r}; run `tagcos check`, which says what to do"
                )


def read_attributes(files: Files, group: str, expected_format: int) -> dict[str, Any]:
    """The group's attributes. UserError where another version wrote it, DamagedStore if its zarr.json is missing or broken."""
    attributes = dict(read_json(files, f"{group}/zarr.json").get("attributes", {}))
    if not isinstance(attributes.get("format"), int):
        raise DamagedStore(f"{files.place(group)}/zarr.json names no format; run `tagcos check`, which says what to do")
    if attributes.get("format") != expected_format:
        raise UserError(
            f"{files.place(group)} has format {attributes.get('format')}, this version reads {expected_format}: "
            "use the version that wrote it"
        )
    return attributes


def read_json(files: Files, key: str) -> dict[str, Any]:
    """Read a JSON object. DamagedStore if the file is missing or broken."""
    try:
        return dict(json.loads(files.read(key)))
    except FileNotFoundError:
        raise DamagedStore(f"{files.place(key)} is missing; run `tagcos check`, then the same command again") from None
    except ValueError as error:
        raise DamagedStore(f"{files.place(key)} is not valid JSON ({error}); run `tagcos check`") from error


def read_shape(files: Files, group: str, name: str, dimensions: int) -> tuple[tuple[int, ...], int]:
    """Shape of an array and rows of its chunks, as it declares them. DamagedStore if its zarr.json is missing or broken."""
    key = f"{group}/{name}/zarr.json"
    declared = read_json(files, key)
    try:
        shape = tuple(int(length) for length in declared["shape"])
        chunk_rows = int(declared["chunk_grid"]["configuration"]["chunk_shape"][0])
        if len(shape) != dimensions or min(*shape, chunk_rows) < 1:
            raise ValueError(f"shape {shape}, chunks of {chunk_rows} rows")
    except (LookupError, TypeError, ValueError) as error:
        raise DamagedStore(f"{files.place(key)} declares no array of ours; run `tagcos check`, which says what to do") from error
    return shape, chunk_rows


def write_chunk(files: Files, group: str, spec: ArraySpec, chunk: int, data: np.ndarray, *, durable: bool = True) -> int:
    """Write one whole chunk, atomically, and return its crc32c. `data` has the chunk's rows; the last chunk is filled up here."""
    start, stop = spec.chunk_range(chunk)
    if data.shape != (stop - start, *spec.shape[1:]) or data.dtype != np.dtype(spec.dtype):
        raise ValueError(
            f"chunk {chunk} of {spec.name} is {(stop - start, *spec.shape[1:])} {spec.dtype}, got {data.shape} {data.dtype}"
        )
    if stop - start < spec.chunk_rows:
        whole = np.full((spec.chunk_rows, *spec.shape[1:]), spec.fill, spec.dtype)
        whole[: stop - start] = data
        data = whole
    body = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    checksum = crc32c(body)
    files.write(spec.chunk_key(group, chunk), body, np.array([checksum], "<u4").view(np.uint8), durable=durable)
    return checksum


def read_chunk(files: Files, group: str, spec: ArraySpec, chunk: int, *, remedy: str) -> tuple[np.ndarray, int]:
    """The chunk's rows and its crc32c, verified. DamagedStore where the file is missing, short, long or not what was written."""
    start, stop = spec.chunk_range(chunk)
    key = spec.chunk_key(group, chunk)
    out = _buffer(spec.chunk_bytes + 1)  # one more, to notice a file that grew
    checksum, ahead = 0, 0

    def check(piece: np.ndarray) -> None:
        nonlocal checksum, ahead
        body = piece[: max(spec.chunk_bytes - CRC_BYTES - ahead, 0)]
        ahead += piece.size
        if body.size:
            checksum = google_crc32c.extend(checksum, body)

    try:
        got = files.read_into(key, out, seen=check)
    except FileNotFoundError:
        raise _damaged(files, key, spec, chunk, "is missing", remedy) from None
    if got != spec.chunk_bytes:
        raise _damaged(
            files,
            key,
            spec,
            chunk,
            f"has {'at least ' * (got > spec.chunk_bytes)}{got} bytes instead of {spec.chunk_bytes}",
            remedy,
        )
    stored = int(out[spec.chunk_bytes - CRC_BYTES : spec.chunk_bytes].copy().view("<u4")[0])
    if stored != checksum:
        raise _damaged(files, key, spec, chunk, f"has checksum {checksum:08x} instead of {stored:08x}", remedy)
    rows = out[: spec.chunk_bytes - CRC_BYTES].view(spec.dtype).reshape(spec.chunk_rows, *spec.shape[1:])[: stop - start]
    rows.flags.writeable = False
    return rows, checksum


def _damaged(files: Files, key: str, spec: ArraySpec, chunk: int, problem: str, remedy: str) -> DamagedStore:
    return DamagedStore(f"{files.place(key)} (block {chunk} of {spec.name}) {problem}; {remedy}")


def write_array(files: Files, group: str, spec: ArraySpec, data: np.ndarray, *, durable: bool = True) -> None:
    """Write all chunks of an array."""
    for chunk in range(spec.n_chunks):
        start, stop = spec.chunk_range(chunk)
        write_chunk(files, group, spec, chunk, data[start:stop], durable=durable)


def read_array(files: Files, group: str, spec: ArraySpec, *, remedy: str) -> np.ndarray:
    """Read all chunks of an array and verify their checksums. DamagedStore, with the remedy, if one is wrong."""
    out = np.empty(spec.shape, spec.dtype)
    for chunk in range(spec.n_chunks):
        start, stop = spec.chunk_range(chunk)
        out[start:stop], _ = read_chunk(files, group, spec, chunk, remedy=remedy)
    return out
