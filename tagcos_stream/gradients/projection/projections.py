"""Seeded random projections R: P -> D with unbiased inner products, applied parameter by parameter.

Both kinds are functions of (seed, parameter name, coordinate) alone, by a counter-based generator: they come out the same on
every device and worker, for every batch size and order of modules.

- `sparse`, the default: linear in P. Every coordinate goes to `entries` features with random signs (a sparse
  Johnson-Lindenstrauss transform, Kane and Nelson, arXiv 1012.1577; with one entry, the count sketch). 64 neighbouring
  coordinates share one random offset and keep 64 independent signs: two of them never meet, and two coordinates of different
  blocks meet with probability 1/D as if each had been hashed alone, so that the variance of an inner product is at most the
  count sketch's. That sharing makes it as fast as reading the gradient.
- `rademacher`: dense signs over sqrt(D), made block by block: the reference, P x D work an example.

Dimension letters: B rows of a batch, P coordinates of one parameter, D features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tagcos_stream.gradients.projection.kernels import BLOCK, add_sparse, one_thread, rademacher_rows
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor

FORMAT = 1  # raised when the same seed would no longer give the same projection
KINDS = ("sparse", "rademacher")
_DENSE_ROWS = 512  # coordinates whose dense signs are held at once


class Projection(Protocol):
    """A random projection of a model's adapter gradients, defined by kind, dimension and seed."""

    @property
    def dim(self) -> int:
        """Number of features D."""
        ...

    def add(self, name: str, grads: Array, out: Array) -> None:
        """Add grads (B, P) times this parameter's part of R to out (B, D); both contiguous, of one floating dtype and device."""
        ...

    @property
    def seed(self) -> int:
        """Seed that, with each parameter's name, determines the projection."""
        ...

    def fingerprint(self) -> str:
        """Return what distinguishes this projection from others, as text."""
        ...

    @property
    def kind(self) -> str:
        """Name of the family, one of KINDS."""
        ...


def make_projection(kind: str = "sparse", *, dim: int, seed: int) -> Projection:
    """`sparse` or `rademacher` onto `dim` features. UserError for another kind or an impossible dimension."""
    if kind not in KINDS:
        raise UserError(f"projection is {kind!r}: use one of {', '.join(KINDS)}")
    if dim < BLOCK:
        raise UserError(f"feature dimension is {dim}, must be at least {BLOCK} (8192 is usual)")
    return SparseProjection(dim, seed) if kind == "sparse" else RademacherProjection(dim, seed)


@dataclass(frozen=True)
class SparseProjection:
    """Sparse signs: every gradient coordinate is added to a few features."""

    dim: int
    seed: int
    entries: int = (
        2  # features per coordinate; more does not lower the variance of an inner product, only the weight of one collision
    )
    kind: str = "sparse"

    def add(self, name: str, grads: Any, out: Any) -> None:
        """Add the projection of one parameter's gradients to `out`."""
        key, scale = parameter_key(self.seed, name), self.entries**-0.5
        if _on_cpu(grads):
            with one_thread():
                add_sparse(np.asarray(grads), np.asarray(out), np.uint64(key), self.entries, np.asarray(out).dtype.type(scale))
        else:
            from tagcos_stream.gradients.projection.torch_ops import add_sparse as add_on_device

            add_on_device(grads, out, key, self.entries, scale)

    def fingerprint(self) -> str:
        """Return kind, version, entries, dimension and seed."""
        return f"sparse-{FORMAT}:entries={self.entries}:dim={self.dim}:seed={self.seed}"


@dataclass(frozen=True)
class RademacherProjection:
    """Dense signs, generated in blocks and never held whole."""

    dim: int
    seed: int
    kind: str = "rademacher"

    def add(self, name: str, grads: Any, out: Any) -> None:
        """Add the projection of one parameter's gradients to `out`."""
        key = parameter_key(self.seed, name)
        if not _on_cpu(grads):
            from tagcos_stream.gradients.projection.torch_ops import add_rademacher

            return add_rademacher(grads, out, key, _DENSE_ROWS)
        grads, out = np.asarray(grads), np.asarray(out)
        signs = np.empty((min(_DENSE_ROWS, grads.shape[1]), self.dim), out.dtype)
        for begin in range(0, grads.shape[1], _DENSE_ROWS):
            part = grads[:, begin : begin + _DENSE_ROWS]
            rows = signs[: part.shape[1]]
            rademacher_rows(np.uint64(key), begin, rows)
            out += (part @ rows) * out.dtype.type(self.dim**-0.5)

    def fingerprint(self) -> str:
        """Return kind, version, dimension and seed."""
        return f"rademacher-{FORMAT}:dim={self.dim}:seed={self.seed}"


@lru_cache(maxsize=1 << 16)
def parameter_key(seed: int, name: str) -> int:
    """Where a parameter's counters begin, 64 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest(), "little")


def _on_cpu(array: Any) -> bool:
    return isinstance(array, np.ndarray) or array.device.type == "cpu"
