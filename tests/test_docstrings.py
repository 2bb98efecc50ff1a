"""Docstrings have numpy-style sections that agree with the signature and the body."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Modules whose public functions document every argument, result and error. Elsewhere a section is written where the summary
# does not say it.
SECTIONED = {
    "flows": "estimate export guards pipeline plan probe results",
    "flows/report": "build columns",
    "flows/stages": "adopt cluster gradients ingest match pool_view publish select warmup",
    "storage": "connections database forget interrupts root schema tables",
    "storage/catalog": "diagnostics heldout methods progress refreshes report_facts selections",
    "storage/exports": "write",
    "tagcos_stream": "config credentials library memory paths types weighted_sft",
    "tagcos_stream/clustering": "assign drift exact_pass init kernels kmeans pca refine state stream threaded",
    "tagcos_stream/evaluation": "statistics",
    "tagcos_stream/gradients": "adapter batching chat memory model variants verify",
    "tagcos_stream/rows": "blocks",
    "tagcos_stream/selection": "balanced budget centroid gradient_norm groups hardest herding keep_earlier longest match methods "
    "perplexity ridge scores stratified uniform",
    "tagcos_stream/selection/pursuit": "omp",
}
PUBLIC = sorted(f"{folder}/{module}.py" for folder, modules in SECTIONED.items() for module in modules.split())
EVERY = sorted(path for folder in ("flows", "storage", "tagcos_stream") for path in (ROOT / folder).rglob("*.py"))
GOOGLE = re.compile(r"^ *(Args|Returns|Raises|Yields):$", re.MULTILINE)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions(tree: ast.Module) -> list[tuple[str, Function]]:
    """Public functions of a module and public methods of its public classes, with their names."""
    found: list[tuple[str, Function]] = []
    for node in tree.body:
        if isinstance(node, Function):
            found.append((node.name, node))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            found += [(f"{node.name}.{part.name}", part) for part in node.body if isinstance(part, Function)]
    return [(name, node) for name, node in found if not node.name.startswith("_")]


def sections(docstring: str) -> dict[str, list[str]]:
    """Lines of each section, by title: a line that is underlined."""
    lines = docstring.splitlines()
    found: dict[str, list[str]] = {"": []}
    current = ""
    for i, line in enumerate(lines):
        if i + 1 < len(lines) and line and set(lines[i + 1]) == {"-"}:
            current = line
            found[current] = []
        elif not (line and set(line) == {"-"}):
            found[current].append(line)
    return found


def entries(lines: list[str]) -> set[str]:
    """Names before the descriptions of a section; one entry may name several (`rows, dim`)."""
    heads = [line.partition(" : ")[0] for line in lines if line and not line.startswith(" ")]
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


def own(node: Function) -> list[ast.AST]:
    """The nodes of a function's body without those of functions and classes in it."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        part = waiting.pop()
        found.append(part)
        if not isinstance(part, Function | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(part)
    return found


def faults(node: Function) -> list[str]:
    """What the docstring of a function lacks."""
    docstring = ast.get_docstring(node)
    if not docstring:
        return ["no docstring"]
    if any(isinstance(d, ast.Name) and d.id in ("property", "cached_property") for d in node.decorator_list):
        return []
    arguments = node.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if a.arg not in ("self", "cls")]
    names += [a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None]
    found = sections(docstring)
    lacking = [f"no entry for {name}" for name in names if name not in entries(found.get("Parameters", []))]
    lacking += [f"entry for unknown {name}" for name in entries(found.get("Parameters", [])) - set(names)]
    inside = own(node)
    yields = any(isinstance(part, ast.Yield | ast.YieldFrom) for part in inside)
    returns = node.returns is not None and ast.unparse(node.returns) not in ("None", "NoReturn")
    if returns and not found.keys() & {"Returns", "Yields"}:
        lacking.append("no section Yields" if yields else "no section Returns")
    raised = any(isinstance(part, ast.Raise) and part.exc is not None for part in inside)
    if raised and "Raises" not in found:
        lacking.append("no section Raises")
    return lacking


@pytest.mark.parametrize("path", PUBLIC)
def test_docstrings__public_functions_document_arguments_results_and_errors(path: str) -> None:
    tree = ast.parse((ROOT / path).read_text())
    found = {name: lacking for name, node in public_functions(tree) if (lacking := faults(node))}
    assert not found


def test_docstrings__modules_that_the_api_page_shows_whole_are_checked() -> None:
    blocks = (ROOT / "docs/api.md").read_text().split(":::")[1:]
    whole = {block.split()[0] for block in blocks if "members:" not in block}
    missing = {module.replace(".", "/") + ".py" for module in whole if not module.startswith("flows.")} - set(PUBLIC)
    assert not missing, "add them to SECTIONED"


def test_docstrings__sections_name_arguments_that_exist() -> None:
    found: dict[str, str | list[str]] = {}
    for path in EVERY:
        text = path.read_text()
        found |= {str(path): title for title in GOOGLE.findall(text)}
        for name, node in public_functions(ast.parse(text)):
            if unknown := [fault for fault in faults(node) if fault.startswith("entry for unknown")]:
                found[f"{path}: {name}"] = unknown
    assert not found


def test_docstrings__the_check_finds_what_is_missing() -> None:
    source = '''
def shown(rows, *, limit=None) -> int:
    """Count rows.

    Parameters
    ----------
    rows
        (N, D) floating point.
    size
        Not an argument.
    """
    if rows is None:
        raise ValueError("no rows")
    return len(rows)
'''
    ((_, node),) = public_functions(ast.parse(source))
    assert sorted(faults(node)) == [
        "entry for unknown size",
        "no entry for limit",
        "no section Raises",
        "no section Returns",
    ]
