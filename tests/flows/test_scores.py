"""Scores of the user's own from the source to the selection: conditions name them, and a refresh takes the values of now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows import pipeline
from flows.progress import SilentReporter
from storage import check
from storage.catalog import selections
from storage.root import Root, open_root
from tagcos_stream.config import load_settings
from tagcos_stream.data.canonical import example_id
from tagcos_stream.types import UserError
from tests.flows.conftest import SMALL, conversation

TALKS = [conversation("sums", n) for n in range(24)]
IDS = [example_id(talk) for talk in TALKS]  # type: ignore[arg-type]


def write(path: Path, rows: list[tuple[int, dict[str, Any]]]) -> None:
    path.write_text("".join(json.dumps({"messages": TALKS[n], **scores}) + "\n" for n, scores in rows), encoding="utf-8")


def chosen(root: Root, run_id: str) -> set[str]:
    return set(selections.selection(root.catalog, run_id)["example_id"])


def qualities(root: Root, run_id: str) -> list[float | None]:
    found = dict(root.catalog.read("SELECT example_id, scores['quality'] AS quality FROM signals_of(?)", [run_id]).iter_rows())
    return [found[name] for name in IDS]


def test_scores__choose_and_follow_the_sources(tmp_path: Path, model_folder: Path) -> None:
    # all rows have a score but the last four; the second source repeats the first eight, with other scores, and adds one
    write(tmp_path / "z.jsonl", [(n, {"Quality": n % 6}) for n in range(20)] + [(n, {}) for n in range(20, 24)])
    write(tmp_path / "a.jsonl", [(n, {"quality": 9, "toxic": n / 10}) for n in (*range(8), 23)])
    listed = "".join(
        f"[[source]]\npath='{name}.jsonl'\nscores=['{score}', 'toxic']\n" for name, score in (("z", "Quality"), ("a", "quality"))
    )
    (tmp_path / "list.toml").write_text(listed)
    values = SMALL | {"sources": (str(tmp_path / "list.toml"),), "root": str(tmp_path / "root"), "model": str(model_folder)}
    values |= {"method": "random", "fraction": None, "count": 4, "where": "QUALITY > 3"}
    first = pipeline.run(load_settings(values), SilentReporter())
    root = open_root(values["root"], create=False)
    # of two rows of an example the first counts, by the order of the sources; the second gives what the first lacks
    expected = [n % 6 for n in range(20)] + [None] * 3 + [9]
    assert qualities(root, first.run_id) == expected
    good = {name for name, value in zip(IDS, expected, strict=True) if value is not None and value > 3}
    assert chosen(root, first.run_id) <= good
    assert first.stages["select"]["eligible"] == len(good) == 7
    reselected = pipeline.reselect(values["root"], None, SilentReporter(), where="toxic < 0.25", count=3)
    assert chosen(root, reselected.run_id) == set(IDS[:3])
    with pytest.raises(UserError, match=r"there is no column qualty; choose from .*, alike, quality, toxic"):
        pipeline.reselect(values["root"], None, SilentReporter(), where="qualty > 3")
    # the same text with other scores is the same example: nothing is computed, and the choice follows
    write(tmp_path / "z.jsonl", [(n, {"Quality": 7 * (n > 15)}) for n in range(24)])
    again = pipeline.run(load_settings(values), SilentReporter())
    assert (again.stages["ingest"]["new"], again.stages["gradients"]["computed"]) == (0, 0)
    assert qualities(root, again.run_id) == [7 * (n > 15) for n in range(24)]
    assert chosen(root, again.run_id) <= set(IDS[16:])
    assert qualities(root, first.run_id) == expected  # of the files that it read
    assert check.check(root) == []


def test_scores__that_no_row_has_are_reported_and_names_are_checked(tmp_path: Path, model_folder: Path) -> None:
    write(tmp_path / "a.jsonl", [(n, {"quality": n}) for n in range(8)])
    (tmp_path / "list.toml").write_text("[[source]]\npath='a.jsonl'\nscores=['qualty']\n")
    values = SMALL | {"sources": (str(tmp_path / "list.toml"),), "root": str(tmp_path / "root"), "model": str(model_folder)}
    with pytest.raises(UserError, match=r"there is no column quality; choose from .*, alike, qualty"):
        pipeline.run(load_settings(values | {"where": "quality > 3"}), SilentReporter())
    said: list[str] = []
    reporter = SilentReporter()
    reporter.say = said.append  # type: ignore[assignment]
    with pytest.raises(UserError, match="0 of 8 examples may be chosen, but 2 are to be: 8 fail qualty > 3: no value"):
        pipeline.run(load_settings(values | {"where": "qualty > 3", "method": "random", "fraction": 0.2}), reporter)
    assert "no row has a value of qualty, which the sources name as a score" in said
