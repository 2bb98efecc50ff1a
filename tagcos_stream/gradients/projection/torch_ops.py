"""The projections in torch operations, for tensors on a device; equal to the Numba kernels up to the order of additions.

On CUDA `index_add_` adds in no fixed order: features repeat to rounding, not to the bit.
"""

from __future__ import annotations

import torch

from tagcos_stream.gradients.projection.kernels import BLOCK
from tagcos_stream.random_bits import FIRST_FACTOR, INCREMENT, SECOND_FACTOR, SHIFTS


def _signed(constant: int) -> int:
    """A 64-bit constant as the int64 of the same bits: torch multiplies int64 modulo 2^64, and has no uint64 arithmetic."""
    constant &= (1 << 64) - 1
    return constant - (1 << 64) if constant >> 63 else constant


def _shift(z: torch.Tensor, bits: int) -> torch.Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts the sign in; a logical shift does not


def splitmix64(counter: torch.Tensor) -> torch.Tensor:
    """`random_bits.splitmix64` of int64 counters that hold the same bits."""
    z = counter * _signed(INCREMENT)
    z = (z ^ _shift(z, SHIFTS[0])) * _signed(FIRST_FACTOR)
    z = (z ^ _shift(z, SHIFTS[1])) * _signed(SECOND_FACTOR)
    return z ^ _shift(z, SHIFTS[2])


def _signs(words: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(n,) words to (n, 64) signs, +1 for a clear bit."""
    return 1 - 2 * ((words[:, None] >> torch.arange(64, device=words.device)) & 1).to(dtype)


def add_sparse(grads: torch.Tensor, out: torch.Tensor, key: int, entries: int, scale: float) -> None:
    """Add scale x sparse projection of grads (B, P) to out (B, D)."""
    size, dim = grads.shape[1], out.shape[1]
    lane = torch.arange(BLOCK, device=grads.device)
    block = torch.arange((size + BLOCK - 1) // BLOCK, device=grads.device)
    first = torch.zeros_like(block)
    for entry in range(entries):
        counter = _signed(key) + 2 * (block * entries + entry)
        signs = _signs(splitmix64(counter), grads.dtype).reshape(-1)[:size]
        draw = _shift(splitmix64(counter + 1), 32)
        if entry == 0:
            offset = first = _shift(draw * dim, 32)
        else:
            low, high = (dim - 1) * (entry - 1) // (entries - 1), (dim - 1) * entry // (entries - 1)
            offset = first + 1 + low + _shift(draw * (high - low), 32)
        place = ((offset[:, None] + lane) % dim).reshape(-1)[:size]
        out.index_add_(1, place, grads * signs, alpha=scale)


def add_rademacher(grads: torch.Tensor, out: torch.Tensor, key: int, rows: int) -> None:
    """Add grads (B, P) times dense signs over sqrt(D) to out (B, D), `rows` coordinates at a time."""
    size, dim = grads.shape[1], out.shape[1]
    words = (dim + 63) // 64
    for begin in range(0, size, rows):
        part = grads[:, begin : begin + rows]
        counter = _signed(key) + begin * words + torch.arange(part.shape[1] * words, device=grads.device)
        signs = _signs(splitmix64(counter), grads.dtype).reshape(part.shape[1], words * 64)[:, :dim]
        out.addmm_(part, signs, alpha=dim**-0.5)
