"""The memory formula against measured peaks, at two ranks and two lengths."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tagcos_stream.features.adapter import attach_adapter
from tagcos_stream.features.gradient_memory import model_shape, peak_bytes, working_bytes
from tests.models import tiny_model

MEASURE = """
import ctypes, gc, torch
from transformers import AutoModelForCausalLM, LlamaConfig
from tagcos_stream.features.gradient_memory import model_shape, working_bytes
from tagcos_stream.features.gradients import GradientExtractor, block_features
from tagcos_stream.features.adapter import attach_adapter
from tagcos_stream.features.projection import make_projection
from tests.models import random_checkpoint, random_encoded

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

torch.set_num_threads(1)
config = LlamaConfig(vocab_size=8192, hidden_size=256, num_hidden_layers=6, 
    num_attention_heads=8, num_key_value_heads=4, intermediate_size=768)
for rank in (4, 64):
    for length, budget in ((64, 512), (256, 1024)):
        model = attach_adapter(AutoModelForCausalLM.from_config(config).eval(), rank=rank, alpha=8, seed=0)
        ex = GradientExtractor(model, variants=("adam",), projection=make_projection(dim=1024, seed=0))
        checkpoint = random_checkpoint(model)
        encoded = random_encoded([length] * (budget // length), vocabulary=8000)
        ex.use(checkpoint)
        ex.features(random_encoded([3]))  # kernels compiled, libraries' own buffers made
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what earlier rounds freed goes back, or this one would be measured too small
        before = status("VmRSS")
        open("/proc/self/clear_refs", "w").write("5")
        block_features(ex, [checkpoint], encoded, token_budget=budget)
        shape, rows = model_shape(model), len(encoded)
        formula = working_bytes(shape, token_budget=budget, max_length=length, block_rows=rows, dim=1024, variants=1)
        print(rank, length, status("VmHWM") - before, formula)
        del model, ex, checkpoint
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_working_bytes__bounds_the_measured_peak() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    lines = [[int(part) for part in line.split()] for line in done.stdout.strip().splitlines()]
    assert len(lines) == 4
    for rank, length, measured, formula in lines:
        assert measured <= formula <= 3 * measured, (rank, length, measured / 2**20, formula / 2**20)


def test_peak_bytes__is_a_function_of_the_configuration() -> None:
    shape = model_shape(attach_adapter(tiny_model(), rank=4, alpha=8, seed=0))
    options = {"token_budget": 1024, "max_length": 128, "block_rows": 64, "dim": 1024, "variants": 1}
    one, three = (peak_bytes(shape, **options, checkpoints=c) for c in (1, 3))
    assert three - one == 2 * 3 * 4 * shape.adapter_parameters
    assert one == shape.weight_bytes + 12 * shape.adapter_parameters + working_bytes(shape, **options)
    assert peak_bytes(shape, **(options | {"variants": 2})) - one == 1024 * (2 * 64 * 4 + 64 * 6)
    assert peak_bytes(shape, **(options | {"max_length": 4096})) > one
