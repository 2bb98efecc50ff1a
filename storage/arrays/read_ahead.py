"""Blocks that are read in order are read ahead, by two threads: one waits for bytes while the other checks its own.

Measured on 2 cores, 256 x 8,192 float16 blocks from a warm page cache, against plain reading of the same bytes: 0.56 of its
speed one block after the other, 0.83 with two threads and one block waiting, 0.89 with two waiting. (The crc holds the
interpreter; the copy out of the page cache does not.) Two threads keep a disk less busy than one reader of one long file, whose
next megabytes the kernel fetches by itself: the blocks after those are announced to it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np

BLOCKS_AHEAD = 3
BLOCKS_EXPECTED = 2  # after these


class ReadAhead:
    """`get(block)` is `load(block)`; whoever asks for blocks in order finds the next ones being read. Not for several threads.

    expect: tells the store that a block is going to be read, where it is one file.
    """

    def __init__(self, load: Callable[[int], np.ndarray], n_blocks: int, expect: Callable[[int], None] | None = None) -> None:
        self._load = load
        self._expect = expect
        self._n_blocks = n_blocks
        self._coming: dict[int, Future[np.ndarray]] = {}
        self._last = -1

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(2, thread_name_prefix="tagcos-read")

    def get(self, block: int) -> np.ndarray:
        in_order, self._last = block == self._last + 1, block
        coming = self._coming.pop(block, None)
        if not in_order:
            self._forget()
        elif self._n_blocks > 1:
            for ahead in range(block + 1, min(block + 1 + BLOCKS_AHEAD, self._n_blocks)):
                if ahead not in self._coming:
                    self._coming[ahead] = self._threads.submit(self._load, ahead)
                    if self._expect is not None and ahead + BLOCKS_EXPECTED < self._n_blocks:
                        self._expect(ahead + BLOCKS_EXPECTED)
        return self._load(block) if coming is None else coming.result()

    def _forget(self) -> None:
        for future in self._coming.values():
            future.cancel()
        self._coming.clear()
