"""Damage of every kind is found and named, nothing wrong is selected, and what can be mended is mended to the same selection."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from storage.arrays.chunked import DamagedStore
from storage.arrays.grouped import regroup, write_centroids
from storage.arrays.grouped_reader import ClusteringReader
from storage.arrays.segments import open_features
from storage.catalog import clusterings, runs, selections, spaces
from storage.check import check, repair
from storage.database import Catalog
from storage.examples import example_reader
from storage.root import Root, open_root
from tagcos_stream.types import UserError
from tests.storage import tiny


def damage(root: Root, key: str, kind: str) -> None:
    body = bytearray(root.files.read(key))
    if kind == "flip":  # in a group's own zarr.json in the format: its other attributes say nothing that is read
        at = body.index(b'"format"') + 1 if key.endswith(".zarr/zarr.json") else len(body) // 3
        body[at] ^= 4
        root.files.write(key, bytes(body))
    elif kind == "truncate":
        root.files.write(key, bytes(body[:-7]))
    else:
        root.files.delete(key)


def keys(root: Root, part: str) -> list[str]:
    return sorted(key for key, _ in root.files.list("") if part in key)


def test_check__a_whole_store_has_no_findings(filled: Root) -> None:
    seen: list[str] = []
    assert check(filled, progress=lambda what, done, total: seen.append(what)) == []
    assert set(seen) == {"examples", "features", "clusterings"}
    assert check(filled, deep=False) == []


@pytest.mark.parametrize("kind", ["flip", "truncate", "delete"])
def test_check__finds_names_and_repairs_feature_blocks(filled: Root, kind: str) -> None:
    root = filled
    chosen = selections.selection(root.catalog, runs.list_runs(root.catalog)["run_id"][0]).drop("run_id")
    key = next(key for key in keys(root, "/features/c.") if key.startswith("spaces") and key.endswith("c.4.0"))
    damage(root, key, kind)
    with pytest.raises(DamagedStore, match=r"seg-00001.*block 4"):
        tiny.run(root)  # its clustering reads the features: nothing wrong is selected
    found = check(root)
    assert len(found) == 1
    assert "block 4 of segment seg-00001" in found[0].place
    assert key in found[0].problem
    assert "computes it again" in found[0].remedy
    assert (check(root, deep=False) == []) == (kind == "flip")
    with root.writer():
        assert repair(root, found) == found
    again = tiny.run(root)
    assert (again.resumed, again.blocks_computed) == (True, 1)
    assert again.selection.equals(chosen)
    assert check(root) == []


@pytest.mark.parametrize("kind", ["flip", "truncate", "delete"])
def test_check__finds_and_repairs_regrouped_rows(filled: Root, kind: str) -> None:
    key = keys(filled, "part-00000/features/c.")[2]
    before = filled.files.read(key)
    damage(filled, key, kind)
    found = check(filled)
    assert len(found) == 1
    assert "part 0 of clustering" in found[0].place
    assert key in found[0].problem
    with filled.writer():
        repair(filled, found)
    assert filled.files.read(key) == before
    assert check(filled) == []


@pytest.mark.parametrize("kind", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("part", ["examples/", "step-", "space.json"])
def test_check__finds_and_names_what_cannot_be_mended(filled: Root, part: str, kind: str) -> None:
    key = keys(filled, part)[0]
    damage(filled, key, kind)
    found = check(filled)
    assert any(key in finding.place + finding.problem for finding in found)
    assert all(finding.remedy and finding.repair is None for finding in found)


@pytest.mark.parametrize("kind", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("part", ["seg-00001.zarr/zarr.json", "features/zarr.json", "example_ids/zarr.json", "example_ids/c.0"])
def test_check__writes_a_segments_metadata_again_and_keeps_its_blocks(filled: Root, part: str, kind: str) -> None:
    key = next(key for key in keys(filled, part) if key.startswith("spaces"))
    before, committed = filled.files.read(key), filled.catalog.read("FROM blocks ORDER BY ALL")
    damage(filled, key, kind)
    (found,) = check(filled)
    assert found.place.startswith("segment seg-00001 of space")
    assert key in found.problem
    assert "no block is computed again" in found.remedy
    with filled.writer():
        assert repair(filled, [found]) == [found]
    assert filled.files.read(key) == before
    assert filled.catalog.read("FROM blocks ORDER BY ALL").equals(committed)
    assert check(filled) == []
    assert tiny.run(filled).blocks_computed == 0


def test_check__of_a_segment_without_metadata_takes_back_damaged_blocks_only(filled: Root) -> None:
    shape = next(key for key in keys(filled, "features/zarr.json") if key.startswith("spaces"))
    filled.files.write(shape, filled.files.read(shape).replace(b"64", b"32"))  # another array, whole
    block = next(key for key in keys(filled, "/features/c.2") if key.startswith("spaces"))
    damage(filled, block, "flip")
    found = check(filled)
    assert [finding.place[:7] for finding in found] == ["segment", "block 2"]
    with filled.writer():
        repair(filled, found)
    assert tiny.run(filled).blocks_computed == 1
    assert check(filled) == []


@pytest.mark.parametrize("kind", ["flip", "truncate", "delete"])
@pytest.mark.parametrize(
    "part", ["clusters.zarr/zarr.json", "centroids/c.0", "labels/c.0", "distances/c.0", "rows/c.0", "sums/zarr.json"]
)
def test_check__drops_a_clustering_whose_tables_are_damaged(filled: Root, part: str, kind: str) -> None:
    catalog, run_id = filled.catalog, runs.find_run(filled.catalog)
    with catalog.transaction() as connection:
        connection.execute("UPDATE clusterings SET recipe = 'made'")
    name = catalog.read("SELECT clustering_id FROM runs").item()
    reader = ClusteringReader(filled.files, name, [0])
    pool = spaces.features_pool(catalog, run_id, catalog.read("SELECT space_id FROM runs").item())
    assert (clusterings.exists(catalog, name), clusterings.find_clustering(catalog, "made", pool)) == (True, name)
    assigned, labels, distances, totals = clusterings.assignments(catalog, name), reader.labels, reader.distances, reader.totals()
    key = next(key for key in keys(filled, part) if key.startswith("clusterings"))
    damage(filled, key, kind)
    (found,) = check(filled)
    assert found.place == f"clustering {name}"
    assert key in found.problem
    assert "the next run clusters again" in found.remedy
    with filled.writer():
        assert repair(filled, [found]) == [found]
    assert check(filled) == []
    assert keys(filled, "clusterings") == []
    assert (clusterings.exists(catalog, name), clusterings.find_clustering(catalog, "made", pool)) == (False, None)
    # what is known of the rows stays, for the runs that chose by it, until a fit of the same id replaces it
    assert catalog.read("SELECT clustering_id FROM runs").item() == name
    assert clusterings.assignments(catalog, name).equals(assigned)
    write_centroids(filled.files, name, reader.centroids)
    stored = open_features(filled.files, catalog.read("SELECT space_id FROM runs").item(), pool)
    part_info = regroup(filled.files, name, stored, labels, distances=distances, sums=totals[0], squares=totals[2])
    clusterings.add_clustering(
        catalog,
        run_id,
        name,
        catalog.read("SELECT space_id FROM runs").item(),
        clusters=clusterings.clusters(catalog, name),
        rows=pool.select("segment", "row", cluster=labels, distance=distances),
        part=part_info,
        recipe="made",
        config={},
    )
    assert check(filled) == []
    assert clusterings.exists(catalog, name)
    assert clusterings.assignments(catalog, name).equals(assigned)


@pytest.mark.parametrize("kind", ["flip", "truncate", "delete"])
def test_check__finds_damaged_centroids_that_wait_for_rows(filled: Root, kind: str) -> None:
    space = filled.catalog.read("SELECT space_id FROM runs").item()
    write_centroids(filled.files, "begun", np.ones((2, 8), np.float32))
    nothing = pl.DataFrame(schema={"cluster": pl.Int32, "size": pl.Int64, "inertia": pl.Float64})
    clusterings.add_clustering(
        filled.catalog, runs.find_run(filled.catalog), "begun", space, clusters=nothing, rows=pl.DataFrame(), part=None,
        recipe="made", config={},
    )  # fmt: skip
    assert check(filled) == []
    damage(filled, next(key for key in keys(filled, "centroids/c.0") if "begun" in key), kind)
    (found,) = check(filled)
    assert found.place == "clustering begun"
    with filled.writer():
        assert repair(filled, [found]) == [found]
    assert check(filled) == []
    assert not clusterings.exists(filled.catalog, "begun")


@pytest.mark.parametrize("kind", ["flip", "delete", "another block"])
def test_check__drops_a_clustering_whose_segments_are_damaged_too(filled: Root, kind: str) -> None:
    """What else was damaged is mended all the same; the next run computes and clusters again, and chooses the same."""
    chosen = selections.selection(filled.catalog, runs.find_run(filled.catalog)).drop("run_id")
    for key in keys(filled, "part-00000/features/c.")[:2]:
        damage(filled, key, "flip")
    blocks = [key for key in keys(filled, "/features/c.") if key.startswith("spaces")]
    if kind == "another block":
        filled.files.write(blocks[3], filled.files.read(blocks[2]))
    else:
        damage(filled, blocks[3], kind)
    found = check(filled)
    assert len(found) == 2
    with filled.writer():
        assert repair(filled, found) == found
    assert not any(finding.damage for finding in check(filled))
    assert keys(filled, "clusterings") == []
    assert filled.catalog.read("FROM cluster_parts").is_empty()
    again = tiny.run(filled)
    assert again.blocks_computed == 1
    assert again.selection.equals(chosen)


def test_check__leaves_what_another_version_wrote(filled: Root) -> None:
    for folder in ("spaces", "clusterings"):
        key = next(key for key in keys(filled, ".zarr/zarr.json") if key.startswith(folder))
        body = json.loads(filled.files.read(key))
        body["attributes"]["format"] += 1
        filled.files.write(key, json.dumps(body).encode())
    found = check(filled)
    assert ["use the version that wrote it" in finding.problem for finding in found] == [True, True]
    assert [finding.repair for finding in found] == [None, None]


def test_read_examples__a_deleted_or_changed_part_is_named(filled: Root) -> None:
    key = keys(filled, "examples/")[1]
    reader = example_reader(filled)
    damage(filled, key, "flip")
    with pytest.raises(
        DamagedStore, match=r"part-00001\.parquet \(examples of seg-00001, part 1\) is not what was written.*restore"
    ):
        reader.read("seg-00001", 0, 250)
    damage(filled, key, "delete")
    with pytest.raises(DamagedStore, match="is missing"):
        example_reader(filled).read("seg-00001", 0, 250)


def test_check__finds_a_block_put_in_the_place_of_another(filled: Root) -> None:
    blocks = [key for key in keys(filled, "/features/c.") if key.startswith("spaces")]
    filled.files.write(blocks[3], filled.files.read(blocks[2]))  # whole, with a right checksum
    found = check(filled)
    assert len(found) == 1
    assert "it is another block" in found[0].problem


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("DELETE FROM examples WHERE row = 7", "name an unknown example"),
        ("INSERT INTO examples SELECT * FROM examples WHERE row = 7", "is held 2 times"),
        ("DELETE FROM occurrences WHERE row = 20", "occurrences and rejects"),
        ("DELETE FROM feature_rows WHERE row = 40", "feature rows"),
        ("DELETE FROM blocks WHERE block = 2", "belong to no complete block"),
        ("DELETE FROM assignments WHERE row = 40", "assigned"),
        ("DELETE FROM selections WHERE rank = 3 AND group_id = 1", "selected, but"),
        ("UPDATE selections SET example_id = 'ff' WHERE rank = 3", "unknown example"),
        ("INSERT INTO selections SELECT * FROM selections WHERE rank = 0 AND group_id = 0", "twice"),
        ("UPDATE runs SET space_id = 'ff'", "unknown space"),
    ],
)
def test_check__finds_contradictions_in_the_catalog(filled: Root, change: str, words: str) -> None:
    with filled.catalog.transaction() as connection:
        connection.execute(change)
    assert any(words in finding.problem for finding in check(filled, deep=False))


@pytest.mark.process
def test_full_disk__is_said_and_the_run_goes_on_after_it(small_disk: Callable[[str], Path], filled: Root) -> None:
    disk = small_disk("size=24m")
    url = str(disk / "root")
    reached: list[str] = []
    ballast = disk / "ballast"

    def step(name: str) -> None:
        reached.append(name)
        if reached.count("block") == 3 and not ballast.exists():
            free = os.statvfs(disk)
            ballast.write_bytes(b"x" * (free.f_bavail * free.f_frsize - 2048))

    with pytest.raises(UserError, match=r"cannot write .*(disk or quota is full).*start the same command again"):
        tiny.run(open_root(url), step=step)
    assert reached.count("block") >= 3
    ballast.unlink()
    resumed = tiny.run(open_root(url))
    assert resumed.resumed
    assert resumed.blocks_computed == tiny.BLOCKS - reached.count("block")
    assert resumed.selection.equals(
        selections.selection(filled.catalog, runs.list_runs(filled.catalog)["run_id"][0]).drop("run_id")
    )
    assert [finding for finding in check(open_root(url)) if finding.damage] == []


@pytest.mark.process
def test_read_only_root__is_said_to_writers_and_works_for_readers(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("size=30m")
    url = str(disk / "root")
    outcome = tiny.run(open_root(url))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        with pytest.raises(UserError, match=rf"cannot write {url}.*not writable: choose another --root"):
            open_root(url)
        reader = open_root(url, create=False)
        assert runs.list_runs(reader.catalog)["run_id"].to_list() == [outcome.run_id]
        assert check(reader) == []
        with pytest.raises(UserError, match="cannot write"), reader.writer():
            pass
        with pytest.raises(UserError, match=r"cannot write .*catalog\.duckdb"), Catalog(reader.catalog_path).transaction():
            pass
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
