"""What a run publishes for others to read without locks: a copy of the catalog, and its tables as Parquet.

catalog-snapshot.duckdb       in the catalog's folder: a whole copy, replaced atomically; views and macros included
snapshots/<run>/*.parquet     under the root, also in an object store: one file a table
snapshots/<run>/snapshot.sql  run it in a DuckDB shell: tables, views, macros
snapshots/latest.json         which run is the newest
"""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path

import duckdb

from storage.connections import NO_EXTENSIONS, close_off, copy_to, naming_refused_writes
from storage.files.base import sync_path
from storage.interrupts import interruptible
from storage.root import Root
from storage.schema import SCHEMA_VERSION
from storage.tables import quoted, quoted_name, utc_now
from storage.views import views_text

FORMAT = 1
LATEST = "snapshots/latest.json"
# names become files and a script that others run: one that no migration would give, somebody else gave
OWN_TABLES = r"""SELECT table_name FROM duckdb_tables()
    WHERE schema_name = 'main' AND regexp_full_match(table_name, '\w+') ORDER BY table_name"""


def snapshot_path(root: Root) -> Path:
    """Return the path of the catalog's copy that is open to other readers."""
    return root.catalog_path.with_name("catalog-snapshot.duckdb")


def publish(root: Root, run_id: str, *, keep: int = 2) -> str:
    """Publish the catalog as it is now under this run's name; the `keep` newest Parquet folders stay. Returns its URL."""
    work = root.catalog_path.with_name(".tmp-snapshot")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        copy = work / "catalog.duckdb"
        with root.catalog.transaction(allowed=[str(work)]) as connection:
            connection.execute("COMMIT")  # attaching and copying make their own
            copy_to(connection, copy)
            connection.execute("BEGIN")
        tables = _write_tables(root, run_id, copy, work)
        copy.replace(snapshot_path(root))
        sync_path(snapshot_path(root).parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    note = {
        "format": FORMAT,
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "published_at": utc_now().isoformat() + "Z",
        "tables": tables,
    }
    root.files.write(LATEST, json.dumps(note, indent=2).encode())
    _drop_old(root, run_id, keep)
    return root.files.place(f"snapshots/{run_id}")


def republish(root: Root, *, keep: int = 2) -> str | None:
    """Publish again after a change made by no run, under the newest complete run. None if there is none yet."""
    newest = root.catalog.read(
        "SELECT run_id FROM runs WHERE status = 'complete' ORDER BY finished_at DESC, run_id DESC LIMIT 1"
    )["run_id"].to_list()
    return publish(root, newest[0], keep=keep) if newest else None


def _write_tables(root: Root, run_id: str, copy: Path, work: Path) -> dict[str, int]:
    """From the copy, so that the catalog is free meanwhile. Returns the rows of each table."""
    folder = root.files.place(f"snapshots/{run_id}")
    script = [
        f"-- Snapshot of run {' '.join(run_id.split())}: .read this in a DuckDB shell. If it was moved, change the folder.",
        f"SET VARIABLE folder = {quoted(folder)};",
    ]
    rows: dict[str, int] = {}
    connection = duckdb.connect(str(copy), read_only=True, config=NO_EXTENSIONS)
    close_off(connection, [str(work)])
    with closing(connection), interruptible():
        for (table,) in connection.execute(OWN_TABLES).fetchall():
            file, name = work / f"{table}.parquet", quoted_name(table)
            with naming_refused_writes(file, copy):
                copied = connection.execute(f"COPY {name} TO {quoted(str(file))} (FORMAT parquet, COMPRESSION zstd)")
            rows[table] = copied.fetchall()[0][0]
            root.files.adopt(f"snapshots/{run_id}/{table}.parquet", file)
            script.append(f"CREATE OR REPLACE VIEW {name} AS FROM read_parquet(getvariable('folder') || '/{table}.parquet');")
    root.files.write(f"snapshots/{run_id}/snapshot.sql", ("\n".join(script) + "\n\n" + views_text(tables="VIEW")).encode())
    return rows


def _drop_old(root: Root, run_id: str, keep: int) -> None:
    newest = root.catalog.read("SELECT run_id FROM runs ORDER BY started_at DESC, run_id DESC")["run_id"].to_list()
    published: dict[str, list[str]] = {}
    for key, _ in root.files.list("snapshots"):
        if key != LATEST:
            published.setdefault(key.split("/")[1], []).append(key)
    kept = [run_id, *(run for run in newest if run in published and run != run_id)][:keep]
    for run, keys in published.items():
        if run not in kept:
            for key in keys:
                root.files.delete(key)
