"""The documentation hangs together: pages, links, and messages that the code really says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.stages import STAGES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
WIDTH = 120


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_docs__every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"- ([\w/-]+\.md)", yaml.safe_dump(yaml.safe_load(text)["nav"]))
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)


def prose(page: Path) -> Iterator[str]:
    """The lines that can be broken: neither rows of tables, nor commands and outputs, which stand as they are given."""
    fence: str | None = None
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fence = line.strip("` ") if fence is None else None
        elif fence not in ("sh", "text", "diff") and not line.lstrip().startswith("|"):
            yield line


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_docs__lines_fit(page: Path) -> None:
    for line in prose(page):
        assert len(line) <= WIDTH, f"{len(line)} characters: {line}"


MEASUREMENTS = sorted((DOCS / "measurements").glob("[!i]*.md"))


@pytest.mark.parametrize("page", MEASUREMENTS, ids=named)
def test_measurements__name_command_machine_and_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.search(r"^(python -m|tagcos) ", text, re.MULTILINE), "no command"
    assert re.search(r"\bcores\b", text), "no machine"
    assert re.search(r"\bPython 3\.\d+", text), "no versions"
    assert re.search(r"\b\d{1,2} [A-Z][a-z]+ 20\d\d\b", text), "no date"


def test_glossary__defines_each_term_once() -> None:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    terms = [term for term in re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE) if term not in ("term", "---")]
    assert len(terms) == len(set(terms)) >= 50
    for name in STAGES:
        assert f" {name}" in text, f"stage {name} is not named"


@pytest.mark.parametrize("folder", [DOCS, DOCS / "measurements"], ids=named)
def test_docs__index_links_every_page(folder: Path) -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)", (folder / "index.md").read_text(encoding="utf-8")))
    pages = {page.name for page in folder.glob("*.md")} - {"index.md"}
    assert not pages - linked


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_docs__links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def messages() -> set[str]:
    """Every text in the code, with … for what is filled in."""
    found = set()
    for folder in ("flows", "storage", "tagcos_stream"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    found.add("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.add(node.value)
    return found


def test_troubleshooting__quotes_what_the_code_says() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [cell for cell in re.findall(r"^\| `([^`]+)` \|.*$", page, re.MULTILINE)]
    ours = [q for q in quoted if "Not ours" not in next(line for line in page.splitlines() if q in line)]
    assert len(ours) >= 25
    said = messages()
    for message in ours:
        pattern = re.compile(".*?".join(map(re.escape, message.split("…"))), re.DOTALL)
        assert any(pattern.fullmatch(text) for text in said), message


@pytest.mark.slow
def test_docs__build_strictly_and_ask_no_other_host(tmp_path: Path) -> None:
    """The command of CONTRIBUTING.md."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]+', page.read_text(encoding="utf-8")), (
            page
        )
