"""Texts with the same words in the same order, whatever their case, spacing and punctuation."""

from __future__ import annotations

import numpy as np
import polars as pl

from tagcos_stream.data.canonical import message_text
from tagcos_stream.data.shingles import BASE, find_words


def word_keys(messages: pl.Series, *, answers_only: bool = False) -> np.ndarray:
    """Hash the words of conversations.

    Parameters
    ----------
    messages
        N conversations as they are stored.
    answers_only
        Only the assistant's turns; by default all turns but system messages.

    Returns
    -------
    np.ndarray
        (N,) uint64, equal for conversations whose turns have the same words in the same order (case, spacing, punctuation and
        roles do not count); 0 for those without a word.
    """

    def counts(role: str) -> bool:
        return role == "assistant" if answers_only else role != "system"

    return _keys(["\n".join(message_text(turn) for turn in turns if counts(turn["role"])) for turns in messages])


def _keys(texts: list[str]) -> np.ndarray:
    words = find_words(texts)
    counts = np.diff(words.starts)
    keys = np.zeros(len(texts), np.uint64)
    if not len(words.hashes):
        return keys
    powers = np.full(int(counts.max()), BASE, np.uint64)
    powers[0] = 1
    powers = np.cumprod(powers, dtype=np.uint64)  # wraps modulo 2**64
    place = np.arange(len(words.hashes)) - np.repeat(words.starts[:-1], counts)
    some = counts > 0
    keys[some] = np.add.reduceat(words.hashes * powers[place], words.starts[:-1][some])
    return keys
