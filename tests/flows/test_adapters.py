"""Adapters through the pipeline: one of the user's own instead of a warm-up, ranks of single layers, memory, what is recorded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import pipeline
from flows.cli import main
from flows.progress import SilentReporter
from storage.root import open_root
from tagcos_stream.config import load_settings
from tagcos_stream.gradients.adapter import attach_adapter
from tagcos_stream.machine import free_memory
from tagcos_stream.types import UserError
from tests.flows.conftest import First
from tests.models import random_encoded, tiny_model, train_checkpoint

Maker = Callable[..., dict[str, Any]]


def run(values: dict[str, Any]) -> pipeline.Outcome:
    return pipeline.run(load_settings(values), SilentReporter())


def read(values: dict[str, Any], query: str) -> Any:
    return open_root(values["root"], create=False).catalog.read(query)


def trained(folder: Path, **adapter: Any) -> Path:
    options: dict[str, Any] = {"rank": 3, "alpha": 6, "dropout": 0.0, "seed": 1, "target_modules": ["q_proj", "down_proj"]}
    train_checkpoint(attach_adapter(tiny_model(), **options | adapter), random_encoded([9, 14, 20, 7]), folder)
    return folder / "checkpoint-3"


def test_run__with_an_adapter_of_the_users_own(small_settings: Maker, tmp_path: Path) -> None:
    folder = trained(tmp_path / "trainer")
    values = small_settings(adapter=str(folder))
    outcome = run(values)
    assert outcome.stages["warm-up"]["imported"] == str(folder)
    assert outcome.stages["warm-up"]["imported_step"] == 3
    assert outcome.stages["gradients"]["computed"] == 120
    # the space says what the adapter is, and nothing of a warm-up that did not take place
    fingerprint = json.loads(read(values, "SELECT fingerprint FROM feature_spaces").item())
    assert fingerprint["adapter"]["targets"] == ["down_proj", "q_proj"]
    assert (fingerprint["adapter"]["ranks"], fingerprint["adapter"]["scales"]) == ({"3": 4}, {"2.0": 4})
    assert not {"lora_rank", "learning_rate", "warmup_examples"} & fingerprint["settings"].keys()
    assert fingerprint["checkpoints"][0]["step"] == 3
    # the settings of a warm-up make no other space, nor does another place; other weights in the same place do
    shutil.copytree(folder, tmp_path / "moved")
    assert run(values | {"lora_rank": 64, "adapter": str(tmp_path / "moved")}).stages["gradients"]["computed"] == 0
    shutil.rmtree(folder)
    trained(tmp_path / "trainer", seed=2)
    other = run(values)
    assert other.stages["gradients"]["computed"] == 120
    assert len(read(values, "FROM feature_spaces")) == 2
    shutil.rmtree(folder)
    trained(tmp_path / "trainer", seed=3)
    plan = pipeline.dry_run(load_settings(values), SilentReporter())
    assert plan.step("warm-up").reason == f"adapter {folder} has other content than in {other.run_id}"


def test_run__an_adapter_of_another_model_is_refused_with_both_listed(
    small_settings: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tmp_path / "trainer", target_modules=["q_proj"])
    wide = small_settings(adapter=str(folder))
    tiny_model("llama", hidden_size=64).save_pretrained(tmp_path / "wide")
    for file in Path(wide["model"]).glob("*token*"):
        shutil.copy(file, tmp_path / "wide")
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in (wide | {"model": tmp_path / "wide"}).items()
        if name != "sources"
    ]
    monkeypatch.setattr("sys.argv", ["tagcos", "run", *wide["sources"], *flags])
    with pytest.raises(SystemExit) as stop:
        main.main()
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "4 in the checkpoint, only there: " in said
    assert "q_proj.lora_A.weight (3, 32)" in said
    assert "4 in the model, only there: " in said
    assert "q_proj.lora_A.weight (3, 64)" in said
    (folder / "optimizer.pt").unlink()


def test_run__an_adapter_without_moments_serves_the_variants_that_read_none(small_settings: Maker, tmp_path: Path) -> None:
    folder = trained(tmp_path / "trainer")
    whole = small_settings(adapter=str(folder), root=str(tmp_path / "whole"))
    chosen = "SELECT example_id, rank, weight FROM selections ORDER BY example_id"
    assert run(whole).stages["warm-up"]["moments"] is True
    (folder / "optimizer.pt").unlink()
    values = small_settings(adapter=str(folder))
    with pytest.raises(UserError, match=r"no optimizer\.pt or optimizer\.bin, and this variant reads Adam's moments"):
        run(values | {"also_gradients": ("adam",)})
    assert run(values).stages["warm-up"]["moments"] is False
    assert read(values, chosen).equals(read(whole, chosen)), "sgd reads no moments"
    with pytest.raises(UserError, match=r"no Adam moments were found with it, and adam reads them"):
        run(values | {"also_gradients": ("adam",)})
    assert run(values | {"also_gradients": ("sign",)}).stages["gradients"]["computed"] == 120


def test_run__ranks_of_single_layers_are_part_of_the_space(small_settings: Maker) -> None:
    values = small_settings(lora_ranks=("layers.0.*q_proj=2", "v_proj=3"))
    run(values)
    fingerprint = json.loads(read(values, "SELECT fingerprint FROM feature_spaces").item())
    assert fingerprint["adapter"]["ranks"] == {"2": 1, "3": 2, "8": 5}
    assert fingerprint["settings"]["lora_ranks"] == ["layers.0.*q_proj=2", "v_proj=3"]
    assert run(small_settings()).stages["gradients"]["computed"] == 120
    with pytest.raises(UserError, match=r"ranks of single layers: .*did not match.*'gate'.*Adapted are .*q_proj"):
        run(small_settings(lora_ranks="gate=4"))
    with pytest.raises(UserError, match=r"lora_ranks: 'v_proj' is not NAME=RANK"):
        load_settings({"lora_ranks": ["v_proj"]})


def test_run__records_how_the_gradient_stage_spent_its_time(small_settings: Maker, first_run: First) -> None:
    values = small_settings()
    first_run(values)
    stage = json.loads(read(values, "SELECT detail FROM stages WHERE stage = 'gradients'").item())
    assert 0 < stage["model_share"] <= 1
    assert (stage["batch_tokens"], stage["halvings"]) == (512, 0)
    seconds = read(values, "SELECT sum(seconds) AS blocks FROM blocks").item()
    assert 0 < seconds <= read(values, "SELECT seconds FROM stages WHERE stage = 'gradients'").item()


@pytest.mark.parametrize("done", [(), ("warm-up",)])
def test_run__what_does_not_fit_in_memory_is_refused_before_it_starts(small_settings: Maker, done: tuple[str, ...]) -> None:
    values = small_settings()
    if done:
        run(values | {"gradient": "adam"})  # leaves the adapter, so that the gradient stage is the first to run the model
    stage = "the gradient stage" if done else "the warm-up"
    with pytest.raises(
        UserError, match=rf"{stage} of .* needs .* GiB in addition to the model.*memory_limit 0.001 GiB.*lower batch_tokens"
    ):
        run(values | {"memory_limit": 0.001})


def test_free_memory__is_what_the_machine_has_at_most() -> None:
    import psutil

    assert 0 < free_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.safetensors"])
def test_run__an_adapter_that_is_no_plain_tensors_is_refused_in_one_line(
    small_settings: Maker, tmp_path: Path, name: str
) -> None:
    """A pickle may hold code, which is not run."""
    folder, ran = trained(tmp_path / "trainer"), tmp_path / "ran"
    (folder / "adapter_model.safetensors").unlink()
    (folder / name).write_bytes(b"cposix\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR.")
    with pytest.raises(UserError, match=f"{name}: cannot be read as plain tensors .*save the adapter again, as safetensors"):
        run(small_settings(adapter=str(folder)))
    assert not ran.exists()
