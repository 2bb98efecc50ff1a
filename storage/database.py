"""The DuckDB catalog: the commit point. Opened for one short transaction and closed, so that readers get their turn.

The functions that say what is in it are in runs, pool, blocks, clusterings and selections; each is one transaction.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from storage.lock import Waiting
from tagcos_stream.types import UserError

SQL = Path(__file__).parent / "sql"
VIEWS = [SQL / name for name in ("views.sql", "views_stands.sql", "views_pool.sql", "views_comments.sql")]
# The oldest shell that reads the file: DuckDB 2.0's own format cannot be opened by the 1.5 shells people have.
STORAGE_VERSION = "v1.5.0"
# One catalog of 10 million examples needs less (docs/measurements/storage.md); what does not fit spills to a file next to it.
MEMORY_LIMIT = "1GiB"
# What is not built in is neither downloaded nor loaded unless a query says so.
NO_EXTENSIONS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
SAFE_STATEMENTS = ("SELECT", "EXPLAIN")

# DuckDB refuses one process two connections of different kinds to a file, so threads take turns.
_turns: dict[Path, threading.Lock] = {}


def migrations(folder: Path = SQL) -> list[tuple[int, Path]]:
    """The numbered SQL files, in order."""
    found = sorted((int(path.name[:3]), path) for path in folder.glob("[0-9][0-9][0-9]_*.sql"))
    assert [number for number, _ in found] == list(range(1, len(found) + 1)), f"gaps in {folder}"
    return found


SCHEMA_VERSION = len(migrations())


def views_text() -> str:
    """The SQL that makes all views and macros, and comments them."""
    return "\n".join(path.read_text() for path in VIEWS)


def utc_now() -> datetime:
    """Without a zone, as the catalog keeps times: DuckDB needs its ICU extension for zones, and shells may lack it."""
    return datetime.now(UTC).replace(tzinfo=None)


class Catalog:
    """One catalog file. `read` is for queries, `transaction` for changes; both wait for a busy file with a message."""

    def __init__(
        self,
        path: Path,
        *,
        wait_seconds: float = 600.0,
        on_wait: Callable[[str], None] = lambda message: None,
        store_id: str = "",
        sql_folder: Path = SQL,
    ) -> None:
        self.path = path.absolute()
        self._wait_seconds = wait_seconds
        self._on_wait = on_wait
        self._store_id = store_id
        self._sql_folder = sql_folder
        self._prepared = False
        self._turn = _turns.setdefault(self.path, threading.Lock())

    def read(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> pl.DataFrame:
        """Run one query on a read-only connection that opens no other file; the last statement's rows."""
        with self.reading() as connection:
            return fetch(connection, query, parameters)

    def ask(self, query: str, *, safe: bool = False, limit: int | None = None, examples: str | None = None) -> pl.DataFrame:
        """Run a user's own query; the last statement's rows.

        Parameters
        ----------
        query
            One or several statements. The catalog is open read-only; other files may be read and written (`COPY ... TO`).
        safe
            Allow only SELECT and its like, and no file but those of `examples`; no setting can be changed.
        limit
            Rows to fetch of the last statement, at most.
        examples
            Pattern of the root's example files, the default of the macro `texts`.

        Raises
        ------
        UserError
            A statement that `safe` does not allow.
        """
        with self.reading(
            external_access=not safe, allowed=[examples.partition("*")[0]] if safe and examples else ()
        ) as connection:
            if examples is not None:
                connection.execute(
                    f"""CREATE TEMP MACRO texts(run, examples := {quoted(examples)}) AS TABLE
                    FROM texts_in(run, examples)"""
                )
            if safe:
                connection.execute("SET lock_configuration = true")
                for statement in connection.extract_statements(query):
                    if statement.type.name not in SAFE_STATEMENTS:
                        raise UserError(
                            f"--safe allows no {statement.type.name} statement: {statement.query.strip()[:80]}; "
                            "ask by SELECT or FROM, or without --safe"
                        )
            return fetch(connection, query, limit=limit)

    def upgrade(self) -> None:
        """Migrate an older file, so that a command that will write may read first. A file that is not there stays so."""
        if self.path.exists():
            with self.transaction():
                pass

    @contextmanager
    def reading(self, *, external_access: bool = False, allowed: Sequence[str] = ()) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection; `allowed`: folders that it may open files in."""
        if not self.path.exists():
            raise UserError(f"there is no catalog at {self.path}: name the right --root, or fill one with `tagcos run`")
        with self._turn:
            connection = self._connect(read_only=True)
            try:
                self._check_version(connection)
                if not external_access:
                    close_off(connection, allowed)
                yield connection
            finally:
                connection.close()

    @contextmanager
    def transaction(self, *, allowed: Sequence[str] = ()) -> Iterator[duckdb.DuckDBPyConnection]:
        """All of the body is committed, durably, or nothing of it. `allowed`: folders that it may open other files in."""
        with self._turn:
            connection = self._connect(read_only=False)
            try:
                close_off(connection, allowed)
                if not self._prepared:
                    migrate(connection, self._store_id, self.path, self._sql_folder)
                    self._prepared = True
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")
            except duckdb.Error as error:
                if "No space left" in str(error) or "Disk quota" in str(error):
                    raise UserError(
                        f"cannot write {self.path}: the disk or quota is full; free space and start the same command again"
                    ) from error
                raise
            finally:
                connection.close()  # an open transaction is rolled back

    def _connect(self, *, read_only: bool) -> duckdb.DuckDBPyConnection:
        waiting = Waiting(self._wait_seconds, self._on_wait)
        while True:
            try:
                return duckdb.connect(
                    str(self.path),
                    read_only=read_only,
                    config={
                        **NO_EXTENSIONS,
                        "storage_compatibility_version": STORAGE_VERSION,
                        "memory_limit": MEMORY_LIMIT,
                    },
                )
            except duckdb.IOException as error:
                text = str(error)
                if "lock" not in text.lower():
                    raise self._unusable(text) from error
                held = re.search(r"held in (.+?) \(PID (\d+)\)", text)
                who = f"process {held[2]} ({held[1]})" if held else "another process"
                waiting.wait(
                    f"{self.path} is held by {who}", "Close that DuckDB shell or query, or read the published snapshot instead."
                )
            except duckdb.Error as error:
                raise self._unusable(str(error)) from error

    def _unusable(self, text: str) -> UserError:
        if "Read-only file system" in text or "Permission denied" in text:
            return UserError(
                f"cannot write {self.path}: it is on a read-only file system or not permitted; choose another --root"
            )
        if "No space left" in text:
            return UserError(f"cannot write {self.path}: the disk or quota is full; free space and start the same command again")
        first_line = text.strip().splitlines()[0]
        return UserError(
            f"{self.path} cannot be opened as a catalog: {first_line}; "
            "restore it from catalog-snapshot.duckdb beside it, or move it away and run again"
        )

    def _check_version(self, connection: duckdb.DuckDBPyConnection) -> None:
        found, expected = schema_version(connection), len(migrations(self._sql_folder))
        if found > expected:
            raise newer(self.path, found, expected)
        if found < expected:
            raise UserError(
                f"{self.path} has schema version {found}, this version reads {expected}: any writing command migrates it, "
                "for example `tagcos run`"
            )


def close_off(connection: duckdb.DuckDBPyConnection, allowed: Sequence[str] = ()) -> None:
    """Let the connection open no file but its own and those in the folders allowed; it cannot be undone."""
    if allowed:
        connection.execute(f"SET allowed_directories = [{', '.join(map(quoted, allowed))}]")
    connection.execute("SET enable_external_access = false")


def quoted(text: str) -> str:
    """A string literal, for the few statements that take no parameters."""
    return "'" + text.replace("'", "''") + "'"


def fetch(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> pl.DataFrame:
    """The rows of the last statement."""
    result = connection.sql(query, params=parameters) if parameters is not None else connection.sql(query)
    if result is None:
        return pl.DataFrame()
    if limit is not None:
        result = result.limit(limit)
    if "INTERVAL" in map(str, result.types):  # the difference of two times, which Polars does not have
        names = ['"' + column.replace('"', '""') + '"' for column in result.columns]
        text = [
            name + "::VARCHAR AS " + name if str(kind) == "INTERVAL" else name
            for kind, name in zip(result.types, names, strict=True)
        ]
        result = result.project(", ".join(text))
    return result.pl()


def insert(connection: duckdb.DuckDBPyConnection, table: str, frame: pl.DataFrame, *, replace: bool = False) -> None:
    """Append the frame's columns, by name, to one of our tables: the only way rows get in."""
    connection.register("incoming", frame.to_arrow())
    connection.execute(f"INSERT {'OR REPLACE ' * replace}INTO {table} BY NAME SELECT * FROM incoming")
    connection.unregister("incoming")


def insert_row(connection: duckdb.DuckDBPyConnection, table: str, *, replace: bool = False, **values: Any) -> None:
    """One row of a small table: a run, a space, a block."""
    columns, marks = ", ".join(values), ", ".join("?" * len(values))
    connection.execute(f"INSERT {'OR REPLACE ' * replace}INTO {table} ({columns}) VALUES ({marks})", list(values.values()))


def require(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """The frame with these columns, in this order; its lack of one is the caller's mistake."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"the frame lacks columns {missing}; it has {frame.columns}")
    return frame.select(columns)


def newer(path: Path, found: int, expected: int) -> UserError:
    return UserError(
        f"{path} has schema version {found}, this version knows up to {expected}: use the tagcos_stream that wrote it"
    )


def schema_version(connection: duckdb.DuckDBPyConnection) -> int:
    """0 for an empty file."""
    tables = connection.execute("SELECT count(*) FROM information_schema.tables WHERE table_name = 'migrations'").fetchall()
    if not tables[0][0]:
        return 0
    return int(connection.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchall()[0][0])


def migrate(connection: duckdb.DuckDBPyConnection, store_id: str, path: Path, folder: Path = SQL) -> None:
    """Bring the file to the newest schema, a transaction a step, and its views to this version's."""
    steps = migrations(folder)
    found = schema_version(connection)
    if found > len(steps):
        raise newer(path, found, len(steps))
    for version, step in steps[found:]:
        connection.execute("BEGIN")
        connection.execute(step.read_text())
        connection.execute("INSERT INTO migrations VALUES (?, ?, ?)", [version, step.name, utc_now()])
        connection.execute("COMMIT")
    known = connection.execute("SELECT store_id, views_digest FROM store").fetchall()
    if known and store_id and known[0][0] != store_id:
        raise UserError(
            f"{path} is the catalog of store {known[0][0]}, but the root is store {store_id}: "
            "give the catalog that belongs to this root, or start a new root"
        )
    text = views_text()
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    if not known or known[0][1] != digest:
        connection.execute("BEGIN")
        connection.execute(text)
        connection.execute("DELETE FROM store")
        connection.execute("INSERT INTO store VALUES (?, ?)", [known[0][0] if known else store_id, digest])
        connection.execute("COMMIT")
