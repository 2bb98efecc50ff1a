"""The variant `vectors`: features from vectors of the user's own.  n rows, W width of a vector, D feature dimension."""

from __future__ import annotations

import numpy as np

from tagcos_stream.config import VECTORS
from tagcos_stream.gradients.projection.projections import Projection


def feature_dim(width: int, dim: int) -> int:
    """Return D for vectors of a width.

    Parameters
    ----------
    width
        W.
    dim
        The setting: the most dimensions that a feature has.

    Returns
    -------
    int
        W if that is at most `dim`: such vectors are not projected, since that would only add noise and bytes.
    """
    return min(width, dim)


def vector_features(rows: np.ndarray, projection: Projection | None) -> np.ndarray:
    """Make features from vectors as from gradients: projected, and of unit length.

    Parameters
    ----------
    rows
        (n, W) float32, finite, none of them zero, from `tagcos_stream.data.vectors.scaled`.
    projection
        From W to D; None to keep the vectors as they are.

    Returns
    -------
    np.ndarray
        (n, D) float16 of unit length; NaN where the projection of a row is zero.
    """
    if projection is None:
        found = rows.astype(np.float32)
    else:
        found = np.zeros((len(rows), projection.dim), np.float32)
        projection.add(VECTORS, np.ascontiguousarray(rows, np.float32), found)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    found /= np.where(length > 0, length, np.nan)
    return found.astype(np.float16)
