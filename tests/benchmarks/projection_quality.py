"""How well projected features stand for exact gradients: error of inner products and agreement of nearest neighbours.

Dimension letters: n examples, P adapter parameters, D feature dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.extract import GradientExtractor
from tagcos_stream.gradients.projection.projections import make_projection
from tagcos_stream.gradients.variants import transform


@dataclass(frozen=True)
class Quality:
    """How well a projection keeps inner products and nearest neighbors."""

    kind: str
    dim: int
    error: float  # root mean square over pairs and seeds of the error of an inner product of unit rows (the cosine)
    dense_error: float  # what dense signs of this dimension expect of it, in closed form
    nearest: float  # share of examples whose nearest neighbour is the exact one
    nearest_five: float  # share of the five exact nearest neighbours among the five found


def projection_quality(
    extractor: GradientExtractor,
    encoded: Sequence[Encoded],
    *,
    dims: Sequence[int],
    seeds: Mapping[str, Sequence[int]],
) -> list[Quality]:
    """Compare projections, each kind under its seeds, with exact gradients.

    Of the extractor's first variant, under the checkpoint in use. Holds n x P exact gradients: for some tens of examples at a
    small rank. Dense projections cost n x P x D each; the pairs of one seed err together, so that a few seeds say little about
    an error: hence its closed form.
    """
    exact = exact_gradients(extractor, encoded)
    scale = np.sqrt(sum(np.square(rows, dtype=np.float64).sum(1) for rows in exact.values())).astype(np.float32)[:, None]
    exact = {name: rows / scale for name, rows in exact.items()}
    inner = np.asarray(sum(rows.astype(np.float64) @ rows.T.astype(np.float64) for rows in exact.values()))
    pairs = np.triu_indices(len(encoded), 1)
    # variance of <Rx, Ry> under dense signs, D times: |x|^2 |y|^2 + <x, y>^2 - 2 sum of x_i^2 y_i^2
    shared = np.asarray(sum(np.square(rows, dtype=np.float64) @ np.square(rows, dtype=np.float64).T for rows in exact.values()))
    spread = float((1 + inner**2 - 2 * shared)[pairs].mean())
    results = []
    for dim in dims:
        for kind, own in seeds.items():
            figures = []
            for seed in own:
                features = np.zeros((len(encoded), dim), np.float32)
                for name, rows in exact.items():
                    make_projection(kind, dim=dim, seed=seed).add(name, rows, features)
                figures.append(_compare(inner, features.astype(np.float64)))
            squares, first, five = np.array(figures).mean(axis=0)
            results.append(Quality(kind, dim, float(np.sqrt(squares)), float(np.sqrt(spread / dim)), float(first), float(five)))
    return results


def exact_gradients(extractor: GradientExtractor, encoded: Sequence[Encoded]) -> dict[str, np.ndarray]:
    """Per parameter the (n, P) float32 gradients after the extractor's first variant, one example at a time."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in extractor.parameters}
    variant = extractor.variants[0]

    def keep(name: str, gradients: torch.Tensor) -> None:
        moved = transform(variant, gradients, extractor._moments[name], torch.empty_like(gradients))
        found[name].append(moved.float().cpu().numpy().copy())

    for example in encoded:
        with extractor.capture.recording(keep), torch.enable_grad():
            extractor._backward([example])
    return {name: np.concatenate(rows) for name, rows in found.items()}


def _compare(exact: np.ndarray, features: np.ndarray) -> tuple[float, float, float]:
    """Mean square error of the pairs' inner products, and the two shares of neighbours kept."""
    found = features @ features.T
    pairs = np.triu_indices(len(exact), 1)
    error = float(((found - exact)[pairs] ** 2).mean())
    length = np.linalg.norm(features, axis=1)
    cosine = found / np.outer(length, length)
    hidden = np.where(np.eye(len(exact), dtype=bool), -np.inf, 0.0)  # an example is not its own neighbour
    ranks, ranks_found = (np.argsort(-(matrix + hidden), axis=1)[:, :5] for matrix in (exact, cosine))
    five = np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(ranks, ranks_found, strict=True)])
    return error, float((ranks[:, 0] == ranks_found[:, 0]).mean()), float(five)
