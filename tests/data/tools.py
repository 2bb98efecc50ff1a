"""What the ingest tests share: write a file, read it, look at what came out."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import zstandard

from tagcos_stream.data.read import Limits, SourceSpec, read_file, resolve_sources
from tagcos_stream.types import IngestBlock

FILE_KINDS = [
    "jsonl",
    "jsonl.gz",
    "jsonl.zst",
    "ndjson",
    "json",
    "json.gz",
    "json.zst",
    "pretty.json",
    "object.json",
    "csv",
    "csv.gz",
    "tsv",
    "tsv.zst",
    "parquet",
    "arrow",
    "stream.arrow",
    "feather",
]
GOOD = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}


@dataclass
class Read:
    """All blocks of one file."""

    blocks: list[IngestBlock]

    @property
    def occurrences(self) -> pl.DataFrame:
        return pl.concat([b.occurrences for b in self.blocks])

    @property
    def rejects(self) -> pl.DataFrame:
        return pl.concat([b.rejects for b in self.blocks])

    @property
    def reasons(self) -> dict[int, str]:
        return dict(zip(self.rejects["row"].to_list(), self.rejects["reason"].to_list(), strict=True))

    @property
    def texts(self) -> list[list[tuple[str, str]]]:
        return [[(m["role"], m["content"]) for m in row] for row in self.occurrences["messages"].to_list()]


def read(path: Path | str, *, start_row: int = 0, block_rows: int = 8192, limits: Limits | None = None, **spec: Any) -> Read:
    (file,) = resolve_sources([SourceSpec(str(path), **spec)])
    blocks = list(read_file(file, start_row=start_row, block_rows=block_rows, limits=limits))
    assert [b.last for b in blocks] == [False] * (len(blocks) - 1) + [True]
    assert all(a.next_row <= b.next_row and a.bytes_read <= b.bytes_read for a, b in pairwise(blocks))
    return Read(blocks)


def write(path: Path, rows: Iterable[Any]) -> Path:
    """Rows (objects, or bytes as they are) as JSONL, packed by the path's ending."""
    data = b"".join((r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode()) + b"\n" for r in rows)
    return write_bytes(path, data)


def write_bytes(path: Path, data: bytes) -> Path:
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


def chat(i: int) -> dict[str, Any]:
    """A good row that differs from all others."""
    return {
        "id": f"row-{i}",
        "messages": [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Answer {i} é"}],
    }


def make_file(path: Path, rows: list[Any]) -> Path:
    """The rows as a file of the kind that the path's ending names."""
    kind = path.name.split(".", 1)[1]
    if kind.startswith("jsonl") or kind.startswith("ndjson"):
        return write(path, rows)
    if kind == "pretty.json":
        return write_bytes(path, json.dumps(rows, indent=2).encode())
    if kind == "object.json":
        return write_bytes(path, json.dumps({"version": 1, "note": [1, 2], "data": rows, "end": {"a": []}}).encode())
    if kind.startswith("json"):
        return write_bytes(path, json.dumps(rows).encode())
    if kind.startswith(("csv", "tsv")):
        out = io.StringIO()
        writer = csv.writer(out, delimiter="\t" if kind.startswith("tsv") else ",")
        writer.writerow(["id", "messages"])
        writer.writerows([[r.get("id", ""), json.dumps(r["messages"])] for r in rows])
        return write_bytes(path, out.getvalue().encode())
    frame = pl.DataFrame([{"id": r.get("id"), "messages": r["messages"]} for r in rows])
    if kind == "parquet":
        frame.write_parquet(path, row_group_size=17)
    elif kind == "stream.arrow":
        table = frame.to_arrow()
        with pa.OSFile(str(path), "wb") as f, pa.ipc.new_stream(f, table.schema) as out_:
            out_.write_table(table, max_chunksize=13)
    else:
        frame.write_ipc(path)
    return path
