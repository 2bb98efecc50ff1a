"""docs/library.md runs as it stands, and the functions choose what the pipeline chooses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tagcos_stream
from flows import pipeline
from flows.progress import SilentReporter
from flows.stages import cluster
from storage.arrays import checkpoints
from storage.catalog import selections
from storage.root import open_root
from tagcos_stream.types import UserError
from tests.flows.conftest import (  # noqa: F401
    TOPICS,
    conversation,
    features_of,
    model_folder,
    pool_folder,
    small_settings,
)

PAGE = (Path(__file__).parents[1] / "docs" / "library.md").read_text(encoding="utf-8")


def test_library__the_tutorial_runs(
    model_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [json.dumps({"messages": conversation(topic, n)}) for topic in TOPICS for n in range(30)]
    (tmp_path / "chats.jsonl").write_text("\n".join([*lines, "{}"]), encoding="utf-8")
    (tmp_path / "my-model").symlink_to(model_folder)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    capsys.readouterr()
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(code, names)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "90 examples, 1 rejects"
    assert printed[2:] == ["(90, 512) float16 True", "9 of 90", "weighted error below 1: True"]
    assert names["selected"].columns[:2] == ["example_id", "dataset"]


def test_library__chooses_what_the_pipeline_chooses(
    small_settings: Callable[..., dict[str, Any]],  # noqa: F811
    pool_folder: Path,  # noqa: F811
    model_folder: Path,  # noqa: F811
) -> None:
    settings = pipeline.load_settings(small_settings(block_rows=1024))
    outcome = pipeline.run(settings, SilentReporter())
    root = open_root(settings.root, create=False)
    pool, stored = features_of(root, outcome.run_id)
    features = stored.astype(np.float16)

    made = tagcos_stream.cluster_rows(features, 4, min_cluster_rows=2, keys=cluster.keys(pool))
    chosen = tagcos_stream.select_rows(features, made, 0.1)
    theirs = selections.selection(root.catalog, outcome.run_id)
    assert pool["example_id"][chosen["row"]].to_list() == theirs["example_id"].to_list()
    assert np.allclose(chosen["weight"], theirs["weight"])
    assert np.allclose(chosen["share"], theirs["share"])

    examples, rejects = tagcos_stream.read_pool(str(pool_folder))
    assert not len(rejects)
    assert examples["example_id"].to_list() == pool["example_id"].to_list()
    loaded = tagcos_stream.load_model(str(model_folder))
    encoded = tagcos_stream.encode_pool(loaded, examples, max_length=96)
    from tagcos_stream.gradients.adapter import attach_adapter

    loaded.model = attach_adapter(loaded.model, rank=8, alpha=32, dropout=0.0, seed=0)
    space = outcome.stages["warm-up"]["space_id"]
    row = root.catalog.read("SELECT step, weight, digest FROM checkpoints").row(0, named=True)
    checkpoint = checkpoints.load_checkpoint(root.files, space, row["step"], weight=row["weight"], digest=row["digest"])
    found, measured = tagcos_stream.gradient_features(loaded, encoded, [checkpoint], dim=256, token_budget=512)
    assert np.abs(found.astype(np.float64) - stored).max() < 2e-3  # other batches, other last bits
    assert measured["tokens"].sum() == root.catalog.read("SELECT sum(tokens)::BIGINT AS n FROM feature_rows")["n"][0]


def test_library__mistakes() -> None:
    rows = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    made = tagcos_stream.cluster_rows(rows, 2, min_cluster_rows=1)
    for budget in (0, 21, 1.5e9, -0.1, 2.5, float("nan")):
        with pytest.raises(UserError, match="of 20 rows"):
            tagcos_stream.select_rows(rows, made, budget)
    with pytest.raises(UserError, match="one row or all: give 1, or 20"):
        tagcos_stream.select_rows(rows, made, 1.0)
    assert len(tagcos_stream.select_rows(rows, made, 20)) == 20
    assert len(tagcos_stream.select_rows(rows, made, np.float32(0.1))) == 2
    for other in (rows[:10], np.vstack([rows, rows])):
        with pytest.raises(UserError, match=f"there are {len(other)} feature rows, and 20 were clustered"):
            tagcos_stream.select_rows(other, made, 2)
    with pytest.raises(UserError, match="there is no feature row"):
        tagcos_stream.cluster_rows(rows[:0])
    with pytest.raises(UserError, match="0 clusters of 20 rows: choose between 1 and 20"):
        tagcos_stream.cluster_rows(rows, 0)
    with pytest.raises(UserError, match="no source is named"):
        tagcos_stream.read_pool()
    rows[7, 3] = np.nan
    with pytest.raises(UserError, match="row 7 is not finite"):
        tagcos_stream.cluster_rows(rows)
    with pytest.raises(AttributeError, match="read_pool"):
        _ = tagcos_stream.no_such_name


def test_library__a_cell_can_be_run_again(model_folder: Path, pool_folder: Path) -> None:  # noqa: F811
    examples, _ = tagcos_stream.read_pool(pool_folder)
    loaded = tagcos_stream.load_model(model_folder)
    encoded = tagcos_stream.encode_pool(loaded, examples.head(12), max_length=96)
    with pytest.raises(UserError, match="max_length is -1"):
        tagcos_stream.encode_pool(loaded, examples, max_length=-1)
    for wrong in ({"rank": 0}, {"batch_size": 0}, {"checkpoints": 3}, {"checkpoints": 0}, {"token_budget": 0}):
        with pytest.raises(UserError, match=r"must be at least 1|3 checkpoints need"):
            tagcos_stream.warm_up(loaded, encoded, **wrong)
    (once,), (again,) = (tagcos_stream.warm_up(loaded, encoded, rank=2) for _ in range(2))
    assert all(np.array_equal(once.weights[name], again.weights[name]) for name in once.weights)
    with pytest.raises(UserError, match="no checkpoint is given"):
        tagcos_stream.gradient_features(loaded, encoded, [])
    features, _ = tagcos_stream.gradient_features(loaded, encoded, [again], dim=64)
    assert np.isfinite(features).all()


def test_library__importing_it_imports_nothing_else() -> None:
    code = "import sys, tagcos_stream; print(len(tagcos_stream.__all__)); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "polars", "numpy", "transformers"} & set(done.stdout.split())
    for name in tagcos_stream.__all__:
        assert getattr(tagcos_stream, name).__doc__, name
        assert re.search(rf"\b{name}\b", PAGE), name
