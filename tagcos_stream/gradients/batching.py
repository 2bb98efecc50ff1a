"""Batches of similar length under a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MAX_PADDING = 0.05  # of a batch's tokens


def plan_batches(lengths: np.ndarray | Sequence[int], token_budget: int, max_rows: int | None = None) -> list[np.ndarray]:
    """Cut rows into batches by their lengths, longest rows first.

    The batch that needs the most memory comes before any time was spent on the others. Within a batch and between equal lengths
    the order of the input is kept, so a plan is a function of its input alone. A row longer than the budget is a batch of its
    own. At most MAX_PADDING of a batch's tokens are padding.

    Parameters
    ----------
    lengths
        Tokens of each row.
    token_budget, max_rows
        Limits of a batch: of rows x longest, and of its rows.

    Returns
    -------
    list of np.ndarray
        Row numbers of each batch; each row occurs once.

    Raises
    ------
    ValueError
        token_budget is below 1.
    """
    lengths = np.asarray(lengths, np.int64)
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}, must be at least 1")
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        rows = max(1, token_budget // longest)
        rows = min(rows, max_rows) if max_rows is not None else rows
        filled = np.cumsum(lengths[order[start : start + rows]]) / (longest * np.arange(1, len(order[start : start + rows]) + 1))
        # lengths fall, and with them the share that is filled: the first row that breaks the limit ends the batch
        rows = max(1, int(np.count_nonzero(filled >= 1 - MAX_PADDING)))
        batches.append(order[start : start + rows])
        start += rows
    return batches
