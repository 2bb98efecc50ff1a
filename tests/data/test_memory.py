"""Peak memory does not grow with a file. The long proof: `python -m pytest -s -m slow tests/data/test_memory.py`.

TAGCOS_FILE_GB sets the size of its files, default 2.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

READ = """
import json, sys, threading, time
peak, stop = 0, threading.Event()
def watch():
    global peak
    while not stop.is_set():
        peak = max(peak, *(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('RssAnon')))
        stop.wait(0.02)
threading.Thread(target=watch, daemon=True).start()
from tagcos_stream.data.read import read_file, resolve_sources
(file,) = resolve_sources(sys.argv[1:])
begin = time.perf_counter()
rows = [(b.occurrences.height, b.rejects.height) for b in read_file(file)]
print(json.dumps([sum(r[0] for r in rows), sum(r[1] for r in rows), peak / 1024, time.perf_counter() - begin]))
"""
WORDS = ("stream", "Block", "gradient", "café", "row\n", "two", "coreset", "of", "the", "漢字") * 20
ROWS = 1000


def _rows() -> Iterator[dict]:
    for i in range(ROWS):
        text = " ".join(WORDS[i % 50 : i % 50 + 100])
        yield {"id": f"r{i}", "messages": [{"role": "user", "content": f"{i} {text}"}, {"role": "assistant", "content": text}]}


def _big_file(path: Path, size: int) -> int:
    """Writes about `size` bytes of rows; returns their number."""
    lines = [json.dumps(r, ensure_ascii=False).encode() for r in _rows()]
    times = max(1, size // sum(map(len, lines)))
    if path.suffix == ".parquet":
        # one row group, and plain pages: the worst that a writer's settings can do
        table = pa.Table.from_pylist(list(_rows()))
        pq.write_table(
            pa.concat_tables([table] * times), path, row_group_size=times * ROWS, use_dictionary=False, compression="snappy"
        )
        return times * ROWS
    first, between, last = (b"[\n", b",\n", b"\n]") if path.suffix == ".json" else (b"", b"\n", b"\n")
    piece = between.join(lines)
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb") as out:
        out.write(first)
        for i in range(times):
            out.write(piece + (between if i < times - 1 else last))
    return times * ROWS


def _read(path: Path) -> tuple[int, int, float, float]:
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.parquet"])
def test_memory__under_a_gibibyte_for_any_size(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    n = _big_file(path, int(float(os.environ.get("TAGCOS_FILE_GB", "2")) * 1e9))
    rows, rejects, peak, seconds = _read(path)
    print(f"\n{name}: {path.stat().st_size / 1e9:.2f} GB, {rows:,} rows, {seconds:.1f} s, peak {peak:.0f} MiB")
    path.unlink()
    assert (rows, rejects) == (n, 0)
    assert peak < 1024


@pytest.mark.process
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_memory__is_that_of_blocks(tmp_path: Path, name: str) -> None:
    n = _big_file(tmp_path / name, 60 << 20)
    rows, rejects, peak, _ = _read(tmp_path / name)
    assert (rows, rejects) == (n, 0)
    assert peak < 500
