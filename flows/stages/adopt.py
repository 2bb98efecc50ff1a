"""The first stage of selecting again: pool and features are those of an earlier run; no source is read, no gradient computed."""

from __future__ import annotations

import json
from typing import Any

from flows.context import RunContext
from flows.results import Features
from flows.stages.gradients import features_of
from flows.stages.target import adopt_target
from storage import gc
from storage.catalog import pool, runs, spaces, stages
from storage.database import Catalog
from tagcos_stream.config import VECTORS, Settings
from tagcos_stream.identity import space_recipe
from tagcos_stream.types import UserError


def adopt(run: RunContext) -> Features:
    """Take over the pool of the run that is selected from again, with its features of the settings' gradient variant.

    Parameters
    ----------
    run
        Context of the new run, which names the other one.

    Returns
    -------
    Features
        Of the whole pool.

    Raises
    ------
    UserError
        The variant was not computed for the whole pool, and the message says how to compute it; or no target set has the
        name asked for.
    """
    assert run.reselects is not None
    gc.sweep(run.root, gc.orphans(run.root))
    pool.adopt_pool(run.catalog, run.run_id, run.reselects)
    base = runs.complete_run(run.catalog, run.reselects)
    adopt_target(run, base)
    examples = len(pool.pool(run.catalog, run.run_id))
    space_id = space_of_variant(run.catalog, run.settings, base, run.run_id)
    runs.set_run(run.catalog, run.run_id, space_id=space_id)
    detail: dict[str, Any] = {"of": run.reselects, "examples": examples}
    if (of_vectors := _vector_space_of(run.catalog, run.reselects)) is not None:
        detail["vectors"] = {"space_id": of_vectors}
    return features_of(run, space_id, detail)


def space_of_variant(catalog: Catalog, settings: Settings, base: dict[str, Any], run_id: str) -> str:
    """Of the feature spaces computed in one pass (`also_gradients`), find the one that is selected by.

    Parameters
    ----------
    catalog
        Where the runs are recorded.
    settings
        With the gradient variant.
    base
        The run that is selected from again, as a row of `runs`.
    run_id
        A run with the pool: the new one, or `base` itself.

    Returns
    -------
    str
        Id of the space.

    Raises
    ------
    UserError
        The variant was not computed for the whole pool.
    """
    variant, own = settings.gradient, str(base["space_id"])
    before = json.loads(base["config"])["gradient"]
    if variant == before:
        return own
    # computed together with the features of that run, whose warm-up decides what hidden states are
    together = settings.model_copy(update={"also_gradients": (before, *settings.also_gradients)})
    found = spaces.spaces_of(catalog, space_recipe(together, variant))
    if variant == VECTORS and (of_vectors := _vector_space_of(catalog, base["run_id"])) is not None:
        found = [space for space in found if space.space_id == of_vectors]  # those of other vectors have the same recipe
    space = found[0] if found else None
    computed = 0 if space is None else spaces.looked_at(catalog, run_id, space.space_id)
    if space is None or computed < spaces.looked_at(catalog, run_id, own):
        raise UserError(
            f"gradient {variant}: {computed} examples of the pool of {base['run_id']} have features of this variant; compute "
            f"them with `tagcos run`, the same settings and --also-gradients {variant}"
        )
    return space.space_id


def _vector_space_of(catalog: Catalog, run_id: str) -> str | None:
    """The space of the user's own vectors in a run with its features; None where it has none, or an older version made it."""
    details = (stages.detail_of(catalog, run_id, stage) or {} for stage in ("warm-up", "pool"))
    return next((detail["vectors"].get("space_id") for detail in details if "vectors" in detail), None)
