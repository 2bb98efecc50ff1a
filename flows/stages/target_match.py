"""How well a selection stands for its run's target set: what is nearest to each target example, and to each chosen one."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from flows.context import RunContext
from flows.results import Features
from flows.stages.target_rows import Target
from storage.arrays import segments
from storage.catalog import selections, targets
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
    shares = selections.shares(run.catalog, run.run_id)
    chosen = pool.select("example_id", "segment", "row").join(shares, on=["segment", "row"]).sort("segment", "row")
    chosen_rows = segments.open_features(run.root.files, features.space_id, chosen)
    limits: dict[str, Any] = {"memory_limit": run.memory_limit, "threads": run.settings.threads}
    near = nearest(chosen_rows, rows, **limits)
    targets.record_coverage(
        run.catalog,
        run.run_id,
        wanted=target.examples.select(
            "part",
            "example_id",
            chosen_id=chosen["example_id"].gather(near.rows),
            chosen_cosine=pl.Series(near.cosines),
        ).hstack(_nearest_of_pool(run, features, target)),
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


def _nearest_of_pool(run: RunContext, features: Features, target: Target) -> pl.DataFrame:
    """pool_id and pool_cosine of each target example: its nearest example of the pool, from an earlier run as far as it knows it.

    A new target set is compared with the whole pool. One that an earlier run had is compared with what the pool gained since, and
    target examples whose nearest example left the pool with all of it.
    """
    pool, key = features.pool, ["part", "example_id"]
    wanted = target.examples.select(key).with_row_index("place")
    known, new_ids = targets.compared_pool(run.catalog, run.run_id, features.space_id, target.target_id)
    # each by a look at the pool for the few: a join, or the set of its ids, would take memory for all of them
    still = pool.filter(pl.col("example_id").is_in(known["pool_id"].implode()))["example_id"]
    known = known.filter(pl.col("pool_id").is_in(still.implode()))
    gained = pool.filter(pl.col("example_id").is_in(new_ids["example_id"].implode()))
    found = [known]
    for rows, some in ((pool, wanted.join(known, on=key, how="anti")), (gained, wanted.join(known, on=key, how="semi"))):
        if rows.is_empty() or some.is_empty():
            continue
        with run.reporter.stage("compare pool with target", "examples") as progress:
            near = nearest(
                segments.open_features(run.root.files, features.space_id, rows),
                target.features.rows[some["place"].to_numpy()],
                memory_limit=run.memory_limit,
                threads=run.settings.threads,
            )
            progress(len(rows), len(rows))
        ids = rows["example_id"].gather(near.rows)
        found.append(some.select(*key, pool_id=ids, pool_cosine=pl.Series(near.cosines)))
    best = pl.concat(found).sort("pool_cosine", descending=True, maintain_order=True).unique(key, keep="first")
    return wanted.join(best, on=key, how="left", maintain_order="left").select("pool_id", "pool_cosine")
