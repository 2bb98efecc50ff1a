"""Pinned examples (`include`): always chosen, explained, paid for by every kind of budget, or refused with the numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows import pipeline
from flows.compare import diagnose
from flows.progress import SilentReporter
from storage import check
from storage.catalog import runs, selections
from storage.root import Root
from tagcos_stream.selection.match import reserved_dimensions
from tagcos_stream.types import UserError
from tests import naive
from tests.flows.conftest import features_of


@pytest.fixture
def root(selected_root: Root) -> Root:
    return selected_root


def reselect(root: Root, **changes: Any) -> pipeline.Outcome:
    return pipeline.reselect(root.url, runs.complete_run(root.catalog, "main")["run_id"], SilentReporter(), **changes)


def test_include__pins_are_chosen_first_and_count(root: Root, tmp_path: Path) -> None:
    pool = root.catalog.read("FROM signals ORDER BY example_id")
    pins = pool["example_id"].gather_every(20).to_list()
    listed = tmp_path / "gold.txt"
    listed.write_text("\n".join(pins) + "\n")
    for method in ("tagcos", "balanced"):
        outcome = reselect(root, method=method, count=15, include=str(listed))
        chosen = selections.selection(root.catalog, outcome.run_id)
        assert (len(chosen), outcome.stages["select"]["pinned"]) == (15, 6)
        assert set(pins) <= set(chosen["example_id"])
        for example_id in chosen["example_id"].to_list()[:8]:
            reason = root.catalog.read("SELECT reason FROM why(?, run := ?)", [example_id, outcome.run_id]).item()
            assert (reason == "pinned") == (example_id in pins)
        if method == "tagcos":
            assert chosen["weight"].null_count() == 0
            assert set(chosen.filter(pl.col("example_id").is_in(pins))["round"]) == {0}
        groups = root.catalog.read("FROM coverage_of(?)", [outcome.run_id])
        assert (groups["selected"] == groups["budget"]).all()
    # a condition that holds for no example pins none: the same choice as without
    none = reselect(root, method="tagcos", count=15, include="loss < 0")
    assert "pinned" not in none.stages["select"]
    free = reselect(root, method="tagcos", count=15)
    assert free.stages["select"]["copied"] == free.stages["select"]["clusters"]
    assert check.check(root) == []


def test_diagnose__has_the_pins_of_the_run_in_every_selection(root: Root, tmp_path: Path) -> None:
    base = runs.complete_run(root.catalog, "main")["run_id"]
    pool, rows = features_of(root, base)
    pins = pool["example_id"].gather_every(20).to_list()
    listed = tmp_path / "gold.txt"
    listed.write_text("\n".join(pins) + "\n")
    run_id = reselect(root, method="tagcos", count=15, include=str(listed)).run_id
    said: list[str] = []
    reporter = SilentReporter()
    reporter.say = said.append  # type: ignore[assignment]
    methods = ("random", "omp", "tagcos", "kcenter")
    diagnose.diagnose(root.url, run_id, methods=methods, fractions=(0.125, 0.01), seeds=(0,), reporter=reporter)
    assert said[0] == f"the 6 examples that {run_id} pins are in every selection"
    assert [text for text in said if "1 examples are to be chosen, and include pins 6" in text] == said[1:]
    frame = diagnose.table(root.url, run_id)
    assert sorted(frame["method"]) == sorted(methods)
    assert set(frame["selected"]) == {15}
    # by hand: the pins and the best draws of the other rows, against the mean of all
    at = [pool["example_id"].to_list().index(name) for name in pins]
    rest = [i for i in range(120) if i not in at]
    draws = [naive.naive_draw(pool["example_id"][i], 0) for i in rest]
    chosen = np.array(at + [rest[i] for i in naive.naive_best(draws, draws, 9)])
    held = rows[:, reserved_dimensions(256)]
    plain, _ = naive.naive_match_errors(held, np.zeros(120), chosen, np.full(15, 1 / 15))
    assert frame.filter(pl.col("method") == "random")["error_plain"].item() == pytest.approx(plain, abs=1e-6)


def test_include__within_tokens_and_shares(root: Root) -> None:
    pool = root.catalog.read("FROM signals")
    longest = int(pool["target_tokens"].sort(descending=True)[2])
    pinned = pool.filter(pl.col("target_tokens") >= longest)
    spent = int(pinned["target_tokens"].sum())
    condition = f"target_tokens >= {longest}"
    outcome = reselect(root, method="tagcos", include=condition, tokens=str(spent + 60))
    chosen = selections.selection(root.catalog, outcome.run_id)
    assert set(pinned["example_id"]) < set(chosen["example_id"])
    assert spent < outcome.stages["select"]["tokens"] <= spent + 60
    with pytest.raises(UserError, match=f"include pins {len(pinned)} examples, which take {spent:,} tokens, but the budget is"):
        reselect(root, include=condition, tokens=str(spent - 1))
    dataset = pinned["dataset"][0]
    many = f"dataset = '{dataset}' AND target_tokens >= {longest}"
    n = len(pinned.filter(pl.col("dataset") == dataset))
    outcome = reselect(root, method="stratified", include=many, count=20, share=(f"{dataset}=:{n}",))
    chosen = selections.selection(root.catalog, outcome.run_id).filter(pl.col("dataset") == dataset)
    assert set(chosen["example_id"]) == set(pinned.filter(pl.col("dataset") == dataset)["example_id"])
    with pytest.raises(UserError, match=f"include pins 40 examples of dataset {dataset}, whose maximum is 5"):
        reselect(root, method="random", include=f"dataset = '{dataset}'", count=60, share=(f"{dataset}=:5",))


def test_include__refuses_what_cannot_be_chosen(root: Root, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="include pins 120 examples, which take 120 examples, but the budget is 12"):
        reselect(root, method="random", count=12, include="true")
    with pytest.raises(
        UserError, match=r"include turns > 0: 40 of 120 pinned examples may not be chosen \(40 by exclude dataset = 's"
    ):
        reselect(root, method="random", count=12, include="turns > 0", exclude="dataset = 'sums'")
    with pytest.raises(UserError, match=r"40 of 120 pinned examples may not be chosen \(40 by dataset != 'sums'\)"):
        reselect(root, method="random", count=12, include="turns > 0", where="dataset <> 'sums'")
    listed = tmp_path / "gold.txt"
    known = root.catalog.read("SELECT example_id FROM signals LIMIT 1").item()
    listed.write_text(f"{known}\n{'0' * 32}\n")
    with pytest.raises(UserError, match="1 of 2 examples have no feature in this pool, such as 00000"):
        reselect(root, method="random", include=str(listed))
    listed.write_text(f"{known}\n{known[:8]}\n")
    with pytest.raises(UserError, match=f"{known[:8]!r} is not an example id, which has 32 hexadecimal digits"):
        reselect(root, method="random", exclude=str(listed))
    with pytest.raises(UserError, match=rf"include {re.escape(str(Path.cwd()))}/gone\.txt: "):
        reselect(root, include="gone.txt")
