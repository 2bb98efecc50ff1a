"""Selection of the examples with the largest gradients (Paul et al. 2021): "GraNd", of the adapter and after the warm-up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tagcos_stream.selection.groups import Group
from tagcos_stream.selection.methods import Choice, Limits, Method, Words
from tagcos_stream.selection.scores import best


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose the examples whose gradient was longest before it was normalised, of equal ones by draw."""
    return best(group.columns["norm"].astype(np.float64), group.columns["draw"], budget)


GRADIENT_NORM = Method(
    "gradient-norm",
    within="pool",
    choose=choose,
    words=Words("gradient of length {:.4g}", "gradient of length {:.4g}"),
    reference="Deep learning on a data diet, https://arxiv.org/abs/2107.07075",
    columns=("norm", "draw"),
)
