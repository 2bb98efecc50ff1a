"""What `tagcos estimate` says, and what the run then takes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import estimate, pipeline, progress, source_sample
from flows.pipeline import load_settings
from flows.progress import SilentReporter
from storage.root import open_root
from tagcos_stream.data.read import SourceSpec, read_file, resolve_sources
from tagcos_stream.machine import available_cpus
from tagcos_stream.types import UserError
from tests.flows.conftest import conversation

Maker = Callable[..., dict[str, Any]]


def test_estimate__says_what_the_run_takes(small_settings: Maker, pool_folder: Path, tmp_path: Path) -> None:
    (pool_folder / "bad.jsonl").write_text('{"text": 1}\n', encoding="utf-8")
    settings = load_settings(small_settings(max_rejects=0.9))
    found = estimate.estimate(settings, seconds=0.2)
    assert not (tmp_path / "root").exists()  # it writes nothing
    outcome = pipeline.run(settings, SilentReporter())
    root = open_root(settings.root, create=False)
    tokens = root.catalog.read("SELECT sum(tokens)::BIGINT AS n FROM feature_rows WHERE status = 'ok'")["n"][0]
    assert (found.rows, found.rows_counted, found.rows_read, found.rejected_rows) == (121, True, 121, 1)
    assert (found.examples, found.known_examples) == (120, 0)
    assert (found.selected, found.clusters) == (12, 4)
    assert (found.tokens, found.without_gradient) == (tokens, 120 - outcome.stages["gradients"]["rows"])
    assert found.tokens_an_example == pytest.approx(tokens / 120)
    assert found.probe_seconds >= 0.2
    assert (found.cpus, found.matrix_rate > 1e8) == (available_cpus(), True)
    assert found.stages["gradients"] == pytest.approx(tokens / found.tokens_a_second)
    assert found.seconds == pytest.approx(sum(found.stages.values()))

    on_disk = {name: size_of(Path(settings.root) / name) for name in ("spaces", "clusterings")}
    assert found.disk["features"] + found.disk["checkpoints"] == pytest.approx(on_disk["spaces"], rel=0.15)
    catalog = size_of(Path(settings.root), "catalog*") + size_of(Path(settings.root) / "snapshots")
    assert found.disk["catalog"] == pytest.approx(catalog, rel=0.5)

    targets = root.catalog.read("SELECT sum(target_tokens)::BIGINT AS n FROM feature_rows WHERE status = 'ok'")["n"][0]
    by_tokens = small_settings(max_rejects=0.9, fraction=None, tokens=str(targets // 2))
    again = estimate.estimate(load_settings(by_tokens), seconds=0)
    assert (again.known_examples, again.tokens, again.stages["warm-up"], again.stages["load model"]) == (120, 0, 0, 0)
    assert again.disk["features"] == 0
    assert again.selected == pytest.approx(60, abs=1)  # half of the target tokens pays for half of the examples


def test_estimate__a_count_is_of_the_whole_pool(small_settings: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the time sufficed to read ten rows of each of the three files."""
    monkeypatch.setattr(source_sample, "read_file", lambda file: read_file(file, block_rows=10))
    monkeypatch.setattr(source_sample, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(estimate, "sample_sources", partial(source_sample.sample_sources, seconds=0.0, count_seconds=60.0))
    found = estimate.estimate(load_settings(small_settings(fraction=None, count=80)), seconds=0)
    assert (found.rows, found.rows_read, found.selected) == (120, 30, 80)


def test_estimate__held_out_rows_cost_nothing(small_settings: Maker, pool_folder: Path) -> None:
    settings = load_settings(small_settings(heldout=0.25))
    found = estimate.estimate(settings, seconds=0)
    assert (found.examples, found.heldout, found.selected) == (120, 30, 9)
    assert found.tokens == pytest.approx(90 * found.tokens_an_example, abs=1)
    pipeline.run(settings, SilentReporter())
    again = estimate.estimate(load_settings(small_settings()), seconds=0)  # the root remembers its share
    assert (again.heldout, again.tokens) == (30, 0)


def size_of(folder: Path, pattern: str = "**/*") -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def test_look__rows_are_counted_and_what_was_not_read_is_like_what_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed files too; the sample is in proportion to the files' rows."""
    lines = [json.dumps({"messages": conversation("sums", n)}) for n in range(30_000)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines[:10_000]))
    files = resolve_sources([str(tmp_path)])
    whole = source_sample.sample_sources(files)
    assert (whole.rows, whole.rows_read, whole.examples) == (40_000, 40_000, 30_000)
    assert len(whole.sample) <= source_sample.SAMPLE
    monkeypatch.setattr(source_sample, "read_file", lambda file: read_file(file, block_rows=2_000))
    monkeypatch.setattr(source_sample, "MIN_SECONDS", 0.0)
    part = source_sample.sample_sources(files, seconds=0)  # the first blocks of each file
    assert part.rows_read < 40_000
    assert (part.rows, part.rows_counted) == (40_000, True)
    monkeypatch.setattr(source_sample, "BLOCK_ROWS", 500)
    likely, counted = source_sample.count_rows(files[0], 0.0)
    assert (likely, counted) == (pytest.approx(30_000, rel=0.1), False)
    (some,) = resolve_sources([SourceSpec(str(tmp_path / "a.jsonl"), limit=20_000)])
    assert source_sample.count_rows(some, 60.0) == (20_000, True)


def test_estimate__mistakes(small_settings: Maker, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match="no usable example"):
        estimate.estimate(load_settings(small_settings(sources=(str(tmp_path / "empty.jsonl"),))))
    with pytest.raises(UserError, match=r"within the first 8 tokens: raise --max-length \(now 8\)"):
        estimate.estimate(load_settings(small_settings(max_length=8)), seconds=0)


def test_progress__tells_the_time_left_once_it_means_something(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    lines: list[str] = []
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with progress.LineReporter(lines.append, every=0.0).stage("gradients", "examples") as update:
        for seconds, done in ((1, 1), (9, 50), (20, 5), (30, 100), (60, 200)):
            now[0] = seconds
            update(done, 1000)
    assert ["left" in line for line in lines] == [False, False, False, True, True, True]
    assert lines[3].endswith("30 s, 273 s left")
