"""Earlier choices keep their place unless they lose by a margin, so that a training set does not churn with every new row.

n rows of a cluster, D feature dimension, k budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tagcos_stream.rows.held import gram
from tagcos_stream.selection.ridge import nonnegative_ridge
from tagcos_stream.types import RowBlocks


@dataclass(frozen=True)
class Kept:
    """A choice that holds on to earlier ones."""

    indices: np.ndarray  # (k,) int64: what remains of the fresh choice, in its order, then the earlier choices kept beside it
    fresh: int  # so many of them are of the fresh choice
    weights: np.ndarray  # (k,) float64, not negative
    residual: float  # |b - sum of weight times row| / |b|; 0 where |b| is 0
    margins: np.ndarray  # (n,) float32: <a, b - sum of weight times row> of every row


def hold_on(
    features: RowBlocks,
    target: np.ndarray,
    chosen: np.ndarray,
    margins: np.ndarray,
    residual: float,
    earlier: np.ndarray,
    *,
    margin: float,
    ridge: float,
) -> Kept | None:
    """Replace as many newcomers by earlier choices as the match allows: the residual may be `margin` (0.05: 5%) above the best.

    Rows that both choices have stay. Of the other earlier ones those with the largest margins come first, of the newcomers those
    chosen last go first. None where nothing is to be kept.

    Args:
        features: the cluster's rows. target (D,). chosen (k,) int64, margins (n,), residual: of the fresh pursuit.
        earlier: (m,) int64, rows of the cluster that were chosen before.
    """
    target = np.asarray(target, np.float64)
    dropped = np.setdiff1d(earlier, chosen)
    newcomers = chosen[~np.isin(chosen, earlier)]
    most = min(len(dropped), len(newcomers))
    length = float(np.linalg.norm(target))
    if most == 0 or length == 0.0:
        return None
    dropped = dropped[np.argsort(-margins[dropped], kind="stable")][:most]
    union = np.concatenate([chosen, dropped])
    rows = _take(features, union)
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

    limit = (1 + margin) * residual
    low, best = 0, match(0)
    high = most + 1
    while high - low > 1:  # the residual grows with the number replaced; where it does not, any number within the limit will do
        middle = (low + high) // 2
        found = match(middle)
        low, high, best = (middle, high, found) if found[2] <= limit else (low, middle, best)
    if low == 0:
        return None
    places, weights, reached = best
    left = (target - weights @ rows[places].astype(np.float64)).astype(np.float32)
    after = np.empty(len(margins), np.float32)
    for b in range(len(features.starts) - 1):
        after[features.starts[b] : features.starts[b + 1]] = features.read(b).astype(np.float32) @ left
    return Kept(union[places], int((places < len(chosen)).sum()), weights, reached, after)


def _take(features: RowBlocks, rows: np.ndarray) -> np.ndarray:
    """(len(rows), D) float32, reading each block once, in order."""
    out = np.empty((len(rows), features.dim), np.float32)
    block = np.searchsorted(features.starts, rows, side="right") - 1
    for b in np.unique(block):
        here = block == b
        out[here] = features.read(int(b))[rows[here] - features.starts[b]]
    return out
