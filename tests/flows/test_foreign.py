"""A root that somebody else made: names in its catalog and links in its folder lead no command to files outside of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
import yaml

from flows.compare.evaluate import model_settings
from storage.root import Root, open_root
from storage.snapshot import publish
from storage.tables import quoted, quoted_name
from tagcos_stream.config import Settings
from tagcos_stream.evaluation.config import Evaluation
from tests.flows.conftest import Call

AWAY = "../../away"
COMMANDS: list[list[str]] = [
    ["check"],
    ["report"],
    ["export", "--out", "OUT/chosen.jsonl"],
    ["select", "--method", "random", "--count", "5"],
    ["gc", "--unnamed", "--yes"],
]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def renamed(column: str, name: str) -> Callable[[Root], None]:
    """Every id of this kind in the catalog is a path that leads out of the root."""

    def plant(root: Root) -> None:
        query = "SELECT table_name FROM duckdb_columns() SEMI JOIN duckdb_tables() USING (table_name) WHERE column_name = ?"
        with root.catalog.transaction() as connection:
            for (table,) in connection.execute(query, [column]).fetchall():
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE {column} IS NOT NULL", [name])

    return plant


def linked(name: str) -> Callable[[Root], None]:
    """A folder or file of the root is a symbolic link to one outside."""

    def plant(root: Root) -> None:
        assert root.path is not None
        place = root.path / name
        if place.exists():
            place.rename(root.path.parent / "away" / "moved")
            place.symlink_to(root.path.parent / "away" / "moved")
        else:
            place.symlink_to(root.path.parent / "away" / ("folder" if "." not in name else "precious"))

    return plant


PLANTS = {
    "run ids": renamed("run_id", f"{AWAY}/run"),
    "linked folders": lambda root: [linked(name)(root) for name in ("reports", "snapshots")],
    "a linked lock": linked("writer.lock"),
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_commands__touch_nothing_outside_of_a_planted_root(
    plant: Callable[[Root], object], selected_root: Root, tmp_path: Path, tagcos: Call
) -> None:
    away = tmp_path / "away"
    (away / "folder").mkdir(parents=True)
    (away / "precious").write_text("precious")
    (away / "folder" / "c.0.0").write_text("precious")
    plant(selected_root)
    before = contents(away)
    for command in COMMANDS:
        arguments = [part.replace("OUT", str(tmp_path / "out")) for part in command]
        code, _, err = tagcos(arguments[0], "--root", selected_root.url, *arguments[1:])
        assert code in (0, 1, 2), command
        assert "Traceback" not in err
        assert contents(away) == before, command
    assert {path.name for path in tmp_path.iterdir()} <= {"root", "away", "out"}


def plant(root: Root, table: str, value: str) -> list[str]:
    """Put others in the place of all views and macros of a catalog, whose rows are those of `table`; returns their names."""
    with root.catalog.reading() as connection:
        views = [row[0] for row in connection.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()]
        macros = connection.execute(
            """SELECT function_name, function_type, list_distinct(parameters) FROM duckdb_functions()
            WHERE NOT internal AND database_name = 'catalog'"""
        ).fetchall()
    with duckdb.connect(str(root.catalog_path)) as shell:  # the digest of the package's views stays
        for name in views:
            shell.execute(f"CREATE OR REPLACE VIEW {name} AS {table}")
        for name, kind, parameters in macros:
            body = f"TABLE {table}" if kind == "table_macro" else value
            shell.execute(f"CREATE OR REPLACE MACRO {name}({', '.join(map(quoted_name, parameters))}) AS {body}")
    return [*views, *(name for name, _, _ in macros)]


READING = [
    ["status"], ["export", "--out", "OUT/chosen.jsonl"], ["report", "--out", "OUT/report.html"], ["check"],
    ["sql", "--safe", "FROM latest_selection"], ["sql", "SELECT * FROM pool_of(latest_of('main')) ORDER BY ALL"],
]  # fmt: skip
WRITING = [["select", "--method", "random", "--count", "5"], ["diagnose"], ["gc", "--unnamed", "--yes"]]


def test_commands__use_no_view_or_macro_of_the_catalog(selected_root: Root, tmp_path: Path, tagcos: Call) -> None:
    def told() -> list[tuple[int, str]]:
        out = tmp_path / "out"
        out.mkdir()
        answers = []
        for command in READING:
            arguments = [part.replace("OUT", str(out)) for part in command]
            code, shown, err = tagcos(arguments[0], "--root", selected_root.url, *arguments[1:])
            assert "Traceback" not in err
            answers.append((code, shown))
            assert code == 0, command
        answers.append((0, (out / "chosen.jsonl").read_text(encoding="utf-8")))
        shutil.rmtree(out)
        return answers

    before = told()
    planted = plant(selected_root, "SELECT error('planted') AS run_id", "error('planted')")
    assert {"latest_run", "latest_selection", "names", "selection_of", "pool_of"} <= set(planted)
    assert told() == before
    for command in WRITING:
        assert tagcos(command[0], "--root", selected_root.url, *command[1:])[0] == 0


def test_commands__read_no_file_for_planted_views_and_macros(selected_root: Root, tmp_path: Path, tagcos: Call) -> None:
    secret = b"the words of a file outside"
    (tmp_path / "secret").write_bytes(secret)
    reads = f"read_text({quoted(str(tmp_path / 'secret'))})"
    plant(selected_root, f"SELECT *, content AS run_id, content AS name FROM {reads}", f"(SELECT content FROM {reads})")
    with duckdb.connect(str(selected_root.catalog_path)) as shell:
        assert shell.execute("SELECT run_id FROM latest_run").fetchall() == [(secret.decode(),)], "nothing was planted"
    for command in [*READING, *WRITING]:
        arguments = [part.replace("OUT", str(tmp_path / "out")) for part in command]
        code, out, err = tagcos(arguments[0], "--root", selected_root.url, *arguments[1:])
        assert code in (0, 2), command
        assert secret.decode() not in out + err, command
        assert (code == 2) == ("file system operations are disabled" in err), (command, err)  # a snapshot copies what is stored
        assert err.count("\n") == 1 or code == 0
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert kept == [tmp_path / "secret"]


@pytest.mark.parametrize(
    "command", [["status"], ["select", "--method", "random", "--count", "5"]], ids=lambda command: command[0]
)
def test_commands__refuse_a_view_in_place_of_a_table(selected_root: Root, tagcos: Call, command: list[str]) -> None:
    with duckdb.connect(str(selected_root.catalog_path)) as shell:
        shell.execute("ALTER TABLE pins RENAME TO others; CREATE VIEW pins AS FROM others")
    code, _, err = tagcos(command[0], "--root", selected_root.url, *command[1:])
    assert code == 2
    assert re.search(r"catalog.duckdb has a view pins in place of the table: .* restore catalog-snapshot.duckdb", err)


NAMES = (
    """../../away/a"b'c`d; DROP TABLE runs; -- !!python/object/apply:os.system ['touch away'] {{ 7 * 7 }} # <%= 7 %>""",
    """=HYPERLINK("http://away", A1)\nsecond: [1]\r\n- third\n---\n</script><script>window.hacked = 1</script>""",
)


@pytest.mark.parametrize("name", NAMES)
def test_commands__take_names_for_text(selected_root: Root, tmp_path: Path, tagcos: Call, name: str) -> None:
    """Of data sets, files, runs, methods and models."""
    out, (run_id,) = tmp_path / "out", selected_root.catalog.read("SELECT run_id FROM runs")["run_id"]
    for column in ("dataset", "source_id", "url", "name"):
        renamed(column, name)(selected_root)
    config = json.loads(selected_root.catalog.read("SELECT config FROM runs").item()) | {"model": name, "name": name}
    with selected_root.catalog.transaction() as connection:
        connection.execute("UPDATE runs SET config = ?", [json.dumps(config)])
    at = ("--root", selected_root.url)
    code, _, err = tagcos("report", run_id, *at, "--out", out / "page.html")
    assert code == 0, err
    page = (out / "page.html").read_text(encoding="utf-8")
    assert len(re.findall("<script", page)) == 3
    assert "window.hacked = 1</script>" not in page
    for format, file in (("messages", "rows.jsonl"), ("axolotl", "ax"), ("llama-factory", "lf"), ("datasets", "ds")):
        place = out / (file if file.endswith("jsonl") else f"{file} {name.replace('/', '')}")
        code, _, err = tagcos("export", run_id, *at, "--format", format, "--leave-out", "--out", place)
        assert code == 0, err
        if format == "messages":
            rows = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
            assert {(row["dataset"], row["source_file"], row["model"]) for row in rows} == {(name, name, name)}
        elif format == "axolotl":
            (stanza,) = yaml.safe_load((place / "axolotl.yaml").read_text(encoding="utf-8"))["datasets"]
            assert stanza["path"] == str(place / "tagcos.parquet")
            assert set(stanza) >= {"ds_type", "type"}
        elif format == "llama-factory":
            assert list(json.loads((place / "dataset_info.json").read_text(encoding="utf-8"))) == ["tagcos"]
        else:
            _, head, card = (place / "README.md").read_text(encoding="utf-8").split("---\n", 2)
            assert list(yaml.safe_load(head)) == ["configs"]
            assert f"load_dataset({str(place)!r}" in card
    code, shown, _ = tagcos("sql", "--safe", "SELECT DISTINCT dataset FROM examples", *at, "--json")
    assert (code, json.loads(shown)) == (0, [{"dataset": name}])
    for command in (["check"], ["status"], ["select", "--method", "random", "--count", "5"]):
        code, _, err = tagcos(command[0], *at, *command[1:])
        assert code in (0, 1, 2), command
        assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"root", "out"}


def test_snapshot__of_a_planted_catalog_is_no_script_of_others(
    selected_root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of tables and runs stand in snapshot.sql, which readers run in a shell that may write files."""
    monkeypatch.chdir(tmp_path)
    run_id = "run-1\nCOPY (SELECT 1) TO 'away';--"
    with selected_root.catalog.transaction() as connection:
        for table in ("odd name", "../../../away", "select", "x; COPY (SELECT 1) TO 'away'; CREATE VIEW y"):
            connection.execute(f"CREATE TABLE {quoted_name(table)} AS SELECT 1 AS a")
    publish(selected_root, run_id)
    assert selected_root.path is not None
    folder = selected_root.path / "snapshots" / run_id
    with duckdb.connect() as shell:
        shell.execute((folder / "snapshot.sql").read_text(encoding="utf-8"))
        assert shell.execute('SELECT a FROM "select"').fetchall() == [(1,)]
        assert len(shell.execute("FROM runs").fetchall()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert open_root(selected_root.url, create=False).catalog.read('FROM "odd name"').item() == 1  # it stays where it was


def test_commands__run_no_code_that_only_the_root_trusts(
    selected_root: Root, model_folder: Path, tmp_path: Path, tagcos: Call
) -> None:
    """The root's runs say trust_remote_code, and their model comes with code that would leave a file."""
    model = shutil.copytree(model_folder, tmp_path / "model")
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nraise ValueError('planted')\n"
    (model / "planted.py").write_text(code)
    for name, key in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        held = json.loads((model / name).read_text(encoding="utf-8"))
        held |= {"auto_map": {key: ["planted.Planted", None] if key == "AutoTokenizer" else "planted.Planted"}}
        held |= {"model_type": "planted"} if key == "AutoConfig" else {"tokenizer_class": "Planted"}
        (model / name).write_text(json.dumps(held), encoding="utf-8")
    config = json.loads(selected_root.catalog.read("SELECT config FROM runs").item())
    config |= {"model": str(model), "trust_remote_code": True}
    with selected_root.catalog.transaction() as connection:
        connection.execute("UPDATE runs SET config = ?", [json.dumps(config)])
    arguments = ["export", "--root", selected_root.url, "--format", "trl", "--out", str(tmp_path / "out")]
    exit_code, _, err = tagcos(*arguments)
    assert (exit_code, (tmp_path / "ran").exists()) == (2, False), err
    assert "--trust-remote-code" in err
    tagcos(*arguments, "--trust-remote-code")
    assert (tmp_path / "ran").exists()
    settings = Settings.model_validate(config)
    assert not model_settings(settings, Evaluation()).trust_remote_code
    assert model_settings(settings, Evaluation(trust_remote_code=True)).trust_remote_code
