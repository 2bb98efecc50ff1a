"""What each stage hands to the next: ids, counts and the frame of the pool, no arrays.  `detail` is what the catalog records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from storage.catalog.spaces import Space


@dataclass(frozen=True)
class Pool:
    """The examples to choose from: those of the sources, without what is held out or left out."""

    files: int
    examples: int
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class FeatureSpaces:
    """The spaces of the settings' gradient variants, which share one adapter: first the one that is selected by."""

    spaces: tuple[Space, ...]
    detail: Mapping[str, Any]

    @property
    def chosen(self) -> Space:
        """The space that is selected by."""
        return self.spaces[0]


@dataclass(frozen=True)
class Features:
    """The pool's examples that have a feature in the space that is selected by."""

    space_id: str
    pool: pl.DataFrame  # columns of storage.catalog.spaces.features_pool, in order of segment and row
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class Clustering:
    """The pool's clustering, which may know more rows than the pool has; `clustering_id` is None for a method without one."""

    clustering_id: str | None
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class Selection:
    """What was chosen; the rows are in the catalog."""

    selected: int
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """Where readers find the run."""

    snapshot: str
    detail: Mapping[str, Any]
