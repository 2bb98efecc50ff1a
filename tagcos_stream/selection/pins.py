"""Pinned rows: chosen whatever a method thinks of them.  n rows of a group, p pinned, D feature dimension."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tagcos_stream.rows.blocks import Subset
from tagcos_stream.selection.methods import Choice, Group
from tagcos_stream.types import ArrayRows


def others(group: Group, pinned: np.ndarray, mean: np.ndarray | None) -> tuple[np.ndarray, Group]:
    """Take the pinned rows out of a group.

    Parameters
    ----------
    group
        n rows.
    pinned
        (p,) int64.
    mean
        (D,) what the choice from the other rows is to match; None where the method matches nothing.

    Returns
    -------
    rest : np.ndarray
        (n - p,) int64, the other rows, ascending.
    group : Group
        With these alone.
    """
    rest = np.setdiff1d(np.arange(_rows(group)), pinned)
    features = group.features
    if features is not None:
        features = Subset(ArrayRows(features) if isinstance(features, np.ndarray) else features, rest)
    return rest, replace(
        group,
        columns={name: values[rest] for name, values in group.columns.items()},
        features=features,
        mean=mean,
        earlier=None,
        costs=None if group.costs is None else group.costs[rest],
        pinned=None,
    )


def spent(group: Group, pinned: np.ndarray) -> int:
    """Return what the pinned rows take of the budget: rows, or tokens where the budget is in tokens."""
    return len(pinned) if group.costs is None else int(group.costs[pinned].sum())


def stats_with_pinned(stats: Mapping[str, Any], group: Group, pinned: np.ndarray) -> dict[str, Any]:
    """Add the tokens of pinned rows to the stats of a choice from the others, where the budget is in tokens."""
    if group.costs is None:
        return dict(stats)
    return {"next_tokens": None} | dict(stats) | {"tokens": spent(group, pinned) + stats.get("tokens", 0)}


def with_pinned(choice: Choice, group: Group, pinned: np.ndarray, rest: np.ndarray) -> Choice:
    """Put pinned rows before those that a method without weights chose from the others.

    Parameters
    ----------
    choice
        From `others`.
    group
        With the pinned rows.
    pinned, rest
        (p,) and (n - p,) int64 rows of the group.

    Returns
    -------
    Choice
        Of the whole group; pinned rows have no score, and 0 as margin.
    """
    margins = np.zeros(len(pinned) + len(rest), choice.margins.dtype)
    margins[rest] = choice.margins
    return replace(
        choice,
        indices=np.concatenate([pinned, rest[choice.indices]]),
        scores=np.concatenate([np.full(len(pinned), np.nan), choice.scores]),
        margins=margins,
        stats=stats_with_pinned(choice.stats, group, pinned),
    )


def _rows(group: Group) -> int:
    if group.features is not None:
        return len(group.features) if isinstance(group.features, np.ndarray) else group.features.n_rows
    return len(next(iter(group.columns.values())))
