"""Choosing by one number an example: the largest come first. N examples, k budget.

Ties are decided by a seeded draw, never by position: lengths tie by the thousand where examples are cut to a maximum, and
positions would then prefer whichever file was named first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tagcos_stream.selection.methods import Choice, Group, Limits, Method, Within, Words


def best(scores: np.ndarray, draws: np.ndarray, budget: int) -> Choice:
    """Choose the rows with the largest scores, the best first; of equal scores, those with the larger draw.

    Parameters
    ----------
    scores
        (n,) float64.
    draws
        (n,) seeded draws.
    budget
        Rows to choose.

    Returns
    -------
    Choice
        With scores and margins.
    """
    order = np.lexsort((np.arange(len(scores)), -draws, -scores))[:budget]
    return Choice(indices=order, scores=scores[order], margins=scores)


def by_score(
    name: str,
    score: Callable[[Mapping[str, np.ndarray]], np.ndarray],
    words: Words,
    *,
    columns: tuple[str, ...] = (),
    within: Within = "pool",
    seeded: bool = False,
    reference: str = "",
) -> Method:
    """A method that chooses the examples with the largest score, of equal ones by draw.

    Parameters
    ----------
    name, words, within, seeded, reference
        As of `Method`.
    score
        Columns of a group, (n,) each, -> scores (n,).
    columns
        The columns that `score` reads, besides the draw.

    Returns
    -------
    Method
    """

    def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
        return best(np.asarray(score(group.columns), np.float64), group.columns["draw"], budget)

    read = tuple(dict.fromkeys([*columns, "draw"]))
    return Method(name, within, choose, words, reference, seeded=seeded, columns=read)
