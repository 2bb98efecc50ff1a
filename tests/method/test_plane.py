"""Clusters in a plane: principal components, weighted by size."""

from __future__ import annotations

import numpy as np
import pytest

from tagcos_stream.clustering.pca import plane


@pytest.mark.parametrize(("k", "dim"), [(2, 5), (3, 64), (40, 8), (30, 300)])
def test_plane__is_that_of_the_singular_values(k: int, dim: int) -> None:
    r = np.random.default_rng(k)
    centroids, sizes = r.standard_normal((k, dim)).astype(np.float32), r.integers(1, 50, k)
    coordinates, shares = plane(centroids, sizes)
    weighted = np.sqrt(sizes / sizes.sum())[:, None] * (centroids - np.average(centroids, axis=0, weights=sizes))
    u, s, _ = np.linalg.svd(weighted.astype(np.float64), full_matrices=False)
    found = np.abs(np.sqrt(sizes / sizes.sum())[:, None] * coordinates)
    rank = min(2, k - 1)
    np.testing.assert_allclose(found[:, :rank], np.abs(u * s)[:, :rank], atol=1e-6)
    np.testing.assert_allclose(shares[:rank], (s**2 / (s**2).sum())[:rank], atol=1e-6)
    assert coordinates[np.abs(coordinates[:, 0]).argmax(), 0] > 0
    np.testing.assert_allclose(sizes @ coordinates / sizes.sum(), 0, atol=1e-6)


def test_plane__of_clusters_on_a_line_is_a_line() -> None:
    coordinates, shares = plane(np.outer([0.0, 1.0, 4.0], [3.0, 4.0]), np.array([1, 1, 1]))
    assert shares.tolist() == [1, 0]
    np.testing.assert_allclose(np.sort(np.diff(np.sort(coordinates[:, 0]))), [5, 15])
    assert not coordinates[:, 1].any()


def test_plane__of_equal_centroids_is_a_point() -> None:
    coordinates, shares = plane(np.ones((3, 4), np.float32), np.array([1, 2, 3]))
    assert not coordinates.any()
    assert not shares.any()
    with pytest.raises(ValueError, match="as many sizes"):
        plane(np.ones((3, 4), np.float32), np.array([1, 2]))
