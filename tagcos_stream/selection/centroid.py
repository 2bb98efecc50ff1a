"""Selection of the examples nearest to the centroids of their clusters."""

from __future__ import annotations

from tagcos_stream.selection.methods import Words
from tagcos_stream.selection.scores import by_score

CENTROID = by_score(
    "centroid",
    lambda columns: -columns["distance"],
    Words("{:.4g} from the centroid", scale=-1.0),
    columns=("distance",),
    within="clusters",
    seeded=True,
)
