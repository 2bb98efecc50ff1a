"""Regrouping: every cluster is one run of whole chunks, holds its rows and nothing else, and grows without being rewritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from storage.arrays.chunked import DamagedStore
from storage.arrays.grouped import choose_chunk_rows, part_group, regroup, regroup_bytes, write_centroids
from storage.arrays.grouped_reader import ClusteringReader
from storage.arrays.segments import FeatureRows, create_segment, open_features, open_segment
from storage.files.base import Files
from storage.files.open import open_files
from tagcos_stream.types import RowBlocks, UserError

DIM = 8


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return open_files(str(tmp_path / "files"))


def segment(files: Files, name: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(features, mask of good rows)"""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, DIM)).astype(np.float16)
    good = generator.random(n) > 0.1
    x[~good] = np.nan
    writer = create_segment(files, "space", name, example_ids=[f"{seed:016x}{i:016x}" for i in range(n)], dim=DIM, chunk_rows=32)
    for block in range(writer.n_blocks):
        start, stop = writer.block_range(block)
        writer.write_block(block, x[start:stop])
    return x, good


def whole(rows: RowBlocks) -> np.ndarray:
    found = [rows.read(b) for b in range(len(rows.starts) - 1)]
    assert [len(block) for block in found] == np.diff(rows.starts).tolist()
    return np.concatenate([np.zeros((0, rows.dim), np.float16), *found])


def beside(labels: np.ndarray, n_clusters: int) -> dict[str, Any]:
    """What a part keeps of its rows: numbers that tell the parts apart."""
    sizes = np.bincount(labels, minlength=n_clusters)
    sums = sizes[:, None] * np.arange(DIM, dtype=np.float64)
    return {"distances": np.arange(len(labels), dtype=np.float32), "sums": sums, "squares": 3 * sizes}


def begin(files: Files, name: str, n_clusters: int) -> np.ndarray:
    centroids = np.arange(n_clusters * DIM, dtype=np.float32).reshape(n_clusters, DIM)
    write_centroids(files, name, centroids)
    return centroids


@pytest.mark.parametrize(
    ("n", "n_clusters", "chunk_rows"), [(500, 7, None), (500, 7, 4), (40, 3, 256), (33, 33, None), (200, 1, 32)]
)
def test_regroup__each_cluster_holds_its_rows_in_order(files: Files, n: int, n_clusters: int, chunk_rows: int | None) -> None:
    x, good = segment(files, "seg-00001", n, 1)
    rows = FeatureRows([open_segment(files, "space", "seg-00001")], [good])
    labels = np.random.default_rng(2).integers(0, n_clusters, rows.n_rows) ** 2 // max(n_clusters - 1, 1)  # some clusters empty
    seen: list[tuple[int, int]] = []
    centroids = begin(files, "c", n_clusters)
    info = regroup(
        files, "c", rows, labels, **beside(labels, n_clusters), chunk_rows=chunk_rows,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (rows.n_rows, rows.n_rows)
    reader = ClusteringReader(files, "c", [0])
    assert (reader.n_clusters, reader.dim, reader.n_rows) == (n_clusters, DIM, rows.n_rows)
    np.testing.assert_array_equal(reader.labels, labels)
    np.testing.assert_array_equal(reader.centroids, centroids)
    np.testing.assert_array_equal(reader.distances, np.arange(rows.n_rows))
    sizes = np.bincount(labels, minlength=n_clusters)
    sums, counted, squares = reader.totals()
    np.testing.assert_array_equal(counted, sizes)
    np.testing.assert_array_equal(squares, 3 * sizes)
    np.testing.assert_array_equal(sums[:, 2], 2 * sizes)
    for k in range(n_clusters):
        np.testing.assert_array_equal(reader.cluster_rows(k), np.flatnonzero(labels == k))
        np.testing.assert_array_equal(whole(reader.cluster(k)), x[good][labels == k])
    assert info.slots % info.chunk_rows == 0
    assert reader.verify(0) == info.digest
    everything = pl.DataFrame({"segment": "seg-00001", "row": np.arange(len(good))})
    np.testing.assert_array_equal(reader.find(everything), np.where(good, np.cumsum(good) - 1, -1))


def test_regroup__is_the_same_when_it_is_done_again(files: Files) -> None:
    _, good = segment(files, "seg-00001", 300, 1)
    rows = FeatureRows([open_segment(files, "space", "seg-00001")], [good])
    labels = np.random.default_rng(0).integers(0, 5, rows.n_rows)
    first = regroup(files, "c", rows, labels, **beside(labels, 5))
    assert regroup(files, "c", rows, labels, **beside(labels, 5)) == first
    assert regroup(files, "d", rows, labels, **beside(labels, 5)).digest == first.digest


def test_regroup__a_new_part_leaves_the_old_files_alone(files: Files, tmp_path: Path) -> None:
    x1, good1 = segment(files, "seg-00001", 200, 1)
    rows1 = FeatureRows([open_segment(files, "space", "seg-00001")], [good1])
    labels1 = np.random.default_rng(0).integers(0, 4, rows1.n_rows)
    begin(files, "c", 4)
    regroup(files, "c", rows1, labels1, **beside(labels1, 4))
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in (tmp_path / "files" / "clusterings").rglob("*")
        if path.is_file()
    }

    x2, good2 = segment(files, "seg-00002", 90, 2)
    chosen = pl.DataFrame({"segment": "seg-00002", "row": np.flatnonzero(good2)})
    rows2 = open_features(files, "space", chosen)
    labels2 = np.random.default_rng(1).integers(0, 4, rows2.n_rows)
    regroup(files, "c", rows2, labels2, **beside(labels2, 4), part=1)

    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    old, new = ClusteringReader(files, "c", [0]), ClusteringReader(files, "c", [0, 1])
    assert old.n_rows == rows1.n_rows  # a part that the catalog does not name is not read
    sizes = np.bincount(labels1, minlength=4) + np.bincount(labels2, minlength=4)
    np.testing.assert_array_equal(new.totals()[1], sizes)
    np.testing.assert_array_equal(new.totals()[0][:, 1], sizes)
    np.testing.assert_array_equal(new.totals(1)[1], np.bincount(labels1, minlength=4))
    both, labels = np.concatenate([x1[good1], x2[good2]]), np.concatenate([labels1, labels2])
    keep = np.random.default_rng(3).random(len(labels)) > 0.3
    for k in range(4):
        np.testing.assert_array_equal(whole(new.cluster(k)), both[labels == k])
        np.testing.assert_array_equal(new.cluster_rows(k), np.flatnonzero(labels == k))
        np.testing.assert_array_equal(whole(new.cluster(k, keep)), both[(labels == k) & keep])
        np.testing.assert_array_equal(new.cluster_rows(k, keep), np.flatnonzero((labels == k) & keep))
    # any rows, in any order: what is read does not depend on the parts
    some = np.random.default_rng(4).permutation(len(labels))
    np.testing.assert_array_equal(whole(new.rows(some)), both[some])
    wanted = pl.DataFrame({"segment": ["seg-00002", "seg-00001", "seg-00009"], "row": [int(np.flatnonzero(good2)[3]), 0, 0]})
    np.testing.assert_array_equal(new.find(wanted), [rows1.n_rows + 3, 0 if good1[0] else -1, -1])


def test_regroup__chunks_shrink_to_the_memory_and_then_it_refuses() -> None:
    assert choose_chunk_rows(1_000_000, 100, 8192, 1 << 30) == 256
    assert choose_chunk_rows(10_000_000, 1000, 8192, 1 << 30) == 64
    for limit in (1 << 30, 1 << 28):
        assert regroup_bytes(100, 8192, choose_chunk_rows(1_000_000, 100, 8192, limit)) <= limit
    with pytest.raises(UserError, match=r"10000 clusters.*needs .* GiB, limit 0\.0 GiB: raise memory_limit or lower"):
        choose_chunk_rows(1_000_000, 10_000, 8192, 1_000_000)


def test_regroup__refuses_labels_that_do_not_fit(files: Files) -> None:
    _, good = segment(files, "seg-00001", 50, 1)
    rows = FeatureRows([open_segment(files, "space", "seg-00001")], [good])
    with pytest.raises(ValueError, match="labels must be"):
        regroup(files, "c", rows, np.full(rows.n_rows, 3), **beside(np.zeros(rows.n_rows, int), 3))


def test_cluster__damage_is_found_and_named(files: Files) -> None:
    _, good = segment(files, "seg-00001", 300, 1)
    rows = FeatureRows([open_segment(files, "space", "seg-00001")], [good])
    labels = np.random.default_rng(0).integers(0, 3, rows.n_rows)
    begin(files, "c", 3)
    regroup(files, "c", rows, labels, **beside(labels, 3))
    key = f"{part_group('c', 0)}/features/c.0.0"
    body = bytearray(files.read(key))
    body[10] ^= 1
    files.write(key, bytes(body))
    reader = ClusteringReader(files, "c", [0])
    with pytest.raises(DamagedStore, match=r"part-00000/features/c\.0\.0 \(block 0 of features\) has checksum.*regrouped"):
        whole(reader.cluster(0))
    whole(reader.cluster(2))
