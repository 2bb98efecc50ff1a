"""Catalog records of how well selections represent their pools."""

from __future__ import annotations

from typing import Literal

import polars as pl

from storage.database import Catalog
from storage.tables import insert, require, utc_now

Dimensions = Literal["seen", "reserved"]
COLUMNS = [
    "cluster", "size", "selected", "error_plain", "error_weighted", "error_fitted", "datasets_reached", "clusters_reached",
    "chosen",
]  # fmt: skip


def commit(
    catalog: Catalog,
    run_id: str,
    *,
    method: str,
    fraction: float,
    seed: int,
    dimensions: Dimensions,
    rows: pl.DataFrame,
    seconds: float,
) -> None:
    """Record the measurements of one selection in one transaction.

    Calling this again overwrites the previous record of the same run, method, fraction, seed and dimensions.

    Parameters
    ----------
    catalog
        Where to record.
    run_id, method, fraction, seed, dimensions
        The selection, and on which feature dimensions it was measured.
    rows
        COLUMNS; one row with cluster null for the pool and one row per cluster.
    seconds
        Wall time of the measurement.
    """
    unit = {"run_id": run_id, "method": method, "fraction": fraction, "seed": seed, "dimensions": dimensions}
    with catalog.transaction() as connection:
        connection.execute(
            """DELETE FROM diagnostics WHERE run_id = $run_id AND method = $method AND fraction = $fraction AND seed = $seed
                AND dimensions = $dimensions""",
            unit,
        )
        named = {name: pl.lit(value) for name, value in unit.items()}
        insert(
            connection,
            "diagnostics",
            require(rows, COLUMNS).with_columns(**named, seconds=pl.lit(seconds), measured_at=pl.lit(utc_now())),
        )


def units_done(catalog: Catalog, run_id: str) -> set[tuple[str, float, int]]:
    """List what `tagcos diagnose` has measured on the features of a run.

    Parameters
    ----------
    catalog, run_id
        The run whose features were used; it may have no measurements.

    Returns
    -------
    set of (str, float, int)
        Method, fraction and seed.
    """
    done = catalog.read(
        "SELECT DISTINCT method, fraction, seed FROM diagnostics WHERE run_id = ? AND dimensions = 'reserved'", [run_id]
    )
    return set(done.rows())


def comparison(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """Return the columns of the macro comparison_of, ordered by fraction and error.

    Parameters
    ----------
    catalog, run_id
        The diagnosed run.

    Returns
    -------
    pl.DataFrame
        One row for each method and fraction.
    """
    return catalog.read("FROM comparison_of(?) ORDER BY fraction, error_fitted, error_plain, method", [run_id])
