"""Feature rows by the batch, and the nearest centroids of a batch.

N examples, D feature dimension, K clusters, r rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from tagcos_stream.clustering.threaded import squared_lengths
from tagcos_stream.types import RowBlocks

BATCH_BYTES = 64 << 20  # of float32 rows
STRETCH_BATCHES = 16  # 1 GiB of float32 rows: a pass is cut into such stretches, the unit that is saved, and handed to workers

Stretch = list[list[int]]  # batches of blocks, in order; the rows of a stretch lie one after the other


def batch_rows(dim: int) -> int:
    """Return the number of rows of a batch: a function of D alone, so that a plan does not change with the machine.

    Parameters
    ----------
    dim
        D.

    Returns
    -------
    int
        Rows.
    """
    return int(np.clip(BATCH_BYTES // (4 * dim), 256, 8192))


def batches(rows: RowBlocks, order: Sequence[int] | np.ndarray) -> list[list[int]]:
    """Cut whole blocks in the given order into groups of at least `batch_rows` rows; the last group may be smaller.

    Parameters
    ----------
    rows
        N rows.
    order
        Block numbers.

    Returns
    -------
    list of list of int
        Block numbers of each group.
    """
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
    """Cut a pass over all rows into stretches.

    They depend on N, D and the blocks alone, so who computes a stretch changes no bit.

    Parameters
    ----------
    rows
        N rows.

    Returns
    -------
    list of Stretch
        In order of the rows.
    """
    plan = batches(rows, range(len(rows.starts) - 1))
    return [plan[i : i + STRETCH_BATCHES] for i in range(0, len(plan), STRETCH_BATCHES)]


def span(rows: RowBlocks, stretch: Stretch) -> slice:
    """Return the rows of a stretch.

    Parameters
    ----------
    rows
        All rows.
    stretch
        One of `stretches`.

    Returns
    -------
    slice
        Row numbers.
    """
    return slice(int(rows.starts[stretch[0][0]]), int(rows.starts[stretch[-1][-1] + 1]))


def row_numbers(rows: RowBlocks, group: Sequence[int]) -> np.ndarray:
    """Return which rows a group of blocks holds.

    Parameters
    ----------
    rows
        All rows.
    group
        Block numbers.

    Returns
    -------
    np.ndarray
        (r,) int64.
    """
    return np.concatenate([np.arange(rows.starts[b], rows.starts[b + 1]) for b in group])


def stream(rows: RowBlocks, plan: Sequence[list[int]]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Read a plan as float32 batches. The next group's blocks are read while the caller works on this one.

    Blocks are converted to float32 here, on torch's threads; numpy would take ten times as long where they are read.

    Parameters
    ----------
    rows
        N rows.
    plan
        Groups of blocks.

    Yields
    ------
    tuple of (list of int, np.ndarray)
        The group, and its rows (r, D) float32. The array is valid until the next one is requested.
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
        self.threads = torch.get_num_threads()
        self._centroids = torch.tensor(centroids, dtype=torch.float32, device=device)
        self._squares = (self._centroids.double() ** 2).sum(1).float()

    def __call__(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels (r,) int64, the lowest of equals on CPU, and squared distances (r,) float64."""
        x = torch.from_numpy(batch).to(self.device)
        scores = torch.addmm(self._squares, x, self._centroids.T, alpha=-2)
        value, label = scores.min(dim=1)
        return label.cpu().numpy(), np.maximum(squared_lengths(batch, self.threads) + value.cpu().numpy(), 0.0)
