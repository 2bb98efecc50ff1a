"""The GPU benchmark: the packed file, and the whole command on tiny shapes and a CPU, with nothing else installed."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.types import UserError
from tests.benchmarks import gpu, gpu_checks
from tests.benchmarks import pack as packing
from tests.benchmarks.packed import pack, read_packed, require_same_tokenizer, write_packed
from tests.models import random_encoded, tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[1]
IMAGE = ("numpy", "torch", "transformers", "peft")  # what an ordinary image for training has
METHOD = ("numba", "scipy", "pydantic", "threadpoolctl")  # what the method itself imports beside it
ABSENT = {
    "polars",
    "duckdb",
    "zarr",
    "prefect",
    "pyarrow",
    "obstore",
    "orjson",
    "sqlalchemy",
    "fastapi",
    "datasets",
    "pandas",
    "ray",
}

FACTS: dict[str, Any] = {"model": "m", "max_length": 64, "probe": (1, 2), "rejected": 1, "left_out": 2}


def test_packed__holds_examples_and_who_is_held_out(tmp_path: Path) -> None:
    encoded = random_encoded([5, 21, 9, 2, 40, 13, 33, 8])
    rng = np.random.default_rng(0)
    ids = [rng.bytes(16).hex() for _ in encoded]
    datasets = ["b", "a", "b", "b", "a", "b", "a", "a"]
    write_packed(tmp_path / "p.safetensors", pack(encoded, ids, datasets, 0.25, 300, **FACTS))
    found = read_packed(tmp_path / "p.safetensors")
    assert found.tokens.dtype == np.uint16
    for one, ref in zip(found.encoded(np.arange(8)), encoded, strict=True):
        np.testing.assert_array_equal(one.input_ids, ref.input_ids)
        np.testing.assert_array_equal(one.target, ref.target)
    assert found.target_tokens.tolist() == [one.n_target for one in encoded]
    assert found.example_ids(np.arange(8)) == ids
    assert [found.facts.datasets[d] for d in found.dataset] == datasets
    lowest = {min(i for i, d in zip(ids, datasets, strict=True) if d == name) for name in "ab"}
    assert {i for i, out in zip(ids, found.heldout, strict=True) if out} == lowest
    assert found.digest == pack(encoded, ids, datasets, 0.25, 300, **FACTS).digest
    assert found.digest != pack(encoded, ids, datasets, 0.5, 300, **FACTS).digest
    assert pack(encoded, ids, datasets, 0.25, 1 << 17, **FACTS).tokens.dtype == np.int32
    with pytest.raises(UserError, match="differs from that of other"):
        require_same_tokenizer(found, tiny_tokenizer(), "other")


def test_packed__another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"not this")
    with pytest.raises(UserError, match="is no packed file"):
        read_packed(tmp_path / "p")


def test_exactness__angles_of_positions_are_those_of_float64() -> None:
    model = gpu_checks.exact_positions(tiny_model(dtype=torch.float64))
    rotary = model.model.rotary_emb
    given = rotary(torch.zeros(1, 1, 8, dtype=torch.float64), torch.arange(300)[None])
    angles = np.tile(np.outer(np.arange(300), rotary.inv_freq.double().numpy()), 2)
    for found, ref in zip(given, (np.cos(angles), np.sin(angles)), strict=True):
        np.testing.assert_allclose(found[0].numpy(), ref, rtol=0, atol=1e-15)
    plain, exact = (one(torch.arange(4, 40)[None]).logits for one in (tiny_model(dtype=torch.float64), model))
    torch.testing.assert_close(plain, exact, rtol=1e-4, atol=1e-4)


def test_speed__what_ran_out_of_memory_is_released_before_less_is_tried() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def fails(batch: list[Encoded]) -> None:
        activations = torch.zeros(4)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert gpu_checks._times([fails], [random_encoded([5])], 1) is None
    assert held[0]() is None


def test_gpu__what_does_not_fit_is_said_before_the_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    encoded, ids = random_encoded([5, 9]), ["0" * 32, "1" * 32]
    for heldout, message in ((0.0, "holds no example out"), (0.5, "differs from that of")):
        write_packed(tmp_path / "packed", pack(encoded, ids, ["a", "a"], heldout, 300, **FACTS))
        words = ["--out", str(tmp_path / "out"), "--packed", str(tmp_path / "packed"), "--model", str(tmp_path / "model")]
        with pytest.raises(SystemExit) as stop:
            gpu.main(words)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def closure(names: tuple[str, ...]) -> set[str]:
    """Distributions that these need, themselves included."""
    found: set[str] = set()
    left = list(names)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            needed = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        wanted = [Requirement(line) for line in needed]
        left += [r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


# runs the benchmark where the named packages cannot be found, as if they were not installed
ALONE = """
import importlib.machinery, json, os, sys

given = json.loads(sys.argv[1])
refused = set(given["refused"])

class Present(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if path is None and name in refused else super().find_spec(name, path, target)

sys.meta_path[:] = [importlib.machinery.BuiltinImporter, importlib.machinery.FrozenImporter, Present]
from tests.benchmarks import gpu

for words in given["runs"]:
    if words[0] == "remove":
        os.remove(words[1])
    else:
        gpu.main(words)
"""


@pytest.mark.process
def test_gpu__does_everything_with_numpy_torch_transformers_and_peft(tmp_path: Path) -> None:
    """In one process: checks without time, the study without time, one seed, without the features all of it to its end.

    Its tables and results are whole.
    """
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    rng = np.random.default_rng(0)
    for dataset in ("sums", "words"):
        rows = [
            {"messages": [{"role": "user", "content": f"{dataset} {i}"}, {"role": "assistant", "content": rng.bytes(9).hex()}]}
            for i in range(24)
        ]
        (tmp_path / f"{dataset}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = [str(tmp_path / f"{name}.jsonl") for name in ("sums", "words")]
    packing.main([*sources, "--model", str(model), "--out", str(tmp_path / "packed"), "--heldout", "0.125"])
    checks = ["--out", str(tmp_path / "out"), "--device", "cpu", "--shapes", "tiny", "--ranks", "4"]
    words = [*checks, "--packed", str(tmp_path / "packed"), "--model", str(model), "--seeds", "2", "--dim", "128"]
    words += ["--methods", "random", "balanced", "tagcos", "tagcos+weights"]
    words += ["--block-rows", "16", "--fraction", "0.25", "--batch-size", "4"]
    dev, test = tmp_path / "tasks/mmlu/dev", tmp_path / "tasks/mmlu/test"
    for folder, name in ((dev, "law_dev.csv"), (test, "law_test.csv")):
        folder.mkdir(parents=True)
        (folder / name).write_text("Who?,a,b,c,d,B\nWhere?,a,b,c,d,C\n")
    words += ["--tasks", str(tmp_path / "tasks"), "--protocol", "paper"]
    allowed = closure((*IMAGE, *METHOD))
    there = metadata.packages_distributions().items()
    refused = [name for name, dists in there if not {d.lower().replace("_", "-") for d in dists} & allowed]
    refused.remove("tagcos_stream")
    assert {*ABSENT, "flows", "storage"} <= set(refused)
    runs = [[*checks, "--minutes", "0"], [*words, "--minutes", "0"], [*words, "--seeds", "1"]]
    runs += [["remove", str(tmp_path / "out" / "features.npy")], words]
    given = json.dumps({"runs": runs, "refused": refused})
    done = subprocess.run([sys.executable, "-c", ALONE, given], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, none, rest = done.stdout.split("not complete, the same command continues")
    one, last = rest.split("results.json: complete")[:2]
    assert "train tagcos 0: loss" in one
    assert "train tagcos 0: loss" not in last
    assert "choose tagcos 1" in last
    assert "| tiny | 4 | no time left |" in first
    assert "loss" not in none.split("tokens a second, shares")[1]
    assert rest.rstrip().endswith("results.json: complete")
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    steps = found["steps"]
    assert all(row["error"] <= row["limit"] for row in steps["exactness"])
    assert {row["quantity"] for row in steps["exactness"]} >= {"loss", "gradient", "gradient length", "adam-delta feature"}
    assert steps["speed tiny r=4"]["ratio"] > 0
    assert steps["features"]["rows"] == 42
    assert steps["features"]["unusable"] == 0
    for method in ("random", "balanced", "tagcos", "tagcos+weights"):
        for seed in (0, 1):
            trained = steps[f"train {method} {seed}"]
            assert 0 < trained["loss"] < steps["train base 0"]["loss"] + 1
            assert set(trained["datasets"]) == {"sums", "words"}
            assert trained["tasks"]["mmlu"] in (0.0, 0.5, 1.0)
    spent = [steps[f"choose {method} 0"]["target_tokens"] for method in ("random", "balanced", "tagcos")]
    assert max(spent) <= 1.02 * round(0.25 * sum(read_packed(tmp_path / "packed").target_tokens))
    assert "| tagcos | 2 |" in last
    assert "p (Holm)" in last
