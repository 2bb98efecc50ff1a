"""TAGCOS: orthogonal matching pursuit within clusters of gradients; and the same pursuit over the whole pool, `omp`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from tagcos_stream.rows.blocks import Scaled
from tagcos_stream.rows.held import gram, take
from tagcos_stream.selection.keep_earlier import keep_earlier
from tagcos_stream.selection.methods import Choice, Group, Limits, Method, Words
from tagcos_stream.selection.pins import others, spent, stats_with_pinned
from tagcos_stream.selection.pursuit.omp import REMEDY, Pursuit, omp_select, peak_bytes, refit
from tagcos_stream.selection.ridge import nonnegative_ridge
from tagcos_stream.selection.tokens import first_rows, prefix, spending
from tagcos_stream.types import ArrayRows, RowBlocks

BLOCK_ROWS = 1024  # of a block of features, at most: stored ones have 1024 or 256


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose the rows whose non-negative combination comes nearest to the group's mean; keep earlier choices where asked to."""
    choice = choose_fresh(group, budget, settings, limits)
    if group.earlier is None:
        return choice
    earlier = group.earlier if group.pinned is None else np.union1d(group.earlier, group.pinned)  # neither gives way
    return keep_earlier(choice, group.rows, group.target, earlier, margin=settings["sticky"], ridge=settings["ridge"])


def choose_fresh(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose in the same way, whatever was chosen earlier."""
    return _pursue(group, budget, settings, limits, REMEDY)


def choose_pool(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """The same without clusters, and so without an earlier choice by cluster to keep."""
    remedy = "raise memory_limit, select fewer, or use --method tagcos, which does the same in clusters"
    return _pursue(group, budget, settings, limits, remedy)


def _pursue(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits, remedy: str) -> Choice:
    if group.pinned is not None:
        return _pursue_beyond(group, group.pinned, budget, settings, limits, remedy)

    def pursue(rows: np.ndarray | RowBlocks, count: int) -> Pursuit:
        return omp_select(
            rows,
            group.target,
            count,
            ridge=settings["ridge"],
            tol=settings["tol"],
            memory_limit=limits.memory,
            threads=limits.threads,
            progress=limits.progress,
            remedy=remedy,
        )

    if group.costs is not None:
        return _pursue_tokens(pursue, group, group.costs, budget, settings, limits)
    return _choice(pursue(group.rows, budget))


@threadpool_limits.wrap(limits=1, user_api="blas")  # the last bits of a weight would depend on the number of threads
def _pursue_beyond(
    group: Group, pinned: np.ndarray, budget: int, settings: Mapping[str, Any], limits: Limits, remedy: str
) -> Choice:
    """Pursue what the pinned rows leave unexplained, by the other rows; then fit the weights of all together.

    Pinned rows are round 0, without a score; residuals are relative to the group's target.
    """
    ridge, target = settings["ridge"], np.asarray(group.target, np.float64)
    blocks = ArrayRows(group.rows) if isinstance(group.rows, np.ndarray) else group.rows
    rows = take(blocks, pinned).astype(np.float64)
    left = target - nonnegative_ridge(gram(rows, np.inner), rows @ target, ridge) @ rows
    length = float(np.linalg.norm(target))
    share = float(np.linalg.norm(left)) / length if length else 0.0
    rest, sub = others(group, pinned, left)
    none = np.zeros(0)
    found = Choice(none.astype(np.int64), none, none, rounds=none.astype(np.int32), residuals=none)
    if len(rest):
        found = _pursue(sub, budget - spent(group, pinned), settings, limits, remedy)
    assert found.rounds is not None
    assert found.residuals is not None
    indices = np.concatenate([pinned, rest[found.indices]])
    weights, margins, residual = refit(group.rows, target, indices, ridge=ridge, threads=limits.threads)
    if group.costs is not None:
        margins = (margins * _scale(group.costs, settings)).astype(np.float32)
    return Choice(
        indices,
        np.concatenate([np.full(len(pinned), np.nan), found.scores]),
        margins,
        weights=weights,
        rounds=np.concatenate([np.zeros(len(pinned), np.int32), found.rounds + np.int32(1)]),
        residuals=np.concatenate([np.full(len(pinned), share), found.residuals * share]),
        residual=residual,
        stats=stats_with_pinned(found.stats, group, pinned),
    )


def _scale(costs: np.ndarray, settings: Mapping[str, Any]) -> np.ndarray:
    """Factor of every row: the root of the mean tokens over its own where gain is per token, else 1."""
    if settings["gain_per"] != "token":
        return np.ones(len(costs))
    scale: np.ndarray = np.sqrt(costs.mean() / np.maximum(costs, 1))
    return scale


def _pursue_tokens(
    pursue: Callable[[np.ndarray | RowBlocks, int], Pursuit],
    group: Group,
    costs: np.ndarray,
    budget: int,
    settings: Mapping[str, Any],
    limits: Limits,
) -> Choice:
    """Choose the longest prefix of the pursuit's order that the budget pays for; weights are those of its rows alone.

    By gain per token, rows are divided by the root of their tokens: a row of length 1 then lowers the squared residual most for
    its tokens when it is chosen.
    """
    rows, scale = group.rows, _scale(costs, settings)
    if settings["gain_per"] == "token":
        rows = Scaled(ArrayRows(rows) if isinstance(rows, np.ndarray) else rows, scale)

    def order(count: int) -> tuple[np.ndarray, Pursuit]:
        found = pursue(rows, count)
        return found.indices, found

    fits, found = prefix(costs, budget, group.first_rows or first_rows(costs, budget), order)
    chosen = found.indices[:fits]
    weights, margins, residual = refit(group.rows, group.target, chosen, ridge=settings["ridge"], threads=limits.threads)
    choice = _choice(found)
    return replace(
        choice,
        indices=chosen,
        scores=found.correlations[:fits],
        margins=(margins * scale).astype(np.float32),
        weights=weights,
        rounds=found.rounds[:fits],
        residuals=found.residuals[:fits],
        residual=residual,
        stats=choice.stats | spending(costs, found.indices, fits),
    )


def _choice(pursuit: Pursuit) -> Choice:
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


def held_bytes(rows: int, budget: int, dim: int) -> int:
    """Memory of a pursuit that holds its rows, which is the faster one, in bytes."""
    return peak_bytes(rows, dim, budget, hold=True, blocks=min(rows, BLOCK_ROWS))


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
    settings=("ridge", "tol", "sticky", "gain_per"),
    peak_bytes=held_bytes,
)
OMP = replace(
    TAGCOS,
    name="omp",
    within="pool",
    choose=choose_pool,
    reference="GRAD-MATCH, https://arxiv.org/abs/2103.00123",
    seeded=False,
    settings=("ridge", "tol", "gain_per"),
)
