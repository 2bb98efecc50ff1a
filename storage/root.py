"""The root: one local folder or object-store prefix that holds all durable data, its catalog and its single writer.

tagcos.json                          marks the folder as a root: format and identity
catalog.duckdb                       the only mutable file, and the commit point (object stores: on the driver's disk)
examples/  spaces/  clusterings/     immutable files, committed by a catalog transaction that names them
snapshots/  exports/  reports/       published results
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from storage.database import Catalog
from storage.files.local import LocalFiles
from storage.files.object import ObjectFiles
from storage.files.open import open_files
from storage.lock import locked_by, writer_lock
from tagcos_stream.identity import digest
from tagcos_stream.types import UserError

FORMAT = 1
MARK = "tagcos.json"
LOCK = "writer.lock"  # in the catalog's folder
# Names in a local root that lead to no other place. LocalFiles checks what it opens, but not what DuckDB and the lock open.
OWN = (
    LOCK, "catalog.duckdb", "catalog.duckdb.wal", "catalog.duckdb.tmp", "catalog-snapshot.duckdb", ".tmp-snapshot",
    ".tmp-compact", ".tmp-catalog", "examples", "exports", "work",
)  # fmt: skip


class NoRoot(UserError):
    """A reader was given a location without a root."""


def say(message: str) -> None:
    """Print a message to standard error.

    Parameters
    ----------
    message
        One line.
    """
    print(message, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Root:
    """An open root.

    Parameters
    ----------
    files
        Its files, by key.
    catalog_path
        Local path of the catalog.
    store_id
        Identity of the root, 32 hex digits.
    wait_seconds
        How long to wait for another process that has the catalog or the writer lock.
    on_wait
        Called with a message while waiting.
    """

    files: LocalFiles | ObjectFiles
    catalog_path: Path
    store_id: str
    wait_seconds: float
    on_wait: Callable[[str], None]

    @property
    def url(self) -> str:
        """Folder or object-store URL."""
        return self.files.url

    @property
    def path(self) -> Path | None:
        """Folder of a local root; None for an object store."""
        return self.files.folder if isinstance(self.files, LocalFiles) else None

    @cached_property
    def catalog(self) -> Catalog:
        """Catalog of the root; opened only for the duration of each query or transaction."""
        return Catalog(self.catalog_path, wait_seconds=self.wait_seconds, on_wait=self.on_wait, store_id=self.store_id)

    def writer(self) -> AbstractContextManager[None]:
        """Lock the root for writing; required around everything that writes.

        Returns
        -------
        context manager
            On entry it waits for another writer and after `wait_seconds` raises a TransientError that names it.
        """
        return _writer(self.url, self.catalog_path, self.wait_seconds, self.on_wait)

    def lost_its_catalog(self) -> bool:
        """Whether the root has data but no catalog, without which all of it would be garbage.

        Returns
        -------
        bool
            False also for a root that no run has filled yet.
        """
        return not self.catalog_path.exists() and any(next(self.files.list(name), None) for name in ("examples", "spaces"))

    def written_by(self) -> tuple[str, int] | None:
        """Return who is writing to the root.

        Returns
        -------
        tuple of (str, int) or None
            Host and process id of the writer at work; None if there is none.
        """
        return locked_by(self.catalog_path.with_name(LOCK))


def _writer(url: str, catalog: Path, wait_seconds: float, on_wait: Callable[[str], None]) -> AbstractContextManager[None]:
    return writer_lock(catalog.with_name(LOCK), url, wait_seconds=wait_seconds, on_wait=on_wait)


def _read_mark(files: LocalFiles | ObjectFiles) -> bytes | None:
    try:
        return files.read(MARK)
    except FileNotFoundError:
        return None


def _write_mark(files: LocalFiles | ObjectFiles, catalog: Path) -> bytes:
    mark = {"format": FORMAT, "store_id": uuid.uuid4().hex, "catalog": f"{platform.node()}:{catalog}"}
    text = json.dumps(mark, indent=2).encode()
    files.write(MARK, text)
    return text


def default_catalog(url: str) -> Path:
    """Return the default path of the catalog of an object-store root.

    Parameters
    ----------
    url
        The root, such as s3://bucket/folder.

    Returns
    -------
    Path
        On the local disk, under the user's data folder.
    """
    home = Path(os.environ.get("XDG_DATA_HOME", Path.home() / ".local" / "share")) / "tagcos"
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", url)
    earlier = home / name / "catalog.duckdb"  # where it was before the name had a digest, without which s3://b/a/b is s3://b/a_b
    return earlier if earlier.exists() else home / f"{name}-{digest(url)[:8]}" / "catalog.duckdb"


def open_root(
    url: str,
    *,
    catalog: Path | None = None,
    create: bool = True,
    wait_seconds: float = 600.0,
    on_wait: Callable[[str], None] = say,
) -> Root:
    """Open a root.

    Parameters
    ----------
    url
        Folder or object-store URL.
    catalog
        Local path of the catalog. Default: in the folder, or under the user's data folder for an object store.
    create
        Create the root if it does not exist and check that it is writable. Readers pass False; nothing is written then.
    wait_seconds
        How long to wait for another process that has the catalog or the writer lock.
    on_wait
        Called with a message while waiting.

    Returns
    -------
    Root
        Holds no lock and no open file.

    Raises
    ------
    NoRoot
        There is no root and `create` is False.
    UserError
        The root cannot be created or written, has another format, or a symbolic link in it leads out of it; or its catalog is
        missing, without which the next run would take its files for garbage.
    """
    files = open_files(url)
    if catalog is None:
        catalog = files.folder / "catalog.duckdb" if isinstance(files, LocalFiles) else default_catalog(files.url)
    if isinstance(files, LocalFiles):
        for name in OWN:
            files.check_inside(name)
    try:
        text = _read_mark(files)
        if text is None and create:
            with _writer(files.url, catalog, wait_seconds, on_wait):
                text = _read_mark(files) or _write_mark(files, catalog)  # if several processes start a root, one creates it
    except NotADirectoryError:
        raise UserError(f"root {files.url} is a file or lies in one: choose a folder with --root") from None
    if text is None:
        raise NoRoot(
            f"there is no tagcos root at {files.url}: name another with --root or TAGCOS_ROOT, or start one with `tagcos run`"
        )
    try:
        mark = json.loads(text)
    except ValueError as error:
        raise UserError(f"{files.place(MARK)} is not valid JSON ({error}): restore it, or choose another --root") from error
    if mark.get("format") != FORMAT:
        raise UserError(
            f"root {files.url} has format {mark.get('format')}, this version reads {FORMAT}: use the version that wrote it"
        )
    root = Root(files, catalog.absolute(), mark["store_id"], wait_seconds, on_wait)
    if create and root.lost_its_catalog():
        raise UserError(
            f"root {files.url} has data, but its catalog {root.catalog_path} is missing: restore it from a backup, or from "
            f"catalog-snapshot.duckdb of the same folder (the root was made with {mark.get('catalog')}), or choose another --root"
        )
    if create and isinstance(files, LocalFiles):
        # Not os.access: it ignores quotas and always succeeds for root. Object stores report errors at the first write.
        files.write(".writable", b"")
        files.delete(".writable")
    return root
