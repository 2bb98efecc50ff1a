"""A root that an earlier version made opens, migrates, keeps what its runs chose, and is selected from again."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from flows import pipeline
from flows.progress import SilentReporter
from storage import check
from storage.catalog import selections
from storage.root import Root, open_root
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.types import UserError

OLD = Path(__file__).parents[1] / "storage" / "root-schema-8.tar.gz"


@pytest.fixture
def unpacked(tmp_path: Path) -> tuple[Root, dict[str, list[list[Any]]]]:
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    expected = json.loads((tmp_path / "expected.json").read_text(encoding="utf-8"))
    return open_root(str(tmp_path / "root"), create=False), expected


def test_old_root__migrates_keeps_its_selections_and_selects_again(unpacked: tuple[Root, dict[str, list[list[Any]]]]) -> None:
    root, expected = unpacked
    with pytest.raises(UserError, match="has schema version 8, this version reads"):
        root.catalog.read("FROM runs")
    root.catalog.upgrade()
    weights = {row[0]: row[1] for row in root.catalog.read("SELECT example_id || run_id, weight FROM selections").iter_rows()}
    for run, rows in expected.items():
        found = selections.selection(root.catalog, run).sort("group_id", "rank").select("example_id", "group_id", "rank").rows()
        assert [list(row) for row in found] == [row[:3] for row in rows]
        assert [weights[row[0] + run] for row in rows] == [row[3] for row in rows]
    assert check.check(root) == []
    # what read sources is named main
    read = root.catalog.read("SELECT run_id FROM runs WHERE reselects IS NULL ORDER BY finished_at")["run_id"].to_list()
    assert root.catalog.read("SELECT run_id FROM named_runs WHERE name = 'main' ORDER BY since")["run_id"].to_list() == read
    assert root.catalog.read("SELECT count(*) FROM runs WHERE name IS NULL").item() == len(expected) - len(read)
    # names of the version before still answer
    run = next(iter(expected))
    assert root.catalog.read("FROM by_source(?) ORDER BY dataset", [run]).equals(
        root.catalog.read("FROM by_dataset(?) ORDER BY dataset", [run])
    )
    frame = root.catalog.read("SELECT cluster, group_id, correlation, score FROM selection_of(?)", [run])
    assert frame["cluster"].equals(frame["group_id"])
    assert frame["correlation"].equals(frame["score"])
    assert len(frame) == root.catalog.read("SELECT sum(selected) FROM run_clusters WHERE run_id = ?", [run]).item()
    known = root.catalog.read("SELECT run_id, method, config->>'method' AS given FROM runs")
    assert known["method"].to_list() == known["given"].to_list()

    # the same settings choose the same again, and the old runs are explained in words, too
    for run, rows in expected.items():
        again = pipeline.reselect(root.url, run, SilentReporter(), sticky=None)
        chosen_again = selections.selection(root.catalog, again.run_id).sort("group_id", "rank")
        if json.loads(root.catalog.read("SELECT config FROM runs WHERE run_id = ?", [run]).item())["sticky"] is None:
            assert chosen_again["example_id"].to_list() == [row[0] for row in rows]
        chosen = root.catalog.read("FROM why(?, run := ?)", [rows[0][0], run]).row(0, named=True)
        method = known.filter(run_id=run)["method"].item()
        assert chosen["reason"].startswith(f"chosen by {method}: {METHODS[method].words.chosen.split('{')[0]}")
