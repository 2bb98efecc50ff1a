"""The user's own checks of a run: queries that must return no row, and what they found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import duckdb
import polars as pl

from storage.database import SAFE_STATEMENTS, Catalog
from storage.tables import fetch, insert_row, utc_now
from tagcos_stream.types import UserError

MOST_ROWS = 1000  # counted of a check that fails


def failing_rows(catalog: Catalog, query: str, values: Mapping[str, Any]) -> pl.DataFrame:
    """Run a check, which can read the catalog and nothing else.

    Parameters
    ----------
    catalog
        Open read-only, without access to files and extensions, its configuration locked.
    query
        One SELECT statement (or FROM ...).
    values
        Values of its parameters `$name`; a check need not use all.

    Returns
    -------
    pl.DataFrame
        The rows, at most MOST_ROWS + 1.

    Raises
    ------
    UserError
        It is not one query, has another parameter, or fails; without the name of its file.
    """
    with catalog.reading(query, locked=True) as connection:
        try:
            statements = connection.extract_statements(query)
            if len(statements) != 1 or statements[0].type.name not in SAFE_STATEMENTS:
                raise UserError("a check is one SELECT statement")
            asked = set(statements[0].named_parameters)
            if unknown := sorted(asked - set(values)):
                raise UserError(f"unknown parameter ${unknown[0]}; there are {', '.join(f'${name}' for name in values)}")
            return fetch(connection, query, {name: values[name] for name in asked}, limit=MOST_ROWS + 1)
        except duckdb.Error as error:
            raise UserError(" ".join(str(error).split())) from error


def record(catalog: Catalog, run_id: str, stage: str, name: str, severity: str, rows: int, first: Mapping[str, Any]) -> None:
    """Record the result of a check; a resumed run replaces it."""
    with catalog.transaction() as connection:
        insert_row(
            connection,
            "check_results",
            replace=True,
            run_id=run_id,
            stage=stage,
            name=name,
            severity=severity,
            rows=rows,
            first_row=json.dumps(first, default=str) if first else None,
            checked_at=utc_now(),
        )


def of_run(catalog: Catalog, run_id: str) -> list[dict[str, Any]]:
    """Return the recorded checks of a run in the order in which they were run."""
    return catalog.read(
        "SELECT stage, name, severity, rows, first_row FROM check_results WHERE run_id = ? ORDER BY checked_at, name", [run_id]
    ).to_dicts()
