"""Files that name sources, to SourceSpecs: our TOML list, LLaMA-Factory's dataset_info.json, axolotl's YAML."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.source_spec import SourceSpec
from tagcos_stream.data.turns import ROLE_WORDS
from tagcos_stream.types import ROLES, UserError

T = TypeVar("T")

_SPEC_FIELDS = {f.name for f in fields(SourceSpec)} - {"options"}
_OPTION_FIELDS = {f.name for f in fields(RowOptions)}


def read_list(path: Path, names: str = "") -> list[SourceSpec]:
    """Sources of a list file, by its ending; `names` (comma-separated) picks some, and only these are looked at. UserError names
    the file, the source and the field.
    """
    readers: dict[str, Callable[[str, Path, list[str]], list[SourceSpec]]] = {
        ".toml": _toml, ".json": _llama_factory, ".yml": _axolotl, ".yaml": _axolotl,
    }  # fmt: skip
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: cannot be read: {e}") from None
    return readers[path.suffix](text, path, [n.strip() for n in names.split(",") if n.strip()])


def _picked(found: Mapping[str, T], wanted: list[str], path: Path) -> list[T]:
    """The entries of these names, or all of them where none is named."""
    if missing := [name for name in wanted if name not in found]:
        there = ", ".join(list(found)[:20]) + (", ..." if len(found) > 20 else "")
        raise UserError(f"{path}: no source {', '.join(missing)}; there are {there}")
    return [found[name] for name in wanted] if wanted else list(found.values())


def is_list(path: Path) -> bool:
    """Whether a path names a list of sources: any .toml or .yaml, and a dataset_info.json."""
    return path.suffix in (".toml", ".yml", ".yaml") or path.name == "dataset_info.json"


def _toml(text: str, path: Path, wanted: list[str]) -> list[SourceSpec]:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UserError(f"{path}: is not TOML: {e}") from None
    rows = data.get("source")
    if not isinstance(rows, list) or not rows or not all(isinstance(r, dict) for r in rows):
        raise UserError(f"{path}: has no [[source]] tables; each needs a path")
    if wanted:
        rows = _picked({str(row.get("name", i + 1)): row for i, row in enumerate(rows)}, wanted, path)
    return [_spec(dict(row), path, f"source {row.get('name', i + 1)}") for i, row in enumerate(rows)]


def _spec(row: dict[str, Any], path: Path, what: str) -> SourceSpec:
    """A SourceSpec from plain values whose names are those of SourceSpec and RowOptions."""
    if unknown := sorted(set(row) - _SPEC_FIELDS - _OPTION_FIELDS):
        raise UserError(
            f"{path}: {what}: unknown field {', '.join(unknown)}; there are {', '.join(sorted(_SPEC_FIELDS | _OPTION_FIELDS))}"
        )
    if not isinstance(row.get("path"), str) or not row["path"]:
        raise UserError(f"{path}: {what}: has no path")
    kinds: dict[str, tuple[type, ...]] = {
        "limit": (int,),
        "max_chars": (int,),
        "weight": (int, float),
        "preference": (str,),
        "columns": (dict,),
        "roles": (dict,),
    }
    kinds |= {"train_roles": (list,), "drop_system": (bool,), "check_order": (bool,)}
    for name, value in row.items():
        kind = kinds.get(name, (str,))
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
            raise UserError(f"{path}: {what}: {name} is {value!r}, must be {' or '.join(k.__name__ for k in kind)}")
    for name in ("limit", "max_chars", "weight"):
        if name in row and row[name] <= 0:
            raise UserError(f"{path}: {what}: {name} is {row[name]}, must be above 0")
    if row.get("preference", "chosen") != "chosen":
        raise UserError(f"{path}: {what}: preference is {row['preference']!r}, must be chosen")
    for name, values in (("train_roles", row.get("train_roles", ())), ("roles", row.get("roles", {}).values())):
        if wrong := [str(v) for v in values if v not in ROLES]:
            raise UserError(f"{path}: {what}: {name} has {', '.join(wrong)}; roles are {', '.join(ROLES)}")
    options: dict[str, Any] = {k: tuple(v) if k == "train_roles" else v for k, v in row.items() if k in _OPTION_FIELDS}
    return SourceSpec(
        **{k: v for k, v in row.items() if k in _SPEC_FIELDS} | {"path": beside(path, row["path"])}, options=RowOptions(**options)
    )


def beside(path: Path, name: str) -> str:
    """A path in a list is relative to the list's folder; a URL or an absolute path stands."""
    return name if "://" in name else str(path.parent / Path(name).expanduser())


_LLAMA_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "kto_tag": "label",
}  # theirs -> ours, the others have the same name
_LLAMA_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "assistant",
    "system_tag": "system",
}


def _llama_factory(text: str, path: Path, wanted: list[str]) -> list[SourceSpec]:
    """The entries; their column and tag maps become ours."""
    try:
        data = json.loads(text)
    except ValueError as e:
        raise UserError(f"{path}: is not JSON: {e}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be an object of datasets by name")
    return [_llama_entry(name, data[name], path) for name in _picked({name: name for name in data}, wanted, path)]


def _llama_entry(name: str, entry: Any, path: Path) -> SourceSpec:
    what = f"dataset {name}"
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {what}: must be an object")
    if entry.get("ranking") or entry.get("script_url"):
        raise UserError(
            f"{path}: {what}: ranking data and loading scripts are not read; name the datasets to use, as {path.name}#a,b"
        )
    where = entry.get("file_name") or entry.get("cloud_file_name")
    if where is None:
        hub = entry.get("hf_hub_url")
        if not hub:
            raise UserError(f"{path}: {what}: has no file_name, cloud_file_name or hf_hub_url")
        where = "hf://datasets/" + "/".join(p for p in (hub, entry.get("folder") or entry.get("subset")) if p)
    columns = {_LLAMA_COLUMNS.get(k, k): v for k, v in (entry.get("columns") or {}).items() if isinstance(v, str)}
    if beyond := sorted(set(columns) & {"chosen", "rejected", "images", "videos", "audios"}):
        raise UserError(
            f"{path}: {what}: column {', '.join(beyond)} is not instruction text; name the datasets to use, as {path.name}#a,b"
        )
    kind = entry.get("formatting", "alpaca")
    if kind not in ("alpaca", "sharegpt", "openai"):
        raise UserError(f"{path}: {what}: formatting {kind!r} is unknown")
    row: dict[str, Any] = {"path": where, "name": name, "dataset": name}
    if kind == "alpaca":
        row["shape"] = "alpaca"
    else:
        tags = entry.get("tags") or {}
        columns.setdefault("messages", "conversations" if kind == "sharegpt" else "messages")
        columns |= {ours: tags[theirs] for theirs, ours in (("role_tag", "role"), ("content_tag", "content")) if theirs in tags}
        row |= {"shape": "messages", "roles": {tags[tag]: role for tag, role in _LLAMA_TAGS.items() if tag in tags}}
    row |= {"columns": columns}
    if isinstance(entry.get("num_samples"), int):
        row["limit"] = entry["num_samples"]
    if entry.get("split"):
        row["split"] = entry["split"]
    return _spec(row, path, what)


_AXOLOTL_TYPES = {"chat_template": "messages", "sharegpt": "messages", "alpaca": "alpaca"}
_AXOLOTL_COLUMNS = {"field_messages": "messages", "field_tools": "tools", "field_system": "system"}
_AXOLOTL_KEYS = {"message_field_training": "train", "message_field_training_detail": "train_detail"}
_AXOLOTL_KEYS |= {"message_field_role": "role", "message_field_content": "content"}
_AXOLOTL_TOP = ("train_on_inputs",)  # options of the configuration that say how rows are read
_AXOLOTL_OTHER = {
    "path",
    "type",
    "split",
    "name",
    "ds_type",
    "data_files",
    "chat_template",
    "chat_template_jinja",
    "roles",
    "roles_to_train",
}
_AXOLOTL_OTHER |= {
    "train_on_eos",
    "train_on_eot",
    "message_property_mappings",
    "drop_system_message",
    "shards",
    "eot_tokens",
    "train_on_inputs",
}


def _axolotl(text: str, path: Path, wanted: list[str]) -> list[SourceSpec]:
    """The `datasets` of an axolotl configuration; its `train_on_inputs` is theirs where they have none."""
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UserError(f"{path}: is not YAML: {e}") from None
    rows = data.get("datasets") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: has no list `datasets`")
    beside = {name: data[name] for name in _AXOLOTL_TOP if data.get(name) is not None}
    named = {str(row.get("path", i)) if isinstance(row, dict) else str(i): (i, row) for i, row in enumerate(rows)}
    chosen = _picked(named, wanted, path) if wanted else list(enumerate(rows))
    return [spec for i, row in chosen for spec in _axolotl_entry(i, row, beside, path)]


def _axolotl_entry(i: int, row: Any, beside: Mapping[str, Any], path: Path) -> list[SourceSpec]:
    """A source for each of the entry's files. beside: options of the configuration that hold for all entries."""
    what = f"datasets[{i}]"
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        raise UserError(f"{path}: {what}: has no path")
    kind = re.split(r"[.:]", str(row.get("type") or "chat_template"))[0]
    if not isinstance(row.get("type"), str | None) or kind not in _AXOLOTL_TYPES:
        raise UserError(f"{path}: {what}: type {row['type']!r} is not read; there are {', '.join(_AXOLOTL_TYPES)}")
    row = {**beside, **row}
    if unknown := sorted(set(row) - _AXOLOTL_OTHER - set(_AXOLOTL_COLUMNS) - set(_AXOLOTL_KEYS)):
        raise UserError(f"{path}: {what}: option {', '.join(unknown)} is not read; remove it where it does not change the data")
    for name in ("train_on_eos", "train_on_eot"):
        if row.get(name, "turn") != "turn":
            raise UserError(
                f"{path}: {what}: {name} {row[name]!r} is not supported: the end of a trained turn is always trained on ('turn')"
            )
    shape = _AXOLOTL_TYPES[kind]
    roles = {
        word: role for role, words in (row.get("roles") or {}).items() for word in ([words] if isinstance(words, str) else words)
    }
    trained = list(ROLES) if row.get("train_on_inputs") else row.get("roles_to_train") or ["assistant"]
    spec: dict[str, Any] = {"columns": _axolotl_columns(row, shape), "roles": roles, "shape": shape}
    spec["drop_system"] = bool(row.get("drop_system_message"))
    spec["train_roles"] = [roles.get(r) or ROLE_WORDS.get(str(r).lower(), r) for r in trained]
    if row.get("split"):
        spec["split"] = row["split"]
    files = row.get("data_files") or row["path"]
    files = [files] if isinstance(files, str) else files
    return [
        _spec({**spec, "path": _place(where, what, path)}, path, what) for where in ([files] if isinstance(files, str) else files)
    ]


def _axolotl_columns(row: Mapping[str, Any], shape: str) -> dict[str, str]:
    columns = {ours: row[theirs] for theirs, ours in (_AXOLOTL_COLUMNS | _AXOLOTL_KEYS).items() if row.get(theirs)}
    keys: Mapping[str, str] = row.get("message_property_mappings") or {}
    columns |= {ours: keys[ours] for ours in ("role", "content") if ours in keys}
    if shape == "messages":
        # a turn's flags count only under the names that the configuration gives
        columns = {"train": "", "train_detail": ""} | columns
        if "messages" in columns:  # then only what is mapped is read, of which these have defaults
            columns = {"tools": "tools", "system": "system"} | columns
    return columns


def _place(where: Any, what: str, path: Path) -> str:
    if not isinstance(where, str):
        raise UserError(f"{path}: {what}: data_files must be paths, got {where!r}")
    local = (path.parent / where).exists() or "://" in where or where.endswith((".json", ".jsonl", ".parquet", ".csv"))
    return where if local else f"hf://datasets/{where}"
