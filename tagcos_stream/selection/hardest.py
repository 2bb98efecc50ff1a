"""Selection of the examples with the highest mean loss a target token, a baseline of the TAGCOS paper."""

from __future__ import annotations

from tagcos_stream.selection.methods import Words
from tagcos_stream.selection.scores import by_score

HARDEST = by_score(
    "hardest",
    lambda columns: columns["loss"],
    Words("loss {:.4g}"),
    columns=("loss",),
    reference="TAGCOS, section 4, https://arxiv.org/abs/2407.15235",
)
