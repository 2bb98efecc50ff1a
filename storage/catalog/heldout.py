"""Examples that are held out: met, counted and kept, but in no run's pool. They are what trained models are evaluated on.

Which ones is decided when an example is first met, before anything is computed of it, and for good: a segment of their own holds
them, which no pool sees. So nothing that is warmed up, clustered or selected can depend on them.
"""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl

from storage.database import Catalog
from tagcos_stream.types import UserError

# dataset, known, held: examples met of each dataset, but for target sets, and those of them that are held out
COUNTS = """SELECT e.dataset, count(*) AS known, count(*) FILTER (WHERE s.heldout) AS held
    FROM examples e JOIN segments s USING (segment) WHERE NOT coalesce(s.target, false) GROUP BY e.dataset"""


def share(catalog: Catalog, asked: float | None) -> float:
    """Return the fraction of every dataset that the root holds out: what its first run asked for, the same ever after.

    Parameters
    ----------
    catalog
        Of the root.
    asked
        By this run's settings; None for whatever the root has.

    Returns
    -------
    float
        From 0 to 0.5.

    Raises
    ------
    UserError
        Another fraction is asked for; examples that were warmed up on and selected from cannot be held out afterwards.
    """
    first = catalog.read(
        """SELECT coalesce((config->>'heldout')::DOUBLE, 0) AS share FROM runs
        WHERE run_id IN (SELECT run_id FROM segments) ORDER BY started_at, run_id LIMIT 1"""
    )["share"].to_list()
    if not first:
        return asked or 0.0
    if asked is not None and asked != first[0]:
        kept = f"holds out {first[0]:g} of every dataset" if first[0] else "holds nothing out"
        raise UserError(
            f"heldout {asked:g}: this root {kept}, decided by its first run and true of every example since; leave heldout away, "
            "start another --root, or evaluate on files of your own (`tagcos evaluate --heldout-files`)"
        )
    return float(first[0])


def choose(connection: duckdb.DuckDBPyConnection, new: pl.DataFrame, share: float) -> pl.Series:
    """Decide which new examples are held out.

    With them every dataset has round(share * examples) held out, as near as the new examples allow. Those with the lowest ids
    are taken: ids are hashes of the content, so that is a random draw, and the same one wherever the same examples arrive
    together.

    Parameters
    ----------
    connection
        In a transaction.
    new
        Columns example_id and dataset; not in the catalog yet.
    share
        Fraction to hold out.

    Returns
    -------
    pl.Series
        (n,) Boolean.
    """
    if not share or new.is_empty():
        return pl.Series(np.zeros(len(new), bool))
    known = connection.sql(COUNTS).pl()
    lowest = pl.col("example_id").rank("ordinal").over("dataset")
    ranked = new.select("example_id", "dataset", place=lowest, arrived=pl.len().over("dataset"))
    met = ranked.join(known, on="dataset", how="left", maintain_order="left", nulls_equal=True).fill_null(0)
    return met.select((pl.col("place") <= quota(share)).alias("heldout"))["heldout"]


def quota(share: float) -> pl.Expr:
    """Return how many more examples of a dataset to hold out.

    Parameters
    ----------
    share
        Fraction to hold out.

    Returns
    -------
    pl.Expr
        Over the columns known (examples of the dataset), held (those held out) and arrived.
    """
    # a half rounds up, not to even: one rule, whatever the count
    return (share * (pl.col("known") + pl.col("arrived")) + 0.5).floor() - pl.col("held")


def heldout(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """List the examples of the run's files that are held out.

    Parameters
    ----------
    catalog, run_id
        A run of any status.

    Returns
    -------
    pl.DataFrame
        example_id, segment, row, dataset, turns and chars, in order of id.
    """
    return catalog.read("FROM heldout_of(?) ORDER BY example_id", [run_id])
