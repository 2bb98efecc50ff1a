"""Whether clusters and warm-up still fit a pool that has grown.  N rows, D feature dimension, K clusters.

Rows that joined after a clustering was fitted are compared with those it was fitted on, and rows ingested after the warm-up with
those it could draw from. Differences are in units of the spread of the data, so that one set of thresholds serves all models and
dimensions; a shift counts only if it exceeds its threshold by two standard errors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Limits above which a measure counts as drift; docs/refresh.md describes the measures.
THRESHOLDS = {"share": 0.2, "distance_shift": 0.5, "movement": 0.25, "loss_shift": 0.5, "unseen": 0.5}
ERRORS = 2.0  # standard errors that a shift must be above its threshold


@dataclass(frozen=True)
class Fitted:
    """A clustering as it was fitted."""

    labels: np.ndarray  # (N,) int32
    distances: np.ndarray  # (N,) float32, to the centroid
    sizes: np.ndarray  # (K,) int64
    means: np.ndarray  # (K, D) float32
    inertia: np.ndarray  # (K,) float64, about the mean


@dataclass(frozen=True)
class Moments:
    """Number of rows, and mean and standard deviation of their losses in nats."""

    n: int
    mean: float
    std: float


@dataclass(frozen=True)
class Drift:
    """How far a pool has moved from its clustering and its warm-up; None where nothing could be compared."""

    share: float  # of the pool that joined after the fit
    movement: float | None  # of the means, in root mean square distances of rows to their mean
    distance_shift: float | None  # of rows since the fit, in standard deviations
    distance_error: float | None
    unseen: float | None  # share of the pool that the warm-up could not draw from
    loss_shift: float | None  # of these rows, in standard deviations
    reasons_to_recluster: list[str] = field(default_factory=list)
    reasons_to_warm_up: list[str] = field(default_factory=list)

    @property
    def advice(self) -> str:
        """`keep`, `recluster`, `repeat warm-up`, or both of these, as the catalog records it."""
        asked = ["recluster"] * bool(self.reasons_to_recluster) + ["repeat warm-up"] * bool(self.reasons_to_warm_up)
        return " and ".join(asked) or "keep"


def measure(
    fitted: Fitted,
    labels: np.ndarray,
    distances: np.ndarray,
    *,
    sizes: np.ndarray,
    means: np.ndarray,
    max_cluster_rows: int,
    unseen: float | None,
    losses: tuple[Moments, Moments] | None,
) -> Drift:
    """Compare a pool with the clustering it is chosen from.

    Parameters
    ----------
    fitted
        The clustering as it was fitted.
    labels
        (n,) int, clusters of the pool's rows that joined since.
    distances
        (n,) float, distances of these rows to their centroids.
    sizes
        (K,) int64, rows of each cluster of the pool now.
    means
        (K, D) float32, mean of each cluster of the pool now.
    max_cluster_rows
        Largest size of a cluster before it is split.
    unseen
        Fraction of the pool ingested after the warm-up; None if unknown.
    losses
        Moments of the losses of the rows ingested before and after the warm-up; None if unknown.

    Returns
    -------
    Drift
        The differences, and reasons to cluster or warm up again.
    """
    pool = int(sizes.sum())
    share = len(labels) / pool if pool else 0.0
    shift, error = _distance_shift(fitted, labels, distances)
    movement = _movement(fitted, sizes, means)
    loss, loss_error = _loss_shift(losses)
    recluster, warm = [], []
    if share >= THRESHOLDS["share"]:
        recluster.append(f"{share:.0%} of the pool joined since the clusters were made")
    if shift is not None and error is not None and shift - ERRORS * error >= THRESHOLDS["distance_shift"]:
        recluster.append(f"these rows lie {shift:.2f} standard deviations further from their centroids")
    if movement is not None and movement >= THRESHOLDS["movement"]:
        recluster.append(f"means moved by {movement:.2f} of the rows' spread")
    if (large := int((sizes > max_cluster_rows).sum())) > 0:
        recluster.append(f"{large} clusters have more than {max_cluster_rows} rows")
    if unseen is not None and unseen >= THRESHOLDS["unseen"]:
        warm.append(f"{unseen:.0%} of the pool was met after the warm-up")
    if loss is not None and abs(loss) - ERRORS * loss_error >= THRESHOLDS["loss_shift"]:
        warm.append(
            f"rows met after the warm-up have a loss {abs(loss):.2f} standard deviations {'above' if loss > 0 else 'below'}"
        )
    return Drift(share, movement, shift, error, unseen, loss, recluster, warm)


def _distance_shift(fitted: Fitted, labels: np.ndarray, distances: np.ndarray) -> tuple[float | None, float | None]:
    """Mean over the rows of (distance - mean distance of its cluster's fitted rows), in standard deviations of these; its error.

    A fitted row pulled its centroid towards itself: without it, it would lie n / (n - 1) times as far.
    """
    sizes = fitted.sizes[fitted.labels] if len(fitted.labels) else np.zeros(0)
    alone = sizes < 2
    old = fitted.distances[~alone] * (sizes[~alone] / np.maximum(sizes[~alone] - 1, 1))
    if len(old) < 2 or not len(labels):
        return None, None
    of = fitted.labels[~alone]
    counts = np.bincount(of, minlength=len(fitted.sizes))
    centre = np.where(counts > 0, np.bincount(of, old, minlength=len(counts)) / np.maximum(counts, 1), old.mean())
    spread = float(np.sqrt(((old - centre[of]) ** 2).mean()))
    if spread == 0.0:
        return None, None
    return float((distances - centre[labels]).mean() / spread), float(np.sqrt(1 / len(labels) + 1 / len(old)))


def _movement(fitted: Fitted, sizes: np.ndarray, means: np.ndarray) -> float | None:
    both = (sizes > 0) & (fitted.sizes > 0)
    spread = float(fitted.inertia.sum()) / max(int(fitted.sizes.sum()), 1)
    if not both.any() or spread == 0.0:
        return None
    moved = ((means[both].astype(np.float64) - fitted.means[both]) ** 2).sum(axis=1)
    return float(np.sqrt((sizes[both] * moved).sum() / sizes[both].sum() / spread))


def _loss_shift(losses: tuple[Moments, Moments] | None) -> tuple[float | None, float]:
    if losses is None or losses[0].n < 2 or losses[1].n < 1 or losses[0].std == 0.0:
        return None, 0.0
    before, after = losses
    return (after.mean - before.mean) / before.std, float(np.sqrt(1 / before.n + 1 / after.n))
