"""Projections: equal to the naive matrix, the same everywhere, unbiased, and as good as dense signs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tagcos_stream.gradients.projection import torch_ops
from tagcos_stream.gradients.projection.projections import KINDS, SparseProjection, make_projection, parameter_key
from tagcos_stream.types import UserError
from tests.naive import naive_projection


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "dim"), [(1, 64), (63, 64), (64, 100), (200, 100), (1000, 130), (700, 512)])
def test_projection__equals_naive_matrix(kind: str, size: int, dim: int) -> None:
    ref = naive_projection(kind, 5, "layer.weight", size, dim)
    comp = np.zeros((size, dim))
    make_projection(kind, dim=dim, seed=5).add("layer.weight", np.eye(size), comp)
    np.testing.assert_allclose(comp, ref, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_projection__is_the_same_in_torch_operations(kind: str) -> None:
    grads = np.random.default_rng(0).normal(size=(3, 1000))
    ref = np.zeros((3, 130))
    make_projection(kind, dim=130, seed=-7).add("w", grads, ref)
    comp, key = torch.zeros(3, 130, dtype=torch.float64), parameter_key(-7, "w")
    if kind == "sparse":
        torch_ops.add_sparse(torch.from_numpy(grads), comp, key, 2, 2**-0.5)
    else:
        torch_ops.add_rademacher(torch.from_numpy(grads), comp, key, 96)
    np.testing.assert_allclose(comp.numpy(), ref, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_projection__row_does_not_depend_on_batch_or_module_order(kind: str) -> None:
    rng = np.random.default_rng(1)
    parts = {name: rng.normal(size=(5, size)).astype(np.float32) for name, size in (("a", 300), ("b", 64), ("c", 777))}
    projection = make_projection(kind, dim=256, seed=2)

    def project(names: str, rows: slice) -> np.ndarray:
        out = np.zeros((len(range(5)[rows]), 256), np.float32)
        for name in names:
            projection.add(name, np.ascontiguousarray(parts[name][rows]), out)
        return out

    ref = project("abc", slice(None))
    if kind == "sparse":
        np.testing.assert_array_equal(project("abc", slice(2, 3))[0], ref[2])
    np.testing.assert_allclose(project("cab", slice(2, 3))[0], ref[2], rtol=1e-5, atol=1e-5)


def test_projection__differs_by_seed_and_name() -> None:
    def first(seed: int, name: str) -> np.ndarray:
        out = np.zeros((1, 128))
        SparseProjection(128, seed).add(name, np.ones((1, 500)), out)
        return out

    assert not np.allclose(first(0, "a"), first(1, "a"))
    assert not np.allclose(first(0, "a"), first(0, "b"))


@given(
    st.sampled_from(KINDS), st.integers(64, 300), st.integers(1, 400), st.integers(0, 2**31),
    st.sampled_from(["normal", "outliers", "low rank", "few"]),
)  # fmt: skip
@settings(max_examples=15, deadline=None, derandomize=True)
def test_projection__inner_products_are_unbiased(kind: str, dim: int, size: int, seed: int, shape: str) -> None:
    """Mean over 200 seeds of <Rx, Ry> within 5 standard errors of <x, y>, the variance being at most Rademacher's."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, size))
    if shape == "outliers":
        x[:: max(1, size // 5)] *= 100
    elif shape == "low rank":
        x, y = np.resize(x[:8], size), np.resize(y[:8], size)
    elif shape == "few":
        x[3:] = 0
    products = np.empty(200)
    for trial in range(200):
        out = np.zeros((2, dim))
        make_projection(kind, dim=dim, seed=trial).add("w", np.stack([x, y]), out)
        products[trial] = out[0] @ out[1]
    variance = ((x @ x) * (y @ y) + (x @ y) ** 2 - 2 * np.sum(x**2 * y**2)) / dim
    spread = np.sqrt(max(variance, 0) / 200)
    assert abs(products.mean() - x @ y) <= 5 * spread + 1e-9 * np.linalg.norm(x) * np.linalg.norm(y)


def test_projection__sparse_error_within_tenth_of_rademacher() -> None:
    """Root mean square error of inner products over seeds and pairs, gradients of one outlier-ridden low-rank matrix."""
    rng = np.random.default_rng(0)
    scale = np.where(rng.random(96) < 0.05, 30, 1)
    rows = np.stack([(rng.normal(size=(16, 4)) @ (rng.normal(size=(4, 96)) * scale)).reshape(-1) for _ in range(24)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    exact = rows @ rows.T
    upper = np.triu_indices(24, 1)
    errors = {}
    for kind in KINDS:
        squares = []
        for seed in range(100):
            out = np.zeros((24, 256))
            make_projection(kind, dim=256, seed=seed).add("w", rows, out)
            squares.append(((out @ out.T - exact)[upper] ** 2).mean())
        errors[kind] = np.sqrt(np.mean(squares))
    assert errors["sparse"] <= 1.1 * errors["rademacher"]


@pytest.mark.parametrize("entries", [1, 2, 3, 5])
def test_projection__coordinate_never_meets_itself(entries: int) -> None:
    ref = naive_projection("sparse", 0, "w", 500, 70, entries)
    comp = np.zeros((500, 70))
    SparseProjection(70, 0, entries).add("w", np.eye(500), comp)
    np.testing.assert_allclose(comp, ref, atol=1e-15)
    assert (np.count_nonzero(comp, axis=1) == entries).all()


def test_projection__refuses_impossible_settings() -> None:
    with pytest.raises(UserError, match=r"'fourier'.*sparse, rademacher"):
        make_projection("fourier", dim=128, seed=0)
    with pytest.raises(UserError, match="32, must be at least 64"):
        make_projection(dim=32, seed=0)


@pytest.mark.process
def test_projection__import_is_light() -> None:
    code = (
        "import sys, tagcos_stream.gradients.projection.projections; "
        "import tagcos_stream.gradients.batching, tagcos_stream.gradients.chat; "
        "print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
