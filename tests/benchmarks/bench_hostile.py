"""Files made to cost time: `python -m tests.benchmarks.bench_hostile [--only NAME] [--limit 60]`.

Each file has under 10 MB and is ingested into a root of its own by a process of its own, rows and rejects committed to the
catalog as a run does. CPU seconds, since the machine may do other things; the last columns say what came of the file.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage.catalog import pool, runs
from storage.root import open_root
from tagcos_stream.data.read import read_file, resolve_sources
from tagcos_stream.types import UserError

MB = 1_000_000
SIZE = 9_900_000  # bytes of the files that are not packed


def _gz_of_breaks(n: int, byte: bytes = b"\n") -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = byte * (1 << 20)
    return b"".join([packer.compress(piece) for _ in range(n >> 20)] + [packer.flush()])


def _turns(n: int, word: str = "a") -> str:
    pair = f'{{"role":"user","content":"{word}"}},{{"role":"assistant","content":"{word}"}}'
    return '{"messages":[' + ",".join([pair] * n) + "]}"


def _cells(n: int, first: str) -> str:
    return ",".join([first, "completion", *(f"c{i}" for i in range(n))])


def _packed(rows: bytes) -> bytes:
    return gzip.compress(rows, 6)


def _long_chats(n: int) -> bytes:
    """Chats with one long system prompt, which packs more than a hundredfold."""
    words = random.Random(1)
    prompt = " ".join(f"{words.randrange(1 << 32):x}" for _ in range(2_200))
    row = f'{{"messages":[{{"role":"system","content":"{prompt}"}},{{"role":"user","content":"#"}},'
    row += '{"role":"assistant","content":"#"}]}'
    return b"\n".join(row.replace("#", f"{i:x}").encode() for i in range(n))


def _table(ending: str, prompts: list[str], answers: list[str]) -> bytes:
    """Pairs as Parquet (dictionary-coded, zstd) or Arrow (zstd)."""
    table, out = pa.table({"prompt": prompts, "completion": answers}), io.BytesIO()
    if ending == "parquet":
        pq.write_table(table, out, compression="zstd")
    else:
        with pa.ipc.new_file(out, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table, max_chunksize=10_000)
    return out.getvalue()


def _pages(rows: int, columns: int) -> bytes:
    """Parquet with a page for every cell of one letter."""
    out, cells = io.BytesIO(), {f"c{i}": ["b"] * rows for i in range(columns)}
    table = pa.table({"prompt": ["a"] * rows, "completion": ["b"] * rows, **cells})
    pq.write_table(
        table, out, compression="none", use_dictionary=False, write_statistics=False, data_page_size=1, write_batch_size=1
    )
    return out.getvalue()


def _long_text(size: int) -> bytes:
    """Arrow (zstd) of one text of so many zero bytes; making it takes no memory of that size."""
    buffers = [None, pa.py_buffer(np.array([0, size])), pa.py_buffer(np.zeros(size, np.uint8))]
    prompt, out = pa.Array.from_buffers(pa.large_string(), 1, buffers), io.BytesIO()
    batch = pa.record_batch({"prompt": prompt, "completion": ["a"]})
    with pa.ipc.new_stream(out, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch)
    return out.getvalue()


def _distinct(form: str, separator: str, most: int = SIZE) -> bytes:
    """As many rows of the form, no two alike, as fit."""
    rows, size, i = [], 0, 0
    while size < most:
        rows.append(form.replace("#", f"{i:x}"))
        size += len(rows[-1]) + len(separator)
        i += 1
    return separator.join(rows).encode()


def _list(body: bytes) -> bytes:
    return b"[" + body + b"]"


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "gzip of 419 million line breaks": ("a.jsonl.gz", lambda: _gz_of_breaks(419_430_400)),
    "the same breaks, CSV": ("a.csv.gz", lambda: gzip.compress(b"prompt,completion\n") + _gz_of_breaks(419_430_400)),
    "gzip of 419 million spaces": ("a.json.gz", lambda: _gz_of_breaks(419_430_400, b" ")),
    "gzip of 60 million line breaks, below the ratio's start": ("a.jsonl.gz", lambda: _gz_of_breaks(60 << 20)),
    "gzip of 60 million commas in a list": ("a.json.gz", lambda: gzip.compress(b"[1") + _gz_of_breaks(60 << 20, b",")),
    "gzip of good pairs, no two alike": ("a.jsonl.gz", lambda: _packed(_distinct('{"input":"#","output":"b"}', "\n", 120 * MB))),
    "gzip of one good pair again and again": ("a.jsonl.gz", lambda: _packed(b'{"input":"a","output":"b"}\n' * 5 * MB)),
    "the same, CSV": ("a.csv.gz", lambda: _packed(b"prompt,completion\n" + b"a,b\n" * 5 * MB)),
    "gzip of 20 KB chats that differ in their answers": ("a.jsonl.gz", lambda: _packed(_long_chats(9_000))),
    "Parquet of one 1 KB pair a million times": ("a.parquet", lambda: _table("parquet", ["long " * 200] * MB, ["b"] * MB)),
    "Parquet of short pairs": ("a.parquet", lambda: _table("parquet", ["a"] * 5 * MB, ["b"] * 5 * MB)),
    "Parquet of 20 KB prompts and answers that differ": (
        "a.parquet",
        lambda: _table("parquet", ["long " * 4_000] * 50_000, [f"{i:x}" for i in range(50_000)]),
    ),
    "Parquet of a page a cell": ("a.parquet", lambda: _pages(130_000, 0)),
    "Parquet of a page a cell, among many columns": ("a.parquet", lambda: _pages(130, 2_000)),
    "Arrow of 1 KB pairs, zstd": ("a.arrow", lambda: _table("arrow", ["long " * 200] * MB, ["b"] * MB)),
    "Arrow of short pairs, zstd": ("a.arrow", lambda: _table("arrow", ["a"] * 2 * MB, ["b"] * 2 * MB)),
    "Arrow of one text of 6 GiB, zstd": ("a.arrow", lambda: _long_text(6 << 30)),
    "line breaks": ("a.jsonl", lambda: b"\n" * SIZE),
    "line breaks, CSV": ("a.csv", lambda: b"prompt,completion\n" + b"\n" * SIZE),
    "CSV header of 100,000 columns": ("a.csv", lambda: (_cells(100_000, "prompt") + "\na,b\n").encode()),
    "CSV header of 1,200,000 columns": ("a.csv", lambda: _cells(1_200_000, "prompt").encode()),
    "CSV of 1,000 columns": ("a.csv", lambda: (_cells(1_000, "prompt") + "\n" + ("a,b" + "," * 1000 + "\n") * 9_800).encode()),
    "CSV of one-letter rows": ("a.csv", lambda: b"prompt,completion\n" + b"a\n" * (SIZE // 2)),
    "CSV of short pairs": ("a.csv", lambda: b"prompt,completion\n" + b"a,b\n" * (SIZE // 4)),
    "a row of 140,000 turns": ("a.jsonl", lambda: _turns(70_000).encode()),
    "rows of 1,000 turns": ("a.jsonl", lambda: ((_turns(500) + "\n") * 280).encode()),
    "rows of 1,000 turns, names mixed": ("a.jsonl", lambda: ((_turns(500).replace("role", "from", 1) + "\n") * 280).encode()),
    "a turn of 700,000 parts": (
        "a.jsonl",
        lambda: (
            '{"messages":[{"role":"user","content":["a"' + ',"a"' * 2_400_000 + ']},{"role":"assistant","content":"b"}]}'
        ).encode(),
    ),
    "a call in each of 60,000 turns": (
        "a.jsonl",
        lambda: (
            '{"messages":[{"role":"user","content":"a"}'
            + ',{"role":"tool_call","content":"{\\"name\\":\\"f\\",\\"arguments\\":{}}"}' * 130_000
            + "]}"
        ).encode(),
    ),
    "a history of 900,000 pairs": (
        "a.jsonl",
        lambda: ('{"prompt":"a","completion":"b","history":[["a","b"]' + ',["a","b"]' * 980_000 + "]}").encode(),
    ),
    "train ranges": (
        "a.jsonl",
        lambda: (
            '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","train":[{"begin":0,"end":1}'
            + ',{"begin":0,"end":1}' * 450_000
            + "]}]}"
        ).encode(),
    ),
    "list of 3.3 million empty objects": ("a.json", lambda: _list(b",".join([b"{}"] * (SIZE // 3)))),
    "lines of empty objects": ("a.jsonl", lambda: b"{}\n" * (SIZE // 3)),
    "list of commas": ("a.json", lambda: _list(b"1" + b"," * SIZE)),
    "list of numbers": ("a.json", lambda: _list(_distinct("#", ",").replace(b"a", b"1"))),
    "lines that are not JSON": ("a.jsonl", lambda: b"a\n" * (SIZE // 2)),
    "lines that are not JSON, no two alike": ("a.jsonl", lambda: _distinct("#x", "\n")),
    "objects of no shape, no two alike": ("a.jsonl", lambda: _distinct('{"a":"#"}', "\n")),
    "half of a pair, no two alike": ("a.jsonl", lambda: _distinct('{"input":"#"}', "\n")),
    "pairs without an answer": ("a.jsonl", lambda: _distinct('{"input":"#","output":""}', "\n")),
    "list of them": ("a.json", lambda: _list(_distinct('{"input":"#","output":""}', ","))),
    "conversations without turns": ("a.jsonl", lambda: _distinct('{"chat":[#]}', "\n").replace(b"[", b"[1")),
    "the shortest good pairs": ("a.jsonl", lambda: _distinct('{"input":"#","output":"b"}', "\n")),
    "good rows among broken ones": ("a.jsonl", lambda: _distinct('{"input":"#","output":"b"}\n{', "\n")),
    "brackets": ("a.json", lambda: b"[" * SIZE),
    "brackets in lines": ("a.jsonl", lambda: (b'{"messages":' + b"[" * 3_000_000 + b"\n") * 3),
    "backslashes": ("a.json", lambda: b'{"messages":"' + b"\\" * (SIZE - 20) + b'"}'),
    "an object of 800,000 keys": ("a.jsonl", lambda: b"{" + _distinct('"#":1', ",") + b"}"),
    "quoted line breaks in CSV": ("a.csv", lambda: b'prompt,completion\n"' + b"\n" * SIZE),
    "quotes in CSV": ("a.csv", lambda: b"prompt,completion\n" + b'""' * (SIZE // 2)),
    "an object of a million lists": ("a.json", lambda: b"{" + _distinct('"#":[{}]', ",") + b"}"),
    "an object of short lists": ("a.json", lambda: b"{" + _distinct('"#":[1]', ",") + b"}"),
    "a number of 9.9 million digits": ("a.jsonl", lambda: b'{"a":' + b"1" * SIZE + b"}"),
    "texts in 900 lists": (
        "a.jsonl",
        lambda: (
            '{"messages":[],"prompt":"a","completion":"b","choices":' + "[" * 900 + '""' + ',""' * 3_000_000 + "]" * 900 + "}"
        ).encode(),
    ),
    "prompts beside turns": (
        "a.jsonl",
        lambda: (_turns(5_000)[:-1] + ',"prompt":["' + '","'.join(f"{i:016d}" for i in range(480_000)) + '"]}').encode(),
    ),
    "a tree with an answer in every place": (
        "a.jsonl",
        lambda: (
            '{"message_tree_id":"t","prompt":'
            + '{"role":"prompter","text":"a","replies":[' * 400
            + ",".join(['{"role":"assistant","text":"b","replies":[]}'] * 19_000)
            + "]}" * 400
            + "}"
        ).encode(),
    ),
    "transcript marks": ("a.jsonl", lambda: ('{"text":"' + "### Human: a\\n### Assistant: b\\n" * 300_000 + '"}').encode()),
    "open Llama 2 marks": ("a.jsonl", lambda: ('{"text":"' + "[INST] a [/INST] b " + "[INST] " * 1_400_000 + '"}').encode()),
    "noise": ("a.jsonl", lambda: random.Random(7).randbytes(SIZE)),
    "noise, CSV": ("a.csv", lambda: b"prompt,completion\n" + random.Random(7).randbytes(SIZE)),
}


def ingest(path: str, folder: str) -> None:
    """One file into a new root, as a run does; prints what came of it."""
    root = open_root(folder)
    run = runs.open_run(root.catalog, config={}, config_hash="c", versions={}, seeds={})
    begin, rows, rejects = time.process_time(), 0, 0
    try:
        (file,) = resolve_sources([path])
        spec = file.version
        listed = {"source": path, "url": file.url, "digest": file.digest, "size": file.size, "format": file.format, "spec": spec}
        known = pool.add_files(root.catalog, run.run_id, pl.DataFrame([listed]))
        with root.catalog.lingering():
            for block in read_file(file):
                counts = pool.commit_ingest(root, run.run_id, known["file_id"][0], block)
                rows, rejects = rows + counts.rows, rejects + counts.rejected
        reason = ""
    except UserError as e:
        reason = str(e).removeprefix(f"{path}: ")[:100].replace("|", " ")
    seconds = time.process_time() - begin
    found = root.catalog.read("SELECT detail FROM rejects ORDER BY row LIMIT 1")["detail"].to_list()
    kept = int(root.catalog.read("SELECT count(*) AS n FROM rejects")["n"][0])
    out = {"cpu": seconds, "rows": rows, "examples": rows - rejects, "rejects": rejects, "kept": kept}
    print(json.dumps(out | {"reason": reason or (found[0][:80].replace("|", " ") if found else "")}))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="")
    options.add_argument("--ingest", nargs=2, metavar=("FILE", "ROOT"), help=argparse.SUPPRESS)
    options.add_argument("--limit", type=float, default=60.0)
    given = options.parse_args()
    if given.ingest:
        ingest(*given.ingest)
        return
    print("| file | MB | CPU s | rows | examples | rejects | kept | first reason |\n|---|---|---|---|---|---|---|---|")
    for name, (path, make) in FILES.items():
        if given.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / path
            place.write_bytes(make())
            size = place.stat().st_size
            command = [sys.executable, "-m", "tests.benchmarks.bench_hostile", "--ingest", str(place), str(Path(folder) / "root")]
            bound = functools.partial(resource.setrlimit, resource.RLIMIT_CPU, (int(given.limit), int(given.limit) + 1))
            done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=bound)
            if done.returncode == -signal.SIGXCPU:
                print(f"| {name} | {size / MB:.1f} | not within {given.limit:.0f} s |", flush=True)
                continue
            if done.returncode:
                print(f"| {name} | {size / MB:.1f} | {done.stderr.strip().splitlines()[-1]} |", flush=True)
                continue
            found = json.loads(done.stdout)
            shown = [f"{found[key]:,}" for key in ("rows", "examples", "rejects", "kept")]
            print(f"| {name} | {size / MB:.1f} | {found['cpu']:.1f} | {' | '.join(shown)} | {found['reason']} |", flush=True)


if __name__ == "__main__":
    main()
