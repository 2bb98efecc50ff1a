"""Earlier choices are kept unless they lose by a margin, so that a training set does not churn with every new row.

n rows of a cluster, D feature dimension, k budget.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from threadpoolctl import threadpool_limits

from tagcos_stream.rows.held import gram, take
from tagcos_stream.selection.methods import Choice
from tagcos_stream.selection.ridge import nonnegative_ridge
from tagcos_stream.types import ArrayRows, RowBlocks


@threadpool_limits.wrap(limits=1, user_api="blas")  # the last bits of a weight would depend on the number of threads
def keep_earlier(
    choice: Choice, features: np.ndarray | RowBlocks, target: np.ndarray, earlier: np.ndarray, *, margin: float, ridge: float
) -> Choice:
    """Replace as many newcomers by earlier choices as the match allows.

    Rows that both choices have stay. Of the other earlier ones those with the largest margins come first, of the newcomers those
    chosen last go first.

    Parameters
    ----------
    choice
        The fresh choice of a pursuit, with weights, rounds, residuals and residual.
    features
        (n, D) the cluster's rows.
    target
        (D,) what the weighted rows should sum to.
    earlier
        (m,) int64, rows of the cluster that were chosen before.
    margin
        The residual may be this much above the fresh choice's: 0.05 is 5%.
    ridge
        Penalty of the weights' fit.

    Returns
    -------
    Choice
        What remains of the fresh choice, in its order, then the earlier choices that were kept; scores, rounds and residuals are
        those of the fresh ones. The choice as it was where nothing is to be kept.
    """
    assert choice.residual is not None
    assert choice.rounds is not None
    assert choice.residuals is not None
    rows_of = ArrayRows(features) if isinstance(features, np.ndarray) else features
    target = np.asarray(target, np.float64)
    chosen = choice.indices
    dropped = np.setdiff1d(earlier, chosen)
    newcomers = chosen[~np.isin(chosen, earlier)]
    most = min(len(dropped), len(newcomers))
    length = float(np.linalg.norm(target))
    if most == 0 or length == 0.0:
        return choice
    dropped = dropped[np.argsort(-choice.margins[dropped], kind="stable")][:most]
    union = np.concatenate([chosen, dropped])
    rows = take(rows_of, union)
    products = rows.astype(np.float64) @ target
    inner = gram(rows, np.inner)

    def match(count: int) -> tuple[np.ndarray, np.ndarray, float]:
        """(places in the union, weights, residual) with `count` newcomers, the last chosen ones, replaced."""
        out = newcomers[len(newcomers) - count :]
        places = np.flatnonzero(~np.isin(union, out))
        places = places[(places < len(chosen)) | (places < len(chosen) + count)]
        weights = nonnegative_ridge(inner[np.ix_(places, places)], products[places], ridge)
        left = target - weights @ rows[places].astype(np.float64)
        return places, weights, float(np.linalg.norm(left)) / length

    limit = (1 + margin) * choice.residual
    low, best = 0, match(0)
    high = most + 1
    while high - low > 1:  # the residual grows with the number replaced; where it does not, any number within the limit will do
        middle = (low + high) // 2
        found = match(middle)
        low, high, best = (middle, high, found) if found[2] <= limit else (low, middle, best)
    if low == 0:
        return choice
    places, weights, reached = best
    left = (target - weights @ rows[places].astype(np.float64)).astype(np.float32)
    margins = np.empty(len(choice.margins), np.float32)
    for b in range(len(rows_of.starts) - 1):
        margins[rows_of.starts[b] : rows_of.starts[b + 1]] = rows_of.read(b).astype(np.float32) @ left
    fresh = places[places < len(chosen)]  # a place among the chosen is its rank
    return replace(
        choice,
        indices=union[places],
        scores=choice.scores[fresh],
        margins=margins,
        weights=weights,
        rounds=choice.rounds[fresh],
        residuals=choice.residuals[fresh],
        residual=reached,
    )
