"""Vectors of the user's own: Parquet files and Zarr groups, read in batches.

A file has one vector a row, in a column of lists of floating-point numbers (an array of two dimensions in a Zarr group), and says
which example a row belongs to: by `example_id`, or by `file` and `row` of a source.

Dimension letters: n rows of a batch, W width of a vector.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tagcos_stream.paths import expanded
from tagcos_stream.types import UserError

PARQUET = (".parquet", ".pq")
NAMES = ("vector", "vectors", "embedding", "embeddings", "features")  # of the column, where several could be it
BATCH_BYTES = 16 << 20  # of the vectors of a batch, as float64
USABLE, NOT_FINITE, ZERO = 0, 1, 2


@dataclass(frozen=True)
class VectorFile:
    """A Parquet file or a Zarr group with vectors."""

    path: str
    column: str  # that holds the vectors
    keys: tuple[str, ...]  # ("example_id",) or ("file", "row")
    rows: int
    width: int


def find_vector_files(names: Sequence[str]) -> list[str]:
    """Find the files and groups that a user names.

    Parameters
    ----------
    names
        Parquet files, Zarr groups, folders that hold some, and globs.

    Returns
    -------
    list of str
        Paths, in the order of the names, those of a folder or glob sorted; without repetition.

    Raises
    ------
    UserError
        There is no such file, or no file in a folder.
    """
    found: list[str] = []
    for name in names:
        path = expanded(name)
        if "://" in name:
            raise UserError(f"vectors {name}: only local files are read; copy it to this machine")
        if not path.exists() and glob.has_magic(name):
            paths = [Path(p) for p in sorted(glob.glob(str(path), recursive=True)) if _is_of_vectors(Path(p))]
        elif path.is_dir() and not _is_group(path):
            paths = sorted(p for p in path.rglob("*") if _is_of_vectors(p))
        else:
            if not path.exists():
                raise UserError(f"vectors {name}: no such file or folder")
            if not _is_of_vectors(path):
                raise UserError(f"vectors {name}: give a Parquet file ({', '.join(PARQUET)}) or a Zarr group")
            paths = [path]
        if not paths:
            raise UserError(f"vectors {name}: no Parquet file ({', '.join(PARQUET)}) or Zarr group is there")
        found += [str(p.absolute()) for p in paths]
    return list(dict.fromkeys(found))


def open_vector_file(path: str) -> VectorFile:
    """Read what a file declares.

    Parameters
    ----------
    path
        From `find_vector_files`.

    Returns
    -------
    VectorFile
        With the width of its vectors: declared, or that of its first row that has one.

    Raises
    ------
    UserError
        It cannot be read, or it has no column of vectors or no keys; the message lists the columns that there are.
    """
    return _open_group(path) if Path(path).is_dir() else _open_parquet(path)


def read_batches(file: VectorFile) -> Iterator[tuple[int, pl.DataFrame, np.ndarray]]:
    """Read a file from its beginning, a bounded number of bytes at a time.

    Parameters
    ----------
    file
        From `open_vector_file`.

    Yields
    ------
    tuple of (int, pl.DataFrame, np.ndarray)
        First row; keys of the n rows; vectors (n, W), of the file's number type. Rows without a vector have null keys.

    Raises
    ------
    UserError
        A row has another width than the file.
    """
    size = max(1, BATCH_BYTES // (8 * file.width))
    yield from _group_batches(file, size) if Path(file.path).is_dir() else _parquet_batches(file, size)


def scaled(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale vectors (n, W) by their largest number, so that squares neither overflow nor vanish in float32.

    Returns
    -------
    rows : np.ndarray
        (n, W) float32, the largest magnitude of each row being 1; rows that are not usable are zero.
    states : np.ndarray
        (n,) uint8: USABLE, NOT_FINITE or ZERO.
    """
    wide = np.asarray(vectors, np.float64)
    most = np.abs(wide).max(axis=1, initial=0.0)  # NaN where a number is
    states = np.where(np.isfinite(most), np.where(most > 0, USABLE, ZERO), NOT_FINITE).astype(np.uint8)
    rows = np.zeros(wide.shape, np.float32)
    usable = states == USABLE
    rows[usable] = wide[usable] / most[usable, None]
    return rows, states


def _is_group(path: Path) -> bool:
    declared = path / "zarr.json"  # of format 3, in which arrays have one as well
    if not declared.is_file():
        return (path / ".zgroup").is_file()
    return b"node_type" in (found := declared.read_bytes()) and json.loads(found)["node_type"] == "group"


def _is_of_vectors(path: Path) -> bool:
    return (path.is_file() and path.suffix in PARQUET) or (path.is_dir() and _is_group(path))


def _keys(path: str, columns: Sequence[str]) -> tuple[str, ...]:
    for keys in (("example_id",), ("file", "row")):
        if set(keys) <= set(columns):
            return keys
    raise UserError(
        f"vectors {path}: rows belong to examples by a column example_id (`tagcos texts` writes the ids), or by columns file "
        f"and row of a source; there are {', '.join(columns) or 'none'}"
    )


def _column(path: str, found: Sequence[str], all_columns: Sequence[str]) -> str:
    """The column with the vectors, among those whose type could be theirs."""
    named = [name for name in NAMES if name in found]
    if len(found) == 1 or named:
        return found[0] if len(found) == 1 else named[0]
    why = f"several could hold them: {', '.join(found)}; name one of them {NAMES[0]}" if found else "none holds them"
    raise UserError(
        f"vectors {path}: vectors are lists of float16, float32 or float64, of the columns {', '.join(all_columns)} {why}"
    )


def _another_width(file: VectorFile, row: int, width: int) -> UserError:
    return UserError(
        f"vectors {file.path}: row {row} has {width} numbers, not {file.width} like the rows before: vectors of one space have "
        "one width"
    )


def _open_parquet(path: str) -> VectorFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def holds_vectors(kind: Any) -> bool:
        lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        return bool(lists and pa.types.is_floating(kind.value_type))

    try:
        with pq.ParquetFile(path) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
            column = _column(path, [field.name for field in schema if holds_vectors(field.type)], schema.names)
            keys, kind = _keys(path, schema.names), schema.field(column).type
            width = kind.list_size if pa.types.is_fixed_size_list(kind) else 0
            for batch in [] if width else parquet.iter_batches(batch_size=64, columns=[column]):
                width = next((len(value) for value in batch.column(0) if value.is_valid), 0)
                if width:
                    break
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"vectors {path}: cannot be read: {str(error).splitlines()[0]}") from None
    if not width:
        raise UserError(f"vectors {path}: column {column} has no vector in any row")
    return VectorFile(path, column, keys, rows, width)


def _parquet_batches(file: VectorFile, size: int) -> Iterator[tuple[int, pl.DataFrame, np.ndarray]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    start = 0
    try:
        with pq.ParquetFile(file.path, pre_buffer=False, buffer_size=1 << 20) as parquet:
            for batch in parquet.iter_batches(batch_size=size, columns=[*file.keys, file.column], use_threads=False):
                lists = batch.column(file.column)
                there = np.asarray(lists.is_valid())
                lengths = np.asarray(pc.list_value_length(lists).fill_null(file.width))
                if (other := np.flatnonzero(lengths != file.width)).size:
                    raise _another_width(file, start + int(other[0]), int(lengths[other[0]]))
                vectors = np.full((len(batch), file.width), np.nan, lists.type.value_type.to_pandas_dtype())
                vectors[there] = lists.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, file.width)
                named = pl.DataFrame({name: pl.Series(batch.column(name)) for name in file.keys})
                yield start, _typed(file, named, there), vectors
                start += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"vectors {file.path}: cannot be read after row {start}: {str(error).splitlines()[0]}") from None


def _typed(file: VectorFile, keys: pl.DataFrame, there: np.ndarray) -> pl.DataFrame:
    """Keys as text and integers, null where the row has no vector."""
    kinds = {"example_id": pl.String, "file": pl.String, "row": pl.Int64}
    try:
        typed = keys.cast({name: kinds[name] for name in file.keys})
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"vectors {file.path}: example_id and file are texts, row is a whole number: {str(error).splitlines()[0]}"
        ) from None
    return typed.select(pl.when(pl.Series(there)).then(pl.col(name)).alias(name) for name in file.keys)


def _open_group(path: str) -> VectorFile:
    import zarr

    try:
        arrays = dict(zarr.open_group(path, mode="r").arrays())
    except (OSError, ValueError) as error:
        raise UserError(f"vectors {path}: cannot be read as a Zarr group: {str(error).splitlines()[0]}") from None
    names = sorted(arrays)
    column = _column(path, [name for name in names if arrays[name].ndim == 2 and arrays[name].dtype.kind == "f"], names)
    keys, (rows, width) = _keys(path, names), arrays[column].shape
    for key in keys:
        if arrays[key].shape[0] != rows:
            raise UserError(f"vectors {path}: {column} has {rows} rows, {key} has {arrays[key].shape[0]}")
    if not rows * width:
        raise UserError(f"vectors {path}: {column} has shape {arrays[column].shape}, so no vector")
    return VectorFile(path, column, keys, rows, width)


def _group_batches(file: VectorFile, size: int) -> Iterator[tuple[int, pl.DataFrame, np.ndarray]]:
    import zarr

    arrays = dict(zarr.open_group(file.path, mode="r").arrays())
    try:
        for start in range(0, file.rows, size):
            stop = min(start + size, file.rows)
            named = pl.DataFrame({name: _key_column(np.asarray(arrays[name][start:stop])) for name in file.keys})
            yield start, _typed(file, named, np.ones(stop - start, bool)), np.asarray(arrays[file.column][start:stop])
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"vectors {file.path}: cannot be read after row {start}: {str(error).splitlines()[0]}") from None


def _key_column(found: np.ndarray) -> pl.Series:
    """Keys of a Zarr array: numbers, texts, or ids as 16 bytes a row, as feature segments hold them."""
    if found.ndim == 2 and found.dtype == np.uint8:
        text = np.ascontiguousarray(found).tobytes().hex()
        step = 2 * found.shape[1]
        return pl.Series([text[i : i + step] for i in range(0, len(text), step)], dtype=pl.String)
    if found.dtype.kind in "iu":
        return pl.Series(found)
    return pl.Series([key.decode() if isinstance(key, bytes) else str(key) for key in found.tolist()], dtype=pl.String)
