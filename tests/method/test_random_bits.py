"""The generator in numpy, Numba and torch: the same bits as the definition, entry by entry."""

from __future__ import annotations

import numba
import numpy as np
import torch

from tagcos_stream.gradients.projection import kernels, torch_ops
from tagcos_stream.random_bits import splitmix64
from tests.naive import naive_splitmix


@numba.njit
def _by_numba(counters: np.ndarray) -> np.ndarray:
    found = np.empty_like(counters)
    for i in range(len(counters)):
        found[i] = kernels.splitmix64(counters[i])
    return found


def test_splitmix64__is_the_same_in_numpy_numba_and_torch() -> None:
    drawn = np.random.default_rng(0).integers(0, 1 << 64, 1000, np.uint64)
    counters = np.concatenate([drawn, np.array([0, 1, 1 << 63, (1 << 64) - 1], np.uint64)])
    ref = [naive_splitmix(int(counter)) for counter in counters]
    assert splitmix64(counters).tolist() == ref
    assert _by_numba(counters).tolist() == ref
    assert torch_ops.splitmix64(torch.from_numpy(counters.view(np.int64))).numpy().view(np.uint64).tolist() == ref
