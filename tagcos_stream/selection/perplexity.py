"""Selection from the middle of the distribution of perplexities (Marion et al. 2023).  N examples."""

from __future__ import annotations

import numpy as np

from tagcos_stream.selection.methods import Words
from tagcos_stream.selection.scores import by_score


def middle(losses: np.ndarray) -> np.ndarray:
    """Score losses by how near they are to the median in rank.

    The middle of the distribution of perplexities prunes best in Marion et al. 2023 (arXiv 2309.04564); perplexity is the
    exponential of the loss, so the ranks are the same. Equal losses share a rank.

    Parameters
    ----------
    losses
        (N,) nats.

    Returns
    -------
    np.ndarray
        (N,) float64: 0 at the median and -1/2 at the ends, minus the distance in rank as a fraction of N.
    """
    ordered = np.sort(losses)
    rank = (np.searchsorted(ordered, losses, "left") + np.searchsorted(ordered, losses, "right") - 1) / 2
    return -np.abs(rank - (len(losses) - 1) / 2) / max(len(losses), 1)


PERPLEXITY = by_score(
    "perplexity",
    lambda columns: middle(columns["loss"]),
    Words("perplexity {:.1f}% of the pool from the median", scale=-100.0),
    columns=("loss",),
    reference="When less is more, https://arxiv.org/abs/2309.04564",
)
