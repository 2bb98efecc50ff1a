"""Batches of similar length under a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from tagcos_stream.types import UserError

MAX_PADDING = 0.05  # of a batch's tokens

Result = TypeVar("Result")


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


def halving(compute: Callable[[int], Result], token_budget: int, longest: int, remedy: str) -> tuple[Result, int]:
    """Compute with a token budget, and again with half of it for as long as device memory runs out.

    Parameters
    ----------
    compute
        Gets the token budget, and begins anew each time.
    token_budget
        To begin with.
    longest
        Tokens of the longest row: with a budget of these, a batch is one row.
    remedy
        For the message where not even that fits.

    Returns
    -------
    tuple
        What `compute` returned, and the budget that was enough.

    Raises
    ------
    UserError
        One row is too much.
    """
    import torch

    while True:
        try:
            return compute(token_budget), token_budget
        except torch.OutOfMemoryError as error:
            if token_budget <= longest:
                raise UserError(f"out of device memory at one example a batch ({error}): {remedy}") from error
        torch.cuda.empty_cache()  # after the error is gone, whose traceback holds tensors
        token_budget = max(1, token_budget // 2)
