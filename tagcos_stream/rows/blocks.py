"""Views of feature rows that are read block by block.  N rows, D feature dimension."""

from __future__ import annotations

import numpy as np

from tagcos_stream.types import RowBlocks


class Dimensions:
    """RowBlocks over some of the dimensions of others; `which` (D,) bool."""

    def __init__(self, rows: RowBlocks, which: np.ndarray) -> None:
        self._rows = rows
        self._which = np.flatnonzero(which)
        self.n_rows, self.starts, self.dim = rows.n_rows, rows.starts, len(self._which)

    def read(self, block: int) -> np.ndarray:
        """Read one block, and of its rows the selected dimensions only.

        Parameters
        ----------
        block
            Its number.

        Returns
        -------
        np.ndarray
            (rows, selected dimensions), C-contiguous.
        """
        return np.ascontiguousarray(self._rows.read(block)[:, self._which])


class Scaled:
    """Rows of others times a factor each.

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

    def read(self, block: int) -> np.ndarray:
        """Read a block.

        Parameters
        ----------
        block
            Its number.

        Returns
        -------
        np.ndarray
            (r, D) float32.
        """
        return self._rows.read(block).astype(np.float32) * self._scale[self.starts[block] : self.starts[block + 1], None]


class Subset:
    """Some rows of others, in blocks of theirs; a block without such a row is left out.

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

    def read(self, block: int) -> np.ndarray:
        """Read a block.

        Parameters
        ----------
        block
            Its number.

        Returns
        -------
        np.ndarray
            (r, D) of the others' dtype, C-contiguous.
        """
        whole = int(self._blocks[block])
        within = self._which[self.starts[block] : self.starts[block + 1]] - self._rows.starts[whole]
        return np.ascontiguousarray(self._rows.read(whole)[within])
