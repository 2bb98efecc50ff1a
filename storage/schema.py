"""The schema of the catalog: numbered migrations, and the views and macros, which are replaced whenever their SQL changes.

The migrations are in storage/sql; views and macros are those of storage/views.py.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from storage.tables import utc_now
from storage.views import SQL, table_names, views_digest, views_text
from tagcos_stream.types import UserError


def migrations(folder: Path = SQL) -> list[tuple[int, Path]]:
    """List the migrations.

    Parameters
    ----------
    folder
        Folder with files `NNN_name.sql`, numbered from 001 without gaps.

    Returns
    -------
    list of (int, Path)
        Number and file of each migration, in order.
    """
    found = sorted((int(path.name[:3]), path) for path in folder.glob("[0-9][0-9][0-9]_*.sql"))
    assert [number for number, _ in found] == list(range(1, len(found) + 1)), f"gaps in {folder}"
    return found


SCHEMA_VERSION = len(migrations())


def newer(path: Path, found: int, expected: int) -> UserError:
    """Make the error for a catalog that a newer version wrote.

    Parameters
    ----------
    path
        The catalog.
    found, expected
        Its schema version, and the newest one that this version knows.

    Returns
    -------
    UserError
        To be raised.
    """
    return UserError(
        f"{path} has schema version {found}, this version knows up to {expected}: use the tagcos_stream that wrote it"
    )


def schema_version(connection: duckdb.DuckDBPyConnection) -> int:
    """Read the schema version of a catalog.

    Parameters
    ----------
    connection
        An open connection.

    Returns
    -------
    int
        Number of the last migration; 0 for an empty file.
    """
    try:  # asking a view of all tables first would load all of them: a third of the time that a short query takes
        return int(connection.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchall()[0][0])
    except duckdb.CatalogException:
        return 0


def check_store(connection: duckdb.DuckDBPyConnection, store_id: str, path: Path) -> None:
    """Refuse the catalog of another root.

    Parameters
    ----------
    connection
        An open connection to a catalog with a schema.
    store_id
        Identity of the root; empty to accept any.
    path
        The catalog, for the message.

    Raises
    ------
    UserError
        The catalog belongs to another root.
    """
    known = connection.execute("SELECT store_id FROM store").fetchall() if store_id else []
    if known and known[0][0] != store_id:
        raise UserError(
            f"{path} is the catalog of store {known[0][0]}, but the root is store {store_id}: "
            "put the catalog that belongs to this root there, or choose another --root"
        )


def check_tables(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Refuse a catalog that has a view where every catalog has a table.

    Parameters
    ----------
    connection
        An open connection to a catalog with a schema.
    path
        The catalog, for the message.

    Raises
    ------
    UserError
        There is such a view.
    """
    found = {str(row[0]) for row in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()}
    if planted := sorted(found & table_names()):
        raise UserError(
            f"{path} has a view {planted[0]} in place of the table: it was changed by hand or made to mislead; "
            "restore catalog-snapshot.duckdb, or use a root that you trust"
        )


def is_current(connection: duckdb.DuckDBPyConnection, store_id: str, path: Path, folder: Path = SQL) -> bool:
    """Tell whether `migrate` would change nothing.

    Parameters
    ----------
    connection, store_id, path, folder
        As for `migrate`; the connection may be read-only.

    Returns
    -------
    bool
        False for an older or empty catalog, and for one with the views of another version.

    Raises
    ------
    UserError
        The catalog was written by a newer version, belongs to another root, or has a view in place of a table.
    """
    found, expected = schema_version(connection), len(migrations(folder))
    if found > expected:
        raise newer(path, found, expected)
    if found < expected:
        return False
    check_store(connection, store_id, path)
    check_tables(connection, path)
    return connection.execute("SELECT views_digest FROM store").fetchall() == [(views_digest(),)]


def migrate(connection: duckdb.DuckDBPyConnection, store_id: str, path: Path, folder: Path = SQL) -> None:
    """Apply the missing migrations, one transaction each, and update the views and macros if their SQL has changed.

    Parameters
    ----------
    connection
        A writable connection outside a transaction.
    store_id
        Identity of the root; empty to accept any.
    path
        The catalog, for messages.
    folder
        Folder of the migrations.

    Raises
    ------
    UserError
        The catalog was written by a newer version, belongs to another root, or has a view in place of a table.
    """
    steps = migrations(folder)
    found = schema_version(connection)
    if found > len(steps):
        raise newer(path, found, len(steps))
    for version, step in steps[found:]:
        connection.execute("BEGIN")
        connection.execute(step.read_text())
        connection.execute("INSERT INTO migrations VALUES (?, ?, ?)", [version, step.name, utc_now()])
        connection.execute("COMMIT")
    check_store(connection, store_id, path)
    check_tables(connection, path)
    known = connection.execute("SELECT store_id, views_digest FROM store").fetchall()
    if not known or known[0][1] != views_digest():
        connection.execute("BEGIN")
        connection.execute(views_text())
        connection.execute("DELETE FROM store")
        connection.execute("INSERT INTO store VALUES (?, ?)", [known[0][0] if known else store_id, views_digest()])
        connection.execute("COMMIT")
