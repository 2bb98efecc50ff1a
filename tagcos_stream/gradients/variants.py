"""Gradient variants: what of an example's gradient becomes its feature, given the Adam moments of the warm-up.

g (B, P) are the examples' gradients of one parameter; m and v (P,) its moments, t the optimizer steps behind them. Formulae as
in the method's definition: `adam` is the released code of LESS (Xia et al., arXiv 2402.04333) and TAGCOS (arXiv 2407.15235), eps
inside the root and no bias correction; `adam-corrected` is torch.optim.AdamW's step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numba
import numpy as np

from tagcos_stream.config import VECTORS, Variant
from tagcos_stream.gradients.projection.kernels import one_thread

if TYPE_CHECKING:
    import torch

VARIANTS: tuple[str, ...] = tuple(name for name in get_args(Variant) if name != VECTORS)  # that a model computes
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Moments:
    """One parameter's moments as (P,) tensors, ready for any variant."""

    m: torch.Tensor
    v: torch.Tensor
    steps: int


def transform(variant: str, g: torch.Tensor, moments: Moments | None, out: torch.Tensor) -> torch.Tensor:
    """Apply a gradient variant.

    Parameters
    ----------
    variant
        Its name; `sgd` returns g unchanged.
    g
        (B, P) gradients.
    moments
        Adam's moments of the parameter, where the variant reads them.
    out
        (B, P), written to; may be g itself.

    Returns
    -------
    torch.Tensor
        `out`, or g for `sgd`.
    """
    if variant == "sgd":
        return g
    kind, constants = _plan(variant, moments)
    if g.device.type == "cpu":
        m, v = (moments.m, moments.v) if moments is not None else (g[0], g[0])  # unread where there are no moments
        with one_thread():
            transform_rows(g.numpy(), m.numpy(), v.numpy(), kind, np.asarray(constants, g.numpy().dtype), out.numpy())
        return out
    return _transform_torch(variant, g, moments, constants, out)


def _plan(variant: str, moments: Moments | None) -> tuple[int, tuple[float, ...]]:
    """The kernel's number of the variant and its constants: G = (c0 m + c1 g) / (sqrt(c2 v + c3 g g + c4) + c5)."""
    if variant == "sign":
        return 2, (0.0,) * 6
    if moments is None:
        raise ValueError(f"variant {variant!r} needs the moments of a checkpoint")
    if moments.steps < 1:
        raise ValueError(f"moments of {moments.steps} optimizer steps: at least 1 is needed")
    correct2 = 1 - BETA2**moments.steps
    after1, after2 = 1 - BETA1 ** (moments.steps + 1), 1 - BETA2 ** (moments.steps + 1)
    published = (BETA1, 1 - BETA1, BETA2, 1 - BETA2, EPS, 0.0)
    plans = {
        "adam": (0, published),
        "adam-delta": (1, published),
        "adam-corrected": (0, (BETA1 / after1, (1 - BETA1) / after1, BETA2 / after2, (1 - BETA2) / after2, 0.0, EPS)),
        "preconditioned": (0, (0.0, 1.0, 1 / correct2, 0.0, 0.0, EPS)),
    }
    return plans[variant]


@numba.njit(parallel=True, cache=True, error_model="numpy")
def transform_rows(g, m, v, kind, constants, out):  # type: ignore[no-untyped-def]
    """Apply a gradient variant in a compiled loop.

    Parameters
    ----------
    g
        (B, P).
    m, v
        (P,) moments.
    kind, constants
        Variant and its (6,) constants, from `_plan`.
    out
        (B, P), filled.
    """
    rows, size = g.shape
    c0, c1, c2, c3, c4, c5 = constants
    for row in numba.prange(rows):
        if kind == 2:
            for i in range(size):
                out[row, i] = np.sign(g[row, i])
        elif kind == 1:
            for i in range(size):
                x = g[row, i]
                out[row, i] = (c0 * m[i] + c1 * x) / (np.sqrt(c2 * v[i] + c3 * x * x + c4) + c5) - c0 * m[i] / (
                    np.sqrt(c2 * v[i] + c4) + c5
                )
        else:
            for i in range(size):
                x = g[row, i]
                out[row, i] = (c0 * m[i] + c1 * x) / (np.sqrt(c2 * v[i] + c3 * x * x + c4) + c5)


def _transform_torch(
    variant: str, g: torch.Tensor, moments: Moments | None, constants: tuple[float, ...], out: torch.Tensor
) -> torch.Tensor:
    import torch

    if variant == "sign":
        return torch.sign(g, out=out)
    assert moments is not None
    c0, c1, c2, c3, c4, c5 = constants
    root = torch.addcmul(c2 * moments.v + c4, g, g, value=c3).sqrt_().add_(c5)
    torch.add(c0 * moments.m, g, alpha=c1, out=out).div_(root)
    if variant == "adam-delta":
        out.sub_(c0 * moments.m / ((c2 * moments.v + c4).sqrt() + c5))
    return out
