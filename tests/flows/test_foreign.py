"""A root that somebody else made: names in its catalog and links in its folder lead no command to files outside of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.compare.evaluate import model_settings
from storage.root import Root
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
