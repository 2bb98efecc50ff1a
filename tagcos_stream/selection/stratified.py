"""Stratified random selection: every dataset and quarter of length in proportion."""

from __future__ import annotations

from tagcos_stream.selection import uniform
from tagcos_stream.selection.methods import Method, Words

STRATIFIED = Method(
    "stratified",
    within="strata",
    choose=uniform.choose,
    words=Words("draw {:.6f} within its source and length", "draw {:.6f} within its source and length"),
    seeded=True,
    columns=("draw",),
)
