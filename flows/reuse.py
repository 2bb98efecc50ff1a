"""Which feature spaces and which clustering of a root a run takes as they are: asked by the plan, and again by the stages."""

from __future__ import annotations

from typing import get_args

import polars as pl

from flows.vectors import find_vector_space
from storage.catalog import clusterings, spaces
from storage.database import Catalog
from tagcos_stream.config import VECTORS, Settings, Variant
from tagcos_stream.identity import clustering_id, clustering_recipe, space_recipe


def find_model_spaces(catalog: Catalog, settings: Settings) -> dict[str, spaces.Space]:
    """Find the root's feature spaces for these settings, of those that a model computes.

    Parameters
    ----------
    catalog
        Of the root.
    settings
        Those that identify a space are compared.

    Returns
    -------
    dict
        Space by variant: the wanted ones, and others that share their adapter; none for settings that need no model.
    """
    recipes = {name: space_recipe(settings, name) for name in get_args(Variant) if settings.model_variants and name != VECTORS}
    found = spaces.find_spaces(catalog, list(recipes.values()))
    return {name: found[recipe] for name, recipe in recipes.items() if recipe in found}


def find_spaces(catalog: Catalog, settings: Settings, run_id: str | None = None) -> dict[str, spaces.Space]:
    """Find the root's feature spaces for these settings.

    Parameters
    ----------
    catalog, settings
        As for `find_model_spaces`.
    run_id
        The run whose source files vectors of the user's own may name, where they are read.

    Returns
    -------
    dict
        Those of `find_model_spaces`, and the one of the user's vectors if these are wanted.
    """
    found = find_model_spaces(catalog, settings)
    of_vectors = find_vector_space(catalog, settings, run_id) if VECTORS in settings.variants else None
    return found if of_vectors is None else found | {VECTORS: of_vectors}


def find_clustering(catalog: Catalog, settings: Settings, space_id: str, pool: pl.DataFrame) -> tuple[str, str | None]:
    """Find the clustering that a run on this pool would use.

    Parameters
    ----------
    catalog, settings
        Of the root, and of the run.
    space_id
        Feature space of the pool.
    pool
        Columns segment and row.

    Returns
    -------
    tuple of (str, str or None)
        Id of a clustering fitted to exactly this pool, and the id of the one to use: that one if it exists, otherwise, among
        clusterings made with these settings, the one that has most of the pool.
    """
    exact = clustering_id(settings, space_id, pool["example_id"].to_list())
    if clusterings.exists(catalog, exact):
        return exact, exact
    return exact, clusterings.find_clustering(catalog, clustering_recipe(settings, space_id), pool)
