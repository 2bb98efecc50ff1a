"""The memory formula against measured peaks, at two ranks and two lengths."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tagcos_stream.gradients.adapter import attach_adapter
from tagcos_stream.gradients.memory import model_shape, peak_bytes, warmup_bytes, working_bytes
from tests.benchmarks.gradient_memory import measure
from tests.models import tiny_model


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "cases",
    [
        [(4, (64, 512)), (64, (256, 1024))],
        pytest.param([*product((4, 64), ((64, 512), (256, 1024)))], marks=pytest.mark.slow),
    ],
    ids=["two", "all"],
)
def test_formulae__bound_the_measured_peaks(cases: list[Any]) -> None:
    """Every pair of rank and shape in the slow version; here the smallest of both and the largest of both."""
    measured = measure("6,256,8,768,8192", cases=cases, dim=1024)
    assert len(measured) == 2 * len(cases)
    for stage, rank, length, found, formula in measured:
        assert found <= formula <= 3 * found, (stage, rank, length, found / 2**20, formula / 2**20)


def test_peak_bytes__is_a_function_of_the_configuration() -> None:
    shape = model_shape(attach_adapter(tiny_model(), rank=4, alpha=8, seed=0))
    options: dict[str, Any] = {"token_budget": 1024, "max_length": 128, "block_rows": 64, "dim": 1024, "variants": 1}
    one, three = (peak_bytes(shape, **options, checkpoints=c) for c in (1, 3))
    assert three - one == 2 * 3 * 4 * shape.adapter_parameters
    assert one == shape.weight_bytes + 12 * shape.adapter_parameters + working_bytes(shape, **options)
    assert peak_bytes(shape, **(options | {"variants": 2})) - one == 1024 * (2 * 64 * 4 + 64 * 6)
    assert peak_bytes(shape, **(options | {"max_length": 4096})) > one


def test_warmup_bytes__is_a_function_of_the_configuration() -> None:
    shape = model_shape(attach_adapter(tiny_model(), rank=4, alpha=8, seed=0))
    one, three = (warmup_bytes(shape, 128, 1024, dropout=False, checkpoints=c) for c in (1, 3))
    assert three - one == 2 * 12 * shape.adapter_parameters
    assert warmup_bytes(shape, 2048, 1024, dropout=False) > one == warmup_bytes(shape, 1024, 128, dropout=False)
    # q, k, v and o read 32 numbers each in both layers; a dropped one is kept as float32 with its mask
    assert warmup_bytes(shape, 128, 1024, dropout=True) - one == 1024 * 8 * 32 * 5
