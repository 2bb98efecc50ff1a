"""The README tells the truth: its settings, its tree and its commands."""

from __future__ import annotations

import re
from pathlib import Path

from flows.cli.main import app
from flows.cli.options import settings_table

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme__settings_table_is_that_of_the_model() -> None:
    assert settings_table() in README, "put the output of `python -m flows.cli.options` into README.md"


def test_readme__every_command_is_told() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"tagcos {command.callback.__name__}" in README


def test_readme__the_tree_names_every_module() -> None:
    tree = README.split("## Tree")[1].split("\n## ")[0]
    for folder in ("flows", "storage", "tagcos_stream"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            assert path.name == "__init__.py" or re.search(rf"\b{path.stem}\b", tree), (
                f"{path.relative_to(ROOT)} is not in the tree"
            )
