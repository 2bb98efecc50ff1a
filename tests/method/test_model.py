"""Loading models, attaching adapters, and what a fingerprint follows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, Qwen3MoeConfig

from tagcos_stream.gradients.adapter import adapter_parameters, adapter_settings, attach_adapter, attach_from_checkpoint
from tagcos_stream.gradients.extract import GradientBatch, GradientExtractor
from tagcos_stream.gradients.model import load_model, model_fingerprint
from tagcos_stream.gradients.projection.projections import make_projection
from tagcos_stream.gradients.verify import self_check
from tagcos_stream.gradients.warmup import run_warmup
from tagcos_stream.types import UserError
from tests.models import KINDS, random_checkpoint, random_encoded, tiny_model, tiny_tokenizer

EXPECTED = {"llama": 4, "qwen2": 4, "gpt_neox": 2}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_load_model__folder(saved: Path) -> None:
    loaded = load_model(str(saved))
    ref = tiny_model()
    ids = torch.arange(5)[None]
    torch.testing.assert_close(loaded.model(ids).logits, ref(ids).logits)
    assert (loaded.max_positions, loaded.dtype) == (512, "float32" if not torch.cuda.is_available() else "bfloat16")
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training


def test_load_model__fingerprint_follows_content_not_place(saved: Path, tmp_path: Path) -> None:
    ref = load_model(str(saved), device="cpu").fingerprint
    moved = saved.rename(tmp_path / "elsewhere")
    loaded = load_model(str(moved), device="cpu")
    assert loaded.fingerprint == ref
    loaded.tokenizer("padding and truncation are no part of it", truncation=True, max_length=3)
    assert model_fingerprint(loaded.model, loaded.tokenizer) == ref
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] += 1e-3
    assert model_fingerprint(loaded.model, loaded.tokenizer) != ref


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("/no/such/folder", "no such folder"),
        ("/no/such/model.gguf", "no such file"),
        ("no-such-owner/no-such-model", "could not be loaded"),
        ("", "no such folder"),
        ("~nouser/model", "no home folder is known for ~nouser"),
        ("two words/model", "no such folder"),
    ],
)
def test_load_model__unknown_model_is_the_users_mistake(ref: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_model(ref)


def test_load_model__folder_without_a_model_or_a_tokenizer(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for path in saved.glob("*token*"):
        path.unlink()
    with pytest.raises(UserError, match="could not be loaded"):
        load_model(str(tmp_path / "other"))
    with pytest.raises(UserError, match="has no tokenizer that can be read"):
        load_model(str(saved))


class Planted:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.path),)


def test_load_model__pickled_weights_are_refused_unread(saved: Path, tmp_path: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Planted(tmp_path / "ran")}, saved / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin holds pickled weights, .* save the model as safetensors"):
        load_model(str(saved))
    (saved / "pytorch_model.bin").rename(saved / "weights.bin")  # under a name that nothing looks for
    with pytest.raises(UserError, match="could not be loaded"):
        load_model(str(saved))
    assert not (tmp_path / "ran").exists()


def test_load_model__refuses_unknown_settings(saved: Path) -> None:
    with pytest.raises(UserError, match="dtype is 'int3'"):
        load_model(str(saved), dtype="int3")
    with pytest.raises(UserError, match="quantize is '3bit'"):
        load_model(str(saved), quantize="3bit")


@pytest.mark.parametrize("kind", KINDS)
def test_attach_adapter__attention_projections_from_the_seed(kind: str) -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(torch.initial_seed() + 1)  # the global generator has no part in it
        return {
            name: p.detach().clone()
            for name, p in adapter_parameters(attach_adapter(tiny_model(kind), rank=4, alpha=8, seed=seed)).items()
        }

    first, again, other = weights(1), weights(1), weights(2)
    assert len(first) == 2 * 2 * EXPECTED[kind]  # two matrices a layer, two layers
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], other[name]) == (".lora_B." in name) for name in first)
    assert not any(w.any() for name, w in first.items() if ".lora_B." in name)


def test_attach_adapter__leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    model = tiny_model()
    attach_adapter(model, rank=4, alpha=8, seed=0)
    torch.testing.assert_close(torch.get_rng_state(), before)


def test_attach_adapter__refuses_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="rank is 0"):
        attach_adapter(tiny_model(), rank=0, alpha=1, seed=0)
    with pytest.raises(UserError, match="lora_targets"):
        attach_adapter(tiny_model(), rank=2, alpha=1, seed=0, target_modules=["no_such"])

    class Unknown(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mystery = torch.nn.Linear(2, 2)

    with pytest.raises(UserError, match=r"no known attention projections in Unknown: set lora_targets to some of mystery"):
        attach_adapter(Unknown(), rank=2, alpha=1, seed=0)


def two_towers() -> Any:
    """A tiny Gemma 3 with its tower for images, whose projections have the same names."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    text = {"vocab_size": 300, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8, **sizes}
    images = {"num_hidden_layers": 1, "image_size": 16, "patch_size": 8, "model_type": "siglip_vision_model", **sizes}
    config = Gemma3Config(text_config=text, vision_config=images, mm_tokens_per_image=4, tie_word_embeddings=False)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.mark.parametrize("wanted", ["auto", "all-linear", ["q_proj", "v_proj", "lm_head"]])
def test_attach_adapter__adapts_what_reads_text(wanted: str | list[str]) -> None:
    model = attach_adapter(two_towers(), rank=2, alpha=4, dropout=0.0, seed=0, target_modules=wanted)
    names = list(adapter_parameters(model))
    assert any("language_model.layers.1.self_attn.v_proj" in name for name in names)
    assert not any("vision" in name or "projector" in name for name in names)
    assert any("lm_head" in name for name in names) == ("lm_head" in wanted)
    encoded = random_encoded([12, 9, 7])
    done = run_warmup(model, encoded, steps=1, batch_size=2, learning_rate=1e-3, checkpoints=[1], seed=0)
    extractor = GradientExtractor(model, variants=["sgd"], projection=make_projection("sparse", dim=64, seed=0))
    self_check(extractor, done.checkpoints[0], encoded[:2])


def test_attach_adapter__refuses_weights_of_experts_and_says_so() -> None:
    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    experts = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = Qwen3MoeConfig(**sizes | experts | heads)
    attention = attach_adapter(AutoModelForCausalLM.from_config(config), rank=2, alpha=4, seed=0)
    assert adapter_settings(attention)["targets"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    for dropout in (0.0, 0.1):
        fresh = AutoModelForCausalLM.from_config(config)
        with pytest.raises(
            UserError, match="lora_targets 'all-linear': adapts weights that are not of linear layers, such as those of"
        ):
            attach_adapter(fresh, rank=2, alpha=4, dropout=dropout, seed=0, target_modules="all-linear")


def test_attach_adapter__ranks_of_layers_that_are_not_there() -> None:
    for pattern, says in {
        "gate": "did not match any adapted layer: 'gate'. Adapted are k_proj, o_proj",
        "*q_proj": "regular expression",
    }.items():
        with pytest.raises(UserError, match=f"ranks of single layers: .*{says}"):
            attach_adapter(tiny_model(), rank=2, alpha=1, seed=0, rank_pattern={pattern: 4})


def test_attach_from_checkpoint__is_the_saved_adapter(tmp_path: Path) -> None:
    model: Any = attach_adapter(tiny_model(), rank=3, alpha=7, seed=5, target_modules=["q_proj", "down_proj"])
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path / "adapter")
    comp = attach_from_checkpoint(tiny_model(), tmp_path / "adapter")
    ids = torch.from_numpy(random_encoded([7])[0].input_ids.astype("int64"))[None]
    torch.testing.assert_close(comp(ids).logits, model(ids).logits)
    assert adapter_parameters(comp).keys() == adapter_parameters(model).keys()
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        attach_from_checkpoint(tiny_model(), tmp_path)


@pytest.mark.parametrize(("quantize", "limit"), [("4bit", 1e-4), ("8bit", 0.1)])  # 8 bits quantise the inputs, too
def test_load_model__gradients_pass_through_quantised_weights(tmp_path: Path, quantize: str, limit: float) -> None:
    """As through the same weights, dequantised."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    tiny_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    encoded = random_encoded([9, 20])

    def features(model: Any) -> GradientBatch:
        adapted = attach_adapter(model, rank=4, alpha=8, dropout=0.0, seed=0)
        ex = GradientExtractor(adapted, variants=("sgd",), projection=make_projection(dim=256, seed=0))
        self_check(ex, random_checkpoint(adapted), encoded)
        return ex.features(encoded)

    loaded = load_model(str(tmp_path), quantize=quantize)
    assert loaded.fingerprint != load_model(str(tmp_path)).fingerprint
    comp = features(loaded.model)
    ref = features(load_model(str(tmp_path), quantize=quantize).model.dequantize())
    torch.testing.assert_close(comp.loss, ref.loss, rtol=limit, atol=0)
    assert bool(((comp.features["sgd"] - ref.features["sgd"]).norm(dim=1) < limit).all())


def test_load_model__imports_no_package_that_fetches_native_code(saved: Path, tmp_path: Path) -> None:
    # a stand-in for `kernels` from PyPI, which says that it was imported
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("raise SystemExit('kernels was imported')\n")
    (tmp_path / "kernels-0.18.5.dist-info").mkdir()
    (tmp_path / "kernels-0.18.5.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.5\n")

    def end_of(code: str, **environment: str) -> str:
        both = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
        environment = {name: value for name, value in os.environ.items() if name != "USE_HUB_KERNELS"} | environment
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | {"PYTHONPATH": both}, capture_output=True, text=True, check=False
        )
        return done.stderr.strip().splitlines()[-1] if done.returncode else done.stdout.strip()

    load = f"from tagcos_stream.gradients.model import load_model; print(type(load_model({str(saved)!r}).model).__name__)"
    assert end_of(load) == "LlamaForCausalLM"
    assert end_of(load, USE_HUB_KERNELS="1") == "kernels was imported"
    assert end_of("import transformers.modeling_utils") == "kernels was imported"


def test_gguf_loading__makes_each_reader_once_and_puts_things_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import gguf
    from transformers.integrations.gguf import kernels

    from tagcos_stream.gradients.gguf_loading import gguf_loading

    fetches = kernels.kernelize_ggml_layers
    made: list[str] = []

    def reader(path: str) -> object:
        made.append(path)
        return object()

    monkeypatch.setattr(gguf, "GGUFReader", reader)
    with gguf_loading():
        assert gguf.GGUFReader("a") is gguf.GGUFReader("a")
        gguf.GGUFReader("b")
        assert kernels.kernelize_ggml_layers is not fetches
    assert kernels.kernelize_ggml_layers is fetches
    assert made == ["a", "b"]
    assert gguf.GGUFReader is reader
