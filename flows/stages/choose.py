"""One choice within one group of the pool, by any method: what `select` commits and `diagnose` measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from flows.context import memory_bytes
from tagcos_stream.config import Settings
from tagcos_stream.selection import scores
from tagcos_stream.selection.match import group_means
from tagcos_stream.selection.methods import METHODS, Choice
from tagcos_stream.types import RowBlocks, UserError

if TYPE_CHECKING:
    from tagcos_stream.selection.keep_earlier import Kept
    from tagcos_stream.selection.pursuit.omp import Pursuit

SLOW = 1e13  # multiplications that are worth a word: minutes on a few cores


@dataclass(frozen=True)
class Groups:
    """The parts of a pool that share the budget: clusters, strata, or the whole pool as one."""

    sizes: np.ndarray  # (G,) int64
    members: Callable[[int], np.ndarray]  # positions in the pool (n,), in the order of rows
    rows: Callable[[int], np.ndarray | RowBlocks]  # (n, D)
    target: Callable[[int], np.ndarray]  # (D,)
    inertia: np.ndarray | None = None  # (G,) float64, of clusters: squared distances of their rows to their mean


@dataclass(frozen=True)
class Scalars:
    """What is known of every example without its feature: the draw that decides ties, and the method's score, or None."""

    draws: np.ndarray
    scores: np.ndarray | None


def scalars(method: str, pool: pl.DataFrame, seed: int, distances: np.ndarray | None = None) -> Scalars:
    """pool: example_id, target_tokens, loss. distances (N,) to the centroid, for `centroid`."""
    draws = scores.draws(pool["example_id"].to_list(), seed)
    if METHODS[method].features:
        return Scalars(draws, None)
    tokens, losses = pool["target_tokens"].to_numpy(), pool["loss"].to_numpy()
    return Scalars(draws, scores.scores(method, draws=draws, target_tokens=tokens, losses=losses, distances=distances))


def whole_pool(rows: RowBlocks) -> Groups:
    """The pool as one group; its mean takes a pass over the rows, and only where it is asked for."""
    n = rows.n_rows
    return Groups(np.array([n]), lambda g: np.arange(n), lambda g: rows, lambda g: group_means(rows, np.zeros(n, np.int64), 1)[0])


def labelled(
    labels: np.ndarray,
    n_groups: int,
    rows: Callable[[np.ndarray], np.ndarray | RowBlocks] | None = None,
    means: np.ndarray | None = None,
    inertia: np.ndarray | None = None,
) -> Groups:
    """Groups given by labels (N,); `rows` gathers members, for methods that read features, which aim at `means` (G, D)."""
    order = np.argsort(labels, kind="stable")
    edges = np.searchsorted(labels[order], np.arange(n_groups + 1))

    def members(g: int) -> np.ndarray:
        return order[edges[g] : edges[g + 1]]

    def members_rows(g: int) -> np.ndarray | RowBlocks:
        assert rows is not None
        return rows(members(g))

    def target(g: int) -> np.ndarray:
        assert means is not None
        return means[g]

    return Groups(np.diff(edges), members, members_rows, target, inertia)


def strata(pool: pl.DataFrame) -> Groups:
    labels = scores.strata(pool["dataset"].to_list(), pool["target_tokens"].to_numpy())
    return labelled(labels, int(labels.max()) + 1)


def warning(method: str, n: int, budget: int, dim: int) -> str | None:
    """What to say before a choice that takes long."""
    products = float(n) * budget * dim
    if method not in ("kcenter", "herding") or products < SLOW:
        return None
    return f"{method} on {n} rows takes about {products:.0e} multiplications; herding-clusters and tagcos take far fewer"


def choose(
    settings: Settings, groups: Groups, known: Scalars, group: int, budget: int, progress: Callable[[int, int], None]
) -> Choice:
    """Choose `budget` rows of one group by settings.method.

    Raises:
        UserError: the choice does not fit in memory_limit; says what to change.
    """
    method, limit = settings.method, memory_bytes(settings)
    members = groups.members(group)
    if known.scores is not None:
        return scores.best(known.scores[members], known.draws[members], budget)
    rows = groups.rows(group)
    if method == "kcenter":
        from tagcos_stream.selection.kcenter import kcenter

        return kcenter(rows, budget, first=int(np.argmax(known.draws[members])), memory_limit=limit, progress=progress)
    target = groups.target(group)
    if method in ("herding", "herding-clusters"):
        from tagcos_stream.selection.herding import herding

        return herding(rows, target, budget, memory_limit=limit, progress=progress)
    return _pursue(settings, rows, target, budget, limit, progress)


def _pursue(
    settings: Settings,
    rows: np.ndarray | RowBlocks,
    target: np.ndarray,
    budget: int,
    limit: int,
    progress: Callable[[int, int], None],
) -> Choice:
    from tagcos_stream.selection.pursuit.omp import omp_select

    try:
        pursuit = omp_select(
            rows,
            target,
            budget,
            ridge=settings.ridge,
            tol=settings.tol,
            memory_limit=limit,
            threads=settings.threads,
            progress=progress,
        )
    except UserError as error:
        if settings.method != "omp" or "raise memory_limit" not in str(error):
            raise
        said = str(error).split(": raise memory_limit")[0]
        raise UserError(
            f"{said}: raise memory_limit, select fewer, or use --method tagcos, which does the same in clusters"
        ) from error
    return pursued(pursuit)


def pursued(pursuit: Pursuit, held: Kept | None = None) -> Choice:
    """A pursuit's choice; where it held on to earlier choices, these come last and were chosen in no round."""
    if held is None:
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
    place = np.array([np.flatnonzero(pursuit.indices == row)[0] for row in held.indices[: held.fresh]], np.int64)
    return Choice(
        held.indices,
        pursuit.correlations[place],
        held.margins,
        weights=held.weights,
        rounds=pursuit.rounds[place],
        residuals=pursuit.residuals[place],
        residual=held.residual,
        stats=asdict(pursuit.stats),
    )
