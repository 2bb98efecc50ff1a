"""Numba kernels of the projections, and the counter-based generator they draw from.

Every random bit is a function of (key, counter) by splitmix64 (Steele, Lea and Flood, OOPSLA 2014), so any part of a projection
can be made anywhere, in any order. P coordinates of one parameter, D features, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numba
import numpy as np

from tagcos_stream.random_bits import FIRST_FACTOR, INCREMENT, SECOND_FACTOR, SHIFTS

_INCREMENT, _FIRST_FACTOR, _SECOND_FACTOR = np.uint64(INCREMENT), np.uint64(FIRST_FACTOR), np.uint64(SECOND_FACTOR)
_SHIFT_0, _SHIFT_1, _SHIFT_2 = (np.uint64(shift) for shift in SHIFTS)

BLOCK = 64  # coordinates that share one offset, and one 64-bit word of signs


@numba.njit(inline="always")
def splitmix64(counter):  # type: ignore[no-untyped-def]
    """`random_bits.splitmix64` of one 64-bit counter."""
    z = counter * _INCREMENT
    z = (z ^ (z >> _SHIFT_0)) * _FIRST_FACTOR
    z = (z ^ (z >> _SHIFT_1)) * _SECOND_FACTOR
    return z ^ (z >> _SHIFT_2)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within: parallel kernels use the calling thread only.

    For short kernels between torch operations: torch's threads go on spinning for milliseconds after each operation, and a second
    pool on the same cores waits for them longer than the kernel takes. (Compiled as parallel all the same: only there does Numba
    know that the arrays do not overlap, which makes it four times as fast.)
    """
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        yield
    finally:
        numba.set_num_threads(threads)


@numba.njit(inline="always")
def _place(key, block, entry, entries, first, dim):  # type: ignore[no-untyped-def]
    """Sign bits and offset of one entry of a block, `first` being the offset of its entry 0."""
    counter = key + np.uint64(2 * (block * entries + entry))
    draw = splitmix64(counter + np.uint64(1)) >> np.uint64(32)
    if entry == 0:
        return splitmix64(counter), np.int64((draw * np.uint64(dim)) >> np.uint64(32))
    low, high = (dim - 1) * (entry - 1) // (entries - 1), (dim - 1) * entry // (entries - 1)
    return splitmix64(counter), (first + 1 + low + np.int64((draw * np.uint64(high - low)) >> np.uint64(32))) % dim


@numba.njit(parallel=True, cache=True, error_model="numpy")  # an exception for a division by zero would bar vector instructions
def add_sparse(grads, out, key, entries, scale):  # type: ignore[no-untyped-def]
    """Add scale x sparse projection of grads (B, P) to out (B, D), both contiguous and of one floating dtype; D >= BLOCK.

    Block c of BLOCK coordinates is added, each with its own sign, at the offset of (c, entry), going round at D. The entries of
    a block lie at different offsets (the first is uniform, the others are drawn from strata of the distance to it), so that a
    coordinate never meets itself. A row is summed by one thread in the order of its coordinates: its bits depend neither on the
    batch nor on the number of threads.
    """
    rows, size = grads.shape
    dim = out.shape[1]
    whole = size // BLOCK
    for row in numba.prange(rows):
        wide = np.zeros(dim + BLOCK, out.dtype)  # BLOCK more than D, so that no addition has to go round
        for block in range(whole):
            first = np.int64(0)
            for entry in range(entries):
                bits, offset = _place(key, block, entry, entries, first, dim)
                first = offset if entry == 0 else first
                # Slices, constant trip counts and 32-bit words are what the compiler turns into vector instructions: four times
                # as fast
                source, target = grads[row, block * BLOCK : (block + 1) * BLOCK], wide[offset : offset + BLOCK]
                for half in range(2):
                    word = np.int32(np.uint32(bits >> np.uint64(32 * half)))
                    for i in range(32):
                        bit = (word >> np.int32(i)) & np.int32(1)
                        target[32 * half + i] += source[32 * half + i] * np.float32(1 - 2 * bit)
        if whole * BLOCK < size:
            first = np.int64(0)
            for entry in range(entries):
                bits, offset = _place(key, whole, entry, entries, first, dim)
                first = offset if entry == 0 else first
                for i in range(size - whole * BLOCK):
                    sign = np.float32(1 - 2 * np.int32((bits >> np.uint64(i)) & np.uint64(1)))
                    wide[offset + i] += sign * grads[row, whole * BLOCK + i]
        for i in range(BLOCK):
            wide[i] += wide[dim + i]
        for i in range(dim):
            out[row, i] += scale * wide[i]


@numba.njit(parallel=True, cache=True)
def rademacher_rows(key, begin, out):  # type: ignore[no-untyped-def]
    """Fill out (n, D) with the signs, +1 or -1, of coordinates begin to begin + n of the dense projection."""
    n, dim = out.shape
    words = (dim + 63) // 64
    for row in numba.prange(n):
        for word in range(words):
            bits = splitmix64(key + np.uint64((begin + row) * words + word))
            for i in range(min(64, dim - word * 64)):
                out[row, word * 64 + i] = np.float32(1.0) - np.float32(2.0) * np.float32(
                    np.int32((bits >> np.uint64(i)) & np.uint64(1))
                )
