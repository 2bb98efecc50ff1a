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
    "tagcos_stream.credentials",
    "tagcos_stream.identity",
    "tagcos_stream.memory",
    "tagcos_stream.paths",
    "tagcos_stream.store_errors",
    "tagcos_stream.data.canonical",  # the form that examples are stored in
}  # all that storage may know of the method


# inside flows/: a module imports those of its own group and of later ones only
FLOWS = (
    ("flows.cli",),
    ("flows.prefect_flow", "flows.demo"),
    ("flows.prefect_artifacts", "flows.prefect_parameters"),
    ("flows.report",),
    ("flows.compare", "flows.estimate", "flows.source_sample", "flows.probe", "flows.doctor", "flows.export", "flows.texts"),
    ("flows.pipeline",),
    ("flows.stages",),
    ("flows.workers",),
    ("flows.plan", "flows.recompute", "flows.survey", "flows.survey_target", "flows.guards"),
    ("flows.reuse",),
    ("flows.changes", "flows.reference", "flows.vectors"),
    ("flows.results", "flows.checks"),
    ("flows.context",),
    ("flows.models",),
    ("flows.progress", "flows.addresses", "flows.group_words"),
)


class _AtRunTime(ast.NodeTransformer):
    """Leaves out what is imported for type checkers only."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return [self.visit(statement) for statement in node.orelse]
        return self.generic_visit(node)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_time_imports() -> dict[str, set[str]]:
    """Each module of the project with the modules of the project that it imports, at its head or within a function."""
    paths = {module_name(path): path for layer in ("flows", "storage", "tagcos_stream") for path in (ROOT / layer).rglob("*.py")}
    return {name: {found for found in imports(path) if found in paths} - {name} for name, path in paths.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of more than one module that import each other, directly or through others (Tarjan's components)."""
    found: list[list[str]] = []
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in number:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == number[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in sorted(graph):
        if name not in number:
            visit(name)
    return found


def group_of(name: str) -> int | None:
    """Position of a module's group in FLOWS, by the longest name that fits."""
    fits = [(len(g), i) for i, group in enumerate(FLOWS) for g in group if name == g or name.startswith(g + ".")]
    return max(fits)[1] if fits else None


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(_AtRunTime().visit(ast.parse(path.read_text(encoding="utf-8")))):
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


def test_modules__import_in_no_circle() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    graph = run_time_imports()
    assert graph["flows.workers.executor"] >= {"flows.workers.work", "flows.workers.ray_executor"}  # within a function, too
    assert circles(graph) == []


def test_flows__import_in_one_direction() -> None:
    graph = {name: others for name, others in run_time_imports().items() if name.startswith("flows.")}
    assert {name for name in graph if group_of(name) is None} == set()
    for name, others in graph.items():
        upwards = {other for other in others if (at := group_of(other)) is not None and at < (group_of(name) or 0)}
        assert not upwards, f"{name} imports {upwards}"


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
