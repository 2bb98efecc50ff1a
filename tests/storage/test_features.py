"""Feature segments: what is written is what is read, by us and by any Zarr reader, or it is said what is wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zarr

from storage.arrays.chunked import DamagedStore
from storage.arrays.segments import FeatureRows, create_segment, open_features, open_segment, open_writer, segment_group
from storage.files.base import Files
from storage.files.open import open_files
from tagcos_stream.types import UserError

ROWS, DIM, BLOCK = 70, 24, 16
IDS = [f"{i * 2654435761:032x}" for i in range(ROWS)]


def values() -> np.ndarray:
    x = np.random.default_rng(5).standard_normal((ROWS, DIM)).astype(np.float16)
    x[[3, 40]] = np.nan
    return x


def filled(files: Files, segment: str = "seg-00001") -> np.ndarray:
    x = values()
    writer = create_segment(files, "space", segment, example_ids=IDS, dim=DIM, chunk_rows=BLOCK)
    for block in range(writer.n_blocks):
        start, stop = writer.block_range(block)
        writer.write_block(block, x[start:stop])
    return x


@pytest.fixture(params=["local", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return open_files(str(tmp_path / "files") if request.param == "local" else request.getfixturevalue("bucket"))


@pytest.fixture
def local(tmp_path: Path) -> Files:
    return open_files(str(tmp_path / "files"))


def test_segment__round_trip(files: Files) -> None:
    x = filled(files)
    reader = open_segment(files, "space", "seg-00001")
    assert reader.shape == (ROWS, DIM)
    assert reader.example_ids() == IDS
    np.testing.assert_array_equal(reader.gather(np.arange(ROWS)), x)
    np.testing.assert_array_equal(reader.gather(np.arange(10, 50)), x[10:50])
    assert reader.gather(np.arange(0)).shape == (0, DIM)
    wanted = np.array([69, 0, 17, 17, 3])
    for verify in (True, False):
        np.testing.assert_array_equal(open_segment(files, "space", "seg-00001").gather(wanted, verify=verify), x[wanted])


def test_segment__any_zarr_reader_opens_it(tmp_path: Path) -> None:
    x = filled(open_files(str(tmp_path)))
    group = zarr.open_group(tmp_path / segment_group("space", "seg-00001"), mode="r")
    np.testing.assert_array_equal(np.asarray(group["features"]), x)
    assert bytes(np.asarray(group["example_ids"])[7]).hex() == IDS[7]
    assert group.attrs["format"] == 1


def test_segment__any_zarr_reader_opens_it_on_s3(bucket: str) -> None:
    import obstore

    x = filled(open_files(bucket))
    store = zarr.storage.ObjectStore(obstore.store.from_url(f"{bucket}/{segment_group('space', 'seg-00001')}"), read_only=True)
    np.testing.assert_array_equal(np.asarray(zarr.open_group(store, mode="r")["features"]), x)


def test_segment__unwritten_blocks_read_as_nan_through_zarr_and_are_refused_by_us(tmp_path: Path) -> None:
    files = open_files(str(tmp_path))
    create_segment(files, "space", "seg-00001", example_ids=IDS, dim=DIM, chunk_rows=BLOCK)
    assert np.isnan(np.asarray(zarr.open_group(tmp_path / segment_group("space", "seg-00001"), mode="r")["features"])).all()
    with pytest.raises(DamagedStore, match=r"block 1 of features.*missing"):
        open_segment(files, "space", "seg-00001").read_block(1)


def test_create_segment__again_is_fine_and_another_shape_is_not(files: Files) -> None:
    x = filled(files)
    create_segment(files, "space", "seg-00001", example_ids=IDS, dim=DIM, chunk_rows=BLOCK)
    np.testing.assert_array_equal(open_segment(files, "space", "seg-00001").gather(np.arange(ROWS)), x)
    with pytest.raises(DamagedStore, match=r"shape.*\[70, 24\].*\[70, 25\]"):
        create_segment(files, "space", "seg-00001", example_ids=IDS, dim=DIM + 1, chunk_rows=BLOCK)


def test_write_block__refuses_what_is_no_block(local: Files) -> None:
    writer = create_segment(local, "space", "seg-00001", example_ids=IDS, dim=DIM, chunk_rows=BLOCK)
    with pytest.raises(ValueError, match="chunk 0 of features"):
        writer.write_block(0, np.zeros((BLOCK - 1, DIM), np.float16))
    with pytest.raises(ValueError, match="float32"):
        writer.write_block(0, np.zeros((BLOCK, DIM), np.float32))
    with pytest.raises(ValueError, match="chunks 0 to 4"):
        writer.write_block(5, np.zeros((BLOCK, DIM), np.float16))
    for bad in (np.inf, np.nan):
        block = np.zeros((BLOCK, DIM), np.float16)
        block[2, 3] = bad
        with pytest.raises(ValueError, match=r"rows \[2\].*non-finite"):
            writer.write_block(0, block)


def test_open_segment__refuses_other_codecs_and_formats(local: Files) -> None:
    filled(local)
    key = f"{segment_group('space', 'seg-00001')}/features/zarr.json"
    found = json.loads(local.read(key))
    found["codecs"] = found["codecs"][:1]
    local.write(key, json.dumps(found).encode())
    with pytest.raises(DamagedStore, match=r"codecs is .*crc32c"):
        open_segment(local, "space", "seg-00001")
    key = f"{segment_group('space', 'seg-00001')}/zarr.json"
    found = json.loads(local.read(key))
    found["attributes"]["format"] = 2
    local.write(key, json.dumps(found).encode())
    with pytest.raises(UserError, match="format 2, this version reads 1"):
        open_segment(local, "space", "seg-00001")


def test_read__every_flipped_byte_is_found_and_named(files: Files) -> None:
    filled(files)
    reader = open_segment(files, "space", "seg-00001")
    for block in range(5):
        key = reader.chunk_key(block)
        body = bytearray(files.read(key))
        for position in (0, len(body) // 2, len(body) - 5, len(body) - 1):  # data and checksum
            flipped = bytearray(body)
            flipped[position] ^= 0x10
            files.write(key, bytes(flipped))
            fresh = open_segment(files, "space", "seg-00001")
            with pytest.raises(
                DamagedStore, match=rf"seg-00001.*c\.{block}\.0 \(block {block} of features\) has checksum.*check"
            ):
                fresh.read_block(block)
            with pytest.raises(DamagedStore, match="checksum"):
                fresh.gather(np.array([block * BLOCK]))
        files.write(key, bytes(body))


@pytest.mark.parametrize(("change", "words"), [(-1, "bytes instead of"), (-1000, "bytes instead of"), (3, "at least")])
def test_read__truncated_or_grown_files_are_found(files: Files, change: int, words: str) -> None:
    filled(files)
    reader = open_segment(files, "space", "seg-00001")
    body = files.read(reader.chunk_key(2))
    files.write(reader.chunk_key(2), body[:change] if change < 0 else body + bytes(change))
    with pytest.raises(DamagedStore, match=f"block 2 of features.*{words}"):
        reader.read_block(2)
    if change < -4:
        with pytest.raises(DamagedStore, match=words):
            reader.gather(np.array([47]), verify=False)


def test_feature_rows__masks_orders_and_gathers(local: Files) -> None:
    x = filled(local, "seg-00001")
    filled(local, "seg-00002")
    masks = [~np.isnan(x).any(axis=1), np.zeros(ROWS, bool)]
    masks[0][16:32] = False  # a block without any row is never read
    masks[1][[5, 69]] = True
    local.delete(open_segment(local, "space", "seg-00001").chunk_key(1))
    rows = FeatureRows([open_segment(local, "space", s) for s in ("seg-00001", "seg-00002")], masks)
    expected = np.concatenate([x[masks[0]], x[masks[1]]])
    assert rows.n_rows == len(expected)
    for order in (range(len(rows.starts) - 1), [2, 0, 1, 3, 0], [0, 1, 2, 0, 1]):
        for block in order:
            got = rows.read(block)
            np.testing.assert_array_equal(got, expected[rows.starts[block] : rows.starts[block + 1]])
            assert not got.flags.writeable
            assert got.flags.c_contiguous
    np.testing.assert_array_equal(rows.gather(np.array([50, 0, 53])), expected[[50, 0, 53]])
    assert rows.locations[-1].tolist() == [1, 69]
    named = pl.DataFrame({"segment": np.array(rows.segments)[rows.locations[:, 0]], "row": rows.locations[:, 1]})
    np.testing.assert_array_equal(open_features(local, "space", named).locations, rows.locations)
    with pytest.raises(ValueError, match="ascending"):
        open_features(local, "space", named.reverse())


def test_read__blocks_that_are_kept_are_not_written_over(tmp_path: Path) -> None:
    """Buffers are used again: not while anything looks at them."""
    files = open_files(str(tmp_path))
    dim, block = 8192, 128
    writer = create_segment(
        files, "space", "seg-00001", example_ids=[f"{i:032x}" for i in range(10 * block)], dim=dim, chunk_rows=block
    )
    for b in range(10):
        writer.write_block(b, np.full((block, dim), b, np.float16))
    rows = FeatureRows([open_segment(files, "space", "seg-00001")], [np.ones(10 * block, bool)])
    kept = [rows.read(b)[3:5, 7:9] if b % 2 else rows.read(b).view(np.uint16)[0] for b in range(10)]
    for _ in range(3):
        for b in range(10):
            rows.read(b)
    assert all((piece == (b if b % 2 else np.float16(b).view(np.uint16))).all() for b, piece in enumerate(kept))


def _write_for_ever(url: str, blocks: list[int]) -> None:
    writer = open_writer(open_files(url), "space", "seg-00001")
    x = values()
    while True:
        for block in blocks:
            start, stop = writer.block_range(block)
            writer.write_block(block, x[start:stop])


@pytest.mark.process
def test_gather__reads_the_block_where_the_store_refuses_its_pieces(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore

    x = filled(open_files(bucket))
    reader = open_segment(open_files(bucket), "space", "seg-00001")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise obstore.exceptions.GenericError("503 Slow Down")

    monkeypatch.setattr(obstore, "get_ranges", refuse)
    rows = np.array([20, 1, 18])
    np.testing.assert_array_equal(reader.gather(rows, verify=False), x[rows])


def test_read__threads_end_with_the_pass(local: Files) -> None:
    x = filled(local)
    rows = pl.DataFrame({"segment": "seg-00001", "row": np.flatnonzero(~np.isnan(x[:, 0]))})
    before = set(threading.enumerate())  # with those of readers that other tests left in the middle
    readers = [open_features(local, "space", rows) for _ in range(8)]
    for _ in range(2):  # and a second pass reads ahead again
        for reader in readers:
            for block in range(len(reader.starts) - 1):
                reader.read(block)
        assert set(threading.enumerate()) <= before


def test_write_block__killed_writers_leave_blocks_absent_or_whole(tmp_path: Path) -> None:
    """Two processes write different blocks over and over and are killed, 12 times, at random moments."""
    files = open_files(str(tmp_path / "files"))
    create_segment(files, "space", "seg-00001", example_ids=IDS, dim=DIM, chunk_rows=BLOCK)
    moments = np.random.default_rng(11).uniform(0.0, 0.15, 12)
    context = multiprocessing.get_context("fork")
    written = set()
    for moment in moments:
        workers = [context.Process(target=_write_for_ever, args=(files.url, blocks)) for blocks in ([0, 2, 4], [1, 3])]
        for worker in workers:
            worker.start()
        time.sleep(0.05 + moment)
        for worker in workers:
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
        reader = open_segment(files, "space", "seg-00001")
        x = values()
        for block in range(5):
            if files.size(reader.chunk_key(block)) is not None:
                start, stop = reader.spec.chunk_range(block)
                np.testing.assert_array_equal(reader.read_block(block), x[start:stop])
                written.add(block)
    assert written == set(range(5))
