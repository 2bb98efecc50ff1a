"""Views of feature rows that are read block by block.  N rows, D feature dimension."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from tagcos_stream.types import RowBlocks


class _View(ABC):
    """RowBlocks made of other rows."""

    n_rows: int
    dim: int
    starts: np.ndarray

    def read(self, block: int) -> np.ndarray:
        """Read one block, as `RowBlocks.read` says."""
        return np.ascontiguousarray(self._made(block))

    @abstractmethod
    def _made(self, block: int) -> np.ndarray:
        """The rows of a block, in any layout."""


class Dimensions(_View):
    """Some of the dimensions of other rows.

    Parameters
    ----------
    rows
        (N, D) rows.
    which
        (D,) bool.
    """

    def __init__(self, rows: RowBlocks, which: np.ndarray) -> None:
        self._rows = rows
        self._which = np.flatnonzero(which)
        self.n_rows, self.starts, self.dim = rows.n_rows, rows.starts, len(self._which)

    def _made(self, block: int) -> np.ndarray:
        return self._rows.read(block)[:, self._which]


class Scaled(_View):
    """Other rows times a factor each, in float32.

    Parameters
    ----------
    rows
        (N, D) rows.
    scale
        (N,) factors.
    """

    def __init__(self, rows: RowBlocks, scale: np.ndarray) -> None:
        self._rows, self._scale = rows, scale.astype(np.float32)
        self.n_rows, self.starts, self.dim = rows.n_rows, rows.starts, rows.dim

    def _made(self, block: int) -> np.ndarray:
        scaled: np.ndarray = self._rows.read(block).astype(np.float32)
        return scaled * self._scale[self.starts[block] : self.starts[block + 1], None]


class Subset(_View):
    """Some of other rows, in blocks of theirs; a block without such a row is left out.

    Parameters
    ----------
    rows
        (N, D) rows.
    which
        (n,) int64, the rows, ascending.
    """

    def __init__(self, rows: RowBlocks, which: np.ndarray) -> None:
        self._rows, self._which = rows, which
        edges = np.searchsorted(which, rows.starts)
        self._blocks = np.flatnonzero(np.diff(edges))
        self.starts = np.append(edges[self._blocks], len(which)).astype(np.int64)
        self.n_rows, self.dim = len(which), rows.dim

    def _made(self, block: int) -> np.ndarray:
        whole = int(self._blocks[block])
        within = self._which[self.starts[block] : self.starts[block + 1]] - self._rows.starts[whole]
        rows: np.ndarray = self._rows.read(whole)[within]
        return rows
