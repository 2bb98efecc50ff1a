"""Examples in a plane, to look at: the first two principal components of their features.

n rows, D feature dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

DIRECTIONS = 12  # that are followed, so that the first two are found quickly
ROUNDS = 12
BLOCK = 512  # rows of which a float64 copy is made at a time


@dataclass(frozen=True)
class Plane:
    """The two directions in which rows spread most.

    Parameters
    ----------
    mean
        (D,) float64: weighted mean of the rows.
    directions
        (D, 2) float64, orthonormal; zeros where the rows do not spread any further.
    shares
        (2,) float64: of the rows' whole spread, what each direction holds.
    """

    mean: np.ndarray
    directions: np.ndarray
    shares: np.ndarray

    def place(self, rows: np.ndarray) -> np.ndarray:
        """Return coordinates in the plane.

        Parameters
        ----------
        rows
            (n, D).

        Returns
        -------
        np.ndarray
            (n, 2) float64.
        """
        return np.concatenate([np.zeros((0, 2)), *((block - self.mean) @ self.directions for block in _blocks(rows))])


def principal_plane(rows: np.ndarray, weights: np.ndarray) -> Plane:
    """Find the plane by subspace iteration, which passes over blocks of the rows; the order of rows does not matter.

    Parameters
    ----------
    rows
        (n, D) float16 or float32, n >= 1.
    weights
        (n,) not negative, not all zero: how many examples each row counts for.

    Returns
    -------
    Plane
        The sign makes the coordinate of largest size positive.

    Raises
    ------
    ValueError
        Weights that do not fit the rows.

    References
    ----------
    Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithm 4.4.
    """
    if len(rows) != len(weights) or not len(rows) or np.min(weights) < 0 or not np.sum(weights) > 0:
        raise ValueError(f"{len(rows)} rows, weights {weights}: as many weights as rows, none negative, not all zero")
    share = weights / np.sum(weights)
    mean, total = np.zeros(rows.shape[1]), 0.0
    for part, block in _weighted(rows, share):
        mean += part @ block
    for part, block in _weighted(rows, share):
        total += float(part @ np.square(block - mean).sum(axis=1))
    found = np.random.default_rng(0).standard_normal((rows.shape[1], min(DIRECTIONS, rows.shape[1])))
    for _ in range(ROUNDS):
        basis = np.linalg.qr(found)[0]
        found = np.zeros_like(basis)
        for part, block in _weighted(rows, share):
            block -= mean
            found += block.T @ (part[:, None] * (block @ basis))
    values, turned = np.linalg.eigh(basis.T @ found)
    directions, values = basis @ turned[:, ::-1], np.maximum(values[::-1], 0)
    kept = np.zeros((rows.shape[1], 2))
    shares = np.zeros(2)
    for axis in range(min(2, len(values))):
        if total <= 0 or values[axis] <= 1e-9 * total:
            break
        kept[:, axis], shares[axis] = directions[:, axis], values[axis] / total
    plane = Plane(mean, kept, shares)
    coordinates = plane.place(rows)
    signs = np.sign(coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]])
    return Plane(plane.mean, kept * np.where(signs == 0, 1, signs), shares)


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for at in range(0, len(rows), BLOCK):
        yield rows[at : at + BLOCK].astype(np.float64)


def _weighted(rows: np.ndarray, share: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return zip(np.split(share, range(BLOCK, len(share), BLOCK)), _blocks(rows), strict=True)
