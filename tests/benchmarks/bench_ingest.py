"""Ingest against its peers: `python -m tests.benchmarks.bench_ingest FOLDER [--copies 10] [--datasets-python PYTHON]`.

FOLDER holds Parquet files with a `messages` column; they are written to one JSONL file, `copies` times over. Each reader runs
in a process of its own: seconds, rows a second, and the peak of its anonymous memory (mapped input is not counted). Ours writes
the canonical rows, ids included, as zstd Parquet, as a run does; so does Polars (without ids or checks); datasets fills its
Arrow cache and maps.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson
import polars as pl
import pyarrow as pa

WATCH = """
import json, sys, threading, time
peak, stop = [0], threading.Event()
def watch():
    while not stop.is_set():
        for line in open('/proc/self/status'):
            if line.startswith('RssAnon'):
                peak[0] = max(peak[0], int(line.split()[1]))
        stop.wait(0.02)
path, out = sys.argv[1], sys.argv[2]
"""
DONE = """
seconds = time.perf_counter() - begin
stop.set()
print(json.dumps({'rows': rows, 'seconds': seconds, 'peak_mib': peak[0] / 1024}))
"""
START = "threading.Thread(target=watch, daemon=True).start()\nbegin = time.perf_counter()\n"

TASKS = {
    "ours": f"""{WATCH}
import pyarrow.parquet as pq
from tagcos_stream.data.read import read_file, resolve_sources
{START}
(file,) = resolve_sources([path])
rows, writer = 0, None
for block in read_file(file):
    rows += block.occurrences.height
    table = block.occurrences.to_arrow()
    writer = writer or pq.ParquetWriter(out, table.schema, compression='zstd')
    writer.write_table(table, row_group_size=1024)
writer.close()
{DONE}""",
    "ours, reading alone": f"""{WATCH}
from tagcos_stream.data.read import read_file, resolve_sources
{START}
(file,) = resolve_sources([path])
rows = sum(block.occurrences.height for block in read_file(file))
{DONE}""",
    "polars sink_parquet": f"""{WATCH}
import polars as pl
{START}
pl.scan_ndjson(path).sink_parquet(out)
rows = pl.scan_parquet(out).select(pl.len()).collect().item()
{DONE}""",
    "datasets + map": f"""{WATCH}
import datasets
datasets.disable_progress_bars()
{START}
data = datasets.load_dataset('json', data_files=path, split='train', cache_dir=out)
def convert(row):
    return {{'messages': [{{'role': m['role'], 'content': m['content']}} for m in row['messages']]}}
data = data.map(convert)
rows = len(data)
{DONE}""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--datasets-python", help="interpreter of an environment that has `datasets`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mix.jsonl"
        write_jsonl(args.folder, path, args.copies)
        versions = f"polars {pl.__version__}, pyarrow {pa.__version__}, Python {platform.python_version()}"
        print(f"{path.stat().st_size / 1e9:.2f} GB; {versions}")
        print(f"{'':22}{'rows':>12}{'seconds':>10}{'rows/s':>12}{'peak MiB':>10}{'speed of ours / its':>21}")
        best: dict[str, dict] = {}
        for _ in range(args.repeats):
            for name, code in TASKS.items():
                python = sys.executable if "datasets" not in name else args.datasets_python
                if python is not None:
                    one = run(python, code, path, Path(folder) / "out")
                    if name not in best or one["seconds"] < best[name]["seconds"]:
                        best[name] = one
        for name, r in best.items():
            rate, ratio = r["rows"] / r["seconds"], r["seconds"] / best["ours"]["seconds"]
            print(f"{name:22}{r['rows']:>12,}{r['seconds']:>10.1f}{rate:>12,.0f}{r['peak_mib']:>10.0f}{ratio:>21.2f}")


def run(python: str, code: str, path: Path, out: Path) -> dict:
    done = subprocess.run([python, "-c", code, str(path), str(out)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    subprocess.run(["rm", "-rf", str(out)], check=True)
    return json.loads(done.stdout.splitlines()[-1])


def write_jsonl(folder: Path, path: Path, copies: int) -> None:
    with path.open("wb") as out:
        for file in sorted(folder.glob("*.parquet")):
            lines = b"".join(orjson.dumps(row) + b"\n" for row in pl.read_parquet(file).iter_rows(named=True))
            for _ in range(copies):
                out.write(lines)


if __name__ == "__main__":
    main()
