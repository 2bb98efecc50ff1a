"""Selection from the middle of the distribution of perplexities (Marion et al. 2023).  N examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tagcos_stream.selection.groups import Group
from tagcos_stream.selection.methods import Choice, Limits, Method, Words
from tagcos_stream.selection.scores import best


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose the examples nearest to the median perplexity by rank, of equal ones by draw."""
    return best(middle(group.columns["loss"]), group.columns["draw"], budget)


def middle(losses: np.ndarray) -> np.ndarray:
    """(N,) float64, 0 at the median and -1/2 at the ends: minus the distance in rank from the median, as a share of all.

    The middle of the distribution of perplexities prunes best in Marion et al. 2023 (arXiv 2309.04564); perplexity is
    the exponential of the loss, so their ranks are the same. Equal losses share a rank.
    """
    ordered = np.sort(losses)
    rank = (np.searchsorted(ordered, losses, "left") + np.searchsorted(ordered, losses, "right") - 1) / 2
    return -np.abs(rank - (len(losses) - 1) / 2) / max(len(losses), 1)


PERPLEXITY = Method(
    "perplexity",
    within="pool",
    choose=choose,
    words=Words("perplexity {:.1f}% of the pool from the median", "perplexity {:.1f}% of the pool from the median", scale=-100.0),
    reference="When less is more, https://arxiv.org/abs/2309.04564",
    columns=("loss", "draw"),
)
