"""Selection of the examples with the largest gradients (Paul et al. 2021): "GraNd", of the adapter and after the warm-up."""

from __future__ import annotations

from tagcos_stream.selection.methods import Words
from tagcos_stream.selection.scores import by_score

GRADIENT_NORM = by_score(
    "gradient-norm",
    lambda columns: columns["norm"],  # before normalisation
    Words("gradient of length {:.4g}"),
    columns=("norm",),
    reference="Deep learning on a data diet, https://arxiv.org/abs/2107.07075",
)
