"""Figures of the store, as ratios to plain file I/O of the same bytes in the same run: python -m tests.benchmarks.bench_storage

Needs about 7 GB of disk for the full size (100,000 x 8,192 float16); --rows makes it smaller, --folder chooses the disk.
Every pair is measured in turn, --rounds times; the table shows the median of the ratios and the best seconds of each side.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import zarr

from storage.arrays.grouped import clustering_group, regroup, write_centroids
from storage.arrays.grouped_reader import ClusteringReader
from storage.arrays.segments import BLOCK_ROWS, FeatureRows, SegmentWriter, create_segment, open_segment, segment_group
from storage.catalog import choices, pool, runs
from storage.database import Catalog
from storage.files.local import LocalFiles
from storage.files.open import open_files
from tagcos_stream.types import RowBlocks

BLOCK_BYTES = 4 << 20


def timed(body: Callable[[], object]) -> float:
    start = time.perf_counter()
    body()
    return time.perf_counter() - start


def report(name: str, bar: str, ours: list[float], theirs: list[float], *, invert: bool = False) -> None:
    """Ratio of speeds (theirs / ours in time), or of times where `invert`."""
    ratios = [o / t if invert else t / o for o, t in zip(ours, theirs, strict=True)]
    print(
        f"{name:<66} {min(ours):9.4f} s {min(theirs):9.4f} s  {np.median(ratios):6.2f}  "
        f"({min(ratios):.2f} to {max(ratios):.2f})  bar {bar}",
        flush=True,
    )


def drop_cache(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")] if folder.is_dir() else [folder]:
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def plain_write(path: Path, blocks: list[np.ndarray], n_blocks: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for block in range(n_blocks):
            file.write(blocks[block % len(blocks)].data)
        os.fsync(file.fileno())


def plain_read(path: Path) -> None:
    buffer = bytearray(BLOCK_BYTES)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def plain_copy(source: Path, target: Path) -> None:
    buffer = bytearray(BLOCK_BYTES)
    with open(source, "rb", buffering=0) as file, open(target, "wb", buffering=0) as out:
        while got := file.readinto(buffer):
            out.write(memoryview(buffer)[:got])
        os.fsync(out.fileno())


def segment_write(writer: SegmentWriter, blocks: list[np.ndarray], workers: int) -> None:
    def one(block: int) -> int:
        start, stop = writer.block_range(block)
        return writer.write_block(block, blocks[block % len(blocks)][: stop - start])

    with ThreadPoolExecutor(workers) as workers_pool:
        list(workers_pool.map(one, range(writer.n_blocks)))


def sequential(rows: RowBlocks) -> None:
    for block in range(len(rows.starts) - 1):
        rows.read(block)


def read_clusters(reader: ClusteringReader) -> None:
    for cluster in range(reader.n_clusters):
        sequential(reader.cluster(cluster))


def open_and_gather(files: LocalFiles, wanted: np.ndarray) -> np.ndarray:
    return open_segment(files, "space", "seg-00001").gather(wanted, verify=False)


def bench_features(folder: Path, n: int, dim: int, rounds: int) -> None:
    files = LocalFiles(folder)
    generator = np.random.default_rng(0)
    blocks = [generator.standard_normal((BLOCK_ROWS, dim), dtype=np.float32).astype(np.float16) for _ in range(4)]
    n_blocks = -(-n // BLOCK_ROWS)
    ids = [f"{i:032x}" for i in range(n)]
    print(
        f"\n({n:,}, {dim:,}) float16, {n * dim * 2 / 1e9:.2f} GB, blocks of {BLOCK_ROWS} rows, crc32c on; "
        "ours, plain, ratio of speeds"
    )

    # Every round writes under new names: for a minute after a deletion ext4 goes through the inodes it freed, at 0.4 ms a file,
    # and a virtual machine gives freed memory back to its host, to be faulted in again.
    written = 0
    for workers in (1, 2, 4):
        ours: list[float] = []
        theirs: list[float] = []
        for turn in range(rounds):
            written += 1
            writer = create_segment(files, "space", f"seg-{written:05d}", example_ids=ids, dim=dim)
            plain = folder / f"plain-{written}"
            both = [
                (ours, partial(segment_write, writer, blocks, workers)),
                (theirs, partial(plain_write, plain, blocks, n_blocks)),
            ]
            for times, write in both[:: -1 if turn % 2 else 1]:
                times.append(timed(write))
        report(f"write, {workers} worker(s), fsync a block; plain: one file, one fsync", "0.5", ours, theirs)

    warm: list[float] = []
    cold: list[float] = []
    warm_plain: list[float] = []
    cold_plain: list[float] = []
    for turn in range(1, written + 1):
        segment = f"seg-{turn:05d}"
        plain = folder / f"plain-{turn}"
        rows = FeatureRows([open_segment(files, "space", segment)], [np.ones(n, bool)])
        sequential(rows)
        warm.append(timed(partial(sequential, rows)))
        plain_read(plain)
        warm_plain.append(timed(partial(plain_read, plain)))
        reads = [
            (cold, folder / segment_group("space", segment), partial(sequential, rows)),
            (cold_plain, plain, partial(plain_read, plain)),
        ]
        for times, place, read in reads[:: -1 if turn % 2 else 1]:
            drop_cache(place)
            times.append(timed(read))
    report("sequential read, verified, page cache warm", "0.8", warm, warm_plain)
    report("sequential read, verified, page cache dropped", "0.8", cold, cold_plain)

    bench_gather(folder, files, plain, n, dim, rounds)

    labels = generator.integers(0, 100, n)
    totals: dict[str, Any] = {
        "distances": np.zeros(n, np.float32),
        "sums": np.zeros((100, dim)),
        "squares": np.zeros(100, np.int64),
    }
    ours, theirs = [], []
    sequential(rows)
    plain_read(plain)
    for turn in range(rounds):
        name = f"c{turn}"
        write_centroids(files, name, np.zeros((100, dim), np.float32))
        copies: list[tuple[list[float], Callable[[], object]]] = [
            (ours, partial(regroup, files, name, rows, labels, **totals)),
            (theirs, partial(plain_copy, plain, folder / f"copy-{turn}")),
        ]
        for times, body in copies[:: -1 if turn % 2 else 1]:
            times.append(timed(body))
    report("regroup into 100 clusters, verified; plain: copy the bytes, fsync", "0.5", ours, theirs)
    reader = ClusteringReader(files, "c0", [0])
    ours = [timed(partial(read_clusters, reader)) for _ in range(rounds)]
    report("read all clusters, verified, warm", "-", ours, warm_plain[:rounds])
    used = sum(path.stat().st_size for path in (folder / clustering_group("c0")).rglob("c.*"))
    print(f"regrouped size: {used / (n * dim * 2):.3f} of the rows' bytes")


def bench_gather(folder: Path, files: LocalFiles, plain: Path, n: int, dim: int, rounds: int) -> None:
    generator = np.random.default_rng(1)
    mapped = np.memmap(plain, np.float16, "r", shape=(n, dim))
    through_zarr = zarr.open_group(folder / segment_group("space", "seg-00001"), mode="r")["features"]
    assert isinstance(through_zarr, zarr.Array)
    verified = open_segment(files, "space", "seg-00001")
    for block in range(verified.spec.n_chunks):
        verified.read_block(block)
    results: dict[str, list[float]] = {"mapped": [], "raw": [], "after": [], "first": [], "zarr": []}
    for turn in range(max(rounds, 5)):
        wanted = generator.choice(n, 300, replace=False)
        _ = mapped[wanted].sum()  # the page cache holds the rows; mapping them is part of what is measured
        mapped = np.memmap(plain, np.float16, "r", shape=(n, dim))
        results["mapped"].append(timed(partial(mapped.__getitem__, wanted)))
        results["raw"].append(timed(partial(open_and_gather, files, wanted)))
        results["after"].append(timed(partial(verified.gather, wanted)))
        fresh = open_segment(files, "space", "seg-00001")
        results["first"].append(timed(partial(fresh.gather, wanted)))
        if turn < 2:
            results["zarr"].append(timed(partial(through_zarr.oindex.__getitem__, np.sort(wanted))))
    theirs = results["mapped"]
    report(
        "gather 300 random rows, blocks verified before; memmap (ratio of times)", "<= 5", results["after"], theirs, invert=True
    )
    report("gather 300, not verified, segment opened anew", "-", results["raw"], theirs, invert=True)
    report("gather 300, every block verified at first touch", "-", results["first"], theirs, invert=True)
    report("gather 300 through zarr-python", "-", results["zarr"], theirs[:2], invert=True)


def bench_shapes(folder: Path, n: int, dim: int) -> None:
    """The table of docs/measurements/storage.md: what each codec and shape would cost through zarr-python, and the raw path."""
    print(f"\ncodecs and shapes, ({n:,}, {dim:,}) float16 through zarr-python; MB/s write, read; size; 300 rows gathered")
    generator = np.random.default_rng(0)
    data = generator.standard_normal((1024, dim), dtype=np.float32).astype(np.float16)
    crc, zstd = zarr.codecs.Crc32cCodec(), zarr.codecs.ZstdCodec(level=1)
    shapes: list[tuple[str, int, int | None, Any]] = [
        (f"chunk {rows} rows, {name}", rows, shard, codecs)
        for rows, shard, name, codecs in (
            (256, None, "crc32c", (crc,)), (64, None, "crc32c", (crc,)), (1024, None, "crc32c", (crc,)),
            (256, 4096, "crc32c, shards of 4,096", (crc,)), (256, None, "zstd 1 + crc32c", (zstd, crc)),
        )
    ]  # fmt: skip
    wanted = np.sort(generator.choice(n, 300, replace=False))
    total = n * dim * 2 / 1e6
    for name, rows, shard, codecs in shapes:
        path = folder / "shape.zarr"
        shutil.rmtree(path, ignore_errors=True)
        array = zarr.create_array(
            path, shape=(n, dim), chunks=(rows, dim), dtype="float16", compressors=codecs, filters=(),
            shards=(shard, dim) if shard else None,
        )  # fmt: skip
        step = max(shard or 0, 1024)

        def write(array: zarr.Array = array, step: int = step) -> None:
            for start in range(0, n, step):
                stop = min(start + step, n)
                array[start:stop] = np.resize(data, (stop - start, dim))
            os.sync()

        def read(array: zarr.Array = array, step: int = step) -> None:
            for start in range(0, n, step):
                array[start : start + step]

        writing, reading = timed(write), timed(read)
        gathering = timed(partial(array.oindex.__getitem__, wanted))
        size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) / 1e6
        print(f"  {name:<44} {total / writing:7.0f} {total / reading:7.0f}  {size / total:5.2f}  {gathering:7.3f} s", flush=True)
    files = LocalFiles(folder)
    for rows in (64, 256, 1024):
        shutil.rmtree(folder / "spaces", ignore_errors=True)
        writer = create_segment(
            files, "space", "seg-00001", example_ids=[f"{i:032x}" for i in range(n)], dim=dim, chunk_rows=rows
        )
        writing = timed(partial(segment_write, writer, [data[:rows]], 2))
        reader = open_segment(files, "space", "seg-00001")
        reading = timed(partial(sequential, FeatureRows([reader], [np.ones(n, bool)])))
        gathering = timed(partial(reader.gather, wanted))
        print(
            f"  {f'ours, chunk {rows} rows, crc32c, fsync a block':<44} {total / writing:7.0f} {total / reading:7.0f}   1.00 "
            f" {gathering:7.3f} s"
        )


def bench_catalog(folder: Path, known: int, incoming: int) -> None:
    """In a process of its own: the peak is of the whole process, Python and the incoming ids included."""
    path = folder / "catalog.duckdb"
    catalog = Catalog(path)
    opened = runs.open_run(catalog, config={}, config_hash="", versions={}, seeds={})
    with catalog.transaction() as connection:
        connection.execute(
            "INSERT INTO examples SELECT md5(i::VARCHAR), 'seg-00001', i, 'made', 2, 100, ? FROM range(?) t(i)",
            [opened.run_id, known],
        )  # fmt: skip
    half = incoming // 2
    with catalog.reading() as connection:
        ids = connection.sql(
            "SELECT md5(i::VARCHAR) AS id FROM range(?, ?) t(i)", params=[known - half, known - half + incoming]
        ).pl()["id"]
    ids = ids.sample(fraction=1.0, shuffle=True, seed=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with catalog.reading() as connection:
        new = pool.unknown_ids(connection, ids)
    seconds = time.perf_counter() - start
    assert len(new) == incoming - half
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{incoming:,} incoming ids against {known:,} known: {seconds:.2f} s, peak of the process {peak / 2**20:.2f} GiB "
        f"(before it {before / 2**20:.2f})  bar 5 s, 2 GiB",
        flush=True,
    )
    block = ids.head(8192)
    with catalog.reading() as connection:
        seconds = min(timed(lambda: pool.unknown_ids(connection, block)) for _ in range(3))
    print(f"8,192 incoming ids against {known:,} known: {seconds:.3f} s")

    rows = pl.DataFrame({"example_id": ids}).with_columns(
        segment=pl.lit("seg-00001"),
        row=pl.int_range(len(ids)),
        rank=pl.int_range(len(ids)),
        round=pl.lit(0),
        score=pl.int_range(len(ids)) / 7.0,
        residual_after=pl.int_range(len(ids)) / 3.0,
        weight=pl.lit(1.0),
        margin=pl.int_range(len(ids)) / 5.0,
    )
    arguments: dict[str, Any] = {"budget": len(ids), "residual": 0.5, "seconds": 0.0, "stats": {}}
    seconds = timed(lambda: choices.commit_group(catalog, opened.run_id, 0, selection=rows, candidates=rows.head(1), **arguments))
    print(f"insert {incoming:,} selection rows, one transaction, opened to closed: {seconds:.2f} s  bar 5 s")
    seconds = timed(lambda: choices.commit_group(catalog, opened.run_id, 1, selection=rows.head(1), candidates=rows, **arguments))
    print(f"insert {incoming:,} candidate rows: {seconds:.2f} s")
    one = rows.head(1)

    def small(groups: range) -> float:
        """Median milliseconds of a transaction for each group."""
        each = [
            timed(partial(choices.commit_group, catalog, opened.run_id, k, selection=one, candidates=one, **arguments))
            for k in groups
        ]
        return float(np.median(each)) * 1e3

    alone = small(range(2, 22))
    with catalog.lingering():
        following = small(range(22, 42))
    print(
        f"one small transaction on this catalog ({path.stat().st_size / 1e6:.0f} MB): median {alone:.1f} ms; "
        f"one after the other, as in a run: {following:.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=8192)
    parser.add_argument("--known", type=int, default=10_000_000)
    parser.add_argument("--incoming", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--only", choices=("features", "shapes", "catalog", "catalog-here"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder, prefix="tagcos-bench-") as name:
        folder = Path(name)
        if chosen.only == "catalog-here":
            bench_catalog(folder, chosen.known, chosen.incoming)
            return
        print(
            f"{os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}, zarr {zarr.__version__}, "
            f"duckdb {duckdb.__version__}, polars {pl.__version__}, {open_files(name).url}"
        )
        if chosen.only in (None, "features"):
            bench_features(folder, chosen.rows, chosen.dim, chosen.rounds)
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if chosen.only in (None, "shapes"):
            bench_shapes(folder, min(chosen.rows, 32_768), chosen.dim)
    if chosen.only in (None, "catalog"):
        print()
        again = [sys.executable, "-m", "tests.benchmarks.bench_storage", "--only", "catalog-here", "--known", str(chosen.known)]
        subprocess.run([*again, "--incoming", str(chosen.incoming), "--folder", str(chosen.folder)], check=True)


if __name__ == "__main__":
    main()
