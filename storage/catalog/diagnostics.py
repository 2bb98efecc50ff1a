"""How well selections stand for their pools, in the catalog."""

from __future__ import annotations

from typing import Literal

import polars as pl

from storage.database import Catalog, insert, require, utc_now

Dimensions = Literal["seen", "held out"]
COLUMNS = [
    "cluster", "size", "selected", "error_plain", "error_weighted", "error_fitted", "sources_reached", "clusters_reached",
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
    """What one selection was measured to be, in one transaction: COLUMNS, a row with cluster null for the pool and one a cluster.

    Said again, it replaces what was said before of this run, method, fraction, seed and dimensions.
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
    """(method, fraction, seed) that `tagcos diagnose` has measured on this run's features."""
    done = catalog.read(
        "SELECT DISTINCT method, fraction, seed FROM diagnostics WHERE run_id = ? AND dimensions = 'held out'", [run_id]
    )
    return set(done.rows())


def comparison(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """The columns of the macro comparison_of, in order of fraction and error."""
    return catalog.read("FROM comparison_of(?) ORDER BY fraction, error_fitted, error_plain, method", [run_id])
