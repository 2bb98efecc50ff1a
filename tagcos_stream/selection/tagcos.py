"""TAGCOS: orthogonal matching pursuit within clusters of gradients; and the same pursuit over the whole pool, `omp`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from tagcos_stream.selection.keep_earlier import keep_earlier
from tagcos_stream.selection.methods import Choice, Group, Limits, Method, Words
from tagcos_stream.selection.pursuit.omp import REMEDY, omp_select


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose the rows whose non-negative combination comes nearest to the group's mean; keep earlier choices where asked to."""
    choice = choose_fresh(group, budget, settings, limits)
    if group.earlier is None:
        return choice
    return keep_earlier(choice, group.rows, group.target, group.earlier, margin=settings["sticky"], ridge=settings["ridge"])


def choose_fresh(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose in the same way, whatever was chosen earlier."""
    return _pursue(group, budget, settings, limits, REMEDY)


def choose_pool(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """The same without clusters, and so without an earlier choice by cluster to keep."""
    remedy = "raise memory_limit, select fewer, or use --method tagcos, which does the same in clusters"
    return _pursue(group, budget, settings, limits, remedy)


def _pursue(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits, remedy: str) -> Choice:
    pursuit = omp_select(
        group.rows,
        group.target,
        budget,
        ridge=settings["ridge"],
        tol=settings["tol"],
        memory_limit=limits.memory,
        threads=limits.threads,
        progress=limits.progress,
        remedy=remedy,
    )
    return Choice(
        pursuit.indices,
        pursuit.correlations,
        pursuit.margins,
        weights=pursuit.weights,
        rounds=pursuit.rounds,
        residuals=pursuit.residuals,
        residual=pursuit.residual,
        stats=asdict(pursuit.stats),
    )


WORDS = Words(
    "correlation {:.4g} with what was unexplained", "others explain more; correlation {:.4g} with what is left unexplained"
)
TAGCOS = Method(
    "tagcos",
    within="clusters",
    choose=choose,
    words=WORDS,
    reference="TAGCOS, https://arxiv.org/abs/2407.15235",
    seeded=True,
    weights=True,
    features=True,
    settings=("ridge", "tol", "sticky"),
)
OMP = replace(
    TAGCOS,
    name="omp",
    within="pool",
    choose=choose_pool,
    reference="GRAD-MATCH, https://arxiv.org/abs/2103.00123",
    seeded=False,
    settings=("ridge", "tol"),
)
