"""Selection of the examples nearest to the centroids of their clusters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tagcos_stream.selection.groups import Group
from tagcos_stream.selection.methods import Choice, Limits, Method, Words
from tagcos_stream.selection.scores import best


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose the rows nearest to the k-means centroid, of equal ones by draw."""
    return best(-group.columns["distance"].astype(np.float64), group.columns["draw"], budget)


CENTROID = Method(
    "centroid",
    within="clusters",
    choose=choose,
    words=Words("{:.4g} from the centroid", "{:.4g} from the centroid", scale=-1.0),
    seeded=True,
    columns=("distance", "draw"),
)
