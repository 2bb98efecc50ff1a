"""Selection of the longest answers (Zhao et al. 2024)."""

from __future__ import annotations

from tagcos_stream.selection.methods import Words
from tagcos_stream.selection.scores import by_score

LONGEST = by_score(
    "longest",
    lambda columns: columns["target_tokens"],
    Words("{:.0f} target tokens"),
    columns=("target_tokens",),
    reference="Long is more for alignment, https://arxiv.org/abs/2402.04833",
)
