"""The features of a run's target set, and what they ask of each group of the pool."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from flows.context import RunContext
from flows.stages.pool_view import PoolClustering
from storage.arrays import segments
from storage.catalog import targets
from tagcos_stream.memory import require_memory
from tagcos_stream.selection.groups import Groups
from tagcos_stream.selection.targets import TargetRows, group_targets
from tagcos_stream.types import UserError


@dataclass(frozen=True)
class Target:
    """A run's target set in the space that is selected by.

    Parameters
    ----------
    target_id
        The set.
    examples
        part, example_id, weight, segment, row of its m examples with a feature.
    parts
        Names of its parts, P.
    features
        Their features and parts.
    """

    target_id: str
    examples: pl.DataFrame
    parts: list[str]
    features: TargetRows


@dataclass(frozen=True)
class GroupTargets:
    """What a target set asks of G groups.

    Parameters
    ----------
    vectors
        (G, D) the mean of the target examples in each group.
    weights
        (G,) float64, the weight of the target in each group.
    """

    vectors: np.ndarray
    weights: np.ndarray


def open_target(run: RunContext, space_id: str) -> Target | None:
    """Read the features of the run's target set.

    Parameters
    ----------
    run
        The run; its target set is recorded.
    space_id
        The space that is selected by.

    Returns
    -------
    Target or None
        None if the run has no target set.

    Raises
    ------
    UserError
        No example of the set has a feature in this space, or they do not fit in memory.
    """
    found = targets.of_run(run.catalog, run.run_id)
    if found is None:
        return None
    everything = targets.examples(run.catalog, found.target_id)
    examples = targets.with_features(run.catalog, found.target_id, space_id)
    if examples.is_empty():
        raise UserError(
            f"target {found.name}: none of its {len(everything)} examples has a feature in space {space_id}: compute them with "
            f"`tagcos run`, the settings of that space and --target {found.name}"
        )
    if len(examples) < len(everything):
        lost = everything.join(examples, on=["part", "example_id"], how="anti").group_by("part").len().sort("part")
        by_part = ", ".join(f"{n} of {part or 'no name'}" for part, n in lost.iter_rows())
        run.reporter.say(f"target {found.name}: {len(everything) - len(examples)} examples have no feature ({by_part})")
    places = examples.select("segment", "row").unique().sort("segment", "row").with_row_index("at")
    rows = segments.open_features(run.root.files, space_id, places)
    require_memory(
        f"a target of {len(examples)} examples of {rows.dim} dimensions", 8 * len(examples) * rows.dim, run.memory_limit
    )
    at = examples.join(places, on=["segment", "row"], how="left", maintain_order="left")["at"].to_numpy().astype(np.int64)
    names = examples["part"].unique(maintain_order=True).to_list()
    numbers = examples["part"].replace_strict(names, range(len(names)), return_dtype=pl.Int64).to_numpy()
    weights = examples.group_by("part", maintain_order=True).agg(pl.col("weight").first())["weight"].to_numpy()
    features = TargetRows(rows.gather(np.arange(len(places)))[at].astype(np.float32), numbers, weights)
    return Target(found.target_id, examples, names, features)


def target_of_groups(target: Target, groups: Groups, view: PoolClustering | None) -> GroupTargets:
    """Divide a target among the clusters of a pool, or ask all of it of the whole pool.

    Parameters
    ----------
    target
        The target set.
    groups
        Of the pool.
    view
        The clustering; None for a method that chooses from the whole pool.

    Returns
    -------
    GroupTargets
        A target example belongs to the cluster of the nearest centroid, of those that have rows of the pool.
    """
    n_groups = len(groups.sizes)
    if view is None:
        return GroupTargets(*group_targets(target.features, np.zeros(len(target.features.parts), np.int64), n_groups))
    from tagcos_stream.clustering.nearest import NearestCentroid  # Numba takes seconds to import

    present = np.flatnonzero(groups.sizes)
    rows = target.features.rows
    labels, _ = NearestCentroid(view.reader.centroids[present])(rows, np.arange(len(rows), dtype=np.uint64))
    vectors, weights = group_targets(target.features, present[labels], n_groups)
    return GroupTargets(vectors.astype(np.float32), weights)  # as the means of clusters are
