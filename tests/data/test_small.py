"""The four files that users have, against what a correct reader yields."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tagcos_stream.data.read import read_file, resolve_sources


@pytest.mark.parametrize("name", ["alpaca.json", "sharegpt.jsonl", "messages.parquet", "prompt_completion.jsonl.gz"])
@pytest.mark.parametrize("block_rows", [8192, 97])
def test_ingest__small_files_equal_reference(shared_data: Path, name: str, block_rows: int) -> None:
    (file,) = resolve_sources([str(shared_data / "small" / name)])
    blocks = list(read_file(file, block_rows=block_rows))
    got = pl.concat([b.occurrences for b in blocks])
    want = pl.read_parquet(shared_data / "small" / "reference.parquet").filter(pl.col("file") == name).sort("line")
    assert sum(b.rejects.height for b in blocks) == 0
    assert got["row"].to_list() == want["line"].to_list()
    assert [[(m["role"], m["content"]) for m in row] for row in got["messages"].to_list()] == [
        [(m["role"], m["content"]) for m in row] for row in want["messages"].to_list()
    ]
    assert [b.last for b in blocks] == [False] * (len(blocks) - 1) + [True]
    assert blocks[-1].bytes_read == file.size
