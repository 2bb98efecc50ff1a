"""Feature rows by the batch, and the two things that are done with a batch: nearest centroids, and sums by label.

N examples, D feature dimension, K clusters, r rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from tagcos_stream.clustering.kernels import squares
from tagcos_stream.types import RowBlocks

BATCH_BYTES = 64 << 20  # of float32 rows
STRETCH_BATCHES = 16  # 1 GiB of float32 rows: a pass is cut into such stretches, the unit that is saved, and handed to workers

Stretch = list[list[int]]  # batches of blocks, in order; the rows of a stretch lie one after the other


def batch_rows(dim: int) -> int:
    """Rows of a batch: a function of D alone, so that a plan does not change with the machine."""
    return int(np.clip(BATCH_BYTES // (4 * dim), 256, 8192))


def batches(rows: RowBlocks, order: Sequence[int] | np.ndarray) -> list[list[int]]:
    """Whole blocks in the given order, cut into groups of at least `batch_rows` rows (the last may be smaller)."""
    lengths = np.diff(rows.starts)
    plan: list[list[int]] = []
    group: list[int] = []
    count = 0
    for block in order:
        group.append(int(block))
        count += int(lengths[block])
        if count >= batch_rows(rows.dim):
            plan.append(group)
            group, count = [], 0
    if count:
        plan.append(group)
    return plan


def stretches(rows: RowBlocks) -> list[Stretch]:
    """A pass over all rows in order: a function of N, D and the blocks alone, so that who computes what changes no bit."""
    plan = batches(rows, range(len(rows.starts) - 1))
    return [plan[i : i + STRETCH_BATCHES] for i in range(0, len(plan), STRETCH_BATCHES)]


def span(rows: RowBlocks, stretch: Stretch) -> slice:
    """Its rows."""
    return slice(int(rows.starts[stretch[0][0]]), int(rows.starts[stretch[-1][-1] + 1]))


def row_numbers(rows: RowBlocks, group: Sequence[int]) -> np.ndarray:
    """(r,) int64: which rows `read` returns."""
    return np.concatenate([np.arange(rows.starts[b], rows.starts[b + 1]) for b in group])


def stream(rows: RowBlocks, plan: Sequence[list[int]]) -> Iterator[tuple[list[int], np.ndarray]]:
    """(group, (r, D) float32) over a plan; an array is good until the next is asked for, and then holds that one.

    The next group's blocks are read while this one is worked on. They become float32 here, on torch's threads: where they are
    read numpy would take ten times as long.
    """
    lengths = np.diff(rows.starts)
    batch = torch.empty((max((int(lengths[group].sum()) for group in plan), default=0), rows.dim))

    def read(group: list[int]) -> list[np.ndarray]:
        return [rows.read(block) for block in group]

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, plan[0]) if plan else None
        for i, group in enumerate(plan):
            assert ahead is not None
            at = 0
            for block in ahead.result():
                batch[at : at + len(block)].copy_(torch.from_numpy(block if block.flags.writeable else block.copy()))
                at += len(block)
            ahead = reader.submit(read, plan[i + 1]) if i + 1 < len(plan) else None
            yield group, batch[:at].numpy()


class Nearest:
    """Nearest of (K, D) centroids for batches of rows, on one device."""

    def __init__(self, centroids: np.ndarray, device: str) -> None:
        self.device = device
        self.shape = centroids.shape
        self._centroids = torch.tensor(centroids, dtype=torch.float32, device=device)
        self._squares = (self._centroids.double() ** 2).sum(1).float()

    def __call__(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """labels (r,) int64, the lowest of equals on CPU; squared distances (r,) float64."""
        x = torch.from_numpy(batch).to(self.device)
        scores = torch.addmm(self._squares, x, self._centroids.T, alpha=-2)
        value, label = scores.min(dim=1)
        norms = np.empty(len(batch))
        squares(batch, norms)
        return label.cpu().numpy(), np.maximum(norms + value.cpu().numpy(), 0.0)
