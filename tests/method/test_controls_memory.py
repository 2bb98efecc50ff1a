"""Peak memory of the controls that read features, measured in a process of its own, against their formulas."""

from __future__ import annotations

import subprocess
import sys

import pytest

PEAK = """
import numpy as np
from tagcos_stream.selection import facility_location, gram_columns, herding, kcenter, log_det
from tagcos_stream.types import ArrayRows
def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
def run(method, rows, budget):
    if method == "kcenter":
        return kcenter.kcenter(rows, budget, begin=[0])
    if method == "facility-location":
        return facility_location.facility_location(rows, budget)
    if method in ("log-det", "spice"):
        return log_det.log_det(rows, budget, np.arange(rows.n_rows), penalty=log_det.PENALTY if method == "spice" else 0.0)
    return herding.herding(rows, np.full(rows.dim, 0.5), budget)
method, n, dim, budget, held = CASE
gram_columns.HELD_BYTES = 1 << 30 if held else 0
r = np.random.default_rng(0)
A = np.concatenate([r.standard_normal((1000, dim), np.float32).astype(np.float16) for _ in range(n // 1000)])
run(method, ArrayRows(A[:500], 100), 20)
limit = gram_columns.peak_bytes(dim, n, 1000)
if method == "facility-location":
    limit = facility_location.peak_bytes(dim, n, 1000)
if method in ("kcenter", "log-det", "spice"):
    limit = {"kcenter": kcenter}.get(method, log_det).peak_bytes(dim, n, budget, 1000)
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")  # the peak so far belongs to making the data and to Numba compiling
before = memory("VmRSS")
run(method, ArrayRows(A, 1000), budget)
print(memory("VmHWM") - before, limit)
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("method", "held"),
    [
        ("kcenter", False),
        ("herding", False),
        ("herding", True),
        ("facility-location", False),
        ("log-det", False),
        ("spice", False),
    ],
    ids=["kcenter", "streamed", "held", "facility-location", "log-det", "spice"],
)
def test_controls__measured_peak_stays_under_the_formula(method: str, held: bool) -> None:
    rows = 10_000 if method == "facility-location" else 20_000  # whose time grows with the square of it
    code = PEAK.replace("CASE", f"{method!r}, {rows}, 512, 400, {held}")
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert 0 < int(output[-2]) <= int(output[-1])
