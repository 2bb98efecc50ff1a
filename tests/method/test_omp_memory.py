"""Peak memory of the pursuit, measured in a process of its own, against its formula."""

from __future__ import annotations

import subprocess
import sys

import pytest

PEAK = """
import numpy as np
from tagcos_stream.selection.pursuit.omp import omp_select, peak_bytes
from tagcos_stream.types import ArrayRows
def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
n, dim, budget, streamed = CASE
r = np.random.default_rng(0)
A = np.concatenate([r.standard_normal((1000, dim), np.float32).astype(np.float16) for _ in range(n // 1000)])
A += np.float16(0.5)
b = A.mean(axis=0, dtype=np.float64)
omp_select(A[:500], b, 50)
limit = peak_bytes(n, dim, budget, hold=not streamed, blocks=1000)
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")  # the peak so far belongs to making the data and to Numba compiling
before = memory("VmRSS")
chosen = omp_select(ArrayRows(A, 1000), b, budget, memory_limit=limit)
assert chosen.stats.held != streamed
print(memory("VmHWM") - before, limit)
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("n", "dim", "budget", "streamed"),
    [
        (20_000, 512, 200, False),
        (20_000, 512, 200, True),
        pytest.param(100_000, 1024, 500, False, marks=pytest.mark.slow),
        pytest.param(100_000, 1024, 500, True, marks=pytest.mark.slow),
    ],
)
def test_omp__measured_peak_stays_under_the_formula(n: int, dim: int, budget: int, streamed: bool) -> None:
    code = PEAK.replace("CASE", f"{n}, {dim}, {budget}, {streamed}")
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(output[-2]) <= int(output[-1])
