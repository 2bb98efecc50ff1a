"""The schema of the catalog: numbered migrations, and the views and macros, which are replaced whenever their SQL changes.

The SQL is in storage/sql, and what every table and column holds in storage/sql/comments.toml.
"""

from __future__ import annotations

import hashlib
import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

import duckdb

from storage.tables import quoted, utc_now
from tagcos_stream.types import UserError

SQL = Path(__file__).parent / "sql"
VIEWS = [SQL / name for name in ("views.sql", "views_signals.sql", "views_stands.sql", "views_pool.sql", "views_changes.sql")]
COMMENTS = SQL / "comments.toml"


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


@cache  # reading the comments takes 30 ms, several times in a run
def views_text(tables: Literal["TABLE", "VIEW"] = "TABLE") -> str:
    """Return the SQL that creates all views and macros and comments on all tables and columns.

    Parameters
    ----------
    tables
        What the tables are where the statements will run: views in a published snapshot.

    Returns
    -------
    str
        Several statements.
    """
    comments = tomllib.loads(COMMENTS.read_text(encoding="utf-8"))
    lines = [path.read_text() for path in VIEWS]
    lines += [f"COMMENT ON {tables} {name} IS {quoted(text)};" for name, text in comments["tables"].items()]
    lines += [
        f"COMMENT ON COLUMN {table}.{column} IS {quoted(text)};"
        for table, columns in comments["columns"].items()
        for column, text in columns.items()
    ]
    return "\n".join(lines)


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
        The catalog was written by a newer version, or belongs to another root.
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
    known = connection.execute("SELECT store_id, views_digest FROM store").fetchall()
    text = views_text()
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    if not known or known[0][1] != digest:
        connection.execute("BEGIN")
        connection.execute(text)
        connection.execute("DELETE FROM store")
        connection.execute("INSERT INTO store VALUES (?, ?)", [known[0][0] if known else store_id, digest])
        connection.execute("COMMIT")
