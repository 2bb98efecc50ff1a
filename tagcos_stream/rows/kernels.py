"""Inner products and sums of feature rows, compiled by Numba; held.py cuts them up and runs the pieces on threads.

n rows of a cluster, D feature dimension. No kernel is `parallel`, for the reason that selection/pursuit/kernels.py gives.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def scan(block: np.ndarray, target: np.ndarray, keys: np.ndarray, products: np.ndarray, hashes: np.ndarray) -> None:
    """Compute <a, b> and |a|^2 in float64 and a content hash of every row, in one read.

    Each row is summed alone, in an order that depends on D only: equal rows get equal numbers wherever they stand.
    The hash is multilinear (sum of key times word, modulo 2^64), which vectorises and is universal in its upper half.

    Parameters
    ----------
    block
        (r, D) float32.
    target
        (D,) float64.
    keys
        (D,) uint64, random.
    products
        (r, 2) float64, out; not finite where the row is not.
    hashes
        (r,) uint64, out.
    """
    words = block.view(np.uint32)
    for i in range(block.shape[0]):
        dot = 0.0
        square = 0.0
        digest = np.uint64(0)
        for d in range(block.shape[1]):
            value = np.float64(block[i, d])
            dot += value * target[d]
            square += value * value
            # 0x80000000 is -0.0, which equals 0.0
            word = words[i, d] if words[i, d] != np.uint32(0x80000000) else np.uint32(0)
            digest += np.uint64(word) * keys[d]
        products[i, 0] = dot
        products[i, 1] = square
        hashes[i] = digest


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def dots(block: np.ndarray, vector: np.ndarray, out: np.ndarray) -> None:
    """<a, v> of every row in float64, summed as in `scan`. block (r, D) float32, vector (D,) float64, out (r,) float64."""
    for i in range(block.shape[0]):
        dot = 0.0
        for d in range(block.shape[1]):
            dot += np.float64(block[i, d]) * vector[d]
        out[i] = dot


@njit(nogil=True, cache=True)
def subtract(rows: np.ndarray, which: np.ndarray, weights: np.ndarray, left: np.ndarray) -> None:
    """Subtract the sum of weights[i] times rows[which[i]] from left, in float64.

    rows (r, D) float32, which (k,), weights (k,), left (D,).
    """
    for i in range(which.size):
        for d in range(left.size):
            left[d] -= weights[i] * np.float64(rows[which[i], d])


@njit(nogil=True, cache=True)
def widen(half: np.ndarray, bits: np.ndarray, out: np.ndarray) -> None:
    """float16 to float32, exactly: half (r, D) uint16, the numbers' bits; bits and out (r, D) uint32 and float32, one memory.

    The bits are put in their places and read as a float32; its exponent is then 112 too low, which a product mends, and so
    subnormal numbers come out right. Those that are not finite get the highest exponent.
    """
    scale = np.float32(2.0**112)
    for i in range(half.shape[0]):
        for d in range(half.shape[1]):
            word = np.uint32(half[i, d])
            moved = ((word & np.uint32(0x8000)) << np.uint32(16)) | ((word & np.uint32(0x7FFF)) << np.uint32(13))
            bits[i, d] = moved | (np.uint32(0x70000000) if (word & np.uint32(0x7C00)) == np.uint32(0x7C00) else np.uint32(0))
        for d in range(half.shape[1]):
            out[i, d] *= scale


SIDE = 4  # rows of each side that `products` multiplies at once


@njit(nogil=True, cache=True, fastmath={"reassoc", "contract"})
def products(left: np.ndarray, right: np.ndarray, out: np.ndarray) -> None:
    """Compute inner products in float64 of float32 rows: out[i, c] = <left_i, right_c>.

    Parameters
    ----------
    left
        (p, D) float32, p >= SIDE.
    right
        (B, D) float32, B >= SIDE.
    out
        (p, B) float64.
    """
    for tall in range(0, left.shape[0], SIDE):
        i = min(tall, left.shape[0] - SIDE)  # the last tiles overlap the ones before them, and compute the same numbers
        for wide in range(0, right.shape[0], SIDE):
            c = min(wide, right.shape[0] - SIDE)
            s00 = s01 = s02 = s03 = 0.0
            s10 = s11 = s12 = s13 = 0.0
            s20 = s21 = s22 = s23 = 0.0
            s30 = s31 = s32 = s33 = 0.0
            for d in range(left.shape[1]):
                w, x = np.float64(right[c, d]), np.float64(right[c + 1, d])
                y, z = np.float64(right[c + 2, d]), np.float64(right[c + 3, d])
                a = np.float64(left[i, d])
                s00, s01, s02, s03 = s00 + a * w, s01 + a * x, s02 + a * y, s03 + a * z
                a = np.float64(left[i + 1, d])
                s10, s11, s12, s13 = s10 + a * w, s11 + a * x, s12 + a * y, s13 + a * z
                a = np.float64(left[i + 2, d])
                s20, s21, s22, s23 = s20 + a * w, s21 + a * x, s22 + a * y, s23 + a * z
                a = np.float64(left[i + 3, d])
                s30, s31, s32, s33 = s30 + a * w, s31 + a * x, s32 + a * y, s33 + a * z
            out[i, c], out[i, c + 1], out[i, c + 2], out[i, c + 3] = s00, s01, s02, s03
            out[i + 1, c], out[i + 1, c + 1], out[i + 1, c + 2], out[i + 1, c + 3] = s10, s11, s12, s13
            out[i + 2, c], out[i + 2, c + 1], out[i + 2, c + 2], out[i + 2, c + 3] = s20, s21, s22, s23
            out[i + 3, c], out[i + 3, c + 1], out[i + 3, c + 2], out[i + 3, c + 3] = s30, s31, s32, s33
