"""The groups of a pool that share its selection budget, such as clusters.  N examples, G groups, n of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tagcos_stream.random_bits import draws
from tagcos_stream.selection.budget import allocate, fill
from tagcos_stream.selection.targets import allocate_by_target
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    import polars as pl

    from tagcos_stream.selection.methods import Method

LENGTH_BINS = 4


@dataclass(frozen=True)
class Groups:
    """A pool divided into groups."""

    order: np.ndarray  # (N,) int64: positions in the pool, group by group, in the pool's order within each
    edges: np.ndarray  # (G + 1,) int64: group g is order[edges[g] : edges[g + 1]]
    weights: np.ndarray | None = None  # (G,) the budget is shared by them; None: by size
    target: np.ndarray | None = None  # (G,) or by these, the weights of a target set in the groups
    most: np.ndarray | None = None  # (G,) int64, with weights: largest and smallest budget of each group
    least: np.ndarray | None = None

    @property
    def sizes(self) -> np.ndarray:
        """(G,) int64."""
        return np.diff(self.edges)

    def amounts(self, costs: np.ndarray | None = None) -> np.ndarray:
        """Return what each group can give.

        Parameters
        ----------
        costs
            (N,) int64, tokens of every example of the pool; None counts examples.

        Returns
        -------
        np.ndarray
            (G,) int64.
        """
        if costs is None:
            return self.sizes
        return np.diff(np.concatenate([[0], np.cumsum(costs[self.order])])[self.edges])

    def members(self, group: int) -> np.ndarray:
        """Return the examples of a group.

        Parameters
        ----------
        group
            Its number, below the number of groups.

        Returns
        -------
        np.ndarray
            (n,) int64, positions in the pool, ascending.
        """
        return self.order[self.edges[group] : self.edges[group + 1]]


def share_budget(groups: Groups, total: int, costs: np.ndarray | None = None, pinned: np.ndarray | None = None) -> np.ndarray:
    """Divide a budget among groups.

    Parameters
    ----------
    groups
        G groups.
    total
        Examples to choose, or tokens to spend, at most as many as the groups have.
    costs
        (N,) int64, tokens of every example; only where the budget is in tokens.
    pinned
        (N,) bool, examples that must be chosen, which the total pays for; None where there are none.

    Returns
    -------
    np.ndarray
        (G,) int64, budget of each group: in proportion to its part of the target or its weight where groups have these, else to
        its size. A group whose part does not pay for its pinned examples gets what they cost, and the others share the rest.
    """
    if pinned is not None:
        return _pay_for(groups, total, costs, groups.amounts(pinned * (1 if costs is None else costs)))
    if groups.target is not None:
        return allocate_by_target(groups.amounts(costs), total, groups.target)
    if groups.weights is None:
        return allocate(groups.amounts(costs), total)
    return fill(groups.amounts(costs) if groups.most is None else groups.most, total, groups.weights, groups.least)


def _pay_for(groups: Groups, total: int, costs: np.ndarray | None, least: np.ndarray) -> np.ndarray:
    """Budgets of at least `least` (G,)."""
    budgets, free = least.copy(), np.arange(len(least))
    while len(free):
        weights, target, most, low = (
            None if part is None else part[free] for part in (groups.weights, groups.target, groups.most, groups.least)
        )
        if target is not None and not target.any():
            target = None  # the groups that the target has are paid for: the others share the rest by their sizes
        order, edges = np.concatenate([groups.members(int(g)) for g in free]), np.cumsum([0, *groups.sizes[free]])
        sharing = Groups(order, edges, weights, target, most, low)
        found = share_budget(sharing, total - int(budgets.sum() - budgets[free].sum()), costs)
        if (found >= least[free]).all():
            budgets[free] = found
            break
        free = free[found >= least[free]]
    return budgets


def divide(method: Method, pool: pl.DataFrame, labels: np.ndarray | None = None, n_clusters: int = 0) -> Groups:
    """Divide a pool into the groups that a method chooses within.

    Parameters
    ----------
    method
        Its `within` decides.
    pool
        N examples with dataset and target_tokens.
    labels
        (N,) int, cluster of each example, -1 for none; only for methods within clusters.
    n_clusters
        Number of clusters G, some of which may have no example of the pool.

    Returns
    -------
    Groups
        G groups; examples in no cluster are in none.

    Raises
    ------
    UserError
        The method divides by length, and some examples have none.
    """
    if method.within == "clusters":
        assert labels is not None
        return by_label(labels, n_clusters)
    if method.within == "strata":
        labels = strata(pool["dataset"].to_list(), require_column(pool, "target_tokens", f"method {method.name}"))
        return by_label(labels, int(labels.max()) + 1)
    if method.within == "datasets":
        names, labels = np.unique([dataset or "" for dataset in pool["dataset"].to_list()], return_inverse=True)
        return replace(by_label(labels, len(names)), weights=np.ones(len(names)))
    return by_label(np.zeros(len(pool), np.int64), 1)


def by_label(labels: np.ndarray, n_groups: int) -> Groups:
    """Make groups from labels.

    Parameters
    ----------
    labels
        (N,) int in [0, G); an example with a negative label is in no group.
    n_groups
        G.

    Returns
    -------
    Groups
        The examples of each label.
    """
    order = np.argsort(labels, kind="stable")
    return Groups(order, np.searchsorted(labels[order], np.arange(n_groups + 1)))


def strata(sources: Sequence[str | None], lengths: np.ndarray) -> np.ndarray:
    """Number the strata: dataset by quarter of the pool's lengths.

    Parameters
    ----------
    sources
        N names of datasets.
    lengths
        (N,) lengths in tokens.

    Returns
    -------
    np.ndarray
        (N,) int64 from 0, numbered in order of dataset and length; no stratum is empty.
    """
    edges = np.quantile(lengths, np.arange(1, LENGTH_BINS) / LENGTH_BINS)
    names = np.array([source or "" for source in sources])
    source = np.unique(names, return_inverse=True)[1]
    return np.unique(source * LENGTH_BINS + np.searchsorted(edges, lengths, "left"), return_inverse=True)[1]


def example_columns(
    method: Method,
    pool: pl.DataFrame,
    seed: int,
    distances: np.ndarray | None = None,
    reference: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Make the columns that a method reads of every example.

    Parameters
    ----------
    method
        Its `columns` decide.
    pool
        N examples with example_id, target_tokens, loss, norm and ifd.
    seed
        Seed of the draws.
    distances
        (N,) distances to the centroid; only for methods within clusters.
    reference
        (N,) bool, examples of the selection that a method compares with; only for methods that read it.

    Returns
    -------
    dict
        (N,) by name: draw (float64 in [0, 1)), target_tokens, loss, norm (length of the gradient), ifd (NaN where there is
        none), distance, reference.

    Raises
    ------
    UserError
        Some examples do not have a column that the method reads.
    """
    made: dict[str, np.ndarray] = {}
    for name in method.columns:
        if name == "draw":
            made[name] = draws(pool["example_id"].to_list(), seed)
        elif name == "distance":
            assert distances is not None, f"method {method.name} reads distances, so it must work within clusters"
            made[name] = distances
        elif name == "reference":
            assert reference is not None, f"method {method.name} reads a reference selection"
            made[name] = reference
        elif name == "ifd":
            if pool["ifd"].null_count() == len(pool):
                raise UserError(f"method {method.name} reads ifd, which was not computed: `tagcos run --ifd` computes it")
            made[name] = pool["ifd"].to_numpy()  # NaN of single examples, whose answers cannot be taken alone
        else:
            made[name] = require_column(pool, name, f"method {method.name}")
    return made


def require_column(pool: pl.DataFrame, name: str, what: str) -> np.ndarray:
    """Return what was measured of every example of a pool.

    Parameters
    ----------
    pool
        N examples.
    name
        The column.
    what
        Reads it: the subject of the message.

    Returns
    -------
    np.ndarray
        (N,).

    Raises
    ------
    UserError
        Some examples do not have it.
    """
    if lacking := pool[name].null_count():
        raise UserError(
            f"{what} reads {name}, which {lacking:,} of {len(pool):,} examples do not have: gradient hidden alone computes no "
            "norm, vectors alone neither tokens nor loss nor norm; add a variant, such as --also-gradients sgd, or use another "
            "method"
        )
    return pool[name].to_numpy()
