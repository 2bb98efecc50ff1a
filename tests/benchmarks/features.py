"""Features shaped like real ones, for benchmarks: unit rows, clustered, with a power-law spectrum.  N rows, D dimensions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

RANK = 512


class Shape:
    """A seeded population: `block(b, rows)` is the same rows whoever asks, in whatever order.

    A row is its cluster's centre (clusters have power-law sizes) + a low-rank part whose spectrum falls as 1/i + white noise,
    and a part that all rows share; scaled to unit length.
    """

    def __init__(self, dim: int, clusters: int, seed: int, *, centre: float = 0.55, low: float = 0.6, noise: float = 0.5) -> None:
        generator = np.random.default_rng([seed, 0])
        self.dim, self.seed, self.noise = dim, seed, noise
        rank = min(RANK, dim)
        spectrum = np.arange(1, rank + 1) ** -0.5
        basis = generator.standard_normal((rank, dim), np.float32) / np.sqrt(dim)
        self.basis = (basis * (low * spectrum / np.sqrt((spectrum**2).sum()))[:, None]).astype(np.float32)
        centres = generator.standard_normal((clusters, rank)) * spectrum / np.sqrt((spectrum**2).sum())
        unit = (generator.standard_normal((rank, dim)) / np.sqrt(dim)).astype(np.float32)
        self.centres = (centre * centres.astype(np.float32)) @ unit + np.float32(0.2) * unit[0]
        share = np.arange(1, clusters + 1) ** -0.5
        self.share = share / share.sum()

    def block(self, b: int, rows: int, dtype: type = np.float16) -> np.ndarray:
        """(rows, D), unit length up to the rounding of dtype."""
        generator = np.random.default_rng([self.seed, 1, b])
        label = generator.choice(len(self.share), rows, p=self.share)
        x = generator.standard_normal((rows, len(self.basis)), np.float32) @ self.basis
        x += self.centres[label]
        x += np.float32(self.noise / np.sqrt(self.dim)) * generator.standard_normal((rows, self.dim), np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        return x.astype(dtype)

    def blocks(self, n: int, rows: int, dtype: type = np.float16) -> Iterator[np.ndarray]:
        for b in range(0, -(-n // rows)):
            yield self.block(b, min(rows, n - b * rows), dtype)

    def array(self, n: int, dtype: type = np.float32, rows: int = 1024) -> np.ndarray:
        out: np.ndarray = np.empty((n, self.dim), dtype)
        at = 0
        for block in self.blocks(n, rows, dtype):
            out[at : at + len(block)] = block
            at += len(block)
        return out
