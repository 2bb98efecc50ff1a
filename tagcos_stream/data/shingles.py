"""Texts as hashed words and runs of n words, for finding what two texts share.

A word is a stretch of ASCII letters and digits and of letters beyond ASCII, in lower case; a character of a script without
spaces (U+3000 to U+D7FF: Chinese, Japanese, Korean) is a word of its own. Everything else separates: punctuation, spaces,
U+0080 to U+00BF, U+2000 to U+2FFF.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it is a unit modulo 2**64 and no word of a run loses its weight


class Words(NamedTuple):
    """Words of N texts.

    hash (W,) uint64; begin, end (W,) byte positions in `data`; starts (N + 1,): words of text i are [starts[i], starts[i + 1]).
    """

    hashes: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    starts: np.ndarray
    data: bytes


def find_words(texts: Sequence[str]) -> Words:
    """Words of every text."""
    parts = [t.lower().encode("utf-8", "replace") for t in texts]
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(p) for p in parts], out=offsets[1:])
    data = b"".join(parts)
    most = len(data) // 2 + len(parts) + 1 if data.isascii() else len(data) + 1
    hashes, begin, end = np.empty(most, np.uint64), np.empty(most, np.int64), np.empty(most, np.int64)
    starts = np.zeros(len(parts) + 1, np.int64)
    n = _scan(np.frombuffer(data, np.uint8), offsets, hashes, begin, end, starts)
    return Words(hashes[:n], begin[:n], end[:n], starts, data)


def runs(words: Words, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes (R,) uint64 of every run of n words within one text, and starts (N + 1,) as in Words.

    Run r of a text begins at its word r.
    """
    counts = np.maximum(np.diff(words.starts) - (n - 1), 0)
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    first = np.repeat(words.starts[:-1] - starts[:-1], counts) + np.arange(starts[-1])
    out = np.zeros(len(first), np.uint64)
    for k in range(n):  # wraps modulo 2**64
        out = out * BASE + words.hashes[first + k]
    return out, starts


@njit(cache=True, nogil=True)
def _scan(data, offsets, hashes, begin, end, starts):  # type: ignore[no-untyped-def]
    n = 0
    for text in range(offsets.shape[0] - 1):
        i, stop = offsets[text], offsets[text + 1]
        inside = False
        value = np.uint64(0)
        while i < stop:
            c = data[i]
            width, kind = 1, 0  # kind: 0 separates, 1 part of a word, 2 a word of its own
            if (48 <= c <= 57) or (97 <= c <= 122) or (65 <= c <= 90):
                kind = 1
            elif c >= 0xF0:
                width, kind = 4, 1
            elif c >= 0xE0:
                width = 3
                kind = 0 if c == 0xE2 else (2 if 0xE3 <= c <= 0xED else 1)
            elif c >= 0xC0:
                width, kind = 2, (0 if c == 0xC2 else 1)
            width = min(width, stop - i)
            if kind != 1 and inside:
                hashes[n], end[n] = _mixed(value), i
                n += 1
                inside = False
            if kind != 0:
                if not inside:
                    value = np.uint64(0xCBF29CE484222325)
                    begin[n] = i
                for k in range(width):  # FNV-1a
                    value = (value ^ np.uint64(data[i + k])) * np.uint64(0x100000001B3)
                inside = True
                if kind == 2:
                    hashes[n], end[n] = _mixed(value), i + width
                    n += 1
                    inside = False
            i += width
        if inside:
            hashes[n], end[n] = _mixed(value), stop
            n += 1
        starts[text + 1] = n
    return n


@njit(cache=True, nogil=True)
def _mixed(value):  # type: ignore[no-untyped-def]
    """Finaliser of SplitMix64: FNV's low bits alone are too regular to be added up over a run."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
