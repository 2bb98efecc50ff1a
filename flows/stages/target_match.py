"""How well a selection stands for its run's target set: what is nearest to each target example, and to each chosen one."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from flows.context import RunContext
from flows.results import Features
from flows.stages.target_rows import Target
from storage.arrays import segments
from storage.catalog import targets
from tagcos_stream.selection.match import relative_error
from tagcos_stream.selection.nearest import nearest
from tagcos_stream.selection.targets import group_targets


def measure_target(run: RunContext, features: Features, target: Target) -> dict[str, Any]:
    """Record the nearest chosen example and the nearest example of the pool of each target example, and the other way round.

    Parameters
    ----------
    run
        Its selection is recorded.
    features
        The pool's examples with a feature.
    target
        The run's target set.

    Returns
    -------
    dict
        target_error_plain and target_error_weighted: relative errors of the target's mean feature.
    """
    pool, rows = features.pool, target.features.rows
    shares = run.catalog.read("SELECT segment, row, share FROM selection_of(?)", [run.run_id])
    chosen = pool.select("example_id", "segment", "row").join(shares, on=["segment", "row"]).sort("segment", "row")
    chosen_rows = segments.open_features(run.root.files, features.space_id, chosen)
    limits: dict[str, Any] = {"memory_limit": run.memory_limit, "threads": run.settings.threads}
    near = nearest(chosen_rows, rows, **limits)
    with run.reporter.stage("compare pool with target", "examples") as progress:
        possible = nearest(segments.open_features(run.root.files, features.space_id, pool), rows, **limits)
        progress(len(pool), len(pool))
    targets.record_coverage(
        run.catalog,
        run.run_id,
        wanted=target.examples.select(
            "part",
            "example_id",
            chosen_id=chosen["example_id"].gather(near.rows),
            chosen_cosine=pl.Series(near.cosines),
            pool_id=pool["example_id"].gather(possible.rows),
            pool_cosine=pl.Series(possible.cosines),
        ),
        chosen=chosen.select(
            "example_id",
            part=target.examples["part"].gather(near.queries),
            wanted_id=target.examples["example_id"].gather(near.queries),
            cosine=pl.Series(near.row_cosines),
        ),
    )
    mean = group_targets(target.features, np.zeros(len(rows), np.int64), 1)[0][0]
    plain, weighted = np.zeros((2, len(mean)))
    share = chosen["share"].to_numpy()
    for block in range(len(chosen_rows.starts) - 1):
        here = slice(chosen_rows.starts[block], chosen_rows.starts[block + 1])
        found = chosen_rows.read(block).astype(np.float64)
        plain += found.sum(axis=0)
        weighted += share[here] @ found
    errors = relative_error(plain / len(chosen), mean), relative_error(weighted, mean)
    return {"target_error_plain": round(errors[0], 4), "target_error_weighted": round(errors[1], 4)}
