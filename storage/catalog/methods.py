"""Selection methods in the catalog: what SQL needs to explain a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from storage.database import Catalog
from storage.tables import insert, require

COLUMNS = [
    "method", "within", "weights", "seeded", "reference", "words_chosen", "words_left", "words_unscored", "scale",
]  # fmt: skip


def record_methods(catalog: Catalog, methods: Sequence[Mapping[str, Any]]) -> None:
    """Write the methods that this version knows; those of earlier versions stay, as their runs do.

    Parameters
    ----------
    catalog
        Of a root whose writer the caller is.
    methods
        One plain row a method, with the table's columns.
    """
    rows = require(pl.DataFrame(methods, schema_overrides={"words_unscored": pl.String, "scale": pl.Float64}), COLUMNS)
    with catalog.transaction() as connection:
        insert(connection, "methods", rows, replace=True)
