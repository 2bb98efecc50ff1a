"""Held-out examples: so many of every dataset, the same ones always, in no pool and without features."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import pytest

from storage import check
from storage.catalog import heldout, pool, runs, spaces
from storage.examples import example_reader
from storage.root import Root
from tagcos_stream.types import UserError
from tests.storage import tiny


def begin(root: Root, name: str, share: float | None) -> str:
    return runs.open_run(root.catalog, config={"heldout": share}, config_hash=name, versions={}, seeds={}).run_id


def ingest(root: Root, run_id: str, url: str, blocks_of: list[list[int]], share: float) -> None:
    given = pl.DataFrame({"source": [url], "url": [url], "digest": ["d"], "size": [9], "format": ["jsonl"]})
    file = pool.add_files(root.catalog, run_id, given)["file_id"][0]
    first = 0
    for numbers in blocks_of:
        pool.commit_ingest(root, run_id, file, tiny.ingest_block(first, numbers, last=False), share)
        first += len(numbers)


def held(root: Root, run_id: str) -> pl.DataFrame:
    return heldout.heldout(root.catalog, run_id)


def test_heldout__so_many_of_every_dataset_and_in_no_pool(root: Root) -> None:
    run_id = begin(root, "a", 0.1)
    ingest(root, run_id, "a", [list(range(30)), list(range(30, 200)), list(range(150, 300))], 0.1)  # 50 are met twice
    counted = held(root, run_id).group_by("dataset").len().sort("dataset")
    assert counted.rows() == [("blue", 10), ("red", 20)]  # a tenth of 100 and of 200
    pooled = pool.pool(root.catalog, run_id)
    assert len(pooled) == 270
    assert not set(pooled["example_id"]) & set(held(root, run_id)["example_id"])
    status = runs.run_status(root.catalog, run_id)
    assert (status.examples, status.heldout) == (270, 30)
    assert runs.list_runs(root.catalog)["heldout"].to_list() == [30]
    # no features are planned for them, every file is accounted for, and `why` says what they are
    planned = spaces.plan_segments(root.catalog, run_id, "space", dim=4, block_rows=8)
    assert planned["segment"].to_list() == ["seg-00001"]
    assert planned["rows"].sum() == 270
    assert [finding for finding in check.check(root) if finding.damage] == []
    reason = root.catalog.read("FROM why(?, run := ?)", [held(root, run_id)["example_id"][0], run_id])["reason"].to_list()
    assert reason == ["held out: in no pool, kept to evaluate on"]
    assert root.catalog.read("SELECT count(*) FROM example_history").item() == 270
    # their texts are there
    texts = example_reader(root).iterate(held(root, run_id).select("segment", "row"))
    assert sum(len(frame) for frame in texts) == 30


def test_heldout__every_root_chooses_the_same(make_root: Callable[[str], Root]) -> None:
    """What is met together is chosen together: two roots that read the same blocks hold out the same examples."""
    found = []
    for name in ("one", "two"):
        root = make_root(name)
        run_id = begin(root, "a", 0.2)
        ingest(root, run_id, name, [list(range(100)), list(range(100, 160))], 0.2)
        found.append(held(root, run_id)["example_id"].to_list())
    assert found[0] == found[1]
    lowest: dict[str, list[str]] = {"red": [], "blue": []}
    for number in range(100):
        lowest["red" if number % 3 else "blue"].append(tiny.example_id(number))
    first = {identity for ids, n in ((lowest["red"], 13), (lowest["blue"], 7)) for identity in sorted(ids)[:n]}
    assert first <= set(found[0])


def test_heldout__a_pool_that_grows_gives_its_share_of_what_is_new(root: Root) -> None:
    first = begin(root, "a", 0.25)
    ingest(root, first, "a", [list(range(40))], 0.25)
    before = set(held(root, first)["example_id"])
    pooled = set(pool.pool(root.catalog, first)["example_id"])
    runs.finish_run(root.catalog, first)
    second = begin(root, "b", None)
    assert heldout.share(root.catalog, None) == 0.25
    ingest(root, second, "b", [list(range(80))], heldout.share(root.catalog, None))
    after = set(held(root, second)["example_id"])
    assert before < after
    assert len(after) == 20
    assert not pooled & after, "what was in a pool stays in it"


def test_heldout__is_decided_by_the_first_run(root: Root) -> None:
    first = begin(root, "a", 0.1)
    assert heldout.share(root.catalog, 0.3) == 0.3  # nothing was read yet
    ingest(root, first, "a", [[1, 2, 3]], 0.1)
    assert heldout.share(root.catalog, 0.1) == heldout.share(root.catalog, None) == 0.1
    with pytest.raises(UserError, match=r"heldout 0\.2: this root holds out 0\.1 of every dataset.*another --root"):
        heldout.share(root.catalog, 0.2)


def test_heldout__a_root_without_cannot_begin_later(root: Root) -> None:
    first = begin(root, "a", None)
    ingest(root, first, "a", [[1, 2, 3]], 0.0)
    assert heldout.share(root.catalog, 0.0) == heldout.share(root.catalog, None) == 0
    assert held(root, first).is_empty()
    with pytest.raises(UserError, match="holds nothing out"):
        heldout.share(root.catalog, 0.05)
