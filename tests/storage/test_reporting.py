"""What a report is told by the store: bins that hold everything, a run by part of its name, bounded samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage import report_samples
from storage.catalog import report_facts, runs
from storage.root import Root
from tagcos_stream.types import UserError
from tests.storage import tiny


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_edges__of_whole_numbers_hold_everything_once(a: int, b: int) -> None:
    smallest, largest = sorted((a, b))
    found = report_facts.edges(smallest, largest, whole=True)
    assert found == sorted(set(found))
    assert found[0] == smallest
    assert found[-1] == largest + 1
    assert all(edge == int(edge) for edge in found)
    assert 2 <= len(found) <= report_facts.BINS + 3
    if largest - smallest < report_facts.BINS:
        assert len(found) == largest - smallest + 2, "one bin a value"


@given(st.floats(0, 1e3), st.floats(0, 1e3))
def test_edges__of_other_numbers(a: float, b: float) -> None:
    smallest, largest = sorted((a, b))
    found = report_facts.edges(smallest, largest, whole=False)
    assert found == sorted(found)
    assert found[0] == smallest
    assert found[-1] >= largest
    assert len(found) <= report_facts.BINS + 1


def test_gather__counts_what_the_tables_hold(filled: Root) -> None:
    run_id = runs.find_run(filled.catalog, "latest")
    facts = report_facts.gather(filled.catalog, run_id)
    assert facts.groups["size"].sum() == facts.clusters["size"].sum() == facts.group_datasets["size"].sum() == 275
    for counts in (facts.datasets, facts.clusters, facts.group_datasets, facts.groups):
        assert counts["selected"].sum() == 26
    for measure in report_facts.MEASURES:
        bins = facts.histograms.filter(measure=measure)
        assert (bins["pool"].sum(), bins["selected"].sum()) == (275, 26)
    assert facts.found == 286
    assert facts.rejects.select("stage", "reason", "rows").rows() == [("gradients", "non-finite", 11), ("ingest", "no-answer", 3)]
    assert facts.drift == {}
    assert facts.curve["n_groups"].to_list() == [4] * report_facts.STEPS


def test_gather__of_a_run_that_is_not_complete(filled: Root) -> None:
    opened = runs.open_run(filled.catalog, config={}, config_hash="x", versions={}, seeds={})
    with pytest.raises(UserError, match="is running, not complete"):
        report_facts.gather(filled.catalog, opened.run_id)


def test_samples__are_bounded_and_verified(filled: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_samples, "GROUPS", 2)
    monkeypatch.setattr(report_samples, "MOST", 3)
    monkeypatch.setattr(report_samples, "LEAST", 1)
    monkeypatch.setattr(report_samples, "CLUSTERS", 3)
    monkeypatch.setattr(report_samples, "CHARACTERS", 5)
    run_id = runs.find_run(filled.catalog, "latest")
    found = report_samples.collect(filled, run_id, clustering_id=f"{run_id}-clusters", base=None)
    counted = {kind: rows for kind, rows in found.rows.group_by("kind").len().rows()}
    assert counted == {"chosen": 6, "missed": 6, "nearest": 6}
    assert found.rows.filter(kind="chosen")["place"].unique().sort().to_list() == [0, 1, 2]
    assert set(found.messages) == {*found.rows["example_id"], *found.rows["stands_near"].explode().drop_nulls()}
    for identity, messages in found.messages.items():
        assert [(message.role, message.content) for message in messages] == [("user", "quest"), ("assistant", "answe")], identity
        assert messages[0].left_out >= 5


def test_find_run__takes_latest_an_id_or_its_first_letters(filled: Root) -> None:
    (first,) = runs.list_runs(filled.catalog)["run_id"].to_list()
    assert runs.find_run(filled.catalog, "latest") == first
    assert runs.find_run(filled.catalog, first[:6]) == first
    second = tiny.run(filled, examples=310).run_id
    assert runs.find_run(filled.catalog, first) == first
    assert runs.find_run(filled.catalog, "latest") == second
    with pytest.raises(UserError, match=f"tiny-2 may be any of {second}, {first}: give more of the id"):
        runs.find_run(filled.catalog, "tiny-2")
    with pytest.raises(UserError, match="there is no run 100%"):
        runs.find_run(filled.catalog, "100%")


def test_map_sample__is_bounded_and_weighs_what_it_was_drawn_from(filled: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.complete_run(filled.catalog)
    whole = report_samples.map_sample(filled, run["run_id"], run["space_id"], run["clustering_id"])
    usable = filled.catalog.read("SELECT count(*) AS n FROM candidates_of(?)", [run["run_id"]])["n"][0]
    assert len(whole.rows) == len(whole.features) == usable
    assert set(whole.rows["weight"]) == {1.0}
    for row, feature in zip(whole.rows["example_id"], whole.features, strict=True):
        np.testing.assert_array_equal(feature, tiny.feature(row))
    monkeypatch.setattr(report_samples, "MAP_CHOSEN", 5)
    monkeypatch.setattr(report_samples, "MAP_LEFT", 20)
    some = report_samples.map_sample(filled, run["run_id"], run["space_id"], run["clustering_id"]).rows
    assert dict(some.group_by("chosen").len().rows()) == {True: 5, False: 20}
    assert some["weight"].sum() == pytest.approx(usable)
    assert set(some["example_id"]) <= set(whole.rows["example_id"])
