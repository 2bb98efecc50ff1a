"""Files that name sources, to SourceSpecs: our TOML list, LLaMA-Factory's dataset_info.json, axolotl's YAML."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tagcos_stream.data import axolotl_list, llama_factory_list
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.source_spec import SourceSpec, spec_from
from tagcos_stream.types import UserError

T = TypeVar("T")


def read_list(path: Path, names: str = "", asked: RowOptions | None = None) -> list[SourceSpec]:
    """Sources of a list file, by its ending.

    Parameters
    ----------
    path
        The list.
    names
        Comma-separated: picks some, and only these are looked at.
    asked
        What the user asks of the rows, where the list itself is named as a source with options.

    Raises
    ------
    UserError
        Names the file, the source and the field.
    """
    readers: dict[str, Callable[[str, Path, list[str], RowOptions], list[SourceSpec]]] = {
        ".toml": _toml, ".json": _llama_factory, ".yml": _axolotl, ".yaml": _axolotl,
    }  # fmt: skip
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read: {e}") from None
    wanted = [n.strip() for n in names.split(",") if n.strip()]
    return readers[path.suffix](text, path, wanted, asked or RowOptions())


def is_list(path: Path) -> bool:
    """Whether a path names a list of sources: any .toml or .yaml, and a dataset_info.json."""
    return path.suffix in (".toml", ".yml", ".yaml") or path.name == "dataset_info.json"


def _picked(found: Mapping[str, T], wanted: list[str], path: Path) -> list[T]:
    """The entries of these names, or all of them where none is named."""
    if missing := [name for name in wanted if name not in found]:
        there = ", ".join(list(found)[:20]) + (", ..." if len(found) > 20 else "")
        raise UserError(f"{path}: no source {', '.join(missing)}; there are {there}")
    return [found[name] for name in wanted] if wanted else list(found.values())


def _toml(text: str, path: Path, wanted: list[str], asked: RowOptions) -> list[SourceSpec]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UserError(f"{path}: is not TOML: {e}") from None
    rows = data.get("source")
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise UserError(f"{path}: has no [[source]] tables; each needs a path")
    if unknown := sorted(set(data) - {"source"}):
        raise UserError(
            f"{path}: unknown {', '.join(unknown)}; all that a list has are [[source]] tables, which hold every setting"
        )
    named: dict[str, list[dict[str, Any]]] = {}
    for i, row in enumerate(rows):
        named.setdefault(str(row.get("name", i + 1)), []).append(row)
    found = [(name, row) for name in _picked({name: name for name in named}, wanted, path) for row in named[name]]
    return [spec_from(dict(row), path, f"source {name}") for name, row in found]


def _llama_factory(text: str, path: Path, wanted: list[str], asked: RowOptions) -> list[SourceSpec]:
    data = llama_factory_list.entries(text, path)
    names = _picked({name: name for name in data}, wanted, path)
    return [llama_factory_list.source_of(name, data[name], path, asked) for name in names]


def _axolotl(text: str, path: Path, wanted: list[str], asked: RowOptions) -> list[SourceSpec]:
    rows, config = axolotl_list.entries(text, path)
    named = {str(row.get("path", i)) if isinstance(row, dict) else str(i): (i, row) for i, row in enumerate(rows)}
    chosen = _picked(named, wanted, path) if wanted else list(enumerate(rows))
    return [spec for i, row in chosen for spec in axolotl_list.sources_of(i, row, config, path)]
