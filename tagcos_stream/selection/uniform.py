"""Uniform random selection: what every other method is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tagcos_stream.selection.groups import Group
from tagcos_stream.selection.methods import Choice, Limits, Method, Words
from tagcos_stream.selection.scores import best


def choose(group: Group, budget: int, settings: Mapping[str, Any], limits: Limits) -> Choice:
    """Choose the examples with the largest draws."""
    return best(group.columns["draw"], group.columns["draw"], budget)


RANDOM = Method(
    "random",
    within="pool",
    choose=choose,
    words=Words("draw {:.6f}", "draw {:.6f}"),
    seeded=True,
    columns=("draw",),
)
