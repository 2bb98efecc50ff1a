"""Per-sample gradients from one batched pass: equal to autograd one example at a time, untouched by batch mates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from tagcos_stream.gradients.adapter import attach_adapter
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.extract import BlockFeatures, GradientBatch, GradientExtractor, block_features
from tagcos_stream.gradients.hidden import pooled, without_adapter
from tagcos_stream.gradients.projection.projections import make_projection
from tagcos_stream.gradients.variants import VARIANTS
from tagcos_stream.gradients.verify import SelfCheckFailed, self_check
from tagcos_stream.types import UserError
from tests.models import KINDS, exact_norms, random_checkpoint, random_encoded, tiny_model
from tests.naive import naive_feature, naive_gradients, naive_hidden_feature

LENGTHS = [5, 21, 9, 2, 40, 13, 33]


def extractor(
    kind: str, *, dtype: torch.dtype = torch.float32, variants: Any = ("sgd",), projection: Any = None, **adapter: Any
) -> Any:
    options = {"rank": 4, "alpha": 8, "seed": 1} | adapter
    model = attach_adapter(exact_norms(tiny_model(kind)), **options).to(dtype)
    ex = GradientExtractor(model, variants=variants, projection=projection or make_projection(dim=256, seed=0))
    ex.use(random_checkpoint(model))
    return ex


def captured(ex: GradientExtractor, batch: list[Encoded]) -> dict[str, np.ndarray]:
    """Per-sample gradients (B, P) of every matrix as the hooks see them."""
    found: dict[str, np.ndarray] = {}
    with ex.capture.recording(lambda name, g: found.__setitem__(name, g.numpy().copy())), torch.enable_grad():
        ex._backward(batch)
    return found


def relative(comp: np.ndarray, ref: np.ndarray, floor: float = 0.0) -> float:
    return float(np.linalg.norm(comp.reshape(-1) - ref.reshape(-1)) / max(float(np.linalg.norm(ref)), floor))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_gradients__equal_autograd_one_at_a_time(kind: str, dtype: torch.dtype, limit: float) -> None:
    """Every matrix of every example, against float64 autograd; a wrong scale counts, as the error is not an angle."""
    batch = random_encoded(LENGTHS)
    found = captured(extractor(kind, dtype=dtype), batch)
    plain = extractor(kind, dtype=torch.float64).model
    for row, example in enumerate(batch):
        _, gradients = naive_gradients(plain, example.input_ids, example.target)
        assert gradients.keys() == found.keys()
        # Attention over a single token has no gradient by mathematics: there, rounding is held against the example's whole
        # gradient.
        floor = 1e-3 * max(float(np.linalg.norm(ref)) for ref in gradients.values()) if len(example) == 2 else 0.0
        for name, ref in gradients.items():
            assert relative(found[name][row], ref, floor) < limit, (row, name)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients__features_loss_and_norm_equal_naive(kind: str) -> None:
    ex = extractor(kind, dtype=torch.float64, variants=VARIANTS)
    # attention over a single token has no gradient by mathematics, and the sign of its rounding is the machine's
    batch = [example for example in random_encoded(LENGTHS, seed=3) if np.flatnonzero(example.target)[0] > 1][:3]
    comp = ex.features(batch)
    checkpoint = random_checkpoint(ex.model)
    for row, example in enumerate(batch):
        loss, gradients = naive_gradients(ex.model, example.input_ids, example.target)
        assert float(comp.loss[row]) == pytest.approx(loss, rel=1e-10)
        assert float(comp.grad_norm[row]) == pytest.approx(np.sqrt(sum((g**2).sum() for g in gradients.values())), rel=1e-10)
        for variant in VARIANTS:
            ref = (
                naive_hidden_feature(ex.model, example.input_ids, ex.projection)
                if variant == "hidden"
                else naive_feature(gradients, checkpoint, variant, ex.projection)
            )
            assert relative(comp.features[variant][row].numpy(), ref) < 1e-8, variant
    assert bool(comp.finite.all())


def test_gradients__dense_projection_equals_naive() -> None:
    ex = extractor("llama", dtype=torch.float64, projection=make_projection("rademacher", dim=64, seed=4), rank=1)
    (example,) = random_encoded([12])
    _, gradients = naive_gradients(ex.model, example.input_ids, example.target)
    ref = naive_feature(gradients, random_checkpoint(ex.model), "sgd", ex.projection)
    assert relative(ex.features([example]).features["sgd"][0].numpy(), ref) < 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_gradients__batch_mates_do_not_matter(kind: str) -> None:
    """An example's gradient stays the same whoever shares its batch: other contents, lengths, numbers, places."""
    ex = extractor(kind, dtype=torch.float64)
    example = random_encoded([17], seed=9)[0]
    alone = captured(ex, [example])
    for seed, lengths in ((1, [3]), (2, [40, 4, 17]), (3, [17] * 6)):
        mates = random_encoded(lengths, seed=seed)
        for place in range(len(mates) + 1):
            found = captured(ex, [*mates[:place], example, *mates[place:]])
            for name, ref in alone.items():
                assert relative(found[name][place], ref[0]) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_gradients__leak_between_examples_would_show(kind: str) -> None:
    """The test above can fail: an example that does see its predecessor's tokens has another gradient altogether."""
    ex = extractor(kind, dtype=torch.float64)
    first, second = random_encoded([17, 12], seed=9)
    leaky = Encoded(np.append(first.input_ids, second.input_ids), np.append(np.zeros(17, bool), second.target), False)
    alone, leaked = captured(ex, [second]), captured(ex, [leaky])
    assert min(relative(leaked[name], ref) for name, ref in alone.items()) > 0.05


def test_gradients__budget_and_order_do_not_matter() -> None:
    ex = extractor("llama", variants=("sgd", "adam-delta"))
    encoded, checkpoint = random_encoded(LENGTHS, seed=5), random_checkpoint(ex.model)
    ref = block_features(ex, [checkpoint], encoded, token_budget=10_000)
    for order, budget in ((range(7), 1), (range(7), 80), ([3, 1, 0, 6, 5, 2, 4], 90)):
        comp = block_features(ex, [checkpoint], [encoded[i] for i in order], token_budget=budget)
        for variant in ex.variants:
            np.testing.assert_allclose(comp.features[variant].astype(np.float32), ref.features[variant][list(order)], atol=2e-4)
        np.testing.assert_allclose(comp.loss, ref.loss[list(order)], rtol=1e-5)
        np.testing.assert_allclose(comp.norm, ref.norm[list(order)], rtol=1e-4)


def test_gradients__same_block_same_bits() -> None:
    encoded = random_encoded(LENGTHS)
    runs = []
    for _ in range(2):
        ex = extractor("llama", variants=VARIANTS)
        runs.append(block_features(ex, [random_checkpoint(ex.model)], encoded, token_budget=100))
    for variant in VARIANTS:
        np.testing.assert_array_equal(runs[0].features[variant], runs[1].features[variant])


def test_gradients__variants_together_equal_variants_alone() -> None:
    encoded = random_encoded(LENGTHS)
    together = extractor("qwen2", variants=VARIANTS).features(encoded)
    for variant in VARIANTS:
        alone = extractor("qwen2", variants=(variant,)).features(encoded)
        torch.testing.assert_close(alone.features[variant], together.features[variant], rtol=0, atol=0)


def test_hidden__alone_takes_no_backward_pass_and_reads_the_base_model_without_a_checkpoint() -> None:
    encoded = random_encoded(LENGTHS)
    ex = extractor("llama", dtype=torch.float64, variants=("hidden",))
    adapted = ex.features(encoded)
    with ex.capture.recording(lambda name, g: pytest.fail(f"{name} got a gradient")):
        alone = block_features(ex, [without_adapter(ex.parameters)], encoded, token_budget=60)
    loss, _ = naive_gradients(ex.model, encoded[1].input_ids, encoded[1].target)
    with ex.model.disable_adapter():
        base = naive_hidden_feature(ex.model, encoded[1].input_ids, ex.projection)
    assert relative(adapted.features["hidden"][1].numpy(), base) > 0.01
    np.testing.assert_allclose(alone.features["hidden"][1], base, atol=4e-4)
    assert alone.loss[1] == pytest.approx(loss, rel=1e-6)
    assert alone.finite.all()
    assert np.isnan(alone.norm).all()
    assert bool(torch.isnan(adapted.grad_norm).all())
    self_check(ex, random_checkpoint(ex.model), encoded[:2])


def test_hidden__later_positions_count_more_and_padding_nothing() -> None:
    states = torch.tensor([[[1.0], [2.0], [9.0]], [[1.0], [2.0], [3.0]]])
    assert pooled(states, [2, 3])[:, 0].tolist() == pytest.approx([(1 + 2 * 2) / 3, (1 + 2 * 2 + 3 * 3) / 6])


def test_gradients__checkpoints_are_averaged_by_weight() -> None:
    ex = extractor("llama", dtype=torch.float64, variants=("adam",))
    encoded = random_encoded(LENGTHS)
    checkpoints = [random_checkpoint(ex.model, seed=s, weight=weight) for s, weight in ((1, 0.1), (2, 0.3))]
    comp = block_features(ex, checkpoints, encoded, token_budget=64)
    parts = []
    for checkpoint in checkpoints:
        ex.use(checkpoint)
        parts.append(ex.features(encoded))
    ref = 0.25 * parts[0].features["adam"] + 0.75 * parts[1].features["adam"]
    np.testing.assert_allclose(comp.features["adam"], ref.numpy(), atol=1e-3)
    assert comp.features["adam"].dtype == np.float16
    np.testing.assert_allclose(comp.loss, 0.25 * parts[0].loss + 0.75 * parts[1].loss, rtol=1e-5)


def test_gradients__half_precision_storage_error() -> None:
    """The stated error: storing a unit row as float16 moves it by less than 4e-4 of its length."""
    rows = np.random.default_rng(0).normal(size=(50, 8192)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.linalg.norm(rows.astype(np.float16).astype(np.float32) - rows, axis=1).max() < 4e-4


def test_gradients__one_bad_example_spoils_no_other() -> None:
    ex = extractor("llama")
    encoded = random_encoded(LENGTHS)
    ref = ex.features(encoded)
    with torch.no_grad():
        ex.model.get_input_embeddings().weight[299] = torch.nan
    encoded[2].input_ids[1] = 299
    for i, example in enumerate(encoded):
        if i != 2:
            example.input_ids[example.input_ids == 299] = 298
    comp = block_features(ex, [random_checkpoint(ex.model)], encoded, token_budget=1000)
    assert comp.finite.tolist() == [i != 2 for i in range(7)]
    assert np.isnan(comp.features["sgd"][2]).all()
    assert np.isfinite(comp.features["sgd"][comp.finite]).all()
    assert ref.finite.all()


def test_gradients__base_gets_no_gradient_and_parameters_are_left_as_found() -> None:
    ex = extractor("llama")
    before = {name: parameter.requires_grad for name, parameter in ex.model.named_parameters()}
    ex.features(random_encoded([8, 6]))
    assert all(parameter.grad is None for parameter in ex.model.parameters())
    assert before == {name: parameter.requires_grad for name, parameter in ex.model.named_parameters()}
    assert not any(module._forward_hooks for module in ex.model.modules())


@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["up_proj", "down_proj"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"rank_pattern": {"k_proj": 2, "o_proj": 7}, "alpha_pattern": {"o_proj": 1.5}},
        {"rslora": True},
    ],
    ids=str,
)
def test_gradients__any_linear_layer_rank_and_scaling(adapter: dict[str, Any]) -> None:
    ex = extractor("llama", dtype=torch.float64, **adapter)
    batch = random_encoded([9, 14])
    found = captured(ex, batch)
    for row, example in enumerate(batch):
        _, gradients = naive_gradients(ex.model, example.input_ids, example.target)
        assert gradients.keys() == found.keys()
        for name, ref in gradients.items():
            assert relative(found[name][row], ref) < 1e-8


def test_gradients__head_that_is_more_than_a_matrix_is_noticed() -> None:
    """Gemma 2 caps its logits: the split of base and head must not be used, and gradients stay exact."""
    config = Gemma2Config(  # type: ignore[call-arg]  # attn_implementation goes through **kwargs of the base class
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        head_dim=8,
        final_logit_softcapping=0.5,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = attach_adapter(AutoModelForCausalLM.from_config(config).eval(), rank=2, alpha=4, seed=0).double()
    ex = GradientExtractor(model, variants=("sgd", "hidden"), projection=make_projection(dim=64, seed=0))
    ex.use(random_checkpoint(model))
    assert ex._decoder is None
    batch = random_encoded([9, 14])
    ref = naive_hidden_feature(model, batch[0].input_ids, ex.projection)
    assert relative(ex.features(batch).features["hidden"][0].numpy(), ref) < 1e-4
    found = captured(ex, batch)
    _, gradients = naive_gradients(model, batch[0].input_ids, batch[0].target)
    assert max(relative(found[name][0], ref) for name, ref in gradients.items()) < 1e-4  # its norms are float32


@pytest.mark.parametrize("kind", KINDS)
def test_gradients__whole_head_equals_head_at_targets(kind: str) -> None:
    ex = extractor(kind, dtype=torch.float64)
    assert ex._decoder is not None
    batch = random_encoded(LENGTHS)
    ref = ex.features(batch)
    ex._decoder = None
    comp = ex.features(batch)
    torch.testing.assert_close(comp.features["sgd"], ref.features["sgd"], rtol=0, atol=1e-9)
    torch.testing.assert_close(comp.loss, ref.loss)


def test_gradients__adapters_are_float32_on_a_bfloat16_base() -> None:
    model = attach_adapter(tiny_model("llama", dtype=torch.bfloat16), rank=4, alpha=8, seed=1)
    ex = GradientExtractor(model, variants=("sgd",), projection=make_projection(dim=256, seed=0))
    checkpoint, batch = random_checkpoint(model), random_encoded(LENGTHS)
    ex.use(checkpoint)
    comp = ex.features(batch)
    assert comp.features["sgd"].dtype == torch.float32
    ref = extractor("llama").features(batch)
    assert (comp.features["sgd"] * ref.features["sgd"]).sum(1).min() > 0.97
    self_check(ex, checkpoint, batch[:2])


@pytest.mark.parametrize("kind", KINDS)
def test_self_check__passes_on_right_and_fails_on_wrong_gradients(kind: str) -> None:
    ex, batch = extractor(kind, variants=VARIANTS), random_encoded([12, 30])
    checkpoint = random_checkpoint(ex.model)
    self_check(ex, checkpoint, batch)

    class MeanLoss(GradientExtractor):
        """The classic mistake: a mean over the batch scales every gradient by its size."""

        def _backward(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
            hooks, given = self.capture._consumer, self.capture
            assert hooks is not None
            given._consumer = lambda name, g: hooks(name, g / len(batch))
            return super()._backward(batch)

    wrong = MeanLoss(ex.model, variants=("sgd",), projection=ex.projection)
    with pytest.raises(SelfCheckFailed, match=r"gradient length of example 0 differs.*0\.5"):
        self_check(wrong, checkpoint, batch)


def test_block_features__halves_the_budget_when_out_of_memory() -> None:
    class SmallDevice(GradientExtractor):
        def features(self, batch: Any) -> Any:
            if len(batch) * max(len(e) for e in batch) > 60:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().features(batch)

    ex = extractor("llama")
    encoded, checkpoint = random_encoded([13] * 7), random_checkpoint(ex.model)
    small = SmallDevice(ex.model, variants=ex.variants, projection=ex.projection)
    comp = block_features(small, [checkpoint], encoded, token_budget=200)
    assert (comp.token_budget, comp.halvings) == (50, 2)
    ref: BlockFeatures = block_features(ex, [checkpoint], encoded, token_budget=200)
    np.testing.assert_allclose(comp.features["sgd"].astype(np.float32), ref.features["sgd"], atol=2e-4)
    with pytest.raises(UserError, match="lower the maximum length"):
        block_features(small, [checkpoint], random_encoded([61]), token_budget=200)


def test_block_features__reports_progress_and_cost() -> None:
    ex, seen = extractor("llama"), []
    encoded = random_encoded(LENGTHS)
    block = block_features(ex, [random_checkpoint(ex.model)], encoded, token_budget=50, progress=lambda *at: seen.append(at))
    assert seen[-1] == (7, 7)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert block.tokens == sum(LENGTHS)
    assert block.model_seconds > 0


def test_extractor__refuses_what_does_not_fit() -> None:
    ex = extractor("llama")
    with pytest.raises(UserError, match="gradient variant"):
        GradientExtractor(ex.model, variants=["adamw"], projection=ex.projection)
    other = random_checkpoint(extractor("llama", rank=2).model)
    with pytest.raises(
        UserError, match=r"16 in the checkpoint, only there: .*\(2, 32\).*; 16 in the model, only there: .*\(4, 32\)"
    ):
        ex.use(other)
    with pytest.raises(ValueError, match="first token cannot be one"):
        ex.features([Encoded(np.array([5, 6], np.int32), np.array([True, True]), False)])
    with pytest.raises(UserError, match="DoRA"):
        attach_adapter(tiny_model(), rank=2, alpha=2, seed=0, dora=True)


def certain(factor: float, seed: int) -> tuple[GradientExtractor, Any, list[Encoded]]:
    """A bfloat16 model with large logits, and two examples of its own most likely answers."""
    base = tiny_model("llama")
    with torch.no_grad():
        base.get_output_embeddings().weight.mul_(factor)
    model = attach_adapter(base, rank=4, alpha=8, seed=1).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            parameter.data = parameter.data.float()
    ex = GradientExtractor(model, variants=VARIANTS, projection=make_projection(dim=256, seed=0))
    checkpoint = random_checkpoint(model)
    ex.use(checkpoint)
    examples = []
    for length in (12, 30):
        ids = torch.randint(5, 90, (1, 6), generator=torch.Generator().manual_seed(length + seed))
        with torch.no_grad():
            while ids.shape[1] < length:
                ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
        examples.append(Encoded(ids[0].numpy().astype(np.int32), np.arange(length) >= 6, False))
    return ex, checkpoint, examples


def test_self_check__passes_on_answers_that_the_model_is_certain_of() -> None:
    """Of a probability that float32 cannot tell from 1 the loss is 0 or 2e-8, and the gradient rounding."""
    ex, checkpoint, examples = certain(300, 1)
    assert ex.features(examples).loss[0] < 1e-6
    self_check(ex, checkpoint, examples)


def test_self_check__loss_and_gradient_of_a_nearly_certain_answer_may_move_together() -> None:
    ex, checkpoint, examples = certain(200, 2)
    assert 5e-5 < ex.features(examples[1:]).loss[0] < 2e-4

    def moved(loss: float, gradient: float) -> None:
        def features(batch: list[Encoded]) -> GradientBatch:
            found = GradientExtractor.features(ex, batch)
            return replace(found, loss=found.loss * loss, grad_norm=found.grad_norm * gradient)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ex, "features", features)
            self_check(ex, checkpoint, [examples[1], examples[1]])

    moved(1.4, 1.4)
    with pytest.raises(SelfCheckFailed, match="gradient length"):
        moved(1.0, 0.5)
    with pytest.raises(SelfCheckFailed, match="loss"):
        moved(1000.0, 1.0)
