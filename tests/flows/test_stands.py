"""Which chosen example stands for which, as the catalog answers: of a run, of a copied choice, of one example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows import pipeline
from flows.progress import SilentReporter
from storage.arrays import segments
from storage.root import Root, open_root
from tagcos_stream.config import load_settings
from tests import naive
from tests.flows.conftest import First

Maker = Callable[..., dict[str, Any]]


def features_by_id(root: Root, run_id: str) -> dict[str, np.ndarray]:
    space = root.catalog.read("SELECT space_id FROM runs WHERE run_id = ?", [run_id])["space_id"][0]
    rows = root.catalog.read("SELECT example_id, segment, row FROM candidates_of(?) ORDER BY segment, row", [run_id])
    found = segments.open_features(root.files, space, rows).gather(np.arange(len(rows)))
    return dict(zip(rows["example_id"], found, strict=True))


@pytest.mark.parametrize("method", ["tagcos", "random", "stratified"])
def test_stands__are_the_nearest_chosen_of_the_group(small_settings: Maker, first_run: First, method: str) -> None:
    settings = load_settings(small_settings(method=method))
    run_id = first_run(small_settings(method=method)).run_id
    root = open_root(settings.root, create=False)
    features = features_by_id(root, run_id)
    near = root.catalog.read("FROM nearest_chosen(?)", [run_id])
    assert sorted(near["example_id"]) == sorted(features)
    for (number,), group in near.group_by("group_id"):
        chosen = root.catalog.read(
            "SELECT example_id FROM selections WHERE run_id = ? AND group_id = ? ORDER BY rank", [run_id, number]
        )["example_id"].to_list()
        ids = group["example_id"].to_list()
        expected = naive.naive_stands(np.stack([features[name] for name in ids]), [ids.index(name) for name in chosen])
        assert group["representative"].to_list() == [chosen[place] for place, _ in expected]
        assert group["cosine"].to_list() == pytest.approx([cosine for _, cosine in expected], abs=1e-6)
    stands = root.catalog.read("FROM stands_for(?)", [run_id])
    assert len(stands) == root.catalog.read("SELECT count(*) AS n FROM selections WHERE run_id = ?", [run_id])["n"][0]
    assert stands["rows"].sum() == len(near)
    groups = near.group_by("representative").agg(pl.len(), "example_id", pl.col("cosine").mean())
    for row in stands.filter(pl.col("rows") > 0).iter_rows(named=True):
        mine = groups.row(by_predicate=pl.col("representative") == row["example_id"], named=True)
        assert (row["rows"], row["mean_cosine"]) == (mine["len"], pytest.approx(mine["cosine"], abs=1e-6))
        assert set(row["examples"] or []) <= set(mine["example_id"]) - {row["example_id"]}
        assert len(row["examples"] or []) == min(3, mine["len"] - 1)
        assert sum(int(part.split()[-1]) for part in row["datasets"].split(", ")) == row["rows"]


def test_why__says_what_an_example_stands_for_and_what_stands_for_it(filled: Root) -> None:
    stands = filled.catalog.read("FROM stands_for((SELECT run_id FROM latest_run)) WHERE rows > 1").row(0, named=True)
    (why,) = filled.catalog.read("FROM why(?)", [stands["example_id"]]).to_dicts()
    assert why["stands"] == f"stands for {stands['rows']} rows of its group: {stands['datasets']}"
    assert (why["stands_for"], why["representative"]) == (stands["rows"], stands["example_id"])
    (left,) = filled.catalog.read("FROM why(?)", [stands["examples"][0]]).to_dicts()
    assert left["representative"] == stands["example_id"]
    assert left["stands"] == f"nearest chosen example: {stands['example_id']} (cosine {left['cosine']:.3f})"
    assert (left["chosen"], left["stands_for"]) == (False, None)


def test_stands__of_a_copied_choice_are_those_it_was_copied_from(small_settings: Maker, first_run: First) -> None:
    settings = load_settings(small_settings())
    first = first_run(small_settings()).run_id
    second = pipeline.reselect(settings.root, first, SilentReporter())
    assert second.stages["select"]["copied"] > 0
    catalog = open_root(settings.root, create=False).catalog
    query = "SELECT * EXCLUDE (run_id) FROM stands_for(?) ORDER BY cluster, rank"
    assert catalog.read(query, [second.run_id]).equals(catalog.read(query, [first]))


def test_stands__are_left_out_where_they_would_take_too_long(
    small_settings: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows.progress import LineReporter
    from tagcos_stream.selection import stands

    monkeypatch.setattr(stands, "MAX_MULTIPLICATIONS", 1e3)
    settings = load_settings(small_settings(method="random"))
    run_id = pipeline.run(settings, LineReporter()).run_id
    said = capsys.readouterr()
    assert "which example stands for which is not computed in 1 of 1 groups" in said.err + said.out
    catalog = open_root(settings.root, create=False).catalog
    assert catalog.read("FROM stands_for(?)", [run_id]).is_empty()
    chosen = catalog.read("SELECT example_id FROM selections WHERE run_id = ?", [run_id])["example_id"][0]
    assert catalog.read("SELECT stands FROM why(?)", [chosen])["stands"].to_list() == [None]
