"""The README: its commands exist, its picture is small, and the lists that it points to are those of the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from flows.cli.main import app
from flows.cli.options import settings_table
from tagcos_stream.selection.methods import METHODS
from tests.stages import STAGES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LAYERS = ("flows", "storage", "tagcos_stream")


def test_settings__the_table_is_that_of_the_model() -> None:
    settings = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert settings_table() in settings, "put the output of `python -m flows.cli.options` into docs/settings.md"


def test_readme__names_every_command() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        assert f"tagcos {command.callback.__name__}" in README


def test_readme__picture_is_small() -> None:
    for path in re.findall(r"!\[[^\]]+\]\(([^)]+\.png)\)", README):
        assert (ROOT / path).stat().st_size < 300_000
    assert "docs/images/report.png" in README


def tree_entries(text: str) -> Iterator[tuple[Path, str]]:
    """Path (a folder, or a module without its ending) and description of every line of the tree, by its indentation."""
    folders: list[str] = []
    for line in text.splitlines():
        match = re.fullmatch(r"((?:  )*)(\S+?)(/?) {2,}(\S.*)", line)
        assert match, f"not a line of the tree: {line}"
        indent, name, folder, description = match.groups()
        folders = folders[: len(indent) // 2]
        yield Path(*folders, name), description
        folders += [name] if folder else []


def test_architecture__the_tree_is_that_of_the_code() -> None:
    """Every folder and module (those of selection methods aside) has one line in its place; no line names what is not there."""
    tree = ARCHITECTURE.split("## Tree")[1].split("```")[1].strip("\n")
    listed = [path for path, _ in tree_entries(tree) if path.parts[0] in LAYERS]
    there = set()
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*.py"):
            module = path.relative_to(ROOT)
            if ".".join(module.with_suffix("").parts) in METHODS.modules():
                continue  # the line of the registry stands for them, docs/controls.md has a row for each
            there.add(module.parent if path.name == "__init__.py" else module.with_suffix(""))
    assert not there - set(listed), "without a line in the tree of docs/architecture.md"
    assert not set(listed) - there, "in the tree of docs/architecture.md, but not in the code"
    assert len(listed) == len(set(listed))


def test_architecture__the_diagram_has_the_stages_and_modules_of_the_code() -> None:
    assert re.findall(r"<b>([\w-]+)</b>", ARCHITECTURE) == list(STAGES)
    named = re.findall(r"(?:flows|storage|tagcos_stream)/[\w/]+\.py", ARCHITECTURE)
    assert len(named) >= 10
    for path in named:
        assert (ROOT / path).exists(), path


def test_controls__have_a_row_for_every_method() -> None:
    page = (ROOT / "docs" / "controls.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| `([a-z-]+)` \| [^|]+ \| (clusters|strata|datasets|pool) \| (fitted|none) \|", page.replace("\\|", ""), re.MULTILINE
    )
    described = {name: (within, weights) for name, within, weights in rows}
    assert described == {name: (method.within, "fitted" if method.weights else "none") for name, method in METHODS.items()}
