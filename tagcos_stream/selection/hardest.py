"""Selection of the examples with the highest loss, a baseline of the TAGCOS paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tagcos_stream.selection.groups import Group
from tagcos_stream.selection.methods import Choice, Limits, Method, Words
from tagcos_stream.selection.scores import best


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose the examples with the highest mean loss a target token, of equal ones by draw."""
    return best(group.columns["loss"].astype(np.float64), group.columns["draw"], budget)


HARDEST = Method(
    "hardest",
    within="pool",
    choose=choose,
    words=Words("loss {:.4g}", "loss {:.4g}"),
    reference="TAGCOS, section 4, https://arxiv.org/abs/2407.15235",
    columns=("loss", "draw"),
)
