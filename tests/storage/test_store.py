"""A whole run through the store: what it records, what SQL answers, and that unchanged input costs nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pytest

from storage.arrays.checkpoints import (
    load_checkpoint,
    load_space,
    save_checkpoint,
    save_space,
)
from storage.arrays.chunked import DamagedStore
from storage.arrays.safetensors_io import load_arrays, save_arrays
from storage.arrays.segments import open_features, open_segment
from storage.catalog import clusterings, diagnostics, pool, runs, selections, spaces, stages
from storage.examples import example_reader
from storage.files.object import ObjectFiles
from storage.gc import FOLDERS, orphans, sweep, work_key
from storage.root import Root, open_root
from storage.snapshot import publish, snapshot_path
from tagcos_stream import identity
from tagcos_stream.data.canonical import EXAMPLE_COLUMNS, MESSAGES, stored_examples
from tagcos_stream.types import Checkpoint, UserError
from tests.storage import tiny


def test_ingest__every_row_is_an_occurrence_or_a_reject(filled: Root) -> None:
    counted = filled.catalog.read("""SELECT
        (SELECT count(*) FROM occurrences) AS occurrences, (SELECT count(*) FROM examples) AS examples,
        (SELECT count(*) FROM rejects WHERE stage = 'ingest') AS rejects, (SELECT sum(rows_done)::BIGINT FROM files) AS rows""")
    assert counted.row(0) == (300, 300 - 14, 3, 303)  # every twentieth row is the same example


def test_ingest__texts_come_back(filled: Root) -> None:
    found = pl.concat(
        list(example_reader(filled).iterate(pool.pool(filled.catalog, runs.list_runs(filled.catalog)["run_id"][0])))
    )
    for row in found.iter_rows(named=True):
        number = int(row["messages"][0]["content"].split()[1])
        assert row["example_id"] == tiny.example_id(number)
        assert {k: v for k, v in row["messages"][1].items() if v} == {"role": "assistant", "content": f"answer {number}"}
    assert found["chars"].to_list() == [sum(len(m["content"]) for m in row) for row in found["messages"]]


def test_ingest__goes_on_where_it_stopped(root: Root) -> None:
    catalog = root.catalog
    opened = runs.open_run(catalog, config={}, config_hash="h", versions={}, seeds={})
    given = pl.DataFrame({"source": ["s"], "url": ["u"], "digest": ["d"], "size": [9], "format": ["jsonl"]})
    file = pool.add_files(catalog, opened.run_id, given).row(0, named=True)
    assert (file["rows_done"], file["complete"]) == (0, False)
    counts = pool.commit_ingest(root, opened.run_id, file["file_id"], tiny.ingest_block(0, [1, 2, 1], last=False, rejected=2))
    assert counts == pool.IngestCounts(rows=5, new=2, known=1, rejected=2)
    again = pool.add_files(catalog, opened.run_id, given).row(0, named=True)
    assert (again["file_id"], again["rows_done"], again["complete"]) == (file["file_id"], 5, False)
    counts = pool.commit_ingest(root, opened.run_id, file["file_id"], tiny.ingest_block(5, [2, 3], last=True))
    assert counts == pool.IngestCounts(rows=2, new=1, known=1, rejected=0)
    assert pool.add_files(catalog, opened.run_id, given)["complete"].to_list() == [True]
    assert pool.pool(catalog, opened.run_id)["row"].to_list() == [0, 1, 2]
    assert runs.run_status(catalog, opened.run_id).rejects == 2
    changed = given.with_columns(digest=pl.lit("e"))
    assert pool.add_files(catalog, opened.run_id, changed)["file_id"][0] != file["file_id"]
    assert pool.pool(catalog, opened.run_id).is_empty()  # the version that it read before is no longer one of its sources
    assert runs.run_status(catalog, opened.run_id).rejects == 0


def test_pool__is_what_the_runs_files_hold_and_segments_close(root: Root) -> None:
    catalog = root.catalog
    first = runs.open_run(catalog, config={}, config_hash="1", versions={}, seeds={})
    second = runs.open_run(catalog, config={}, config_hash="2", versions={}, seeds={})

    def ingest(run_id: str, urls: str, numbers: list[int]) -> None:
        """Read the last of the run's files."""
        given = pl.DataFrame({"source": list(urls), "url": list(urls)}).with_columns(
            digest=pl.lit("d"), size=pl.lit(9), format=pl.lit("jsonl")
        )
        files = pool.add_files(catalog, run_id, given)
        pool.commit_ingest(root, run_id, files["file_id"][-1], tiny.ingest_block(0, numbers, last=True))

    ingest(first.run_id, "a", [1, 2, 3])
    ingest(second.run_id, "b", [3, 4])
    assert pool.pool(catalog, second.run_id).select("example_id", "segment", "row").rows() == [
        (tiny.example_id(3), "seg-00001", 2),
        (tiny.example_id(4), "seg-00002", 0),
    ]
    planned = spaces.plan_segments(catalog, second.run_id, "space", dim=4, block_rows=2)
    assert planned.select("segment", "rows").rows() == [("seg-00001", 3), ("seg-00002", 1)]
    assert spaces.missing(catalog, "space") == {"seg-00001": [0, 1], "seg-00002": [0]}
    assert spaces.missing(catalog, "space", second.run_id)["seg-00001"] == [1]  # only what the pool needs
    ingest(first.run_id, "ac", [5])  # its segment is planned: new examples begin another
    assert pool.pool(catalog, first.run_id)["segment"].to_list() == ["seg-00001"] * 3 + ["seg-00003"]


def test_pool_sample__is_seeded_and_whole_when_small(filled: Root) -> None:
    run_id = runs.list_runs(filled.catalog)["run_id"][0]
    a, b = (pool.pool_sample(filled.catalog, run_id, 20, 3) for _ in range(2))
    assert a.equals(b)
    assert not a.equals(pool.pool_sample(filled.catalog, run_id, 20, 4))
    assert a["example_id"].to_list()[:2] == pool.pool_sample(filled.catalog, run_id, 2, 3)["example_id"].to_list()
    assert len(pool.pool_sample(filled.catalog, run_id, 10_000, 3)) == 286


def test_unknown_ids__first_order_each_once(filled: Root) -> None:
    ids = pl.Series([tiny.example_id(n) for n in (900, 1, 800, 900, 2)])
    with filled.catalog.reading() as connection:
        found = pool.unknown_ids(connection, ids).to_list()
    assert found == [tiny.example_id(900), tiny.example_id(800)]


def test_run__resumes_by_config_and_names_are_unique(root: Root) -> None:
    def opened(config_hash: str) -> runs.OpenRun:
        return runs.open_run(root.catalog, config={"x": 1}, config_hash=config_hash, versions={}, seeds={}, label="refresh")

    first = opened("a")
    other = opened("b")
    assert first.run_id != other.run_id
    stages.done(root.catalog, first.run_id, "ingest", seconds=1.0, peak_bytes=5, detail={"rows": 3})
    runs.stop_run(root.catalog, first.run_id, "failed", "no disk")
    again = opened("a")
    assert (again.run_id, again.resumed, again.stages) == (first.run_id, True, {"ingest": {"rows": 3}})
    runs.finish_run(root.catalog, first.run_id)
    assert not opened("a").resumed
    status = runs.run_status(root.catalog, first.run_id)
    assert status.run["attempts"] == 2
    assert status.run["status"] == "complete"
    with pytest.raises(UserError, match="no run nobody"):
        runs.run_status(root.catalog, "nobody")


def test_run__same_input_again_computes_nothing_and_selects_the_same(filled: Root) -> None:
    first = runs.list_runs(filled.catalog)["run_id"][0]
    second = tiny.run(filled)
    assert filled.catalog.read("SELECT count(*) AS n FROM blocks")["n"][0] == tiny.BLOCKS
    assert (second.resumed, second.blocks_computed) == (False, 0)
    assert second.selection.equals(selections.selection(filled.catalog, first).drop("run_id"))
    assert filled.catalog.read("FROM selection_diff(?, ?)", [first, second.run_id]).is_empty()


def test_run__a_grown_pool_computes_only_what_is_new(filled: Root) -> None:
    root, first = filled, runs.list_runs(filled.catalog)["run_id"][0]
    second = tiny.run(root, examples=340)
    assert second.blocks_computed == 1  # 38 new examples, a block of their own segment
    changed = root.catalog.read("FROM selection_diff(?, ?)", [first, second.run_id])
    assert set(changed["change"]) <= {"entered", "left"}
    assert set(changed.filter(pl.col("change") == "entered")["reason"]) <= {"new example", "reclustered"}
    assert len(changed) > 0
    history = root.catalog.read("SELECT first_run, last_run, count(*) AS n FROM example_history GROUP BY ALL ORDER BY n")
    assert history.rows() == [(second.run_id, second.run_id, 38), (first, second.run_id, 286)]


def test_retired__are_gone_from_the_sources_and_no_others(filled: Root) -> None:
    """Not what nearly repeats another, nor what was forgotten: neither comes back with a source."""
    catalog, first = filled.catalog, runs.list_runs(filled.catalog)["run_id"][0]
    own = catalog.read("SELECT segment, row, example_id FROM examples ORDER BY row LIMIT 3")
    repeat = own[:1].with_columns(
        reason=pl.lit("near_duplicate"), detail=pl.lit(""), like_id=pl.lit("x"), likeness=pl.lit(0.9), kept_id=pl.lit("x")
    )
    pool.exclude_near_duplicates(catalog, first, repeat)
    with catalog.transaction() as connection:
        connection.execute("INSERT INTO forgotten VALUES (?, now()::TIMESTAMP)", [own["example_id"][1]])
    assert catalog.read("FROM retired").is_empty()
    history = catalog.read("SELECT runs, last_run, count(*) FROM example_history GROUP BY ALL ORDER BY ALL").rows()
    assert history == [(0, None, 1), (1, first, 285)]
    with catalog.transaction() as connection:  # a later run of no source at all
        connection.execute("INSERT INTO runs SELECT * REPLACE ('later' AS run_id, now()::TIMESTAMP AS finished_at) FROM runs")
    gone = catalog.read("SELECT example_id FROM retired")["example_id"]
    assert len(gone) == 284
    assert not set(gone) & set(own["example_id"][:2])
    with catalog.transaction() as connection:  # nothing to compare with
        connection.execute("UPDATE runs SET name = NULL")
    assert catalog.read("FROM retired").is_empty()


def test_why__says_how_far_from_the_cut(filled: Root) -> None:
    catalog = filled.catalog
    chosen = catalog.read("SELECT example_id FROM latest_selection WHERE cluster = 1 ORDER BY rank LIMIT 1")["example_id"][0]
    answer = catalog.read("FROM why(?)", [chosen[:12]]).row(0, named=True)
    assert (answer["chosen"], answer["rank"], answer["cluster"]) == (True, 0, 1)
    left = catalog.read(
        """SELECT e.example_id, c.margin FROM candidates c JOIN examples e USING (segment, row)
        WHERE c.group_id = 1 AND e.example_id NOT IN (SELECT example_id FROM selections) ORDER BY c.margin DESC"""
    )
    for place in (0, 5):
        answer = catalog.read("FROM why(?)", [left["example_id"][place]]).row(0, named=True)
        assert (answer["chosen"], answer["places_to_cut"]) == (False, place + 1)
        assert answer["margin_to_next"] == pytest.approx(left["margin"][0] - left["margin"][place])
    rejected = catalog.read("SELECT example_id FROM rejects WHERE stage = 'gradients' LIMIT 1")["example_id"][0]
    assert catalog.read("FROM why(?)", [rejected])["reason"].to_list() == ["rejected: non-finite"]
    assert catalog.read("FROM why('ffffffffffffffff')").is_empty()


def test_selection__needs_a_complete_run(root: Root) -> None:
    opened = runs.open_run(root.catalog, config={}, config_hash="h", versions={}, seeds={})
    with pytest.raises(UserError, match="is running, not complete"):
        selections.selection(root.catalog, opened.run_id)
    with pytest.raises(UserError, match="no run other"):
        selections.selection(root.catalog, "other")


def test_selected_with_text__has_every_selected_example(filled: Root) -> None:
    run_id = runs.list_runs(filled.catalog)["run_id"][0]
    found = pl.concat(list(selections.selected_with_text(filled, run_id)))
    assert set(found["example_id"]) == set(selections.selection(filled.catalog, run_id)["example_id"])
    assert found["messages"].null_count() == 0


def test_commit_block__rejects_must_agree_and_a_block_is_committed_once(filled: Root) -> None:
    space = runs.list_runs(filled.catalog)["space_id"][0]
    rows = pl.DataFrame({"row": [0], "tokens": [1], "target_tokens": [1], "loss": [1.0], "norm": [1.0], "status": ["ok"]})
    nothing = pl.DataFrame({"row": [4], "reason": ["x"], "detail": [""], "snippet": [""]})
    with pytest.raises(ValueError, match="rejects name rows"):
        spaces.commit_block(filled.catalog, "r", space, "seg-00001", 0, rows, checksum=0, seconds=0.0, rejects=nothing)
    before = filled.catalog.read("SELECT count(*) AS n FROM feature_rows")["n"][0]
    with pytest.raises(duckdb.ConstraintException):
        spaces.commit_block(filled.catalog, "r", space, "seg-00001", 0, rows, checksum=0, seconds=0.0)
    assert filled.catalog.read("SELECT count(*) AS n FROM feature_rows")["n"][0] == before


def test_forget_block__is_computed_again_to_the_same(filled: Root) -> None:
    root = filled
    first = runs.list_runs(root.catalog).row(0, named=True)
    chosen = selections.selection(root.catalog, first["run_id"]).drop("run_id")
    space = runs.list_runs(root.catalog)["space_id"][0]
    before = open_segment(root.files, space, "seg-00001").read_block(3).copy()
    assert root.catalog.read("SELECT sealed FROM feature_segments")["sealed"].to_list() == [True]
    spaces.forget_block(root.catalog, space, "seg-00001", 3)
    assert spaces.missing(root.catalog, space) == {"seg-00001": [3]}
    assert root.catalog.read("SELECT sealed FROM feature_segments")["sealed"].to_list() == [False]
    assert len(spaces.features_pool(root.catalog, first["run_id"], space)) < 275
    second = tiny.run(root)
    assert second.blocks_computed == 1
    assert second.selection.equals(chosen)
    np.testing.assert_array_equal(open_segment(root.files, space, "seg-00001").read_block(3), before)


def test_features_pool__leaves_out_rejects_and_uncommitted_blocks(filled: Root) -> None:
    run = runs.list_runs(filled.catalog).row(0, named=True)
    pooled = spaces.features_pool(filled.catalog, run["run_id"], run["space_id"])
    rows = open_features(filled.files, run["space_id"], pooled)
    for block in range(len(rows.starts) - 1):
        assert np.isfinite(rows.read(block)).all()
    assert (
        rows.n_rows
        == len(pooled)
        == 286 - filled.catalog.read("SELECT count(*) AS n FROM rejects WHERE stage = 'gradients'")["n"][0]
    )


def test_spaces__round_trip_to_the_bit(root: Root) -> None:
    weights = {"a.b": np.array([[0.1, np.pi]], np.float32), "c": np.array(3.5, np.float32)}
    fingerprint = {"model": "m", "weights": [0.1, 1e-30], "é": "ü"}
    space = identity.space_id(fingerprint)
    saved = save_checkpoint(root.files, space, Checkpoint(10, 2.1569e-06, 0.25, 12, weights, weights, weights))
    save_space(root.files, space, fingerprint)
    loaded = load_checkpoint(root.files, space, 10, weight=0.25, digest=saved.digest)
    assert (loaded.step, loaded.learning_rate, loaded.weight, loaded.adam_steps) == (10, 2.1569e-06, 0.25, 12)
    np.testing.assert_array_equal(loaded.exp_avg_sq["a.b"], weights["a.b"])
    assert loaded.weights["c"].shape == ()
    assert load_space(root.files, space) == fingerprint
    assert identity.canonical_json({"b": 1, "a": [1.5]}) == '{"a":[1.5],"b":1}'
    body = bytearray(root.files.read(saved.path))
    body[-3] ^= 1
    root.files.write(saved.path, bytes(body))
    with pytest.raises(DamagedStore, match=r"step-000010\.safetensors is not what was written"):
        load_checkpoint(root.files, space, 10, weight=0.25, digest=saved.digest)
    root.files.write(saved.path, bytes(body[:50]))
    with pytest.raises(DamagedStore, match="not a whole safetensors file"):
        load_checkpoint(root.files, space, 10, weight=1.0)
    root.files.delete(saved.path)
    with pytest.raises(DamagedStore, match="missing"):
        load_checkpoint(root.files, space, 10, weight=1.0)
    root.files.write(f"spaces/{space}/space.json", json.dumps({"format": 1, "fingerprint": {"model": "other"}}).encode())
    with pytest.raises(DamagedStore, match=f"not {space}"):
        load_space(root.files, space)


def test_arrays__keep_names_dtypes_and_metadata(root: Root) -> None:
    arrays: dict[str, np.ndarray] = {
        "centroids": np.ones((2, 3), np.float32),
        "count": np.array(7, np.int64),
        "half": np.zeros(4, np.float16),
    }
    digest, size = save_arrays(root.files, work_key("r", "kmeans.safetensors"), arrays, {"pass": "2"})
    loaded, metadata = load_arrays(root.files, work_key("r", "kmeans.safetensors"), digest)
    assert metadata["pass"] == "2"
    assert size == root.files.size("work/r/kmeans.safetensors")
    assert {name: (a.dtype, a.shape, a.tolist()) for name, a in loaded.items()} == {
        n: (a.dtype, a.shape, a.tolist()) for n, a in arrays.items()
    }


def test_gc__lists_and_removes_what_nothing_names(filled: Root) -> None:
    assert orphans(filled) == []
    space = runs.list_runs(filled.catalog)["space_id"][0]
    run_id = runs.list_runs(filled.catalog)["run_id"][0]
    litter = {
        "examples/seg-00001/part-00099.parquet": "part",
        "examples/seg-00009/part-00000.parquet": "part",
        f"spaces/{space}/segments/seg-00001.zarr/features/c.99.0": "block",
        f"spaces/{space}/segments/seg-00001.zarr/features/c.1.0.tmp-12-34": "temporary",
        f"spaces/{space}/segments/seg-00009.zarr/zarr.json": "file of a space",
        "spaces/0123/space.json": "space",
        f"clusterings/{run_id}-clusters.zarr/part-00001/features/c.0.0": "part of a clustering",
        "clusterings/other.zarr/zarr.json": "clustering",
        f"work/{run_id}/kmeans.safetensors": "complete",
        "snapshots/unknown/runs.parquet": "unknown run",
        "reports/run.html.tmp-12-34": "temporary",
        ".tmp-snapshot/catalog.duckdb": "temporary",
    }
    for key in litter:
        filled.files.write(key, b"12345")
    for key in ("exports/mine.jsonl", "reports/mine.html"):
        filled.files.write(key, b"12345")
    assert filled.path is not None
    (filled.path / ".tmp-compact").mkdir()  # as a write leaves it whose process was killed after its last file
    found = orphans(filled)
    assert {orphan.key for orphan in found} == set(litter)
    assert all(litter[orphan.key] in orphan.reason for orphan in found)
    with filled.writer():
        assert sweep(filled, orphans(filled)) == 5 * len(litter)
    assert orphans(filled) == []
    assert filled.files.size("exports/mine.jsonl") == 5
    assert not list(filled.path.glob(".tmp-*"))
    assert not (filled.path / "spaces" / "0123").exists()
    unfinished = runs.open_run(filled.catalog, config={}, config_hash="new", versions={}, seeds={})
    filled.files.write(work_key(unfinished.run_id, "kmeans.safetensors"), b"12345")
    assert orphans(filled) == []


def test_gc__asks_an_object_store_for_no_more_than_it_must(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a local folder has files of writes that were cut off, and folders that they left empty."""
    root = open_root(f"{bucket}/swept", catalog=tmp_path / "catalog.duckdb")
    with root.catalog.transaction():
        pass
    root.files.write("work/unknown/x", b"1")
    asked: list[str] = []

    def counted(real: Callable[[ObjectFiles, str], Any]) -> Callable[[ObjectFiles, str], Any]:
        def call(files: ObjectFiles, key: str) -> Any:
            asked.append(key)
            return real(files, key)

        return call

    for name in ("list", "delete"):
        monkeypatch.setattr(ObjectFiles, name, counted(getattr(ObjectFiles, name)))
    sweep(root, orphans(root))
    assert asked == [*FOLDERS, "work/unknown/x"]


def test_snapshot__is_read_while_the_catalog_is_locked(filled: Root) -> None:
    run_id = runs.list_runs(filled.catalog)["run_id"][0]
    with filled.writer():
        folder = Path(publish(filled, run_id))
    expected = selections.selection(filled.catalog, run_id)
    with filled.catalog.transaction():  # the writer holds the catalog
        copy = duckdb.connect(str(snapshot_path(filled)), read_only=True)
        assert copy.sql("FROM latest_selection ORDER BY cluster, rank").pl().equals(expected)
        assert copy.sql("FROM why(?)", params=[expected["example_id"][0]]).pl()["chosen"].to_list() == [True]
        copy.close()
        shell = duckdb.connect()
        shell.execute((folder / "snapshot.sql").read_text())
        assert shell.sql("FROM latest_selection ORDER BY cluster, rank").pl().equals(expected)
        shell.close()
    latest = json.loads(filled.files.read("snapshots/latest.json"))
    assert (latest["run_id"], latest["tables"]["selections"]) == (run_id, len(expected))


def test_snapshot__keeps_the_newest(filled: Root) -> None:
    names = runs.list_runs(filled.catalog)["run_id"].to_list()
    publish(filled, names[0], keep=2)
    for number in range(2):
        opened = runs.open_run(filled.catalog, config={}, config_hash=f"more-{number}", versions={}, seeds={})
        names.append(opened.run_id)
        publish(filled, names[-1], keep=2)
    assert {key.split("/")[1] for key, _ in filled.files.list("snapshots")} == {*names[1:], "latest.json"}


def test_store__on_s3_selects_what_a_local_one_selects(bucket: str, tmp_path: Path, filled: Root) -> None:
    local = selections.selection(filled.catalog, runs.list_runs(filled.catalog)["run_id"][0]).drop("run_id")
    remote = open_root(bucket, catalog=tmp_path / "driver" / "catalog.duckdb")
    assert remote.path is None
    outcome = tiny.run(remote)
    assert outcome.selection.equals(local)
    with remote.writer():
        publish(remote, outcome.run_id)
    assert orphans(remote) == []
    assert tiny.run(open_root(bucket, catalog=tmp_path / "driver" / "catalog.duckdb")).blocks_computed == 0
    with pytest.raises(UserError, match="catalog of store"):
        runs.finish_run(open_root(f"{bucket}-other", catalog=tmp_path / "driver" / "catalog.duckdb").catalog, "x")


def test_comparison__means_over_seeds_and_their_overlap(filled: Root) -> None:
    (row,) = filled.catalog.read("FROM comparison").to_dicts()
    assert (row["method"], row["seeds"], row["selected"]) == ("tagcos", 2, 2)
    assert row["jaccard"] == pytest.approx(1 / 3)
    assert row["error_fitted"] == pytest.approx(0.35)
    assert row["cluster_plain"] == pytest.approx(0.65)
    run_id = runs.list_runs(filled.catalog)["run_id"][0]
    assert diagnostics.units_done(filled.catalog, run_id) == {("tagcos", 0.1, 0), ("tagcos", 0.1, 1)}
    # said again, it replaces: one unit stays one unit
    again: dict[str, Any] = {"method": "tagcos", "fraction": 0.1, "seed": 1, "dimensions": "reserved", "seconds": 1.0}
    diagnostics.commit(filled.catalog, run_id, rows=tiny.measured(1), **again)
    assert len(filled.catalog.read("FROM diagnostics WHERE dimensions = 'reserved' AND cluster IS NULL")) == 2
    assert len(filled.catalog.read("FROM match_of(?)", [run_id])) == 3


def test_adopt_pool__is_the_same_pool_without_reading_anything(filled: Root) -> None:
    base = runs.complete_run(filled.catalog)
    opened = runs.open_run(filled.catalog, config={}, config_hash="other", versions={}, seeds={}, reselects=base["run_id"])
    for _ in range(2):  # a resumed run does it again
        pool.adopt_pool(filled.catalog, opened.run_id, base["run_id"])
    assert pool.pool(filled.catalog, opened.run_id).equals(pool.pool(filled.catalog, base["run_id"]))
    adopted = runs.run_status(filled.catalog, opened.run_id).run
    assert (adopted["space_id"], adopted["reselects"]) == (base["space_id"], base["run_id"])
    assert clusterings.find_covering(filled.catalog, opened.run_id, base["space_id"]) == base["clustering_id"]
    with pytest.raises(UserError, match="is running, not complete"):
        runs.complete_run(filled.catalog, opened.run_id)
    with pytest.raises(UserError, match="there is no run nowhere"):
        runs.complete_run(filled.catalog, "nowhere")


def test_stored_examples__a_part_of_before_is_read_with_nulls(tmp_path: Path) -> None:
    train = pl.List(pl.Struct({"begin": pl.Int64, "end": pl.Int64}))
    kind = pl.List(pl.Struct({"role": pl.String, "content": pl.String, "name": pl.String, "train": train}))
    turns: list[list[dict[str, Any]]] = [
        [
            {"role": "user", "content": "a", "name": "Ann", "train": [{"begin": 0, "end": 1}]},
            {"role": "assistant", "content": "b"},
        ],
        [],
    ]
    old = pl.DataFrame(
        {"example_id": ["1", "2"], "dataset": ["d", "d"], "messages": pl.Series(turns, dtype=kind), "tools": ["[1]", None]}
    )
    new = stored_examples(old)
    assert new.columns == list(EXAMPLE_COLUMNS)
    assert new.schema["messages"] == MESSAGES
    absent = {"reasoning": None, "tool_calls": None, "tool_call_id": None}
    assert new["messages"].to_list()[0] == [turns[0][0] | absent, turns[0][1] | {"name": None, "train": None} | absent]
    assert new["messages"].to_list()[1] == []
    assert new.select("example_id", "dataset", "tools").equals(old.select("example_id", "dataset", "tools"))
    assert stored_examples(new) is new


def test_stages__attempts_add_up(root: Root) -> None:
    """A stage that failed, was killed, and then came to its end: seconds add up, the peak is the largest."""
    catalog = root.catalog
    run_id = runs.open_run(catalog, config={}, config_hash="h", versions={}, seeds={}).run_id
    stages.begun(catalog, run_id, "gradients")
    runs.stop_run(catalog, run_id, "failed", "no space")
    runs.open_run(catalog, config={}, config_hash="h", versions={}, seeds={})
    stages.begun(catalog, run_id, "gradients")
    with catalog.transaction() as connection:  # as a killed process leaves it: its last commit was five seconds after the start
        connection.execute("UPDATE stage_attempts SET started_at = started_at - INTERVAL 60 SECOND WHERE attempt = 2")
        connection.execute(
            "UPDATE runs SET updated_at = (SELECT started_at + INTERVAL 5 SECOND FROM stage_attempts WHERE attempt = 2)"
        )
    assert runs.open_run(catalog, config={}, config_hash="h", versions={}, seeds={}).run_id == run_id
    stages.begun(catalog, run_id, "gradients")
    stages.done(catalog, run_id, "gradients", seconds=2.0, peak_bytes=7, detail={"rows": 3, "halvings": 1})
    attempts = catalog.read("SELECT attempt, outcome, seconds FROM stage_attempts ORDER BY attempt")
    assert attempts["outcome"].to_list() == ["failed", "killed", "complete"]
    assert attempts["seconds"][1:].to_list() == [5.0, 2.0]
    stage = catalog.read("FROM stages").row(0, named=True)
    assert stage["seconds"] == pytest.approx(attempts["seconds"].sum())
    assert stage["peak_bytes"] > 2**20  # of the attempt that failed, in this process
    stages.begun(catalog, run_id, "gradients")
    stages.done(catalog, run_id, "gradients", seconds=1.0, peak_bytes=9, detail={"rows": 3, "halvings": 2})
    stage = catalog.read("FROM stages").row(0, named=True)
    assert (json.loads(stage["detail"]), stage["seconds"]) == ({"rows": 3, "halvings": 3}, attempts["seconds"].sum() + 1)


def test_stages__what_an_earlier_attempt_made_is_not_lost(root: Root) -> None:
    catalog = root.catalog
    for detail in ({"reused": False, "tokens": 77}, {"reused": True}):
        stages.done(catalog, "x", "warm-up", seconds=1.0, peak_bytes=1, detail=detail)
    assert json.loads(catalog.read("FROM stages")["detail"][0]) == {"reused": False, "tokens": 77}
