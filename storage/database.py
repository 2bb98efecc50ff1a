"""The DuckDB catalog: the commit point. It is open only for one short transaction at a time, so that readers can get in.

The functions that read and write its tables are in storage/catalog; each is one transaction. Its schema is in storage/schema.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from storage.connections import close_off, copy_to, naming_planted_sql, naming_refused_writes
from storage.database_file import DatabaseFile
from storage.files.base import sync_path
from storage.schema import check_store, check_tables, is_current, migrate, migrations, newer, schema_version
from storage.tables import fetch, quoted
from storage.views import SQL, named_in
from tagcos_stream.types import UserError

SAFE_STATEMENTS = ("SELECT", "EXPLAIN")


class Catalog:
    """One catalog file. Use `read` for queries and `transaction` for changes; both wait for a locked file with a message.

    Parameters
    ----------
    path
        The file; the first transaction creates it.
    wait_seconds
        How long to wait for another process that has the file open.
    on_wait
        Called with a message while waiting.
    store_id
        Identity of the root that the catalog belongs to; empty to accept any.
    sql_folder
        Folder of the migrations.
    """

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
        self._file = DatabaseFile(self.path, wait_seconds, on_wait)
        self._store_id = store_id
        self._sql_folder = sql_folder
        self._prepared = False

    def read(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> pl.DataFrame:
        """Run one query on a read-only connection that cannot open other files.

        Parameters
        ----------
        query
            One or several statements.
        parameters
            Values of its placeholders, by position or name.

        Returns
        -------
        pl.DataFrame
            Rows of the last statement.
        """
        with self.reading(query) as connection:
            return fetch(connection, query, parameters)

    def ask(self, query: str, *, safe: bool = False, limit: int | None = None, examples: str | None = None) -> pl.DataFrame:
        """Run a query written by the user.

        Parameters
        ----------
        query
            One or several statements. The catalog is open read-only; other files may be read and written (`COPY ... TO`).
        safe
            Allow only SELECT and EXPLAIN statements and no files except those of `examples`; settings cannot be changed.
        limit
            Maximum number of rows to fetch.
        examples
            Pattern of the root's example files, the default of the macro `texts`.

        Returns
        -------
        pl.DataFrame
            Rows of the last statement.

        Raises
        ------
        UserError
            `safe` does not allow a statement.
        """
        texts = (
            "" if examples is None else f"MACRO texts(run, examples := {quoted(examples)}) AS TABLE FROM texts_in(run, examples)"
        )
        with self.reading(
            query, texts, external_access=not safe, allowed=[examples.partition("*")[0]] if safe and examples else (), locked=safe
        ) as connection:
            if texts:
                connection.execute(f"CREATE OR REPLACE TEMP {texts}")
            if safe:
                for statement in connection.extract_statements(query):
                    if statement.type.name not in SAFE_STATEMENTS:
                        raise UserError(
                            f"--safe allows no {statement.type.name} statement: {statement.query.strip()[:80]}; "
                            "ask by SELECT or FROM, or without --safe"
                        )
            return fetch(connection, query, limit=limit, finite=True)

    def compact(self) -> None:
        """Write the catalog to a new file: a DuckDB file is never cut, and what was deleted stays readable in its free blocks.

        The caller must hold the writer lock.
        """
        work = self.path.with_name(".tmp-compact")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            copy = work / "catalog.duckdb"
            with self.transaction(allowed=[str(work)]) as connection:
                connection.execute("COMMIT")  # attaching and copying make their own
                connection.execute("CHECKPOINT")  # leaves no write-ahead log that would be applied to the copy
                copy_to(connection, copy)
                os.replace(copy, self.path)  # while nobody else can open the earlier file
                connection.execute("BEGIN")
            sync_path(self.path.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def lingering(self) -> AbstractContextManager[None]:
        """For a series of reads and transactions that follow each other closely.

        Returns
        -------
        context manager
            Leaves the file open for a moment after each of them (`DatabaseFile.lingering`), for which others wait.
        """
        return self._file.lingering()

    def upgrade(self) -> None:
        """Migrate an older catalog before a command that reads first and writes later. Does not create a missing one."""
        if self.path.exists():
            with self.transaction():
                pass

    @contextmanager
    def reading(
        self, *queries: str, external_access: bool = False, allowed: Sequence[str] = (), locked: bool = False
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a read-only connection.

        Parameters
        ----------
        queries
            What the body will ask, as far as it names views and macros: they are this package's, whatever the file has.
        external_access
            Let it open any file.
        allowed
            Otherwise, folders in which it may open files.
        locked
            Let no query change a setting of DuckDB.

        Yields
        ------
        duckdb.DuckDBPyConnection
            Closed when the body ends.

        Raises
        ------
        UserError
            There is no catalog, it is of another root, its schema is older or newer than this version's, or its SQL opens other
            files.
        TransientError
            Another process has it open for too long.
        """
        if not self.path.exists():
            raise UserError(f"there is no catalog at {self.path}: name the right --root, or fill one with `tagcos run`")
        alone = external_access or bool(allowed) or locked
        of_users = external_access or locked  # whose own statement may be at fault
        naming = nullcontext() if of_users else naming_planted_sql(self.path)
        spilling = nullcontext() if of_users else naming_refused_writes(self.path)
        with naming, spilling, self._file.opened(read_only=True, alone=alone) as connection:
            if not external_access:
                close_off(connection, allowed)
            if locked:
                connection.execute("SET lock_configuration = true")
            self._check(connection)
            self._file.define(connection, named_in("\n".join(queries)), alone=alone)
            if not alone:
                connection.execute("BEGIN TRANSACTION READ ONLY")
            yield connection

    @contextmanager
    def transaction(self, *, allowed: Sequence[str] = ()) -> Iterator[duckdb.DuckDBPyConnection]:
        """Run the body in one durable transaction; an exception rolls it back. The first one migrates an older catalog.

        Parameters
        ----------
        allowed
            Folders in which the connection may open other files.

        Yields
        ------
        duckdb.DuckDBPyConnection
            With the transaction begun; closed when the body ends.

        Raises
        ------
        UserError
            The disk is full, or the catalog cannot be opened, was written by a newer version or has SQL that opens other files.
        TransientError
            Another process has it open for too long.
        """
        with naming_planted_sql(self.path), naming_refused_writes(self.path):
            if not self.path.exists():
                self._file.create()
            if not self._prepared:
                self._prepare()
            with self._file.opened(read_only=False, alone=bool(allowed)) as connection:
                close_off(connection, allowed)
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")

    def _prepare(self) -> None:
        """Migrate the catalog if it is an older one or empty."""
        with self._file.opened(read_only=False, alone=False) as connection:
            close_off(connection)
            current = is_current(connection, self._store_id, self.path, self._sql_folder)
        if not current:
            with self._file.opened(read_only=False, alone=True) as connection:
                close_off(connection)
                migrate(connection, self._store_id, self.path, self._sql_folder)
        self._prepared = True

    def _check(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Refuse a catalog that this version cannot read, once for each time that the file is opened."""
        if self._file.checked:
            return
        found, expected = schema_version(connection), len(migrations(self._sql_folder))
        if found > expected:
            raise newer(self.path, found, expected)
        if found < expected:
            raise UserError(
                f"{self.path} has schema version {found}, this version reads {expected}: any writing command migrates it, "
                "for example `tagcos run`"
            )
        check_store(connection, self._store_id, self.path)
        check_tables(connection, self.path)
        self._file.checked = True
