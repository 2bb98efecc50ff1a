"""Examples in a plane: weighted principal components."""

from __future__ import annotations

import numpy as np
import pytest

from tagcos_stream.clustering.pca import principal_plane


@pytest.mark.parametrize(("n", "dim"), [(3, 64), (40, 8), (1300, 300)])
def test_plane__is_that_of_the_singular_values(n: int, dim: int) -> None:
    r = np.random.default_rng(n)
    spread = np.full(dim, 0.05)
    spread[:2] = 3, 1
    rows, weights = (r.standard_normal((n, dim)) * spread).astype(np.float32), r.integers(1, 50, n)
    plane = principal_plane(rows, weights)
    coordinates = plane.place(rows)
    root = np.sqrt(weights / weights.sum())[:, None]
    u, s, _ = np.linalg.svd(root * (rows.astype(np.float64) - np.average(rows, axis=0, weights=weights)), full_matrices=False)
    np.testing.assert_allclose(np.abs(root * coordinates), np.abs(u * s)[:, :2], atol=1e-5)
    np.testing.assert_allclose(plane.shares, (s**2 / (s**2).sum())[:2], atol=1e-6)
    np.testing.assert_allclose(plane.directions.T @ plane.directions, np.eye(2), atol=1e-9)
    assert (coordinates[np.abs(coordinates).argmax(axis=0), [0, 1]] > 0).all()
    np.testing.assert_allclose(weights @ coordinates / weights.sum(), 0, atol=1e-6)


def test_plane__of_rows_on_a_line_is_a_line() -> None:
    rows = np.outer([0.0, 1.0, 4.0], [3.0, 4.0]).astype(np.float32)
    plane = principal_plane(rows, np.ones(3))
    coordinates = plane.place(rows)
    np.testing.assert_allclose(plane.shares, [1, 0], atol=1e-9)
    np.testing.assert_allclose(np.sort(np.diff(np.sort(coordinates[:, 0]))), [5, 15])
    assert not coordinates[:, 1].any()


def test_plane__of_equal_rows_is_a_point() -> None:
    rows = np.ones((3, 4), np.float16)
    plane = principal_plane(rows, np.array([1, 2, 3]))
    assert not plane.place(rows).any()
    assert not plane.shares.any()
    with pytest.raises(ValueError, match="as many weights"):
        principal_plane(rows, np.array([1, 2]))
