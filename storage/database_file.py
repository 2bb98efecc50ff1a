"""A DuckDB file that threads and processes open in turn, each for one short transaction."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from storage.connections import CONFIG, refused_write
from storage.files.base import sync_path, write_error
from storage.interrupts import interruptible
from storage.lock import Waiting
from storage.tables import quoted
from storage.views import create
from tagcos_stream.types import UserError

LINGER = 0.1  # seconds for which an idle file stays open
# Readers elsewhere try once a second: in every period of so many seconds a file may linger for the first of them only.
PERIOD, LINGERING = 3.0, 2.0
# where a query looks for a name: what `define` made comes before what the file has under that name
IN_MEMORY_FIRST = "SET search_path = 'memory.main,catalog.main'"


class _Turn:
    """Whose turn it is with a file: DuckDB refuses one process two connections of different kinds to it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # threads take turns
        self.in_use = False
        self.holder: DatabaseFile | None = None  # has the file open between two uses of it


_turns: dict[Path, _Turn] = {}


class DatabaseFile:
    """One DuckDB file, open only while it is used.

    Parameters
    ----------
    path
        The file.
    wait_seconds
        How long to wait for another process that has it open.
    on_wait
        Called with a message while waiting.
    """

    def __init__(self, path: Path, wait_seconds: float, on_wait: Callable[[str], None]) -> None:
        self.path = path
        self._wait_seconds = wait_seconds
        self._on_wait = on_wait
        self._turn = _turns.setdefault(path, _Turn())
        self._engine: duckdb.DuckDBPyConnection | None = None  # in memory; the file is attached to it
        self._defined: set[str] = set()  # views and macros in its memory
        self.checked = False  # the file, since it was opened: for those who use it
        self._lingers = False
        self._period = 0.0  # when it began
        self._used = threading.Event()  # since the thread that closes an idle file looked

    @contextmanager
    def opened(self, *, read_only: bool, alone: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """Have the file open for the body; an open transaction is then rolled back.

        Parameters
        ----------
        read_only
            The body only reads.
        alone
            In a DuckDB instance of its own, since what one instance is allowed cannot be taken back. Otherwise in the one that
            this object keeps: starting one takes 20 ms, several times as long as most transactions.

        Yields
        ------
        duckdb.DuckDBPyConnection
            Closed when the body ends.

        Raises
        ------
        UserError
            The file cannot be opened.
        TransientError
            Another process has it open for too long.
        """
        turn = self._turn
        with turn.lock, interruptible():
            assert not turn.in_use, "a read or transaction within another"
            if turn.holder is not None and (alone or turn.holder is not self):
                turn.holder._close()
            turn.in_use = True
            try:
                with self._in_own_instance(read_only) if alone else self._in_kept_instance(read_only) as connection:
                    yield connection
            finally:
                turn.in_use = False

    def define(self, connection: duckdb.DuckDBPyConnection, names: Sequence[str], *, alone: bool) -> None:
        """Make views and macros of the package for a connection, whatever the file has under their names.

        Parameters
        ----------
        connection
            As `opened` gave it, before its transaction.
        names
            In an order in which they can be created.
        alone
            As the connection was opened. They end with it; otherwise they are kept with the instance, outside the file.
        """
        known = set() if alone else self._defined
        for name in names:
            if name not in known:
                connection.execute(create(name, temporary=alone))
                known.add(name)

    @contextmanager
    def lingering(self) -> Iterator[None]:
        """Leave the file open for LINGER seconds after each use in the body, for a use that follows at once.

        Opening and closing takes 10 ms, several times as long as a short query.

        Yields
        ------
        None
            For the body. The file is closed when it ends.
        """
        ended = threading.Event()
        thread = threading.Thread(target=self._close_idle, args=(ended,), daemon=True)
        self._lingers = True
        thread.start()
        try:
            yield
        finally:
            with self._turn.lock:
                self._lingers = False
                self._close()
            ended.set()
            self._used.set()
            thread.join()

    def create(self) -> None:
        """Make an empty file whole: DuckDB leaves one that it cannot open again where the disk is full.

        Raises
        ------
        UserError
            It cannot be written.
        """
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

    @contextmanager
    def _in_own_instance(self, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        connection = self._when_free(lambda: duckdb.connect(str(self.path), read_only=read_only, config=CONFIG))
        self.checked = False
        try:
            yield connection
        finally:
            connection.close()

    @contextmanager
    def _in_kept_instance(self, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        if self._engine is None:
            self._defined.clear()
        engine = self._engine or duckdb.connect(config={**CONFIG, "temp_directory": f"{self.path}.tmp"})
        attached = self._turn.holder is self
        self._engine = self._turn.holder = None  # until the body has ended without an error
        connection = engine.cursor()
        try:
            if not attached:
                attach = f"ATTACH {quoted(str(self.path))} AS catalog{' (READ_ONLY)' * (read_only and not self._lingers)}"
                self._when_free(lambda: connection.execute(attach))
                self.checked = False
            connection.execute(IN_MEMORY_FIRST if read_only else "USE catalog")
            yield connection
        except BaseException:
            connection.close()
            engine.close()
            raise
        connection.close()
        self._engine, self._turn.holder = engine, self
        if self._lingers and self._in_time():
            self._used.set()
        else:
            self._close()

    def _in_time(self) -> bool:
        now = time.monotonic()
        if now > self._period + PERIOD:
            self._period = now
        return now < self._period + LINGERING

    def _close_idle(self, ended: threading.Event) -> None:
        while self._used.wait() and not ended.is_set():
            self._used.clear()
            if not ended.wait(LINGER) and not self._used.is_set():
                with self._turn.lock:
                    if not self._used.is_set():
                        self._close()

    def _close(self) -> None:
        """Close the file if this object has it open between two uses. The caller has the turn."""
        if self._turn.holder is not self:
            return
        self._turn.holder = None
        assert self._engine is not None
        try:
            self._engine.execute("DETACH catalog")
        except duckdb.Error:  # of the checkpoint: what was committed is in the write-ahead log
            self._engine.close()
            self._engine = None

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

    def _unusable(self, text: str) -> UserError:
        if refused := refused_write(self.path, text):
            return refused
        first_line = text.strip().splitlines()[0]
        return UserError(
            f"{self.path} cannot be opened as a catalog: {first_line}; "
            "restore it from catalog-snapshot.duckdb in the same folder or from a backup, or choose another --root"
        )
