"""The catalog: commented, migrated, one writer and many readers, values as parameters."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from storage import database_file
from storage.catalog import evaluations, pool, runs, stages
from storage.check import check
from storage.database import Catalog
from storage.gc import orphans
from storage.root import Root, default_catalog, open_root
from storage.schema import SCHEMA_VERSION, migrations
from storage.tables import insert_row, utc_now
from storage.views import SQL
from tagcos_stream.types import UserError
from tests.storage import tiny

HOLD = """
import duckdb, sys, time
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read")
print("open", flush=True)
time.sleep(float(sys.argv[3]))
"""


SLOW = "SELECT count(*) FROM range(400000000) t(a) WHERE a % 7 = 3"


@contextmanager
def hold(path: Path, kind: str, seconds: float) -> Iterator[int]:
    """A DuckDB shell in another process, open on the catalog for so long; its process id."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), kind, str(seconds)], stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        assert shell.stdout.readline() == "open\n"
        yield shell.pid
        shell.kill()


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["reading", "transaction"])
def test_signal__during_a_query_is_an_interruption_and_no_error(filled: Root, which: signal.Signals, kind: str) -> None:
    """A flow is cancelled by SIGTERM: a run must not be recorded as failed because a query happened to be under way."""

    class Cancelled(BaseException):
        pass

    def cancel(*given: object) -> None:
        raise Cancelled

    before = signal.signal(which, cancel)
    threading.Timer(0.3, os.kill, (os.getpid(), which)).start()
    try:
        with pytest.raises(Cancelled), getattr(filled.catalog, kind)() as connection:
            connection.execute(SLOW)
    finally:
        signal.signal(which, before)
    assert filled.catalog.read("SELECT 1 AS one")["one"][0] == 1, "the catalog is free"


def test_schema__every_table_view_and_column_is_commented(filled: Root) -> None:
    tables = filled.catalog.read("SELECT table_name FROM duckdb_tables() WHERE comment IS NULL")
    columns = filled.catalog.read("SELECT table_name, column_name FROM duckdb_columns() WHERE comment IS NULL AND NOT internal")
    views = filled.catalog.read("SELECT view_name FROM duckdb_views() WHERE comment IS NULL AND NOT internal")
    assert (tables.rows(), columns.rows(), views.rows()) == ([], [], [])


def test_storage__no_pickle_and_no_value_in_sql_text() -> None:
    text = "".join(path.read_text() for path in Path(SQL).parent.glob("*.py"))
    assert "import pickle" not in text
    assert "allow_pickle=True" not in text


@pytest.mark.process
def test_catalog__imports_neither_torch_nor_peft_nor_prefect() -> None:
    heavy = "('torch', 'peft', 'prefect', 'transformers')"
    code = f"import sys, storage.root, storage.check, storage.snapshot; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def old_sql(folder: Path, versions: int) -> Path:
    """The SQL of an older version: its first steps."""
    folder.mkdir()
    for number, path in migrations():
        if number <= versions:
            shutil.copy(path, folder)
    return folder


def older(path: Path, sql: Path) -> duckdb.DuckDBPyConnection:
    """An open catalog of an older version."""
    connection = duckdb.connect(str(path), config={"storage_compatibility_version": "v1.5.0"})
    for number, step in migrations(sql):
        connection.execute(step.read_text())
        connection.execute("INSERT INTO migrations VALUES (?, ?, '2026-01-01')", [number, step.name])
    return connection


# the first passes through the states of all others, which have no views: these are tried one by one when asked for
STARTS = [
    version if version in (1, SCHEMA_VERSION // 2, SCHEMA_VERSION - 1) else pytest.param(version, marks=pytest.mark.slow)
    for version in range(1, SCHEMA_VERSION)
]


@pytest.mark.parametrize("versions", STARTS)
def test_migrate__an_older_store_opens_with_its_content(tmp_path: Path, versions: int) -> None:
    path = tmp_path / "catalog.duckdb"
    connection = older(path, old_sql(tmp_path / "sql", versions))
    columns = "file_id, source, url, digest, size, format, spec, rows_done, complete, first_run, added_at"
    connection.execute(f"INSERT INTO files ({columns}) VALUES ('f', 's', 'u', 'd', 1, 'jsonl', '', 5, true, 'r', '2026-01-01')")
    connection.close()
    catalog = Catalog(path)
    with pytest.raises(UserError, match=f"schema version {versions}, this version reads {SCHEMA_VERSION}"):
        catalog.read("FROM files")
    catalog.upgrade()
    assert catalog.read("SELECT rows_done FROM files")["rows_done"].to_list() == [5]
    Catalog(tmp_path / "none").upgrade()
    assert not (tmp_path / "none").exists()
    opened = runs.open_run(catalog, config={}, config_hash="h", versions={}, seeds={})
    assert catalog.read("SELECT max(version) AS v FROM migrations")["v"].to_list() == [SCHEMA_VERSION]
    assert catalog.read("SELECT rows_done FROM files")["rows_done"].to_list() == [5]
    assert catalog.read("FROM why('00')").is_empty()
    assert runs.run_status(catalog, opened.run_id).selected == 0


def test_migrate__units_of_an_evaluation_are_kept(tmp_path: Path) -> None:
    """As schema 7 left them: without a setting."""
    path = tmp_path / "catalog.duckdb"
    unit: dict[str, Any] = {
        "evaluation_id": "e", "method": "tagcos", "gradient": "sgd", "fraction": 0.1, "seed": 1, "regime": "steps",
    }  # fmt: skip
    measured: dict[str, Any] = {
        "examples": 3, "steps": 2, "passes": 5.0, "tokens": 7, "train_seconds": 1.0, "measure_seconds": 1.0,
    }  # fmt: skip
    connection = older(path, old_sql(tmp_path / "sql", 7))
    for regime in ("steps", "epochs"):
        row = unit | {"regime": regime, "weighted": False}
        insert_row(connection, "evaluation_units", **row, **measured, copied=False, finished_at=utc_now())
        insert_row(connection, "evaluation_scores", **row, measure="loss", value=1.5, items=9)
    connection.close()
    opened = Catalog(path)
    opened.upgrade()
    keys = evaluations.units(opened, "e")
    assert {(key.setting, key.regime, row["tokens"]) for key, row in keys.items()} == {("", "steps", 7), ("", "epochs", 7)}
    assert evaluations.results(opened, "e")["value"].to_list() == [1.5, 1.5]


def test_migrate__advice_is_in_the_terms_of_this_version(tmp_path: Path) -> None:
    path = tmp_path / "catalog.duckdb"
    counts: dict[str, Any] = {"pool": 3, "added": 1, "returned": 0, "retired": 0}
    connection = older(path, old_sql(tmp_path / "sql", 24))
    for run_id, advice in (("a", "keep"), ("b", "cluster anew"), ("c", "cluster anew and warm up anew")):
        insert_row(connection, "refreshes", run_id=run_id, **counts, advice=advice, refitted=False, decided_at=utc_now())
    connection.close()
    opened = Catalog(path)
    opened.upgrade()
    found = opened.read("SELECT advice FROM refreshes ORDER BY run_id")["advice"].to_list()
    assert found == ["keep", "recluster", "recluster and repeat warm-up"]


def test_migrate__clusters_of_an_older_format_are_made_again(filled: Root) -> None:
    """As schema 5 left them: no recipe, parts of format 1. Nothing is damaged, and the files are litter."""
    files = sum(path.is_file() for path in Path(filled.files.place("clusterings")).rglob("*"))
    assert files
    with filled.catalog.transaction() as connection:
        assigned = connection.execute("SELECT count(*) FROM assignments").fetchall()
        connection.execute("UPDATE clusterings SET recipe = NULL")
        connection.execute((SQL / "006_clusterings.sql").read_text())
    assert filled.catalog.read("FROM cluster_parts").is_empty()
    assert filled.catalog.read("SELECT count(*) FROM assignments").rows() == assigned
    assert [finding.damage for finding in check(filled)] == [False]  # the orphans
    assert len([orphan for orphan in orphans(filled) if orphan.key.startswith("clusterings/")]) == files


def test_migrate__a_future_step_is_applied_once_and_keeps_rows(filled: Root, tmp_path: Path) -> None:
    sql = tmp_path / "sql"
    shutil.copytree(SQL, sql)
    (sql / f"{SCHEMA_VERSION + 1:03d}_language.sql").write_text("ALTER TABLE examples ADD COLUMN language VARCHAR DEFAULT 'en';")
    newer = Catalog(filled.catalog_path, sql_folder=sql)
    with newer.transaction():
        pass
    assert newer.read("SELECT DISTINCT language FROM examples")["language"].to_list() == ["en"]
    assert newer.read("SELECT count(*) AS n FROM latest_selection")["n"][0] > 0
    # and this version refuses what the newer one left
    for attempt in (lambda: filled.catalog.read("FROM runs"), lambda: runs.list_runs(Catalog(filled.catalog_path))):
        with pytest.raises(UserError, match=f"schema version {SCHEMA_VERSION + 1}, this version knows up to {SCHEMA_VERSION}"):
            attempt()
    with (
        pytest.raises(UserError, match=f"schema version {SCHEMA_VERSION + 1}, this version knows up to {SCHEMA_VERSION}"),
        Catalog(filled.catalog_path).transaction(),
    ):
        pass


def test_migrate__a_killed_step_leaves_the_older_version(tmp_path: Path) -> None:
    sql = old_sql(tmp_path / "sql", SCHEMA_VERSION)
    (sql / f"{SCHEMA_VERSION + 1:03d}_broken.sql").write_text("CREATE TABLE half (x INTEGER); SELECT * FROM nowhere;")
    catalog = Catalog(tmp_path / "catalog.duckdb", sql_folder=sql)
    with pytest.raises(duckdb.Error), catalog.transaction():
        pass
    good = Catalog(tmp_path / "catalog.duckdb")
    with good.transaction():
        pass
    assert good.read("SELECT count(*) AS n FROM duckdb_tables() WHERE table_name = 'half'")["n"][0] == 0


@pytest.mark.process
@pytest.mark.parametrize("kind", ["read", "write"])
def test_transaction__waits_for_a_shell_with_a_message_and_goes_on(root: Root, kind: str) -> None:
    said: list[str] = []
    opened = runs.open_run(root.catalog, config={}, config_hash="h", versions={}, seeds={})
    catalog = Catalog(root.catalog_path, wait_seconds=30, on_wait=said.append)
    for stage in ("ingest", "select"):  # the second time in the DuckDB instance that the catalog keeps
        said.clear()
        with hold(root.catalog_path, kind, 1.0) as pid:  # which can open the file: the catalog has closed it
            started = time.monotonic()
            stages.done(catalog, opened.run_id, stage, seconds=1.0, peak_bytes=None, detail={})
            assert time.monotonic() - started > 0.6
        assert len(said) == 1
        assert f"is held by process {pid}" in said[0]
    assert set(runs.open_run(catalog, config={}, config_hash="h", versions={}, seeds={}).stages) == {"ingest", "select"}


@pytest.mark.process
def test_transaction__an_error_rolls_back_and_closes_the_file(root: Root) -> None:
    opened = runs.open_run(root.catalog, config={}, config_hash="h", versions={}, seeds={})
    with pytest.raises(duckdb.ConversionException), root.catalog.transaction() as connection:
        connection.execute("UPDATE runs SET status = 'failed'; UPDATE runs SET started_at = 'never'")
    with hold(root.catalog_path, "write", 0):
        pass
    assert runs.run_status(root.catalog, opened.run_id).run["status"] == "running"
    with pytest.raises(UserError, match="has SQL that opens other files"):
        root.catalog.read("SELECT * FROM read_text('/etc/hostname')")
    with pytest.raises(UserError, match="has SQL that opens other files"):
        root.catalog.read("ATTACH '/tmp/other.duckdb' AS other")


@pytest.mark.process
def test_transaction__gives_up_naming_file_and_holder(root: Root) -> None:
    runs.open_run(root.catalog, config={}, config_hash="h", versions={}, seeds={})
    catalog = Catalog(root.catalog_path, wait_seconds=0.5)
    with hold(root.catalog_path, "read", 30) as pid:
        with pytest.raises(
            UserError, match=rf"catalog\.duckdb is held by process {pid} .*waited 0\.5 s.*Close that DuckDB shell"
        ):
            runs.finish_run(catalog, "x")
        assert len(runs.list_runs(catalog)) == 1  # readers do not mind each other


def test_catalog__threads_take_turns(root: Root) -> None:
    runs.open_run(root.catalog, config={}, config_hash="h", versions={}, seeds={})
    problems: list[Exception] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                if number % 2:
                    stages.done(root.catalog, "x", f"{number}-{turn}", seconds=0.0, peak_bytes=None, detail={})
                else:
                    root.catalog.read("SELECT count(*) FROM stages")
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert root.catalog.read("SELECT count(*) AS n FROM stages")["n"][0] == 15


def test_read__is_read_only(filled: Root) -> None:
    with pytest.raises(duckdb.InvalidInputException, match="read-only"):
        filled.catalog.read("DELETE FROM runs")


def test_read__takes_what_people_write(filled: Root) -> None:
    took = filled.catalog.read('SELECT finished_at - started_at AS took, 1 AS "odd ""name" FROM runs')
    assert took.columns == ["took", 'odd "name']
    assert took["took"][0].startswith("00:0")
    assert filled.catalog.read("SET threads = 1").is_empty()
    assert filled.catalog.read("SELECT 1 AS a; SELECT 2 AS b").to_dicts() == [{"b": 2}]


def test_read__old_shells_can_open_the_file(filled: Root) -> None:
    """The storage version that the file was written for is in its header; 67 and below are readable by DuckDB 1.5."""
    tags = filled.catalog.read("SELECT tags FROM duckdb_databases() WHERE NOT internal")["tags"].to_list()
    assert "v1.5" in str(tags)


def test_values__are_parameters(root: Root) -> None:
    nasty = "x'); DROP TABLE runs; --"
    opened = runs.open_run(root.catalog, config={"a": nasty}, config_hash=nasty, versions={}, seeds={}, label=nasty)
    files = pool.add_files(
        root.catalog,
        opened.run_id,
        pl.DataFrame({"source": [nasty], "url": [nasty], "digest": ["d"], "size": [1], "format": ["x"]}),
    )
    pool.commit_ingest(root, opened.run_id, files["file_id"][0], tiny.ingest_block(0, [1, 2], last=True, dataset=nasty))
    assert pool.pool(root.catalog, opened.run_id)["dataset"].to_list() == [nasty, nasty]
    assert root.catalog.read("FROM why(?)", [nasty]).is_empty()
    assert runs.run_status(root.catalog, opened.run_id).run["config_hash"] == nasty


def test_open_root__refuses_the_catalog_of_another_store(tmp_path: Path) -> None:
    first = open_root(str(tmp_path / "a"))
    runs.open_run(first.catalog, config={}, config_hash="h", versions={}, seeds={})
    second = open_root(str(tmp_path / "b"), catalog=first.catalog_path)
    with pytest.raises(UserError, match=f"catalog of store {first.store_id}, but the root is store {second.store_id}"):
        runs.finish_run(second.catalog, "x")
    with pytest.raises(UserError, match=f"catalog of store {first.store_id}, but the root is store {second.store_id}"):
        runs.list_runs(second.catalog)


def test_open_root__refuses_a_root_whose_catalog_is_missing(filled: Root) -> None:
    """Without a catalog every file would be garbage, which a run sweeps."""
    files = sorted(filled.files.list(""))
    copy = filled.catalog_path.read_bytes()
    filled.catalog_path.unlink()
    with pytest.raises(
        UserError, match=r"has data, but its catalog .*catalog.duckdb is missing: restore it from a backup, or from"
    ):
        open_root(filled.url)
    open_root(filled.url, create=False)  # readers say that there is no catalog
    filled.catalog_path.write_bytes(copy)
    assert sorted(open_root(filled.url).files.list("")) == files


def test_default_catalog__differs_between_roots_and_is_found_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_catalog("s3://bucket/a/b") != default_catalog("s3://bucket/a_b")
    earlier = tmp_path / "tagcos" / "s3_bucket_a_b" / "catalog.duckdb"
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    assert default_catalog("s3://bucket/a/b") == earlier


def test_sources__are_named_as_each_run_names_them(root: Root) -> None:
    """A file that a folder had is a source of its own once a command names it."""
    files = pl.DataFrame({"source": ["folder"], "url": ["/x/a.jsonl"], "digest": ["d"], "size": [1], "format": ["jsonl"]})
    ids = []
    for number, source in enumerate(("folder", "a")):
        opened = runs.open_run(root.catalog, config={}, config_hash=f"h{number}", versions={}, seeds={})
        known = pool.add_files(root.catalog, opened.run_id, files.with_columns(source=pl.lit(source)))
        if not known["complete"][0]:
            pool.commit_ingest(root, opened.run_id, known["file_id"][0], tiny.ingest_block(0, [1, 2, 2], last=True, rejected=1))
        runs.finish_run(root.catalog, opened.run_id)
        ids.append(opened.run_id)
    for run_id, source in zip(ids, ("folder", "a"), strict=True):
        assert root.catalog.read("SELECT source, rows, rejected FROM sources_of(?)", [run_id]).rows() == [(source, 4, 1)]
        changed = "SELECT source, pool, rejected FROM source_changes(NULL, ?)"
        assert root.catalog.read(changed, [run_id]).rows() == [(source, 2, 1)]
        assert root.catalog.read("SELECT source FROM rejects_by_reason_of(?)", [run_id])["source"].to_list() == [source]
        repeated = root.catalog.read("SELECT source_names FROM duplicates_of(?)", [run_id])["source_names"]
        assert repeated.to_list() == [[source]]


def test_open_root__says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tagcos root at .*--root"):
        open_root(str(tmp_path / "none"), create=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*choose a|cannot write"):
        open_root(str(tmp_path / "file"))
    root = open_root(str(tmp_path / "root"))
    with pytest.raises(UserError, match="no catalog at"):
        runs.list_runs(root.catalog)
    (tmp_path / "root" / "tagcos.json").write_text('{"format": 7}')
    with pytest.raises(UserError, match="format 7, this version reads 1"):
        open_root(str(tmp_path / "root"))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "catalog.duckdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(UserError, match=r"cannot be opened as a catalog.*snapshot"):
        runs.list_runs(open_root(str(tmp_path / "bad")).catalog)


@pytest.mark.process
def test_lingering__is_open_for_a_moment_after_each_use_and_closed_at_the_end(
    filled: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, catalog = filled.catalog_path, filled.catalog
    count = "SELECT count(*) FROM examples"
    expected = catalog.read(count).item()

    def opens() -> bool:
        found = subprocess.run([sys.executable, "-c", HOLD, str(path), "read", "0"], capture_output=True, text=True)
        assert found.stdout == "open\n" or "lock" in found.stderr
        return found.returncode == 0

    def until_open() -> None:
        deadline = time.monotonic() + 60
        while not opens():
            assert time.monotonic() < deadline

    monkeypatch.setattr(database_file, "LINGER", 60.0)
    monkeypatch.setattr(database_file, "LINGERING", 60.0)
    with catalog.lingering():
        assert opens(), "nothing was read yet"
        assert catalog.read(count).item() == expected
        assert not opens()
        with pytest.raises(duckdb.Error, match="read-only"), catalog.reading() as connection:
            connection.execute("DELETE FROM stages")
        assert opens(), "an error closes it"
        with catalog.transaction() as connection:
            connection.execute("CREATE TABLE noted AS SELECT 1 AS one")
        assert catalog.read("FROM noted").item() == 1
        assert not opens()
        # another object for the same file, and a query that is allowed less, get it at once
        assert Catalog(path).read("FROM noted").item() == 1
        assert catalog.read("FROM noted").item() == 1
        assert catalog.ask("FROM noted", safe=True).item() == 1
        with catalog.transaction() as connection:
            connection.execute("DROP TABLE noted")
        assert not opens()
    assert opens()
    monkeypatch.setattr(database_file, "LINGER", 0.05)
    with catalog.lingering():
        catalog.read(count)
        until_open()
    # uses without a pause leave it closed in between for a part of the time
    monkeypatch.setattr(database_file, "LINGER", 60.0)
    monkeypatch.setattr(database_file, "PERIOD", 0.3)
    monkeypatch.setattr(database_file, "LINGERING", 0.0)
    with catalog.lingering():
        catalog.read(count)
        until_open()
