"""Peak memory of warm-up and gradient stage on the CPU against their formulae, each measured in a process of its own.

    python -m tests.benchmarks.gradient_memory LAYERS,HIDDEN,HEADS,INNER,VOCABULARY STAGE,RANK,LENGTH,BUDGET,DIM ...

measures cases of a model of random weights and prints measured and formula of each, in bytes beyond weights and checkpoints. The
process of a case is forked from one that has imported torch, but has started no thread and made no model.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STAGES = ("warm-up", "gradients")


def measure(model: str, *, cases: Sequence[tuple[int, tuple[int, int]]], dim: int) -> list[tuple[str, int, int, int, int]]:
    """(stage, rank, length, measured bytes, formula's bytes) for every stage and case, a rank and (length, token budget)."""
    measured: list[tuple[str, tuple[int, tuple[int, int]]]] = list(itertools.product(STAGES, cases))
    given = [",".join(map(str, (stage, rank, *shape, dim))) for stage, (rank, shape) in measured]
    command = [sys.executable, "-m", "tests.benchmarks.gradient_memory", model, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    found: list[Any] = [[int(number) for number in line.split()] for line in done.stdout.splitlines()[-len(given) :]]
    return [(stage, rank, shape[0], *pair) for (stage, (rank, shape)), pair in zip(measured, found, strict=True)]


def report(_: Any = None) -> None:
    """A model of SmolLM2-135M's shape at two ranks and two lengths."""
    print("\nmemory beyond weights and checkpoints, SmolLM2-135M's shape, float32, D=8,192; measured / formula, GiB", flush=True)
    for stage, rank, length, found, formula in measure(
        "30,576,9,1536,49152", cases=list(itertools.product((8, 128), ((256, 1024), (1024, 1024)))), dim=8192
    ):
        print(f"  {stage:<10} r={rank:<4} length {length:>5}: {found / 2**30:.2f} / {formula / 2**30:.2f}", flush=True)


def main() -> None:
    import torch

    for module in ("peft", "transformers.trainer", "transformers.models.llama.modeling_llama"):
        importlib.import_module(module)
    torch.set_num_threads(1)
    for case in sys.argv[2:]:
        if (child := os.fork()) == 0:
            print(*measure_case(sys.argv[1], *case.split(",")), flush=True)
            return
        if os.waitpid(child, 0)[1]:
            sys.exit(f"failed: {case}")


def measure_case(model: str, stage: str, *numbers: str) -> tuple[int, int]:
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tagcos_stream.gradients.adapter import attach_adapter

    layers, hidden, heads, inner, vocabulary = map(int, model.split(","))
    rank, length, budget, dim = map(int, numbers)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=next(k for k in (heads // 3, heads // 2, 1) if k and heads % k == 0),
        intermediate_size=inner,
        tie_word_embeddings=True,
    )
    base = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    adapted = attach_adapter(base, rank=rank, alpha=8, dropout=0.0, seed=0)
    return {"warm-up": warm_up, "gradients": gradients}[stage](adapted, length, budget, dim)


def warm_up(model: Any, length: int, budget: int, dim: int) -> tuple[int, int]:
    from tagcos_stream.gradients.memory import model_shape, warmup_bytes
    from tagcos_stream.gradients.warmup import run_warmup
    from tests.models import random_encoded

    def train(examples: int, length: int) -> None:
        run_warmup(
            model,
            random_encoded([length] * examples, vocabulary=model.config.vocab_size),
            steps=1,
            batch_size=examples,
            learning_rate=1e-4,
            checkpoints=[1],
            seed=0,
            token_budget=budget,
        )

    train(1, 3)  # what libraries hold once and for all
    before = _rested()
    train(2 * (budget // length), length)
    return status("VmHWM") - before, warmup_bytes(model_shape(model), length, budget, dropout=False)


def gradients(model: Any, length: int, budget: int, dim: int) -> tuple[int, int]:
    from tagcos_stream.gradients.extract import GradientExtractor, block_features
    from tagcos_stream.gradients.memory import model_shape, working_bytes
    from tagcos_stream.gradients.projection.projections import make_projection
    from tests.models import random_checkpoint, random_encoded

    ex = GradientExtractor(model, variants=("adam",), projection=make_projection(dim=dim, seed=0))
    checkpoint, rows = random_checkpoint(model), budget // length
    ex.use(checkpoint)
    ex.features(random_encoded([3]))  # kernels compiled, libraries' own buffers made
    before = _rested()
    block_features(ex, [checkpoint], random_encoded([length] * rows, vocabulary=model.config.vocab_size), token_budget=budget)
    shape = model_shape(model)
    options: dict[str, Any] = {"token_budget": budget, "max_length": length, "block_rows": rows, "dim": dim, "variants": 1}
    return status("VmHWM") - before, working_bytes(shape, **options)


def _rested() -> int:
    """Resident bytes now, from where the peak is measured anew; what was freed is given back first."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(key: str) -> int:
    """Bytes of an entry of this process's status, such as VmHWM, its peak of resident memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


if __name__ == "__main__":
    main()
