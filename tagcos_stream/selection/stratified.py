"""Stratified random selection: every dataset and quarter of length in proportion."""

from __future__ import annotations

from tagcos_stream.selection.methods import Words
from tagcos_stream.selection.scores import by_score

STRATIFIED = by_score(
    "stratified",
    lambda columns: columns["draw"],
    Words("draw {:.6f} within its source and length"),
    within="strata",
    seeded=True,
)
