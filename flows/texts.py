"""`tagcos texts`: the examples of sources with their ids, for an embedding model or another tool of the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from flows.progress import Reporter, Stage
from storage.exports.files import replacing
from tagcos_stream.data.canonical import message_text
from tagcos_stream.data.read import read_file
from tagcos_stream.data.sources import SourceFile, resolve_sources
from tagcos_stream.types import UserError

SCHEMA = pa.schema([
    ("example_id", pa.string()), ("file", pa.string()), ("row", pa.int64()), ("dataset", pa.string()), ("text", pa.string()),
])  # fmt: skip


def write_texts(sources: Sequence[str], path: Path, reporter: Reporter) -> int:
    """Write every different example of some sources to a Parquet file. Neither a root nor a model is needed.

    Parameters
    ----------
    sources
        As for `tagcos run`.
    path
        The file; one that is there is replaced if it was written by this function.
    reporter
        Gets progress.

    Returns
    -------
    int
        Number of examples.

    Raises
    ------
    UserError
        A source cannot be read or has no usable example, or the file cannot be written or is another, such as a source.
    """
    if path.suffix != ".parquet":
        raise UserError(f"{path}: texts are written to a .parquet file")
    if not _may_replace(path):
        raise UserError(f"{path} exists and was not written by `tagcos texts`: choose another --out, or remove it")
    files = resolve_sources(sources)
    written = 0
    with replacing(path) as partial:
        with pq.ParquetWriter(partial, SCHEMA) as writer, reporter.stage("read sources", "bytes") as progress:
            for frame in _different(files, progress):
                writer.write_table(frame.to_arrow().cast(SCHEMA))
                written += len(frame)
        if not written:
            raise UserError(f"no usable example in {', '.join(sources)}: `tagcos run` says why of each row")
    return written


def _may_replace(path: Path) -> bool:
    """Whether there is no such file, or one with the columns of this function's: not a source."""
    if not path.is_file() or not path.stat().st_size:
        return True
    try:
        return bool(pq.read_schema(path).names == SCHEMA.names)
    except (OSError, pa.ArrowException):
        return False


def _different(files: Sequence[SourceFile], progress: Stage) -> Iterator[pl.DataFrame]:
    """The examples of each block that none before had."""
    seen: set[bytes] = set()
    total, before = sum(file.size for file in files), 0
    for file in files:
        for block in read_file(file):
            found = block.occurrences.unique("example_id", keep="first", maintain_order=True)
            ids = [bytes.fromhex(example_id) for example_id in found["example_id"].to_list()]
            new = pl.Series([example_id not in seen for example_id in ids], dtype=pl.Boolean)
            seen.update(ids)
            kept = found.filter(new)
            texts = ["\n\n".join(map(message_text, turns)) for turns in kept["messages"].to_list()]
            yield kept.select(
                "example_id",
                pl.lit(file.url).alias("file"),
                pl.col("row").cast(pl.Int64),
                "dataset",
                text=pl.Series(texts, dtype=pl.String),
            )
            progress(before + block.bytes_read, total)
        before += file.size
