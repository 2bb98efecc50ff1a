"""Random selection with equal shares for all datasets, or shares in proportion to their weights."""

from __future__ import annotations

from tagcos_stream.selection.methods import Words
from tagcos_stream.selection.scores import by_score

BALANCED = by_score(
    "balanced",
    lambda columns: columns["draw"],
    Words("draw {:.6f} within its dataset"),
    within="datasets",
    seeded=True,
    reference="Exploring the limits of transfer learning (equal mixing), https://arxiv.org/abs/1910.10683",
)
