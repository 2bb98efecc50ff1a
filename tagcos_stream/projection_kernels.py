"""Numba kernels of the projections, and the counter-based generator they draw from.

Every random bit is a function of (key, counter) by splitmix64 (Steele, Lea and Flood, OOPSLA 2014), so any part of a projection
can be made anywhere, in any order. P coordinates of one parameter, D features, B rows of a batch.
"""

from __future__ import annotations

import numba
import numpy as np

BLOCK = 64  # coordinates that share one offset, and one 64-bit word of signs


@numba.njit(inline="always")
def mix(counter):  # type: ignore[no-untyped-def]
    """splitmix64's output function of a 64-bit counter."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(parallel=True, cache=True)
def add_sparse(grads, out, key, entries, scale):  # type: ignore[no-untyped-def]
    """out (B, D) += scale x sparse projection of grads (B, P), both contiguous and of one floating dtype; D >= BLOCK.

    Block c of BLOCK coordinates is added, each with its own sign, at the offset of (c, entry), going round at D. The entries of a block lie
    at different offsets (the first is uniform, the others are drawn from strata of the distance to it), so that a coordinate never
    meets itself. A row is summed by one thread in the order of its coordinates: its bits depend neither on the batch nor on the
    number of threads.
    """
    rows, size = grads.shape
    dim = out.shape[1]
    for row in numba.prange(rows):
        wide = np.zeros(dim + BLOCK, out.dtype)  # BLOCK more than D, so that no addition has to go round
        signs = np.empty(BLOCK, np.float32)
        for block in range((size + BLOCK - 1) // BLOCK):
            begin = block * BLOCK
            width = min(BLOCK, size - begin)
            first = np.int64(0)
            for entry in range(entries):
                counter = key + np.uint64(2 * (block * entries + entry))
                bits = mix(counter)
                draw = mix(counter + np.uint64(1)) >> np.uint64(32)
                if entry == 0:
                    first = np.int64((draw * np.uint64(dim)) >> np.uint64(32))
                    offset = first
                else:
                    low, high = (dim - 1) * (entry - 1) // (entries - 1), (dim - 1) * entry // (entries - 1)
                    offset = (first + 1 + low + np.int64((draw * np.uint64(high - low)) >> np.uint64(32))) % dim
                for i in range(BLOCK):
                    signs[i] = np.float32(1.0) - np.float32(2.0) * np.float32(np.int32((bits >> np.uint64(i)) & np.uint64(1)))
                if width == BLOCK:  # a constant trip count, which the compiler turns into vector instructions
                    for i in range(BLOCK):
                        wide[offset + i] += signs[i] * grads[row, begin + i]
                else:
                    for i in range(width):
                        wide[offset + i] += signs[i] * grads[row, begin + i]
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
            bits = mix(key + np.uint64((begin + row) * words + word))
            for i in range(min(64, dim - word * 64)):
                out[row, word * 64 + i] = np.float32(1.0) - np.float32(2.0) * np.float32(np.int32((bits >> np.uint64(i)) & np.uint64(1)))
