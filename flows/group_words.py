"""What the groups that shared a selection's budget are called: by what the method divides the pool into, and their numbers."""

from __future__ import annotations

from collections.abc import Collection

from tagcos_stream.selection.methods import METHODS

PLURALS = {"cluster": "clusters", "stratum": "strata", "dataset": "datasets", "pool": "pools", "group": "groups"}
_WORDS = {"clusters": "cluster", "strata": "stratum", "datasets": "dataset", "pool": "pool"}


def group_word(method: str, groups: Collection[int], clusters: Collection[int]) -> str:
    """Name the groups of a selection.

    Parameters
    ----------
    method
        The method that chose.
    groups
        Their numbers, `group_id`.
    clusters
        Numbers of the clusters of the clustering that it chose within.

    Returns
    -------
    str
        Word for one of them. `group` where datasets were chosen from separately (shares, balance, weights): their groups are
        parts of clusters or strata, and have numbers of their own (docs/budgets.md).
    """
    within = METHODS[method].within
    natural = set(clusters) if within == "clusters" else set(range(len(groups)))
    return _WORDS[within] if set(groups) <= natural else "group"
