"""Random bits as a function of a counter: splitmix64 (Steele, Lea and Flood, OOPSLA 2014), and draws for examples.

This is the definition, in numpy. Numba's and torch's versions, which the projections need, share its constants and are tested
against it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

INCREMENT, FIRST_FACTOR, SECOND_FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
SHIFTS = (30, 27, 31)


def splitmix64(counter: np.ndarray) -> np.ndarray:
    """The output function of splitmix64, modulo 2^64: uint64 of any shape to uint64 of the same shape."""
    z = np.asarray(counter, np.uint64) * np.uint64(INCREMENT)  # arrays wrap around
    z = (z ^ (z >> np.uint64(SHIFTS[0]))) * np.uint64(FIRST_FACTOR)
    z = (z ^ (z >> np.uint64(SHIFTS[1]))) * np.uint64(SECOND_FACTOR)
    return z ^ (z >> np.uint64(SHIFTS[2]))


def draws(example_ids: Sequence[str], seed: int) -> np.ndarray:
    """A number in [0, 1) for each example, (N,) float64.

    It follows from the id (32 hex digits) and the seed alone, so that examples of a pool that grew keep the numbers they had.
    """
    words = np.frombuffer(bytes.fromhex("".join(example_ids)), ">u8").reshape(-1, 2).astype(np.uint64)
    mixed = splitmix64(words[:, 0] ^ splitmix64(words[:, 1] ^ splitmix64(np.array([seed], np.uint64))))
    return (mixed >> np.uint64(11)) * 2.0**-53
