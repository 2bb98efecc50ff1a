"""Folders are layers: flows -> storage -> tagcos_stream, never back; heavy imports stay at the edges."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"tagcos_stream": {"storage", "flows"}, "storage": {"flows"}}
METHOD_TYPES = {
    "tagcos_stream.types",
    "tagcos_stream.config",
    "tagcos_stream.identity",
    "tagcos_stream.data.canonical",  # the form that examples are stored in
}  # all that storage may know of the method


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("layer", sorted(FORBIDDEN))
def test_layers__never_import_upwards(layer: str) -> None:
    paths = sorted((ROOT / layer).rglob("*.py"))
    assert paths
    for path in paths:
        upwards = {name for name in imports(path) if name.split(".")[0] in FORBIDDEN[layer]}
        assert not upwards, f"{path.relative_to(ROOT)} imports {upwards}"


def test_storage__knows_only_the_plain_types_of_the_method() -> None:
    for path in sorted((ROOT / "storage").rglob("*.py")):
        method = {name for name in imports(path) if name.startswith("tagcos_stream")}
        allowed = {name for name in method if any(name == t or name.startswith(t + ".") for t in METHOD_TYPES)}
        assert method <= allowed | {"tagcos_stream"}, f"{path.relative_to(ROOT)} imports {method - allowed}"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("tagcos_stream.identity", ("torch", "transformers", "peft", "prefect", "polars")),
        ("tagcos_stream.config", ("torch", "transformers", "peft", "prefect", "polars")),
        ("tagcos_stream.selection.pursuit.omp", ("torch", "transformers", "peft", "prefect")),
        ("tagcos_stream.data.read", ("torch", "transformers", "peft", "prefect")),
        ("storage.database", ("torch", "transformers", "peft", "prefect")),
        ("flows.cli.main", ("torch", "transformers", "peft", "prefect", "polars", "duckdb")),
        ("flows.pipeline", ("torch", "transformers", "peft", "prefect")),
    ],
)
def test_imports__stay_light(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import {module}, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(heavy) & set(done.stdout.split())
