"""Non-negative ridge regression on a Gram matrix. k chosen rows."""

from __future__ import annotations

import numpy as np


def nonnegative_ridge(gram: np.ndarray, target: np.ndarray, ridge: float) -> np.ndarray:
    """Minimise |b - A'x|^2 + ridge |x|^2 over x >= 0 by block principal pivoting.

    The problem is strictly convex, so the x that meets the optimality conditions is unique. Whole sets of rows change sides at
    once; when that stops making progress, one row at a time (the highest), which is proved to end. Source: Kim and Park, "Fast
    nonnegative matrix factorization: an active-set-like method", SIAM J. Sci. Comput. 2011, alg. 2.

    Parameters
    ----------
    gram
        (k, k) float64, A A'.
    target
        (k,) float64, A b.
    ridge
        Above 0.

    Returns
    -------
    np.ndarray
        (k,) float64, no entry negative.
    """
    k = len(target)
    weights = np.zeros(k)
    if k == 0:
        return weights
    system = gram + ridge * np.eye(k)
    slack = 1e-12 * max(float(np.abs(target).max()), np.finfo(np.float64).tiny)
    active = np.ones(k, bool)
    fewest, patience = k + 1, 3
    while True:
        weights[:] = 0.0
        if active.any():
            weights[active] = np.linalg.solve(system[np.ix_(active, active)], target[active])
        gradient = system @ weights - target
        wrong = (active & (weights < 0.0)) | (~active & (gradient < -slack))
        count = int(wrong.sum())
        if count == 0:
            return weights
        if count < fewest:
            fewest, patience = count, 3
        elif patience > 0:
            patience -= 1
        else:
            last = int(np.flatnonzero(wrong)[-1])
            wrong[:] = False
            wrong[last] = True
        active ^= wrong
