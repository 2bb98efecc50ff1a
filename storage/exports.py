"""Writing a selection where a trainer reads it: the chosen conversations with weight, cluster and rank."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage import selections
from storage.root import Root
from tagcos_stream.types import UserError

TRAIN = pa.list_(pa.struct([("begin", pa.uint32()), ("end", pa.uint32())]))
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string()), ("train", TRAIN)])
SCHEMA = pa.schema(
    [
        ("messages", pa.list_(MESSAGE)),
        ("tools", pa.string()),
        ("example_id", pa.string()),
        ("dataset", pa.string()),
        ("weight", pa.float64()),
        ("cluster", pa.int32()),
        ("rank", pa.int32()),
    ]
)


def export(root: Root, run_id: str, path: Path) -> int:
    """Write a run's selection to `path` (.jsonl or .parquet) in messages shape; the file appears whole or not at all.

    `weight` is the example's share of the pool's mean gradient (its weight in the cluster times the cluster's share of the pool;
    alike for all where the method has no weights), scaled to mean 1 over the selection, so that a weighted loss keeps the scale
    of a plain one. `rank` is the order of choice in the cluster, from 0.

    Returns:
        Number of examples written.

    Raises:
        UserError: unknown suffix, a run without a selection, or a path that cannot be written.
    """
    check_suffix(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            written = WRITERS[path.suffix](file, _rows(root, run_id))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    finally:
        partial.unlink(missing_ok=True)
    return written


def check_suffix(path: Path | None) -> None:
    """UserError where a name says no format that is written; None is no name."""
    if path is not None and path.suffix not in WRITERS:
        raise UserError(f"cannot export to {path}: the name must end in {' or '.join(WRITERS)}")


def _rows(root: Root, run_id: str) -> Iterator[list[dict[str, Any]]]:
    share = selections.selection(root.catalog, run_id)["share"]
    scale = len(share) / share.sum() if share.sum() > 0 else 1.0
    for frame in selections.selected_with_text(root, run_id):
        weighted = frame.with_columns(weight=pl.col("share") * scale)
        yield [
            {**{name: row[name] for name in SCHEMA.names}, "messages": [_message(m) for m in row["messages"]]}
            for row in weighted.iter_rows(named=True)
        ]


def _message(message: dict[str, Any]) -> dict[str, Any]:
    return {key: message[key] for key in ("role", "content", "name", "train") if message.get(key) is not None}


def _write_jsonl(file: BinaryIO, batches: Iterator[list[dict[str, Any]]]) -> int:
    written = 0
    for rows in batches:
        for row in rows:
            line = {key: value for key, value in row.items() if value is not None}
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        written += len(rows)
    return written


def _write_parquet(file: BinaryIO, batches: Iterator[list[dict[str, Any]]]) -> int:
    written = 0
    with pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for rows in batches:
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
            written += len(rows)
    return written


WRITERS = {".jsonl": _write_jsonl, ".parquet": _write_parquet}
