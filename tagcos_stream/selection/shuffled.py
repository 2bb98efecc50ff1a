"""The pursuit of `tagcos` on features that belong to other rows: the negative control.  n rows of a cluster.

Everything but the pairing of examples and features is kept: the clusters and their budgets, the features that are chosen, the
weights. A method that is no better than this one gains nothing from its features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tagcos_stream.selection.methods import Choice, Group, Limits
from tagcos_stream.selection.tagcos import TAGCOS, choose_fresh


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose features by the pursuit, and for feature j the row with the j-th largest draw."""
    owner = np.argsort(-group.columns["draw"], kind="stable")  # row of each feature
    costs = None if group.costs is None else group.costs[owner]
    pinned = None if group.pinned is None else np.argsort(owner)[group.pinned]  # the features that these rows are dealt
    choice = choose_fresh(replace(group, costs=costs, pinned=pinned), budget, settings, limits)
    margins = np.empty_like(choice.margins)
    margins[owner] = choice.margins
    return replace(choice, indices=owner[choice.indices], margins=margins)


SHUFFLED = replace(TAGCOS, name="shuffled", choose=choose, columns=("draw",), settings=("ridge", "tol", "gain_per"))
