"""LESS: the examples most similar to a part of a target set.  n rows, P parts, D feature dimension.

The score of a row is the largest of its cosines with the mean features of the parts (Xia et al. 2024, "LESS", arXiv 2402.04333,
section 4). LESS averages cosines over checkpoints; here features are averaged over them (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tagcos_stream.selection.methods import Choice, Group, Limits, Method, Words
from tagcos_stream.selection.nearest import nearest
from tagcos_stream.selection.scores import best


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose the rows nearest to the mean of a part, of equal ones by draw."""
    assert group.wanted is not None, "the method needs a target set, but does not declare it"
    found = nearest(group.rows, group.wanted.part_means(), memory_limit=limits.memory, threads=limits.threads)
    return best(found.row_cosines.astype("float64"), group.columns["draw"], budget)


LESS = Method(
    "less",
    within="pool",
    choose=choose,
    words=Words("cosine {:.4f} with the nearest part of the target"),
    reference="LESS, https://arxiv.org/abs/2402.04333",
    seeded=True,
    features=True,
    columns=("draw",),
    needs_target=True,
)
