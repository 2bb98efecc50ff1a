"""Finds the elements of a JSON list in a stream of bytes without parsing them, in bounded memory whatever the list's size.

A streaming parser stops for good at the first error. Brackets and quotes are enough to find the commas between elements, so
that a broken element costs one reject and the list goes on.
"""

from __future__ import annotations

import numpy as np
from numba import njit

DEPTH, IN_STRING, ESCAPED, EXPECTED, OF_OBJECTS = 0, 1, 2, 3, 4  # places in the state
RUNNING, ENDED, FULL = 0, 1, 2  # what a scan came back for
ANYTHING, BEHIND_VALUE, KEY, COLON, VALUE, SCALAR = 0, 1, 2, 3, 4, 5  # what may come next within the outermost object
NONE, MISPLACED = -1, -2  # what `find_list` found in place of a list


@njit(cache=True, nogil=True)
def scan_elements(data, position, state, level, cuts):  # type: ignore[no-untyped-def]
    """Positions of commas at depth `level`, and of the bracket that closes it, from `position` on.

    data (n,) uint8; state (5,) int64 carried from chunk to chunk; cuts (m,) int64, filled. Returns (cuts filled, next position,
    why). A newline within a string ends the string: JSON allows none there, so a quote was lost, and what follows would be read
    inside out. A brace that closes nothing belongs to its element, which no parser will take: only a bracket ends a list.
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
        elif c == 93 and depth == level:
            depth -= 1
            cuts[found] = i
            found += 1
            why = 1
            i += 1
            break
        elif c == 125 or c == 93:
            depth = max(depth - 1, level)
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
    """Position of the next `[` that opens a list directly within the outermost object; state as in `scan_elements`.

    Where the state asks for lists of objects, one whose first element is within the data and no object is passed over.

    Returns (position, next position). The position is NONE where there is no list, and MISPLACED where the next one holds what
    JSON does not allow between the members of an object or behind it; that is only looked for once the state expects something.
    """
    depth, in_string, escaped, expected = state[0], state[1], state[2], state[3]
    n, found = data.shape[0], NONE
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
                if expected and depth == 1:
                    expected = COLON if expected == KEY else BEHIND_VALUE
        elif c == 32 or c == 9 or c == 10 or c == 13:
            pass
        elif expected and depth <= 1 and (depth < 1 or not _may_follow(c, expected)):
            found = MISPLACED
            break
        elif c == 34:
            in_string = 1
        elif c == 123 or c == 91:
            depth += 1
            if c == 91 and depth == 2 and not (state[OF_OBJECTS] and _holds_no_object(data, i + 1)):
                found = i
                i += 1
                break
        elif c == 125 or c == 93:
            depth -= 1
            if expected and depth == 1:
                expected = BEHIND_VALUE
        elif expected and depth == 1:
            expected = KEY if c == 44 else VALUE if c == 58 else SCALAR
        i += 1
    state[0], state[1], state[2], state[3] = depth, in_string, escaped, expected
    return found, i


@njit(cache=True, nogil=True)
def _holds_no_object(data, position):  # type: ignore[no-untyped-def]
    """Whether a list that begins here surely has another first element, or none."""
    for c in data[position:]:
        if not (c == 32 or c == 9 or c == 10 or c == 13):
            return c != 123
    return False


@njit(cache=True, nogil=True, inline="always")
def _may_follow(c, expected):  # type: ignore[no-untyped-def]
    """Whether a character, no space, may stand where something is expected; a comma behind the last member is let pass."""
    if expected == KEY:
        return c == 34 or c == 125
    if expected == COLON:
        return c == 58
    if expected == BEHIND_VALUE:
        return c == 44 or c == 125
    if expected == SCALAR and (c == 44 or c == 125):
        return True
    if c == 44 or c == 125 or c == 93 or c == 58:
        return False
    return expected == VALUE or not (c == 34 or c == 123 or c == 91)


def new_state(depth: int) -> np.ndarray:
    """(5,) int64: a scan that starts outside any string at this depth, expects nothing, and finds lists of anything."""
    return np.array([depth, 0, 0, ANYTHING, 0], np.int64)
