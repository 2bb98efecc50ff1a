"""Finds the elements of a JSON list in a stream of bytes without parsing them, in bounded memory whatever the list's size.

A streaming parser stops for good at the first error. Brackets and quotes are enough to find the commas between elements, so
that a broken element costs one reject and the list goes on.
"""

from __future__ import annotations

import numpy as np
from numba import njit

DEPTH, IN_STRING, ESCAPED = 0, 1, 2  # places in the state
RUNNING, ENDED, FULL = 0, 1, 2  # what a scan came back for


@njit(cache=True, nogil=True)
def scan_elements(data, position, state, level, cuts):  # type: ignore[no-untyped-def]
    """Positions of commas at depth `level`, and of the bracket that closes it, from `position` on.

    data (n,) uint8; state (3,) int64 carried from chunk to chunk; cuts (m,) int64, filled. Returns (cuts filled, next position,
    why). A newline within a string ends the string: JSON allows none there, so a quote was lost, and what follows would be read
    inside out.
    """
    depth, in_string, escaped = state[0], state[1], state[2]
    n, found, why = data.shape[0], 0, 0
    i = position
    while i < n:
        c = data[i]
        if in_string:
            if escaped:
                escaped = 0
            elif c == 92:
                escaped = 1
            elif c == 34 or c == 10:
                in_string = 0
        elif c == 34:
            in_string = 1
        elif c == 123 or c == 91:
            depth += 1
        elif c == 125 or c == 93:
            depth -= 1
            if depth < level:
                cuts[found] = i
                found += 1
                why = 1
                i += 1
                break
        elif c == 44 and depth == level:
            cuts[found] = i
            found += 1
            if found == cuts.shape[0]:
                why = 2
                i += 1
                break
        i += 1
    state[0], state[1], state[2] = depth, in_string, escaped
    return found, i, why


@njit(cache=True, nogil=True)
def find_list(data, position, state):  # type: ignore[no-untyped-def]
    """Position of the next `[` that opens a list directly within the outermost object, or -1; state as in `scan_elements`.

    Returns (position or -1, next position).
    """
    depth, in_string, escaped = state[0], state[1], state[2]
    n, found = data.shape[0], -1
    i = position
    while i < n:
        c = data[i]
        if in_string:
            if escaped:
                escaped = 0
            elif c == 92:
                escaped = 1
            elif c == 34:
                in_string = 0
        elif c == 34:
            in_string = 1
        elif c == 123 or c == 91:
            depth += 1
            if c == 91 and depth == 2:
                found = i
                i += 1
                break
        elif c == 125 or c == 93:
            depth -= 1
        i += 1
    state[0], state[1], state[2] = depth, in_string, escaped
    return found, i


def new_state(depth: int) -> np.ndarray:
    """(3,) int64: a scan that starts outside any string at this depth."""
    return np.array([depth, 0, 0], np.int64)
