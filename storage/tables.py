"""Frames into tables, query results into frames, and times as the catalog stores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import duckdb
import polars as pl


def utc_now() -> datetime:
    """Return the current time as the catalog stores it.

    Returns
    -------
    datetime
        UTC, without a time zone: DuckDB needs its ICU extension for time zones, which a shell may lack.
    """
    return datetime.now(UTC).replace(tzinfo=None)


def quoted(text: str) -> str:
    """Quote a text as an SQL literal, for the few statements that take no parameters.

    Parameters
    ----------
    text
        Any; single quotes are doubled.

    Returns
    -------
    str
        In single quotes.
    """
    return "'" + text.replace("'", "''") + "'"


def quoted_name(name: str) -> str:
    """Quote a name as an SQL identifier.

    Parameters
    ----------
    name
        Any text.

    Returns
    -------
    str
        In double quotes.
    """
    return '"' + name.replace('"', '""') + '"'


def fetch(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
    limit: int | None = None,
    finite: bool = False,
) -> pl.DataFrame:
    """Run a query and fetch its result.

    Parameters
    ----------
    connection
        An open connection.
    query
        One or several statements.
    parameters
        Values of its placeholders, by position or name.
    limit
        Maximum number of rows; None for all.
    finite
        Null in place of infinite dates and times, which Python has not.

    Returns
    -------
    pl.DataFrame
        Rows of the last statement; intervals and unions, which Polars has not, as text.
    """
    if limit is not None or finite:  # of a query that a user wrote
        query = _without_end(query)
    result = connection.sql(query, params=parameters) if parameters is not None else connection.sql(query)
    if result is None:
        return pl.DataFrame()
    if limit is not None:
        result = result.limit(limit)
    columns = [_readable(quoted_name(name), str(kind), finite) for name, kind in zip(result.columns, result.types, strict=True)]
    if columns != [quoted_name(name) for name in result.columns]:
        result = result.project(", ".join(columns))
    return result.pl()


def _without_end(query: str) -> str:
    """A query without semicolons and comments at its end, which DuckDB cannot parse where it limits the rows."""
    text = query.encode()
    end = len(text)
    for start, kind in reversed(duckdb.tokenize(query)):  # starts count bytes
        if kind != duckdb.token_type.comment and text[start : start + 1] != b";":
            break
        end = start
    return text[:end].decode()


def _readable(name: str, kind: str, finite: bool) -> str:
    """A column of a result as Polars and Python can hold it."""
    if "INTERVAL" in kind or "UNION" in kind:  # the difference of two times, also in a list
        return f"{name}::VARCHAR AS {name}"
    if finite and kind in ("DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE"):
        return f"CASE WHEN isfinite({name}) THEN {name} END AS {name}"
    return name


def insert(connection: duckdb.DuckDBPyConnection, table: str, frame: pl.DataFrame, *, replace: bool = False) -> None:
    """Append a frame to a table, matching columns by name.

    Parameters
    ----------
    connection
        A connection in a transaction.
    table
        Name of the table; not from user input.
    frame
        Rows to append.
    replace
        Replace rows with the same primary key.
    """
    connection.register("incoming", frame.to_arrow())
    connection.execute(f"INSERT {'OR REPLACE ' * replace}INTO {table} BY NAME SELECT * FROM incoming")
    connection.unregister("incoming")


def replace_of_run(connection: duckdb.DuckDBPyConnection, table: str, run_id: str, frame: pl.DataFrame) -> None:
    """Replace a run's rows of a table.

    Parameters
    ----------
    connection, table
        As for `insert`.
    run_id
        The run.
    frame
        Its rows, without the column run_id.
    """
    connection.execute(f"DELETE FROM {table} WHERE run_id = ?", [run_id])
    insert(connection, table, frame.with_columns(run_id=pl.lit(run_id)))


def insert_row(connection: duckdb.DuckDBPyConnection, table: str, *, replace: bool = False, **values: Any) -> None:
    """Append one row to a table.

    Parameters
    ----------
    connection, table, replace
        As for `insert`.
    values
        Values by column.
    """
    columns, marks = ", ".join(values), ", ".join("?" * len(values))
    connection.execute(f"INSERT {'OR REPLACE ' * replace}INTO {table} ({columns}) VALUES ({marks})", list(values.values()))


def require(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """Check that a frame has columns.

    Parameters
    ----------
    frame
        Any frame.
    columns
        Names of the required columns.

    Returns
    -------
    pl.DataFrame
        These columns, in this order.

    Raises
    ------
    ValueError
        A column is missing.
    """
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"the frame lacks columns {missing}; it has {frame.columns}")
    return frame.select(columns)
