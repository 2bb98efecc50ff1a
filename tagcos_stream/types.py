"""Plain types that the layers share: no heavy imports, no behaviour beyond checks.

Dimension letters used throughout: N examples, T tokens, P adapter parameters, D feature dimension, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypedDict

import numpy as np

if TYPE_CHECKING:
    import polars as pl

ROLES = ("system", "user", "assistant", "tool")
# columns of the view `signals` that conditions may name; a score of the user's own has another name
SIGNALS = frozenset({
    "example_id", "dataset", "turns", "chars", "tokens", "target_tokens", "loss", "norm", "ifd", "repeated", "cluster",
    "distance", "pool_alignment", "cluster_alignment", "target_alignment", "alike",
})  # fmt: skip


TERMINATED = 143  # exit code of a process that SIGTERM ended: 128 + 15


class UserError(ValueError):
    """A mistake that the user can correct. The message states the value, the limit and the remedy; the exit code is 2."""


class TransientError(UserError):
    """A condition that may pass, such as a locked catalog or an object store that does not respond; worth retrying later."""


class TrainRange(TypedDict):
    """Characters [begin, end) of a message's content that are trained on."""

    begin: int
    end: int


class Message(TypedDict, total=False):
    """One turn. `role` is one of ROLES and `content` is kept to the character.

    `train` None means the role's default (assistant: the whole turn with its end-of-turn token; others: nothing);
    a list names the trained character ranges, an empty list none.

    An assistant's turn may have `reasoning`, written before the content, and `tool_calls`: JSON text of a list of
    {"id"?, "type": "function", "function": {"name", "arguments"}}, arguments an object, or text if they are not one. A
    tool's turn may name the call that it answers in `tool_call_id`.
    """

    role: str
    content: str
    name: str | None
    train: list[TrainRange] | None
    reasoning: str | None
    tool_calls: str | None
    tool_call_id: str | None


@dataclass(frozen=True)
class IngestBlock:
    """Result of reading a range of rows of one input file; every input row is in exactly one of the two frames.

    occurrences: row (UInt64, 0-based in the file), example_id (String, 32 hex digits), dataset (String), source_id (String or
    null), messages (List(Struct) of Message's keys), tools (String, JSON, or null), template_kwargs (String, a JSON object of
    arguments for the chat template, or null), scores (List(Struct) of name and value: numbers of the user's own, or null).
    rejects: row, reason (a fixed short phrase), detail, snippet (Strings). Detail and snippet are null beyond the first 1,000
    rows that a block rejects for one reason (`data.canonical.KEPT`).
    """

    occurrences: pl.DataFrame
    rejects: pl.DataFrame
    next_row: int  # rows of the file read so far: where a resumed read continues
    bytes_read: int  # of the file on disk (compressed), for progress
    last: bool
    ended_early: str | None = None  # reason of the reject that says that the file's end is missing, or was not read


@dataclass(frozen=True)
class Checkpoint:
    """An adapter and its Adam moments after a step of the warm-up.

    Arrays are float32, keyed by PEFT's parameter names; the three dictionaries have the same names and shapes.
    """

    step: int
    learning_rate: float  # mean over the steps since the checkpoint before, as the schedule reports it after each step
    weight: float  # in the average of features over the checkpoints of a space; these weights sum to 1
    adam_steps: int
    weights: dict[str, np.ndarray]  # of the adapter
    exp_avg: dict[str, np.ndarray]
    exp_avg_sq: dict[str, np.ndarray]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays under flat names.

        Returns
        -------
        dict
            Keys `weights/<parameter>`, `exp_avg/<parameter>` and `exp_avg_sq/<parameter>`.
        """
        parts = {"weights": self.weights, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {f"{part}/{name}": array for part, named in parts.items() for name, array in named.items()}


class RowBlocks(Protocol):
    """Feature rows (N, D) that are read block by block; the interface between storage and method."""

    @property
    def n_rows(self) -> int:
        """N."""
        ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    @property
    def starts(self) -> np.ndarray:
        """(n_blocks + 1,) int64: block b has the rows from starts[b] to starts[b + 1], exclusive."""
        ...

    def read(self, block: int) -> np.ndarray:
        """Read one block.

        Parameters
        ----------
        block
            Its number, from 0.

        Returns
        -------
        np.ndarray
            (rows, D) float16 or float32, finite, C-contiguous. Callers must not write to it.
        """
        ...


class ArrayRows:
    """RowBlocks of an array in memory or of a memmap.

    Parameters
    ----------
    rows
        (N, D) floating point.
    block_rows
        Rows of a block; the last one may have fewer.

    Raises
    ------
    ValueError
        The array does not have two dimensions.
    """

    def __init__(self, rows: np.ndarray, block_rows: int = 1024) -> None:
        if rows.ndim != 2:
            raise ValueError(f"rows must be (N, D), got shape {rows.shape}")
        self._rows = rows
        self.n_rows, self.dim = rows.shape
        self.starts = np.append(np.arange(0, max(self.n_rows, 1), block_rows), self.n_rows).astype(np.int64)
        if self.n_rows == 0:
            self.starts = np.zeros(1, np.int64)

    def read(self, block: int) -> np.ndarray:
        """Read one block, without a copy.

        Parameters
        ----------
        block
            As for `RowBlocks.read`.

        Returns
        -------
        np.ndarray
            (rows, D), a view of the array.
        """
        return self._rows[self.starts[block] : self.starts[block + 1]]
