"""Compile every kernel that a run calls, in a process of its own, while the run reads, loads its model and computes gradients.

Numba compiles under one lock, so that a thread of the run itself would gain nothing; what the process compiles reaches the run
through Numba's cache on disk. `python -m tagcos_stream.compile_ahead` fills the cache and returns, for example in a Dockerfile.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tagcos_stream.machine import instruction_sets

PACKAGE = Path(__file__).parent
# modules whose kernels `compile_all` compiles
MODULES = (
    "data.containers.json_scan",
    "gradients.projection.kernels",
    "gradients.variants",
    "clustering.kernels",
    "rows.kernels",
    "selection.pursuit.int_kernels",
    "selection.pursuit.kernels",
    "selection.stands",
)
NICE = 5  # below the run, which shares the cores


@contextmanager
def compiling_ahead() -> Iterator[subprocess.Popen[bytes] | None]:
    """Within: another process compiles what the cache lacks. It is stopped at the end; what it has compiled stays.

    Yields
    ------
    subprocess.Popen or None
        None where the cache has everything.
    """
    if marker().exists():
        yield None
        return
    command = [sys.executable, "-m", f"{PACKAGE.name}.{Path(__file__).stem}"]
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=PACKAGE.parent, stdin=nothing, stdout=nothing, stderr=nothing)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def marker() -> Path:
    """A file that exists once the cache has every kernel of this version, for this processor, Python and Numba."""
    found = [platform.python_version(), platform.machine(), *instruction_sets(), importlib.metadata.version("numba")]
    for name in MODULES:
        stat = (PACKAGE / name.replace(".", "/")).with_suffix(".py").stat()
        found.append(f"{name} {stat.st_size} {stat.st_mtime_ns}")
    return cache_folder() / f"compiled-{hashlib.blake2b(' '.join(found).encode(), digest_size=8).hexdigest()}"


def cache_folder() -> Path:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR, or ``__pycache__`` next to each module."""
    configured = os.environ.get("NUMBA_CACHE_DIR")
    return Path(configured) if configured else PACKAGE / "__pycache__"


def compile_all() -> None:
    """Call every kernel once with each combination of types that a run uses, on a few numbers."""
    _read()
    _project()
    _cluster()
    _select()


def _read() -> None:
    from tagcos_stream.data.containers.json_scan import find_list, new_state, scan_elements

    data = np.frombuffer(b'{"a": [1, 2]}', np.uint8)
    _, position = find_list(data, 0, new_state(0))
    scan_elements(data, position, new_state(2), 2, np.empty(8, np.int64))


def _project() -> None:
    from tagcos_stream.gradients.projection.projections import make_projection
    from tagcos_stream.gradients.variants import transform_rows

    gradients, moments = np.ones((1, 128), np.float32), np.ones(128, np.float32)
    transform_rows(gradients, moments, moments, 0, np.ones(6, np.float32), gradients)
    make_projection(dim=64, seed=0).add("a", gradients, np.zeros((1, 64), np.float32))


def _cluster() -> None:
    from tagcos_stream.clustering import kernels

    rows, labels, numbers = np.ones((2, 8), np.float32), np.zeros(2, np.int64), np.ones(2)
    kernels.squares(rows, numbers)
    kernels.fold(rows, np.ones(8, np.float32), np.ones((2, 4), np.float32))
    kernels.add_rows(rows, labels, (0, 8), np.zeros((1, 8)))
    kernels.decide(rows, rows, np.ones((2, 2), np.float32), numbers, labels, np.ones(2))


def _select() -> None:
    """On float16 blocks, as features are stored, held and read again."""
    from tagcos_stream.selection.pursuit.omp import omp_select, peak_bytes
    from tagcos_stream.selection.stands import stands_for

    rows = _Blocks(np.random.default_rng(0).standard_normal((64, 32)).astype(np.float16))
    mean = rows.array.mean(axis=0, dtype=np.float64)
    streamed = peak_bytes(64, 32, 12, hold=False, blocks=32)
    for limit in (None, streamed):
        chosen = omp_select(rows, mean, 12, tol=1e-9, memory_limit=limit, threads=1).indices
    stands_for(rows, chosen, threads=1)
    rows.array.flags.writeable = False  # blocks of the store come as views that cannot be written to
    stands_for(rows, chosen, threads=1)


class _Blocks:
    """Rows in two blocks."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.n_rows, self.dim = array.shape
        self.starts = np.array([0, len(array) // 2, len(array)])

    def read(self, b: int) -> np.ndarray:
        return self.array[self.starts[b] : self.starts[b + 1]]


def main() -> None:
    """Fill the cache, at a low priority."""
    os.nice(NICE)
    compile_all()
    path = marker()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


if __name__ == "__main__":
    main()
