"""The loops that read every number of a batch, on several threads.  D feature dimension, K labels, r rows of a batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from tagcos_stream.clustering import kernels
from tagcos_stream.machine import available_cpus

PART = 1 << 16  # numbers that a thread gets at the least: of fewer, waking it would take as long


def squared_lengths(batch: np.ndarray, threads: int | None = None) -> np.ndarray:
    """Compute |x|^2 of every row in float64, the same bits for any number of threads.

    Parameters
    ----------
    batch
        (r, D) float32 or float64.
    threads
        Default all cores.

    Returns
    -------
    np.ndarray
        (r,) float64.
    """
    out = np.empty(len(batch))
    _in_parts(lambda begin, end: kernels.squares(batch[begin:end], out[begin:end]), len(batch), batch.size, threads)
    return out


def add_rows(batch: np.ndarray, labels: np.ndarray, sums: np.ndarray, threads: int | None = None) -> None:
    """Add each row to its label's sum in float64, the same bits for any number of threads, which share the dimensions.

    Parameters
    ----------
    batch
        (r, D) float32 or float64.
    labels
        (r,) int64, negative to leave a row out.
    sums
        (K, D) float64, updated.
    threads
        Default all cores.
    """
    _in_parts(lambda begin, end: kernels.add_rows(batch, labels, (begin, end), sums), batch.shape[1], batch.size, threads)


def decide(
    batch: np.ndarray, centroids: np.ndarray, scores: np.ndarray, slack: np.ndarray, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest centroid of every row among those whose score is within `slack` of the best; of equals the lowest.

    Parameters
    ----------
    batch
        (r, D) float32.
    centroids
        (K, D) float32.
    scores
        (r, K) float32.
    slack
        (r,) float64.
    threads
        Default all cores.

    Returns
    -------
    tuple of (np.ndarray, np.ndarray)
        Labels (r,) int64, and squared distances (r,) float64.
    """
    labels, squared = np.empty(len(batch), np.int64), np.empty(len(batch))

    def work(begin: int, end: int) -> None:
        here = slice(begin, end)
        kernels.decide(batch[here], centroids, scores[here], slack[here], labels[here], squared[here])

    _in_parts(work, len(batch), batch.size, threads)
    return labels, squared


def _in_parts(work: Callable[[int, int], None], length: int, numbers: int, threads: int | None) -> None:
    """work(begin, end) on parts of range(length), a thread each."""
    threads = threads or available_cpus()
    parts = min(threads, length, numbers // PART)
    if parts < 2:
        work(0, length)
        return
    edges = np.linspace(0, length, parts + 1).astype(int).tolist()
    list(_executor(threads, os.getpid()).map(work, edges[:-1], edges[1:]))


@cache
def _executor(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process, made once: on many cores that takes as long as a batch. A fork has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="tagcos-batch")
