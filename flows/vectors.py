"""Vectors of the user's own (setting `vectors`): the index of what their files hold, and which example each belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl

from storage.catalog import vectors
from storage.catalog.spaces import Space
from storage.database import Catalog
from tagcos_stream.config import VECTORS, Settings
from tagcos_stream.data.vectors import USABLE, VectorFile, find_vector_files, open_vector_file, read_batches, scaled
from tagcos_stream.identity import space_recipe
from tagcos_stream.types import UserError

INDEX = {"example_id": pl.String, "file": pl.String, "row": pl.Int64, "digest": pl.UInt64, "part": pl.UInt32, "at": pl.Int64}


@dataclass(frozen=True)
class VectorIndex:
    """What the files hold, without the vectors themselves.

    Parameters
    ----------
    files
        Parquet files and Zarr groups.
    width
        W, of every vector.
    entries
        Columns of INDEX: the key (example_id, or file and row; the other is null), the hash of the vector up to its length (0
        where it is zero or not finite), and where it is: number of the file, row in it. No key comes twice.
    """

    files: tuple[VectorFile, ...]
    width: int
    entries: pl.DataFrame


@dataclass(frozen=True)
class ResolvedVectors:
    """The examples of a root that have a vector."""

    index: VectorIndex
    given: pl.DataFrame  # example_id, digest, part, at; one row an example
    unmatched: int  # entries that belong to no example
    repeats: int  # entries of rows whose example has a vector already


def need_vectors(settings: Settings) -> None:
    """Refuse settings of a run that do not agree about vectors, before anything is read.

    Parameters
    ----------
    settings
        Of a run that reads sources.

    Raises
    ------
    UserError
        The variant has no files, files have no variant, a file cannot be used, or a signal needs a model that is not run.
    """
    wanted = VECTORS in settings.variants
    if wanted and not settings.vectors:
        raise UserError("gradient vectors reads vectors of your own: name their files with --vectors")
    if settings.vectors and not wanted:
        raise UserError(
            "vectors are read by the gradient variant vectors only: add --gradient vectors, or --also-gradients vectors to "
            "compute gradients as well"
        )
    if settings.ifd and not settings.model_variants:
        raise UserError("ifd is computed by a model, and gradient vectors runs none: add --also-gradients hidden")
    if wanted:
        _open_files(tuple(find_vector_files(settings.vectors)))


def read_index(settings: Settings) -> VectorIndex:
    """Read the files once, in batches, and keep keys and hashes; files that did not change are not read twice.

    The index takes about 100 bytes for every row of the files.

    Raises
    ------
    UserError
        A file cannot be read, has rows of another width, or has two vectors for one key.
    """
    paths = find_vector_files(settings.vectors)
    return _read_index(tuple((path, *_state(path)) for path in paths))


def resolve(catalog: Catalog, index: VectorIndex, run_id: str | None) -> ResolvedVectors:
    """Find the example of each entry.

    Parameters
    ----------
    catalog, index
        The root, and what the files hold.
    run_id
        The run whose source files are meant where entries name files and rows; None for the newest versions.

    Returns
    -------
    ResolvedVectors
        An example that several rows of sources hold has the vector of the first of them.

    Raises
    ------
    UserError
        A file name means several source files.
    """
    entries = index.entries
    by_id = entries.filter(pl.col("example_id").is_not_null())
    by_row = entries.filter(pl.col("example_id").is_null())
    known = vectors.known(catalog, by_id["example_id"])
    found = [by_id.filter(pl.col("example_id").is_in(known.implode()))]
    if len(by_row):
        ids = _source_files(vectors.files_of(catalog, run_id), by_row["file"].unique().to_list())
        of = vectors.occurrences(catalog, ids["file_id"].to_list()).join(ids, on="file_id")
        found.append(by_row.drop("example_id").join(of, on=["file", "row"], maintain_order="left").select(by_id.columns))
    matched = pl.concat(found)
    given = matched.unique("example_id", keep="first", maintain_order=True)
    return ResolvedVectors(
        index,
        given.select("example_id", "digest", "part", "at"),
        len(entries) - len(matched),
        len(matched) - len(given),
    )


def find_vector_space(catalog: Catalog, settings: Settings, run_id: str | None = None) -> Space | None:
    """Find the space of the variant `vectors` that a run of these settings works in.

    Parameters
    ----------
    catalog, settings
        The root, and settings with vectors.
    run_id
        The run, where its sources are read.

    Returns
    -------
    Space or None
        The newest space with the same settings that has no other vector for any example of the files.
    """
    recipe = space_recipe(settings, VECTORS)
    if not settings.vectors or not vectors.has_space(catalog, recipe):
        return None
    index = read_index(settings)
    return vectors.find_space(catalog, recipe, index.width, resolve(catalog, index, run_id).given)


def wanted_rows(found: ResolvedVectors, example_ids: pl.Series) -> pl.DataFrame:
    """Return where the vectors of examples are.

    Parameters
    ----------
    found, example_ids
        All vectors, and the examples.

    Returns
    -------
    pl.DataFrame
        example_id, digest, part, at, in order of part and at.
    """
    return found.given.filter(pl.col("example_id").is_in(example_ids.implode())).sort("part", "at")


def read_rows(index: VectorIndex, wanted: pl.DataFrame) -> Iterator[np.ndarray]:
    """Read vectors a second time, those that are wanted.

    Parameters
    ----------
    index, wanted
        From `read_index` and `wanted_rows`.

    Yields
    ------
    np.ndarray
        (n, W) as `scaled` returns them: the vectors of the next n rows of `wanted`.

    Raises
    ------
    UserError
        A file changed since it was indexed.
    """
    for part, file in enumerate(index.files):
        mine = wanted.filter(pl.col("part") == part)
        places, digests = mine["at"].to_numpy(), mine["digest"].to_numpy()
        done = 0
        if not len(mine):
            continue
        for start, _, batch in read_batches(file):
            stop = done + int(np.searchsorted(places[done:], start + len(batch)))
            if stop > done:
                rows, states = scaled(batch[places[done:stop] - start])
                if not np.array_equal(_digests(rows, states), digests[done:stop]):
                    break
                yield rows
                done = stop
            if done == len(places):
                break
        if done < len(places):
            raise UserError(f"vectors {file.path}: the file changed while it was read; run the same command again")


def _open_files(paths: tuple[str, ...]) -> tuple[VectorFile, ...]:
    files = tuple(open_vector_file(path) for path in paths)
    for file in files[1:]:
        if file.width != files[0].width:
            raise UserError(
                f"vectors {file.path} are {file.width} wide, those of {files[0].path} {files[0].width}: vectors of one space "
                "have one width"
            )
    return files


def _state(path: str) -> tuple[int, int]:
    """Bytes and time of the last change of a file, or of all files of a group."""
    files = [file.stat() for file in ([Path(path)] if Path(path).is_file() else Path(path).rglob("*"))]
    return sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0)


@lru_cache(maxsize=1)
def _read_index(states: tuple[tuple[str, int, int], ...]) -> VectorIndex:
    files = _open_files(tuple(path for path, *_ in states))
    parts = [pl.DataFrame(schema=INDEX)]
    for part, file in enumerate(files):
        for start, keys, batch in read_batches(file):
            found = keys.with_columns(
                digest=pl.Series(_digests(*scaled(batch)), dtype=pl.UInt64),
                part=pl.lit(part, pl.UInt32),
                at=pl.int_range(start, start + len(keys), dtype=pl.Int64),
            )
            parts.append(found.drop_nulls(file.keys))
    entries = pl.concat(parts, how="diagonal").select(list(INDEX))
    key_columns = ["example_id", "file", "row"]
    twice = (
        entries.group_by(key_columns)
        .agg(pl.col("digest").n_unique(), pl.struct("part", "at").head(2))
        .filter(pl.col("digest") > 1)
    )
    if len(twice):
        first = twice.sort(key_columns).to_dicts()[0]
        key = first["example_id"] or f"row {first['row']} of {first['file']}"
        places = " and ".join(f"row {place['at']} of {files[place['part']].path}" for place in first["part"])
        raise UserError(
            f"vectors: {len(twice):,} examples have two different vectors, such as {key} in {places}: keep one of each"
        )
    entries = entries.unique(key_columns, keep="first", maintain_order=True)
    if not len(entries):
        raise UserError(f"vectors {', '.join(file.path for file in files)}: no row has a vector")
    return VectorIndex(files, files[0].width, entries)


def _digests(rows: np.ndarray, states: np.ndarray) -> np.ndarray:
    """(n,) uint64: hashes of vectors as `scaled` returns them; 0 where one is not usable."""
    found = [hashlib.blake2b(row, digest_size=8).digest() for row in np.ascontiguousarray(rows)]
    values = np.maximum(np.frombuffer(b"".join(found), "<u8"), 1)
    return np.where(states == USABLE, values, 0).astype(np.uint64)


def _source_files(there: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """file, file_id: the source file that each name means: its address, its path, or the end of one that is the only such."""
    urls = dict(there.select("url", "file_id").iter_rows())
    own = there.filter("own")["url"].to_list()
    found: list[tuple[str, str]] = []
    for name in names:
        path = str(Path(name).expanduser().resolve())
        exact = [url for url in (name, path) if url in urls][:1]
        ending = "/" + name.removeprefix("./")
        ends = exact or [url for url in own if url.endswith(ending)] or [url for url in urls if url.endswith(ending)]
        if len(ends) > 1:
            raise UserError(f"vectors name file {name}, which {len(ends)} source files could be: {', '.join(sorted(ends)[:3])}")
        found += [(name, urls[url]) for url in ends]
    return pl.DataFrame(found, schema={"file": pl.String, "file_id": pl.String}, orient="row")
