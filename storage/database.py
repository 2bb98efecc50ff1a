"""The DuckDB catalog: the commit point. It is open only for one short transaction at a time, so that readers can get in.

The functions that read and write its tables are in storage/catalog; each is one transaction. Its schema is in storage/schema.py.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from storage.connections import CONFIG, close_off, copy_to, naming_refused_writes, refused_write
from storage.files.base import sync_path, write_error
from storage.interrupts import interruptible
from storage.lock import Waiting
from storage.schema import SQL, check_store, migrate, migrations, newer, schema_version
from storage.tables import fetch, quoted
from tagcos_stream.types import UserError

SAFE_STATEMENTS = ("SELECT", "EXPLAIN")

# DuckDB refuses one process two connections of different kinds to a file, so threads take turns.
_turns: dict[Path, threading.Lock] = {}


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
        self._wait_seconds = wait_seconds
        self._on_wait = on_wait
        self._store_id = store_id
        self._sql_folder = sql_folder
        self._prepared = False
        self._engine: duckdb.DuckDBPyConnection | None = None  # in memory; the file is attached to it for a transaction
        self._turn = _turns.setdefault(self.path, threading.Lock())

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
        with self.reading() as connection:
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
        with self.reading(
            external_access=not safe, allowed=[examples.partition("*")[0]] if safe and examples else (), locked=safe
        ) as connection:
            if examples is not None:
                connection.execute(
                    f"""CREATE TEMP MACRO texts(run, examples := {quoted(examples)}) AS TABLE
                    FROM texts_in(run, examples)"""
                )
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

    def upgrade(self) -> None:
        """Migrate an older catalog before a command that reads first and writes later. Does not create a missing one."""
        if self.path.exists():
            with self.transaction():
                pass

    @contextmanager
    def reading(
        self, *, external_access: bool = False, allowed: Sequence[str] = (), locked: bool = False
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a read-only connection.

        Parameters
        ----------
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
            There is no catalog, it is of another root, or its schema is older or newer than this version's.
        TransientError
            Another process has it open for too long.
        """
        if not self.path.exists():
            raise UserError(f"there is no catalog at {self.path}: name the right --root, or fill one with `tagcos run`")
        alone = external_access or bool(allowed) or locked
        with self._turn, interruptible(), self._open(read_only=True, alone=alone) as connection:
            if not external_access:
                close_off(connection, allowed)
            if locked:
                connection.execute("SET lock_configuration = true")
            self._check_version(connection)
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
            The disk is full, or the catalog cannot be opened or was written by a newer version.
        TransientError
            Another process has it open for too long.
        """
        alone = bool(allowed) or not self._prepared
        with self._turn, interruptible(), naming_refused_writes(self.path):
            if not self.path.exists():
                self._create()
            with self._open(read_only=False, alone=alone) as connection:
                close_off(connection, allowed)
                if not self._prepared:
                    migrate(connection, self._store_id, self.path, self._sql_folder)
                    self._prepared = True
                connection.execute("BEGIN")
                yield connection
                connection.execute("COMMIT")

    @contextmanager
    def _open(self, *, read_only: bool, alone: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """Have the file open for the body; an open transaction is then rolled back.

        alone: in a DuckDB instance of its own, since what one instance is allowed cannot be taken back. Otherwise in the one that
        this object keeps: starting one takes 20 ms, several times as long as most transactions.
        """
        if alone:
            connection = self._when_free(lambda: duckdb.connect(str(self.path), read_only=read_only, config=CONFIG))
            try:
                yield connection
            finally:
                connection.close()
            return
        engine = self._engine or duckdb.connect(config={**CONFIG, "temp_directory": f"{self.path}.tmp"})
        self._engine = None  # until the body has ended without an error
        connection = engine.cursor()
        try:
            attach = f"ATTACH {quoted(str(self.path))} AS catalog{' (READ_ONLY)' * read_only}"
            self._when_free(lambda: connection.execute(attach))
            connection.execute("USE catalog")
            yield connection
        except BaseException:
            connection.close()
            engine.close()
            raise
        try:
            connection.execute("USE memory")
            connection.execute("DETACH catalog")
        except duckdb.Error:  # of the checkpoint: what was committed is in the write-ahead log
            engine.close()
        else:
            self._engine = engine
        finally:
            connection.close()

    def _when_free(self, connect: Callable[[], duckdb.DuckDBPyConnection]) -> duckdb.DuckDBPyConnection:
        waiting = Waiting(self._wait_seconds, self._on_wait)
        while True:
            try:
                return connect()
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

    def _create(self) -> None:
        """Make an empty catalog whole: DuckDB leaves a file that it cannot open again where the disk is full."""
        made = self.path.with_name(".tmp-catalog") / str(os.getpid())
        try:
            made.parent.mkdir(exist_ok=True)
            made.unlink(missing_ok=True)
            duckdb.connect(str(made), config=CONFIG).close()
            sync_path(made)
            try:
                os.link(made, self.path)
            except FileExistsError:  # another process was first
                pass
            except OSError:  # a file system without hard links
                if not self.path.exists():
                    os.rename(made, self.path)
            sync_path(self.path.parent)
        except duckdb.Error as error:
            raise self._unusable(str(error)) from error
        except OSError as error:
            raise write_error(str(self.path), error) from error
        finally:
            made.unlink(missing_ok=True)
            with suppress(OSError):  # another process uses it
                made.parent.rmdir()

    def _unusable(self, text: str) -> UserError:
        if refused := refused_write(self.path, text):
            return refused
        first_line = text.strip().splitlines()[0]
        return UserError(
            f"{self.path} cannot be opened as a catalog: {first_line}; "
            "restore it from catalog-snapshot.duckdb in the same folder or from a backup, or choose another --root"
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
        check_store(connection, self._store_id, self.path)
