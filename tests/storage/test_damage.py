"""Damage of every kind is found and named, nothing wrong is selected, and what can be mended is mended to the same selection."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.arrays.chunked import DamagedStore
from storage.catalog import runs, selections
from storage.check import check, repair
from storage.database import Catalog
from storage.examples import example_reader
from storage.root import Root, open_root
from tagcos_stream.types import UserError
from tests.storage import tiny


def damage(root: Root, key: str, kind: str) -> None:
    body = bytearray(root.files.read(key))
    if kind == "flip":
        body[len(body) // 3] ^= 4
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
@pytest.mark.parametrize(
    "part", ["examples/", "step-", "space.json", "centroids/c.", "labels/c.", "example_ids/c.", "features/zarr.json"]
)
def test_check__finds_and_names_what_cannot_be_mended(filled: Root, part: str, kind: str) -> None:
    key = keys(filled, part)[0]
    damage(filled, key, kind)
    found = check(filled)
    assert any(key in finding.place + finding.problem for finding in found)
    assert all(finding.remedy for finding in found)


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
