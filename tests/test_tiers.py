"""`pytest -m quick`, the loop while working: it reaches every file of its folders, and these import nothing of flows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import QUICK, SERVERS, TESTS
from tests.test_layers import imports

# files whose every test starts a process or a server, or takes many seconds
OTHERS = {
    "data/test_memory.py",
    "method/test_controls_memory.py",
    "method/test_omp_memory.py",
}
FILES = sorted(path for folder in QUICK for path in (TESTS / folder).glob("test_*.py"))


def quick_tests(path: Path) -> set[str]:
    """Test functions that neither a mark nor a fixture takes out of the tier."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = {ast.unparse(decorator) for decorator in node.decorator_list} & {"pytest.mark.process", "pytest.mark.slow"}
            if not marks and not SERVERS & {argument.arg for argument in node.args.args}:
                found.add(node.name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_quick__has_tests_of_every_file_and_imports_nothing_of_flows(path: Path) -> None:
    assert bool(quick_tests(path)) == (path.relative_to(TESTS).as_posix() not in OTHERS)
    assert not {name for name in imports(path) if name.split(".")[0] == "flows"}


def test_quick__is_set_on_tests_that_need_neither_process_nor_server(request: pytest.FixtureRequest) -> None:
    """Of the tests collected in this session."""
    for item in request.session.items:
        quick = item.get_closest_marker("quick") is not None
        assert not (quick and item.get_closest_marker("process")), item.nodeid
        assert not (quick and SERVERS & set(getattr(item, "fixturenames", ()))), item.nodeid
