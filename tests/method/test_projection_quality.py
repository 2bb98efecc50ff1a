"""The report on projections: its closed form of the dense error is what dense projections do."""

from __future__ import annotations

import pytest

from tagcos_stream.gradients.adapter import attach_adapter
from tagcos_stream.gradients.extract import GradientExtractor
from tagcos_stream.gradients.projection.projections import make_projection
from tests.benchmarks.projection_quality import projection_quality
from tests.models import random_checkpoint, random_encoded, tiny_model


def test_projection_quality__errors_of_both_kinds_are_the_dense_expectation() -> None:
    model = attach_adapter(tiny_model(), rank=2, alpha=4, dropout=0.0, seed=0)
    ex = GradientExtractor(model, variants=("sgd",), projection=make_projection(dim=64, seed=0))
    ex.use(random_checkpoint(model))
    seeds = {"sparse": range(60), "rademacher": range(60)}
    found = projection_quality(ex, random_encoded([9, 20, 14, 30, 12, 25]), dims=(64, 1024), seeds=seeds)
    assert [(line.kind, line.dim) for line in found] == [(kind, dim) for dim in (64, 1024) for kind in seeds]
    assert found[0].dense_error == pytest.approx(4 * found[2].dense_error)
    for line in found:
        # neighbouring coordinates never meet in the sparse one: it may err less
        assert 0.5 < line.error / line.dense_error < 1.25, line
        assert 0 <= line.nearest <= 1
    assert found[2].nearest_five >= found[0].nearest_five
