"""Random selection with the lengths of another selection.  n examples, m of them in that selection, k budget.

It separates what a method gains by its choice of lengths from what it gains otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tagcos_stream.selection.budget import fill
from tagcos_stream.selection.methods import Choice, Group, Limits, Method, Words
from tagcos_stream.types import UserError

BINS = 20  # of about m / 20 examples each


def budgets_by_length(lengths: np.ndarray, reference: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide a budget among bins of length as another selection's examples are divided.

    Parameters
    ----------
    lengths
        (n,) lengths in tokens.
    reference
        (n,) bool, whether the other selection has the example.
    budget
        Examples to choose, at most n.

    Returns
    -------
    (n,) int64, bin of each example, and (bins,) int64, budget of each bin. Bins lie between 20-quantiles of the reference. A bin
    with too few examples gives all; where all bins with reference examples are exhausted, the others share the rest by size.
    """
    known = lengths[reference]
    inner = np.quantile(known, np.arange(1, BINS) / BINS, method="inverted_cdf")
    edges = np.unique([known.min() - 1, *inner, known.max()])  # what is shorter or longer than all of them has its own bins
    bins = np.searchsorted(edges, lengths, "left")
    sizes = np.bincount(bins, minlength=len(edges) + 1)
    wanted = np.bincount(bins[reference], minlength=len(sizes))
    budgets = np.zeros_like(sizes)
    asked = wanted > 0
    budgets[asked] = fill(sizes[asked], min(budget, int(sizes[asked].sum())), wanted[asked])
    rest = (sizes > 0) & ~asked
    budgets[rest] = fill(sizes[rest], budget - int(budgets.sum()), sizes[rest])
    return bins, budgets


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose the largest draws of every bin of lengths."""
    reference = group.columns["reference"]
    if not reference.any():
        raise UserError("no example of the selection to match lengths with is in this pool: name another with match_lengths")
    draw = group.columns["draw"]
    bins, budgets = budgets_by_length(group.columns["target_tokens"], reference, min(budget, len(draw)))
    order = np.lexsort((np.arange(len(draw)), -draw, bins))
    place = np.empty(len(draw), np.int64)  # of a row among those of its bin
    place[order] = np.arange(len(draw)) - np.searchsorted(bins[order], bins[order], "left")
    chosen = np.flatnonzero(place < budgets[bins])
    chosen = chosen[np.lexsort((chosen, -draw[chosen]))]
    return Choice(chosen, draw[chosen], draw)


LENGTH_MATCHED = Method(
    "length-matched",
    within="pool",
    choose=choose,
    words=Words("draw {:.6f} among examples of its length"),
    reference="Matching methods for causal inference, https://arxiv.org/abs/1010.5586",
    seeded=True,
    columns=("draw", "target_tokens", "reference"),
    settings=("match_lengths",),  # it names the run that the column marks
)
