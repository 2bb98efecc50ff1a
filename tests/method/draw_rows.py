"""Feature rows for tests of selection."""

from __future__ import annotations

import numpy as np


def draw_rows(generator: np.random.Generator, n: int, dim: int, kind: int, *, spread: float) -> np.ndarray:
    """Rows (n, dim) float16 as the store gives them, by kind % 3: scattered, in clumps of this spread, or with copies."""
    rows = generator.standard_normal((n, dim))
    if kind % 3 == 1:
        rows = 5 * rows[generator.integers(0, max(1, n // 10), n)] + spread * rows
    rows = rows.astype(np.float16)
    return rows[generator.integers(0, n, n)] if kind % 3 == 2 else rows
