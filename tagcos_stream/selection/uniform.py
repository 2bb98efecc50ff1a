"""Uniform random selection: what every other method is compared with."""

from __future__ import annotations

from tagcos_stream.selection.methods import Words
from tagcos_stream.selection.scores import by_score

RANDOM = by_score("random", lambda columns: columns["draw"], Words("draw {:.6f}"), seeded=True)
