"""What tests/benchmarks/gpu.py checks and measures on models of random weights: exactness, speed, memory, share of time."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from tagcos_stream.gradients.adapter import attach_adapter
from tagcos_stream.gradients.batching import plan_batches
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.extract import GradientExtractor, block_features
from tagcos_stream.gradients.memory import MAX_BATCH_ROWS, model_shape, peak_bytes
from tagcos_stream.gradients.projection.projections import make_projection
from tagcos_stream.gradients.verify import TOLERANCE, SelfCheckFailed, self_check
from tagcos_stream.machine import free_memory
from tests.benchmarks.gradient_setting import DIM, alternate, extractor, plain_pass, random_model, timed
from tests.models import exact_norms, random_checkpoint, random_encoded, tiny_model
from tests.naive import naive_gradients, naive_projection, naive_variant

# hidden, layers, heads, key-value heads, inner, vocabulary
SHAPES = {
    "135M": (576, 30, 9, 3, 1536, 49152),
    "1B": (2048, 16, 32, 8, 8192, 128256),
    "7B": (4096, 32, 32, 32, 11008, 32000),
    "tiny": (64, 2, 4, 2, 96, 300),
}
VARIANTS = ("adam", "adam-delta", "sgd")
LENGTHS = (5, 21, 9, 40, 13, 33)  # of the examples whose gradients are compared
LONGEST = 1024
GIB = 2**30

Row = dict[str, Any]


def exactness(device: str) -> list[Row]:
    """Batched gradients and features on the device against autograd in float64 on the CPU, one example at a time.

    The reference computes with the same weights, those that the dtype can hold, and projects by matrices written out entry by
    entry. Both have angles of positions in float64: in float32, as transformers computes them, cosines of two devices differ in
    their last bit, which is more than float64 is allowed. Errors are relative lengths, so that a wrong scale counts.

    Returns
    -------
    list of dict
        One row a dtype, projection and quantity: `error`, the worst of all examples (and matrices), and the `limit`.
    """
    encoded = random_encoded(list(LENGTHS), seed=2)
    rows = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        exact = exact_positions(exact_norms(tiny_model(dtype=dtype).double()))
        plain = attach_adapter(exact, rank=4, alpha=8, dropout=0.0, seed=1).double()
        base = exact_positions(exact_norms(tiny_model(dtype=dtype))) if dtype == torch.float64 else tiny_model(dtype=dtype)
        model = attach_adapter(base, rank=4, alpha=8, dropout=0.0, seed=1)
        model = (model.double() if dtype == torch.float64 else model).to(device)
        checkpoint = random_checkpoint(model)
        for kind in ("sparse", "rademacher")[: 2 if dtype == torch.float64 else 1]:  # the dense one differs by its matrix alone
            projection = make_projection(kind, dim=64, seed=4)
            ex = GradientExtractor(model, variants=VARIANTS, projection=projection)
            ex.use(checkpoint)
            GradientExtractor(plain, variants=VARIANTS, projection=projection).use(checkpoint)  # the same adapter weights
            errors = _errors(ex, plain, checkpoint, encoded)
            limit = TOLERANCE[dtype]
            named = str(dtype).removeprefix("torch.")
            rows += [
                {"dtype": named, "projection": kind, "quantity": name, "error": e, "limit": limit} for name, e in errors.items()
            ]
    return rows


def exact_positions(model: Any) -> Any:
    """Rotary embeddings of a Llama model in float64: transformers computes them in float32 even in a float64 model."""

    def forward(self: Any, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = (position_ids[..., None].double() * self.inv_freq.double()).repeat(1, 1, 2)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)

    rotary = model.model.rotary_emb
    rotary.forward = forward.__get__(rotary)
    return model


def _errors(ex: GradientExtractor, plain: Any, checkpoint: Any, encoded: list[Encoded]) -> dict[str, float]:
    """Worst relative error of every quantity."""
    batch, captured = ex.features(encoded), dict[str, np.ndarray]()
    with ex.capture.recording(lambda name, g: captured.__setitem__(name, g.double().cpu().numpy())), torch.enable_grad():
        ex._backward(encoded)
    matrices = {
        name: _matrix(ex.projection.kind, ex.projection.seed, name, p.numel(), ex.projection.dim)
        for name, p in ex.parameters.items()
    }
    worst: dict[str, float] = {}

    def compare(name: str, ours: Any, ref: Any) -> None:
        ours, ref = np.asarray(ours, np.float64).reshape(-1), np.asarray(ref, np.float64).reshape(-1)
        worst[name] = max(worst.get(name, 0.0), float(np.linalg.norm(ours - ref) / np.linalg.norm(ref)))

    for row, example in enumerate(encoded):
        loss, gradients = naive_gradients(plain, example.input_ids, example.target)
        whole = np.concatenate([g.reshape(-1) for g in gradients.values()])
        compare("loss", float(batch.loss[row]), loss)
        compare("gradient length", float(batch.grad_norm[row]), np.linalg.norm(whole))
        compare("gradient", np.concatenate([captured[name][row] for name in gradients]), whole)
        for variant in ex.variants:
            feature = np.zeros(ex.projection.dim)
            for name, g in gradients.items():
                m, v = (np.asarray(part[name], np.float64).reshape(-1) for part in (checkpoint.exp_avg, checkpoint.exp_avg_sq))
                feature += naive_variant(variant, g.reshape(-1), m, v, checkpoint.adam_steps) @ matrices[name]
            compare(f"{variant} feature", batch.features[variant][row].double().cpu(), feature / np.linalg.norm(feature))
    return worst


@lru_cache(maxsize=256)
def _matrix(kind: str, seed: int, name: str, size: int, dim: int) -> np.ndarray:
    return naive_projection(kind, seed, name, size, dim)


def projection_agrees(device: str) -> list[Row]:
    """The projections of a device against those of the CPU, on four rows of a large matrix: rounding of sums alone differs."""
    rows = []
    grads = np.random.default_rng(1).standard_normal((4, 73_728), np.float32)  # rank 128 of 576 inputs
    for kind in ("sparse", "rademacher"):
        projection = make_projection(kind, dim=512, seed=3)
        here, there = np.zeros((4, 512), np.float32), torch.zeros(4, 512, device=device)
        projection.add("layer.lora_A.weight", grads, here)
        projection.add("layer.lora_A.weight", torch.from_numpy(grads).to(device), there)
        error = float(np.linalg.norm(there.cpu().numpy() - here) / np.linalg.norm(here))
        rows.append({"dtype": "float32", "projection": kind, "quantity": "device and CPU", "error": error, "limit": 1e-4})
    return rows


def speed(shape: str, rank: int, device: str, *, examples: int, repeats: int, tokens: int, dtype: torch.dtype) -> Row:
    """Speed, peak memory and shares of time of features on a model of random weights.

    Parameters
    ----------
    shape, rank
        A key of SHAPES, and the rank of the adapter.
    device, dtype
        Of the base model.
    examples, repeats
        Number of random examples, and how often they are timed; medians are reported.
    tokens
        Padded tokens of a pass.

    Returns
    -------
    dict
        `skipped` with the reason, or: tokens a second of `ours`, of `plain` forward and backward passes and their `ratio` (not
        where these do not fit); parts of our time in the passes with their per-example gradients (`passes`) and in variant and
        projection (`features`); `model_share`, the part of a block's time that the gradient stage records as model time;
        `peak_gib` and `formula_gib`.
    """
    gc.collect()
    meta = attach_adapter(random_model(*SHAPES[shape], dtype=dtype, device="meta"), rank=rank, alpha=4 * rank, seed=1)
    formula = partial(peak_bytes, model_shape(meta), max_length=LONGEST, dim=DIM, variants=1, block_rows=MAX_BATCH_ROWS)
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0] if cuda else free_memory()
    if (need := formula(token_budget=tokens)) > free:
        return {"skipped": f"needs {need / GIB:.1f} GiB, {free / GIB:.1f} GiB are free"}
    ex, drawn = extractor(random_model(*SHAPES[shape], dtype=dtype, device=device), rank, ("adam-delta",))
    # as small as a warm-up leaves them: 128 ranks of the weights drawn would drown the model, and bfloat16 with it
    small = {name: values * np.float32(0.01 if ".lora_B." in name else 1) for name, values in drawn.weights.items()}
    checkpoint = replace(drawn, weights=small)
    vocabulary = SHAPES[shape][-1]
    try:
        self_check(ex, checkpoint, random_encoded([24, 37], vocabulary=vocabulary))
    except SelfCheckFailed as error:
        return {"skipped": str(error)}
    lengths = np.random.default_rng(0).lognormal(5, 0.6, examples).clip(16, LONGEST).astype(int)
    encoded = random_encoded(lengths.tolist(), vocabulary=vocabulary)
    batches = [[encoded[i] for i in batch] for batch in plan_batches(lengths, tokens, MAX_BATCH_ROWS)]
    runs: list[Callable[[list[Encoded]], Any]] = [ex.features, partial(_passes, ex), partial(plain_pass, ex)]
    seconds = _times(runs, batches, repeats) or _times(runs[:2], batches, repeats)  # the plain pass has logits at every token
    if seconds is None:
        return {"skipped": f"out of device memory with {tokens} tokens a pass"}
    ours, passes, *plain = seconds
    found: Row = {"ours": lengths.sum() / ours}
    if plain:
        found |= {"plain": lengths.sum() / plain[0], "ratio": plain[0] / ours}
    found |= {"passes": passes / ours, "features": 1 - passes / ours}
    done: list[Any] = []
    whole = timed(lambda: done.append(block_features(ex, [checkpoint], encoded, token_budget=tokens)))
    found |= {
        "model_share": done[0].model_seconds / whole,
        "tokens": int(lengths.sum()),
        "padded_tokens": sum(max(map(len, batch)) * len(batch) for batch in batches),
    }
    if cuda:
        done.clear()
        ex.model.zero_grad()
        torch.cuda.reset_peak_memory_stats(device)
        ex.features(batches[0])
        need = formula(token_budget=tokens, block_rows=len(batches[0]))
        found |= {"peak_gib": torch.cuda.max_memory_allocated(device) / GIB, "formula_gib": need / GIB}
    return {name: round(float(value), 4) for name, value in found.items()}


def _times(runs: list[Callable[[list[Encoded]], Any]], batches: list[list[Encoded]], repeats: int) -> list[float] | None:
    """`alternate`; None where device memory does not hold them, with the memory released."""
    try:
        return alternate(runs, batches, repeats)
    except torch.OutOfMemoryError:
        pass
    gc.collect()  # after the error is gone, whose traceback holds tensors
    torch.cuda.empty_cache()
    return None


def _passes(ex: GradientExtractor, batch: list[Encoded]) -> None:
    """Forward and backward with the per-example gradients of every matrix, which are dropped."""
    with ex.capture.recording(lambda name, gradients: None), torch.enable_grad():
        ex._backward(batch)
