"""Selection of the longest answers (Zhao et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tagcos_stream.selection.groups import Group
from tagcos_stream.selection.methods import Choice, Limits, Method, Words
from tagcos_stream.selection.scores import best


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose the examples with the most target tokens, of equal ones by draw."""
    return best(group.columns["target_tokens"].astype(np.float64), group.columns["draw"], budget)


LONGEST = Method(
    "longest",
    within="pool",
    choose=choose,
    words=Words("{:.0f} target tokens", "{:.0f} target tokens"),
    reference="Long is more for alignment, https://arxiv.org/abs/2402.04833",
    columns=("target_tokens", "draw"),
)
