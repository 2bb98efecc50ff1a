"""A source as the user names it: plain values, readable without opening anything."""

from __future__ import annotations

from dataclasses import dataclass, field

from tagcos_stream.data.row_options import RowOptions


@dataclass(frozen=True)
class SourceSpec:
    """One source.

    path: file, folder, glob or URL. name: of the source, default the path's last part. dataset: written to every row that does
    not carry its own; default the file's name without its endings. format: json, jsonl, csv, tsv, parquet or arrow where the
    name does not tell. key: which list of a JSON object. split: read only files with this word in their path (`train` finds
    train-00000.parquet). limit: rows read of each file. weight: for whoever shares a budget over sources; ingest does not use
    it. options: how rows become messages.
    """

    path: str
    name: str | None = None
    dataset: str | None = None
    format: str | None = None
    key: str | None = None
    split: str | None = None
    limit: int | None = None
    weight: float = 1.0
    options: RowOptions = field(default_factory=RowOptions)
