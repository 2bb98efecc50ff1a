"""Selection by instruction-following difficulty (Li et al. 2023, arXiv 2308.12032).  N examples."""

from __future__ import annotations

import numpy as np

from tagcos_stream.selection.methods import Words
from tagcos_stream.selection.scores import by_score


def difficulty(ifd: np.ndarray) -> np.ndarray:
    """Score examples: the highest difficulty below 1 comes first.

    At 1 or above the prompt does not help the answer; the paper leaves such examples out. Here they come after all others, the
    lowest first, since a budget is met exactly; examples without a value come last.

    Parameters
    ----------
    ifd
        (N,) loss of the answer given its prompt over its loss without the prompt; NaN where there is none.

    Returns
    -------
    np.ndarray
        (N,) float64: the difficulty below 1, minus the difficulty from 1 on, and -infinity without a value.
    """
    ifd = ifd.astype(np.float64)
    return np.where(np.isnan(ifd), -np.inf, np.where(ifd < 1, ifd, -ifd))


IFD = by_score(
    "ifd",
    lambda columns: difficulty(columns["ifd"]),
    Words("instruction-following difficulty {:.3f} (negative from 1 on)"),
    columns=("ifd",),
    reference="From quantity to quality, https://arxiv.org/abs/2308.12032",
)
