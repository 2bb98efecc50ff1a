"""A tiny real model on disk and a small pool, for runs from end to end."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows import pipeline
from flows.cli import main
from flows.progress import SilentReporter
from storage.arrays import segments
from storage.catalog import runs, spaces
from storage.root import Root, open_root
from tagcos_stream.config import load_settings
from tests.models import tiny_model, tiny_tokenizer
from tests.storage.conftest import bucket, filled, pattern, s3_server, small_disk  # noqa: F401

Call = Callable[..., tuple[int, str, str]]
First = Callable[[dict[str, Any]], pipeline.Outcome]
TOPICS = ("sums", "colours", "cities")
# of a run that takes a second or two
SMALL: dict[str, Any] = {
    "fraction": 0.1,
    "max_length": 96,
    "warmup_examples": 16,
    "dim": 256,
    "block_rows": 32,
    "clusters": 4,
    "min_cluster_rows": 2,
    "batch_tokens": 512,
    "wait": 1,
}


def conversation(topic: str, n: int) -> list[dict[str, str]]:
    rng = random.Random(f"{topic}-{n}")
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    turns = {
        "sums": [f"Sum {n}: what is {a} + {b}?", f"{a} + {b} = {a + b}"],
        "colours": [f"Name a colour, please ({n}).", rng.choice(["red", "green", "deep blue"]) + " is a colour."],
        "cities": [
            f"Tell me of city {n}.",
            "It lies by a river.",
            "Which one?",
            f"The {rng.choice(['Rhine', 'Nile', 'Seine'])}, kilometre {b}.",
        ],
    }[topic]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def pool_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 40 conversations, one topic each; at the same place in every test, for `first_run`."""
    own = tmp_path_factory.getbasetemp() / "sources"
    shutil.rmtree(own, ignore_errors=True)
    folder = own / "pool"
    folder.mkdir(parents=True)
    for topic in TOPICS:
        lines = [json.dumps({"messages": conversation(topic, n)}) for n in range(40)]
        (folder / f"{topic}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def features_of(root: Root, run_id: str) -> tuple[pl.DataFrame, np.ndarray]:
    """The pool's examples that have features, and these (N, D) float64."""
    space = runs.run_status(root.catalog, run_id).run["space_id"]
    pool = spaces.features_pool(root.catalog, run_id, space)
    rows = segments.open_features(root.files, space, pool)
    return pool, np.concatenate([rows.read(b) for b in range(len(rows.starts) - 1)]).astype(np.float64)


@pytest.fixture
def small_settings(model_folder: Path, pool_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a run that takes a second or two, with changes."""

    def settings(**changes: Any) -> dict[str, Any]:
        return (
            {
                "sources": (str(pool_folder),),
                "root": str(tmp_path / "root"),
                "model": str(model_folder),
            }
            | SMALL
            | changes
        )

    return settings


@pytest.fixture(scope="session")
def first_runs() -> dict[str, tuple[Path, pipeline.Outcome]]:
    """Roots of `first_run`, by settings and texts."""
    return {}


@pytest.fixture
def first_run(first_runs: dict[str, tuple[Path, pipeline.Outcome]], tmp_path_factory: pytest.TempPathFactory) -> First:
    """Run in a root that does not exist yet, with folders as sources; for the same settings and texts, copy what that left."""

    def run(values: dict[str, Any]) -> pipeline.Outcome:
        settings = load_settings(values)
        files = sorted(file for folder in settings.sources for file in Path(folder).iterdir())
        state = [[str(file), file.read_text(encoding="utf-8")] for file in files]
        key = json.dumps([settings.model_dump(mode="json", exclude={"root"}), state])
        if key not in first_runs:
            root = tmp_path_factory.mktemp("first") / "root"
            first_runs[key] = root, pipeline.run(load_settings(values | {"root": str(root)}), SilentReporter())
        root, outcome = first_runs[key]
        shutil.copytree(root, settings.root)
        return outcome

    return run


@pytest.fixture
def tagcos(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Call the entry point with arguments; returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["tagcos", *map(str, arguments)])
        capsys.readouterr()
        try:
            main.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def complete_root(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A root with one complete run of 120 examples in three files, whose sources and model are gone."""

    folder = tmp_path_factory.mktemp("select")
    for topic in TOPICS:
        lines = [json.dumps({"messages": conversation(topic, n)}) for n in range(40)]
        (folder / f"{topic}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    model = shutil.copytree(model_folder, folder / "model")
    values = {
        "sources": tuple(str(folder / f"{topic}.jsonl") for topic in TOPICS),
        "root": str(folder / "root"),
        "model": str(model),
    }
    pipeline.run(load_settings(SMALL | values | {"ifd": True}), SilentReporter())
    for topic in TOPICS:
        (folder / f"{topic}.jsonl").unlink()
    shutil.rmtree(model)
    return folder / "root"


@pytest.fixture
def selected_root(complete_root: Path, tmp_path: Path) -> Root:
    """A copy of it."""
    shutil.copytree(complete_root, tmp_path / "root")
    return open_root(str(tmp_path / "root"), create=False)
