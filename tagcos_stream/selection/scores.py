"""Selection by one number an example: random, stratified, longest, hardest, perplexity, centroid. N examples, k budget.

Ties are decided by a seeded draw, never by position: lengths tie by the thousand where examples are cut to a maximum, and
positions would then prefer whichever file was named first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tagcos_stream.selection.methods import Choice

LENGTH_BINS = 4


def draws(example_ids: Sequence[str], seed: int) -> np.ndarray:
    """(N,) float64 in [0, 1): a number drawn for each example. It follows from its id (32 hex digits) and the seed alone, so a
    grown pool keeps the draws it had."""
    words = np.frombuffer(bytes.fromhex("".join(example_ids)), ">u8").reshape(-1, 2).astype(np.uint64)
    mixed = _splitmix(words[:, 0] ^ _splitmix(words[:, 1] ^ _splitmix(np.array([seed], np.uint64))))
    return (mixed >> np.uint64(11)) * 2.0**-53


def _splitmix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele, Lea and Flood 2014) of uint64 numbers."""
    z = z * np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def scores(
    method: str, *, draws: np.ndarray, target_tokens: np.ndarray, losses: np.ndarray, distances: np.ndarray | None
) -> np.ndarray:
    """(N,) float64: what the method ranks by, the larger the better. distances (N,) to the centroid, for `centroid` only."""
    if method in ("random", "stratified"):
        return draws
    if method == "longest":  # long answers: Zhao et al. 2024, arXiv 2402.04833
        return target_tokens.astype(np.float64)
    if method == "hardest":
        return losses.astype(np.float64)
    if method == "perplexity":
        return middle(losses)
    assert method == "centroid"
    assert distances is not None
    return -distances.astype(np.float64)


def middle(losses: np.ndarray) -> np.ndarray:
    """(N,) float64, 0 at the median and -1/2 at the ends: minus the distance in rank from the median, as a share of all.

    The middle of the distribution of perplexities prunes best in Marion et al. 2023 (arXiv 2309.04564); perplexity is
    the exponential of the loss, so their ranks are the same. Equal losses share a rank.
    """
    ordered = np.sort(losses)
    rank = (np.searchsorted(ordered, losses, "left") + np.searchsorted(ordered, losses, "right") - 1) / 2
    return -np.abs(rank - (len(losses) - 1) / 2) / max(len(losses), 1)


def strata(sources: Sequence[str | None], lengths: np.ndarray) -> np.ndarray:
    """(N,) int64 from 0: source by quarter of the pool's lengths, numbered in order of source and length; none is empty."""
    edges = np.quantile(lengths, np.arange(1, LENGTH_BINS) / LENGTH_BINS)
    names = np.array([source or "" for source in sources])
    source = np.unique(names, return_inverse=True)[1]
    return np.unique(source * LENGTH_BINS + np.searchsorted(edges, lengths, "left"), return_inverse=True)[1]


def best(scores: np.ndarray, draws: np.ndarray, budget: int) -> Choice:
    """The rows with the largest scores, the best first; of equal ones those with the larger draw."""
    order = np.lexsort((np.arange(len(scores)), -draws, -scores))[:budget]
    return Choice(indices=order, scores=scores[order], margins=scores)
