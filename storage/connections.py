"""What DuckDB connections of ours may do, and what the error of a refused write says."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb

from storage.files.base import FULL, size_text, write_error
from storage.tables import quoted, quoted_name
from tagcos_stream.types import UserError

# The oldest version that can open the file: DuckDB 2.0's own format cannot be opened by the common 1.5 shells.
STORAGE_VERSION = "v1.5.0"
# One catalog of 10 million examples needs less (docs/measurements/storage.md); what does not fit spills to a file next to it.
MEMORY_LIMIT = "1GiB"
# Extensions are neither downloaded nor loaded unless a query asks for it.
NO_EXTENSIONS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
CONFIG = {**NO_EXTENSIONS, "storage_compatibility_version": STORAGE_VERSION, "memory_limit": MEMORY_LIMIT}


# what DuckDB's messages have of the file system's own errors
REFUSALS = {
    "No space left": errno.ENOSPC,
    "max_temp_directory_size": errno.ENOSPC,  # by default what was free on the disk when the file was opened
    "Disk quota": errno.EDQUOT,
    "Read-only file system": errno.EROFS,
    "Permission denied": errno.EACCES,
}


@contextmanager
def naming_refused_writes(path: Path, source: Path | None = None) -> Iterator[None]:
    """Replace DuckDB's error of a full disk, or of a file that may not be written, by one that says what to do.

    Parameters
    ----------
    path
        What the body writes: a catalog, or a new file that the caller removes after an error.
    source
        For a new file, the catalog that it is written from.

    Yields
    ------
    None
        For the body.

    Raises
    ------
    UserError
        The disk or quota is full, or a permission is missing.
    """
    try:
        yield
    except duckdb.Error as error:
        if refused := refused_write(path, str(error), source):
            raise refused from error
        raise


@contextmanager
def naming_planted_sql(path: Path) -> Iterator[None]:
    """Replace DuckDB's error of a file that may not be opened: our own statements open none, so a stored view or macro did.

    Parameters
    ----------
    path
        The catalog, for the message.

    Yields
    ------
    None
        For the body.

    Raises
    ------
    UserError
        A statement would have opened another file.
    """
    try:
        yield
    except duckdb.PermissionException as error:
        raise UserError(
            f"{path} has SQL that opens other files ({' '.join(str(error).split())}): it was changed by hand or made to mislead; "
            "restore catalog-snapshot.duckdb, or use a root that you trust"
        ) from error


def refused_write(path: Path, error: str, source: Path | None = None) -> UserError | None:
    """Make the error of a write that the file system refuses, as other files of the root have it.

    Parameters
    ----------
    path
        What could not be written.
    error
        DuckDB's message. It does not tell what a transaction or copy needs: of a full disk the error has the catalog's size.
    source
        As `naming_refused_writes` has it.

    Returns
    -------
    UserError or None
        None if the message is about something else.
    """
    number = next((number for words, number in REFUSALS.items() if words in error), None)
    if number is None:
        return None
    place, refused = str(path), OSError(number, os.strerror(number))
    if number not in FULL:
        return write_error(place, refused)
    if source is not None:
        return write_error(f"{place} (from a catalog of {size_text(_size(source))})", refused, unfinished=_size(path))
    return write_error(f"{place} ({size_text(_size(path))} with its log)", refused)


def _size(path: Path) -> int:
    """Bytes of a database file and its write-ahead log; 0 without them."""
    return sum(file.stat().st_size for file in (path, Path(f"{path}.wal")) if file.is_file())


def copy_to(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Copy the database of a connection to a new file.

    Parameters
    ----------
    connection
        Outside of a transaction, and allowed to open the file.
    path
        The file; after an error the caller removes what there is of it.

    Raises
    ------
    UserError
        The disk or quota is full, or a permission is missing.
    """
    databases = "SELECT database_name, path FROM duckdb_databases() WHERE database_name = current_database()"
    own, source = connection.execute(databases).fetchall()[0]
    with naming_refused_writes(path, Path(source)):
        connection.execute(f"ATTACH {quoted(str(path))} AS copied (STORAGE_VERSION '{STORAGE_VERSION}')")
        connection.execute(f"COPY FROM DATABASE {quoted_name(own)} TO copied")
        connection.execute("DETACH copied")


def close_off(connection: duckdb.DuckDBPyConnection, allowed: Sequence[str] = ()) -> None:
    """Forbid a connection to open other files; this cannot be undone.

    Parameters
    ----------
    connection
        The connection.
    allowed
        Folders in which it may still open files.
    """
    if allowed:
        connection.execute(f"SET allowed_directories = [{', '.join(map(quoted, allowed))}]")
    connection.execute("SET enable_external_access = false")
