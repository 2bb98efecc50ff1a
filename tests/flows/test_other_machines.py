"""A root that is moved, copied while a run writes it, read by a clock that was set back, or left by a machine that is gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from flows import pipeline
from flows.progress import SilentReporter, Stage
from storage import check
from storage.catalog import runs, selections
from storage.root import open_root
from storage.tables import utc_now
from tagcos_stream.config import load_settings
from tagcos_stream.types import TransientError, UserError
from tests.flows.conftest import First

Maker = Callable[..., dict[str, Any]]


def run(settings: dict[str, Any], reporter: Any = None) -> pipeline.Outcome:
    return pipeline.run(load_settings(settings), reporter or SilentReporter())


def chosen(root: str, run_id: str) -> list[Any]:
    return selections.selection(open_root(root, create=False).catalog, run_id).drop("run_id", "segment").rows()


def test_root__moved_elsewhere_is_the_same_root(small_settings: Maker, first_run: First, tmp_path: Path) -> None:
    settings = small_settings()
    first = first_run(settings)
    moved = str(shutil.move(settings["root"], tmp_path / "elsewhere"))
    again = run(settings | {"root": moved})
    assert again.stages["gradients"]["computed"] == 0
    assert chosen(moved, again.run_id) == chosen(moved, first.run_id)
    assert check.check(open_root(moved, create=False)) == []


class Copying(SilentReporter):
    """Copies the root once, when half of the gradients are there."""

    def __init__(self, root: str, copy: Path) -> None:
        self.root, self.copy = root, copy

    @contextmanager
    def stage(self, title: str, unit: str) -> Iterator[Stage]:
        def progress(done: float, total: float | None = None) -> None:
            if title == "gradients" and total and done >= total / 2 and not self.copy.exists():
                shutil.copytree(self.root, self.copy)

        yield progress


def test_root__copied_while_a_run_writes_it_goes_on_from_the_copy(small_settings: Maker, tmp_path: Path) -> None:
    settings, copy = small_settings(block_rows=8), tmp_path / "copy"
    whole = run(settings, Copying(settings["root"], copy))
    copied = open_root(str(copy), create=False).catalog.read("SELECT count(*) FROM feature_rows").item()
    assert 0 < copied < whole.stages["gradients"]["computed"]
    resumed = run(settings | {"root": str(copy)})
    assert resumed.run_id == whole.run_id
    assert chosen(str(copy), resumed.run_id) == chosen(settings["root"], whole.run_id)
    assert check.check(open_root(str(copy), create=False)) == []


class CopyingTorn(Copying):
    """A copy whose catalog is later than its files: of the end of the gradients, when half of them had been copied."""

    @contextmanager
    def stage(self, title: str, unit: str) -> Iterator[Stage]:
        with super().stage(title, unit) as progress:
            yield progress
        if title == "gradients":
            for file in self.copy.glob("catalog.duckdb*"):
                file.unlink()
            for file in Path(self.root).glob("catalog.duckdb*"):
                shutil.copy(file, self.copy)


def test_root__copied_with_a_newer_catalog_says_what_is_missing(small_settings: Maker, tmp_path: Path) -> None:
    settings, copy = small_settings(block_rows=8), tmp_path / "copy"
    whole = run(settings, CopyingTorn(settings["root"], copy))
    root = open_root(str(copy), create=False)
    missing = [finding for finding in check.check(root) if finding.damage]
    assert missing
    assert all("missing" in finding.problem and "segment" in finding.place for finding in missing)
    with pytest.raises(UserError, match=r"missing.*tagcos check --repair"):
        run(settings | {"root": str(copy)})
    with root.writer():
        check.repair(root, missing)
    resumed = run(settings | {"root": str(copy)})
    assert chosen(str(copy), resumed.run_id) == chosen(settings["root"], whole.run_id)


def test_clock__set_back__the_last_to_complete_is_still_the_latest(
    small_settings: Maker, first_run: First, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings()
    first = first_run(settings)
    catalog = open_root(settings["root"], create=False).catalog
    for module in ("runs", "stages"):
        monkeypatch.setattr(f"storage.catalog.{module}.utc_now", lambda: utc_now() - timedelta(days=2))
    second = run(settings | {"fraction": 0.2})
    assert second.run_id < first.run_id  # ids have the date of the clock
    assert runs.find_run(catalog) == second.run_id
    assert catalog.read("SELECT run_id FROM latest_run").item() == second.run_id
    runs.promote(catalog, first.run_id)
    assert runs.find_run(catalog) == first.run_id
    third = run(settings | {"fraction": 0.3})
    assert runs.find_run(catalog) == third.run_id
    assert catalog.read("FROM trend_of('main')")["run_id"].to_list()[-1] == third.run_id


def test_lock__of_another_host_is_named_and_one_that_nobody_holds_is_taken(small_settings: Maker, first_run: First) -> None:
    settings = small_settings(wait=0.2)
    first_run(settings)
    lock = Path(settings["root"]) / "writer.lock"
    other = json.dumps({"pid": 7, "host": "far-away", "started": "2026-01-01T00:00:00+00:00"})
    with open_root(settings["root"], create=False).writer():
        lock.write_text(other)
        with pytest.raises(
            TransientError, match=r"being written by process 7 on far-away, .* waited 0\.2 s\. Let it finish, stop it"
        ):
            run(settings | {"fraction": 0.2})
    lock.write_text(other)  # what a machine that went down leaves
    assert run(settings | {"fraction": 0.2}).stages["gradients"]["computed"] == 0
