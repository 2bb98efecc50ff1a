"""Which selection methods there are, what each needs, and what a choice is. N examples, k chosen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Within = Literal["clusters", "strata", "pool"]


@dataclass(frozen=True)
class Method:
    """within: the groups that share the budget; features: whether it reads feature rows, or knows from scalars; weights: whether
    it gives its examples weights; seeded: whether another seed (of draws, or of the clustering) makes another selection."""

    within: Within
    features: bool
    weights: bool
    seeded: bool


METHODS: dict[str, Method] = {
    "tagcos": Method("clusters", features=True, weights=True, seeded=True),
    "omp": Method("pool", features=True, weights=True, seeded=False),
    "random": Method("pool", features=False, weights=False, seeded=True),
    "stratified": Method("strata", features=False, weights=False, seeded=True),
    "longest": Method("pool", features=False, weights=False, seeded=False),
    "hardest": Method("pool", features=False, weights=False, seeded=False),
    "perplexity": Method("pool", features=False, weights=False, seeded=False),
    "kcenter": Method("pool", features=True, weights=False, seeded=True),
    "centroid": Method("clusters", features=False, weights=False, seeded=True),
    "herding": Method("pool", features=True, weights=False, seeded=False),
    "herding-clusters": Method("clusters", features=True, weights=False, seeded=True),
}


@dataclass(frozen=True)
class Choice:
    """What was chosen from a group of n rows, in order of choice, and how near every row came to it.

    Scores, rounds and residuals may be those of the first j chosen only: the others keep their place from an earlier choice.
    """

    indices: np.ndarray  # (k,) int64
    scores: np.ndarray  # (j,) float64: what decided, at the moment of choice; NaN where nothing but a draw did
    margins: np.ndarray  # (n,) float: the same of every row in the end; of those left, the largest would be chosen next
    weights: np.ndarray | None = None  # (k,) float64, not negative; None where the method has none
    rounds: np.ndarray | None = None  # (j,) int32: of the pursuit
    residuals: np.ndarray | None = None  # (j,) float64: of the pursuit
    residual: float | None = None  # of the pursuit
    stats: dict[str, Any] = field(default_factory=dict)  # what it cost
