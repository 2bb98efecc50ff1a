"""Prefetching of blocks that are read in order, by two threads: one waits for bytes while the other verifies a block.

Measured on 2 cores, 256 x 8,192 float16 blocks from a warm page cache, relative to reading the same bytes without verification:
0.56 of the speed when blocks are read one by one, 0.83 with two threads and one block queued, 0.89 with two queued. (The crc
holds the interpreter lock; the copy from the page cache does not.) Two threads keep a disk less busy than one reader of one long
file, for which the kernel prefetches the next megabytes itself; hence the prefetch hints for the blocks after the queued ones.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

BLOCKS_AHEAD = 3
BLOCKS_EXPECTED = 2  # after these


class ReadAhead:
    """`get(block)` returns `load(block)`; if blocks are requested in order, the next ones are prefetched. Not thread-safe.

    The threads end with the last block, and a later pass starts others: a stage keeps thousands of readers.

    Parameters
    ----------
    load
        Reads and verifies a block; must be thread-safe.
    n_blocks
        Number of blocks.
    expect
        Prefetch hint for a block that will be loaded soon; None if the store has no use for one.
    """

    def __init__(self, load: Callable[[int], np.ndarray], n_blocks: int, expect: Callable[[int], None] | None = None) -> None:
        self._load = load
        self._expect = expect
        self._n_blocks = n_blocks
        self._coming: dict[int, Future[np.ndarray]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._last = -1

    def get(self, block: int) -> np.ndarray:
        """Return a block, from a prefetch if there is one."""
        in_order, self._last = block == self._last + 1, block
        coming = self._coming.pop(block, None)
        if not in_order:
            self._forget()
        elif block + 1 < self._n_blocks:
            self._threads = self._threads or ThreadPoolExecutor(2, thread_name_prefix="tagcos-read")
            for ahead in range(block + 1, min(block + 1 + BLOCKS_AHEAD, self._n_blocks)):
                if ahead not in self._coming:
                    self._coming[ahead] = self._threads.submit(self._load, ahead)
                    if self._expect is not None and ahead + BLOCKS_EXPECTED < self._n_blocks:
                        self._expect(ahead + BLOCKS_EXPECTED)
        found = self._load(block) if coming is None else coming.result()
        if block + 1 == self._n_blocks and self._threads is not None:
            self._threads.shutdown()
            self._threads = None
        return found

    def _forget(self) -> None:
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()
