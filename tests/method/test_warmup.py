"""The warm-up: moments by name that are Adam's, the published schedule, and other people's checkpoints."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.arrays.checkpoints import load_checkpoint, save_checkpoint
from storage.root import open_root
from tagcos_stream.gradients.adapter import adapter_parameters, attach_adapter, attach_from_checkpoint
from tagcos_stream.gradients.import_checkpoint import import_checkpoint
from tagcos_stream.gradients.warmup import Warmup, _collate, checkpoint_weights, run_warmup
from tagcos_stream.identity import checkpoint_content
from tagcos_stream.types import UserError
from tests.models import KINDS, random_encoded, tiny_model, train_checkpoint

ENCODED = random_encoded([5, 9, 20, 13, 7, 30, 11, 16])


def adapted(kind: str = "llama", dropout: float = 0.0, **options: Any) -> Any:
    return attach_adapter(tiny_model(kind), **({"rank": 4, "alpha": 8, "seed": 1, "dropout": dropout} | options))


def warm(model: Any, **options: Any) -> Warmup:
    settings: dict[str, Any] = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "checkpoints": [2, 4], "seed": 0} | options
    return run_warmup(model, ENCODED, **settings)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # the tiny GPT-NeoX has dropout of its own, which training keeps
def test_warmup__equals_adamw_by_hand(kind: str) -> None:
    """Two steps on the whole sample: weights and moments as AdamW's formulae give them, name by name."""
    comp = warm(adapted(kind), steps=2, batch_size=8, checkpoints=[1, 2], schedule="constant", max_grad_norm=1e9)
    model = adapted(kind)
    parameters = adapter_parameters(model)
    m = {name: torch.zeros_like(p) for name, p in parameters.items()}
    v = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for t, checkpoint in enumerate(comp.checkpoints, start=1):
        batch = _collate(ENCODED)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch["labels"][:, 1:].reshape(-1))
        assert comp.losses[t - 1] == pytest.approx(float(loss.detach()), rel=1e-4)
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        assert checkpoint.adam_steps == checkpoint.step == t
        for (name, parameter), g in zip(parameters.items(), gradients, strict=True):
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            with torch.no_grad():
                parameter.sub_(1e-2 * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8))
            np.testing.assert_allclose(checkpoint.exp_avg[name], m[name], rtol=1e-3, atol=1e-7)
            np.testing.assert_allclose(checkpoint.exp_avg_sq[name], v[name], rtol=1e-3, atol=1e-11)
            # a gradient of zero, where lora_B is still zero, is rounding: its normalised step has no meaning
            steady = v[name] > 1e-14
            np.testing.assert_allclose(checkpoint.weights[name][steady], parameter.detach()[steady], rtol=1e-3, atol=1e-4)


def test_warmup__same_seed_same_bits_and_micro_batches_do_not_matter() -> None:
    first, again = warm(adapted(dropout=0.1)), warm(adapted(dropout=0.1))
    assert [checkpoint_content(c) for c in first.checkpoints] == [checkpoint_content(c) for c in again.checkpoints]
    assert first.losses == again.losses
    assert warm(adapted(dropout=0.1), seed=1).losses != first.losses
    whole, parts = warm(adapted()), warm(adapted(), token_budget=30)
    np.testing.assert_allclose(parts.losses, whole.losses, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_warmup__loss_at_targets_trains_what_the_trainers_own_does(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches of unequal numbers of targets, more targets than fit one chunk of the head."""
    monkeypatch.setattr("tagcos_stream.gradients.lm_head.HEAD_TOKENS", 7)
    comp = warm(adapted(kind), token_budget=60)
    monkeypatch.setattr("tagcos_stream.gradients.warmup.find_decoder", lambda model: None)
    ref = warm(adapted(kind), token_budget=60)
    np.testing.assert_allclose(comp.losses, ref.losses, rtol=1e-5)
    for ours, plain in zip(comp.checkpoints, ref.checkpoints, strict=True):
        for part in ("exp_avg", "exp_avg_sq"):
            for name, moment in getattr(plain, part).items():
                assert np.linalg.norm(getattr(ours, part)[name] - moment) <= 1e-4 * np.linalg.norm(moment) + 1e-12, (part, name)


def test_warmup__published_learning_rates() -> None:
    """30 steps into a longer linear schedule give the weights that the paper's run prints: 2.1569e-06, 6.0784e-06, 1e-05."""
    options = {
        "steps": 30,
        "batch_size": 2,
        "learning_rate": 2e-5,
        "checkpoints": [10, 20, 30],
        "warmup_steps": 51,
        "schedule_steps": 1700,
    }
    comp = warm(adapted(), **options)
    np.testing.assert_allclose([c.learning_rate for c in comp.checkpoints], [2.1569e-06, 6.0784e-06, 1e-05], rtol=1e-4)
    assert [c.step for c in comp.checkpoints] == [10, 20, 30]
    assert len(comp.losses) == 30


def test_warmup__leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    numpys: Any = np.random.get_state  # typed as either of two forms
    states = random.getstate(), numpys()[1].tolist(), torch.get_rng_state()
    model, seen = adapted(dropout=0.1), []
    warm(model, progress=lambda *at: seen.append(at))
    assert os.listdir(tmp_path) == []
    assert states[:2] == (random.getstate(), numpys()[1].tolist())
    assert torch.equal(states[2], torch.get_rng_state())
    assert capsys.readouterr().out == ""
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not model.training


def test_warmup__refuses_impossible_plans() -> None:
    with pytest.raises(UserError, match=r"checkpoints \[5\].*1 to 4"):
        warm(adapted(), checkpoints=[5])
    with pytest.raises(UserError, match="schedule_steps 3: the warm-up has 4 steps"):
        warm(adapted(), schedule_steps=3)
    with pytest.raises(UserError, match="no example to warm up on"):
        run_warmup(adapted(), [], steps=1, batch_size=1, learning_rate=1e-4, checkpoints=[1], seed=0)
    with pytest.raises(UserError, match="lower the learning rate"):
        warm(adapted(), learning_rate=1e30, max_grad_norm=1e30)


def test_checkpoints__weigh_as_their_learning_rates() -> None:
    comp = warm(adapted()).checkpoints
    rates = np.array([checkpoint.learning_rate for checkpoint in comp])
    np.testing.assert_allclose([checkpoint.weight for checkpoint in comp], rates / rates.sum())
    np.testing.assert_allclose(checkpoint_weights([1e-4, 3e-4]), [0.25, 0.75], rtol=1e-15)
    np.testing.assert_array_equal(checkpoint_weights([0.0, 0.0]), [0.5, 0.5])
    for wrong in ([], [-1.0], [np.nan]):
        with pytest.raises(ValueError, match="at least one, none negative"):
            checkpoint_weights(wrong)


def test_checkpoint__survives_a_store(tmp_path: Path) -> None:
    """To the bit; of a stored checkpoint torch may take the memory, which the reader of a file cannot write to."""
    (checkpoint,) = warm(adapted(), checkpoints=[4]).checkpoints
    files = open_root(str(tmp_path / "root")).files
    saved = save_checkpoint(files, "space", checkpoint)
    comp = load_checkpoint(files, "space", 4, weight=checkpoint.weight, digest=saved.digest)
    assert checkpoint_content(comp) == checkpoint_content(checkpoint)
    for name in ("step", "learning_rate", "weight", "adam_steps"):
        assert getattr(comp, name) == getattr(checkpoint, name)
    assert sorted(comp.weights) == sorted(checkpoint.weights)
    other = replace(comp, adam_steps=5)
    assert checkpoint_content(other) != checkpoint_content(comp)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A user's own Trainer run: its folder, and the trained model."""
    folder, model = tmp_path_factory.mktemp("trainer"), adapted()
    trainer = train_checkpoint(model, ENCODED, folder)
    return folder / "checkpoint-3", trainer


def test_import_checkpoint__equals_the_trainers_own_state(trained: tuple[Path, Any]) -> None:
    folder, trainer = trained
    model = attach_from_checkpoint(tiny_model(), folder)
    comp = import_checkpoint(folder, model)
    states = getattr(trainer.optimizer, "optimizer", trainer.optimizer).state
    for name, parameter in adapter_parameters(trainer.model).items():
        np.testing.assert_array_equal(comp.weights[name], parameter.detach())
        np.testing.assert_array_equal(comp.exp_avg[name], states[parameter]["exp_avg"])
        np.testing.assert_array_equal(comp.exp_avg_sq[name], states[parameter]["exp_avg_sq"])
    assert (comp.step, comp.adam_steps) == (3, 3)
    assert comp.learning_rate > 0
    assert comp.weight == 1


def test_import_checkpoint__refuses_mismatch_with_both_sides_listed(trained: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = trained
    with pytest.raises(
        UserError, match=r"only there: .*q_proj.lora_A.weight \(4, 32\).*16 in the model, only there: .*\(2, 32\)"
    ):
        import_checkpoint(folder, adapted(rank=2))
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    model = attach_from_checkpoint(tiny_model(), copy)
    state = torch.load(copy / "optimizer.pt", weights_only=True)
    order = state["param_groups"][0]["params"]
    order[0], order[1] = order[1], order[0]  # lora_A's moments on lora_B, as an integer-keyed state would have it
    torch.save(state, copy / "optimizer.pt")
    with pytest.raises(UserError, match=r"optimizer.pt: its tensors do not fit.*lora_A.weight \(32, 4\)"):
        import_checkpoint(copy, model)
    state["param_groups"][0]["params"] = order[:5]
    torch.save(state, copy / "optimizer.pt")
    with pytest.raises(UserError, match=r"holds 5 parameters .* adapter has 16"):
        import_checkpoint(copy, model)
    progress = (copy / "trainer_state.json").read_bytes()
    damages = (progress[:-9], "cannot be read as JSON"), (b"\xff", "cannot be read as JSON"), (b"[]", "a JSON object")
    for damaged, message in damages:
        (copy / "trainer_state.json").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"checkpoint.trainer_state.json: .*{message}"):
            import_checkpoint(copy, model, moments=False)
    (copy / "trainer_state.json").write_bytes(progress)
    (copy / "optimizer.pt").unlink()
    with pytest.raises(UserError, match=r"no optimizer.pt or optimizer.bin, and this variant reads Adam's moments"):
        import_checkpoint(copy, model)
    without = import_checkpoint(copy, model, moments=False)
    np.testing.assert_equal(without.weights, import_checkpoint(folder, model).weights)
    assert (without.step, without.adam_steps) == (3, 0)
    assert not any(values.any() for values in (*without.exp_avg.values(), *without.exp_avg_sq.values()))


@pytest.mark.parametrize("wrapper", ["", "_fsdp_wrapped_module.", "module._orig_mod."])
def test_import_checkpoint__state_keyed_by_name_is_matched_by_name(
    trained: tuple[Path, Any], tmp_path: Path, wrapper: str
) -> None:
    """FSDP's optimizer.bin: names for keys, in whatever order. All lora_A have one shape, so that only names tell them apart."""
    folder, _ = trained
    model = attach_from_checkpoint(tiny_model(), folder)
    ref = import_checkpoint(folder, model)
    for file in folder.iterdir():
        if file.name != "optimizer.pt":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    names = [name.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default.") for name in ref.exp_avg]
    keyed = {
        wrapper + full: {
            "step": torch.tensor(3.0),
            "exp_avg": torch.from_numpy(ref.exp_avg[name]),
            "exp_avg_sq": torch.from_numpy(ref.exp_avg_sq[name]),
        }
        for name, full in zip(ref.exp_avg, names, strict=True)
    }
    backwards = list(reversed(keyed))
    torch.save({"state": keyed, "param_groups": [{"lr": 1e-3, "params": backwards}]}, tmp_path / "optimizer.bin")
    comp = import_checkpoint(tmp_path, model)
    for name in ref.exp_avg:
        np.testing.assert_array_equal(comp.exp_avg[name], ref.exp_avg[name])
        np.testing.assert_array_equal(comp.exp_avg_sq[name], ref.exp_avg_sq[name])
    numbered = {"state": dict(enumerate(keyed[key] for key in backwards))}
    groups = [{"params": list(range(len(backwards))), "param_names": backwards}]
    torch.save(numbered | {"param_groups": groups}, tmp_path / "optimizer.bin")
    by_param_names = import_checkpoint(tmp_path, model)
    for name in ref.exp_avg:
        np.testing.assert_array_equal(by_param_names.exp_avg[name], ref.exp_avg[name])
    groups[0]["param_names"] = ["base.other", *backwards[1:]]
    torch.save(numbered | {"param_groups": groups}, tmp_path / "optimizer.bin")
    with pytest.raises(UserError, match=r"optimizer.bin names other parameters .* only there: base.other .* only in the model: "):
        import_checkpoint(tmp_path, model)
    (tmp_path / "optimizer.bin").unlink()
    (tmp_path / "optimizer_0").mkdir()
    with pytest.raises(UserError, match=r"in shards \(optimizer_0\): save it whole, .*FULL_STATE_DICT"):
        import_checkpoint(tmp_path, model)


def test_import_checkpoint__optimizer_file_cannot_run_code(trained: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = trained
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state": Evil(), "param_groups": []}, tmp_path / "optimizer.pt")
    with pytest.raises(UserError, match="cannot be read as a plain optimizer state"):
        import_checkpoint(tmp_path, attach_from_checkpoint(tiny_model(), folder))
    assert not (tmp_path / "ran").exists()
