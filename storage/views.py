"""The views and macros of the catalog, and what every table and column holds.

A catalog's file has them for shells that open it. Our own statements use those of this package instead: the file may be from
elsewhere, and what it has under their names may say something else.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from storage.tables import quoted

SQL = Path(__file__).parent / "sql"
VIEWS = [SQL / name for name in ("views.sql", "views_signals.sql", "views_stands.sql", "views_pool.sql", "views_changes.sql")]
COMMENTS = SQL / "comments.toml"

_CREATED = re.compile(r"^CREATE OR REPLACE (VIEW|MACRO) (\w+)(.*?;)$", re.MULTILINE | re.DOTALL)


@cache  # reading the comments takes 30 ms
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
    lines = [_views()]
    lines += [f"COMMENT ON {tables} {name} IS {quoted(text)};" for name, text in comments["tables"].items()]
    lines += [
        f"COMMENT ON COLUMN {table}.{column} IS {quoted(text)};"
        for table, columns in comments["columns"].items()
        for column, text in columns.items()
    ]
    return "\n".join(lines)


@cache
def views_digest() -> str:
    """Return the digest of all that `views_text` is made of.

    Returns
    -------
    str
        32 hexadecimal digits.
    """
    return hashlib.blake2b(b"\n".join(path.read_bytes() for path in (*VIEWS, COMMENTS)), digest_size=16).hexdigest()


@cache
def definitions() -> Mapping[str, tuple[str, str]]:
    """Return the views and macros.

    Returns
    -------
    mapping of str to (str, str)
        By name, in an order in which they can be created: VIEW or MACRO, and what follows the name in the statement.
    """
    return {name: (kind, rest) for kind, name, rest in _CREATED.findall(_views())}


@cache
def table_names() -> frozenset[str]:
    """Return the names of the catalog's tables, all of which have a comment.

    Returns
    -------
    frozenset of str
        Without views.
    """
    _, _, tables = COMMENTS.read_text(encoding="utf-8").partition("[tables]")
    return frozenset(tomllib.loads(tables.partition("\n[")[0]))


def named_in(query: str) -> list[str]:
    """Find the views and macros that a query may use.

    Parameters
    ----------
    query
        SQL.

    Returns
    -------
    list of str
        Those whose names occur in it, and those that these use, in an order in which they can be created.
    """
    found: set[str] = set()
    to_read = [query]
    while to_read:
        names = set(re.findall(r"\w+", to_read.pop().lower())) & definitions().keys() - found
        found |= names
        to_read += [definitions()[name][1] for name in names]
    return [name for name in definitions() if name in found]


def create(name: str, *, temporary: bool) -> str:
    """Write the statement that creates a view or macro outside of the catalog.

    Parameters
    ----------
    name
        Of the view or macro.
    temporary
        For one connection only. Otherwise in the memory of an instance that has the catalog attached.

    Returns
    -------
    str
        One statement.
    """
    kind, rest = definitions()[name]
    return f"CREATE OR REPLACE {f'TEMP {kind} ' if temporary else f'{kind} memory.main.'}{name}{rest}"


@cache
def _views() -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in VIEWS)
