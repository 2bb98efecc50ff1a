"""The `datasets` of an axolotl configuration to SourceSpecs. What changes the rows is read or refused by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagcos_stream.data.source_spec import SourceSpec, spec_from
from tagcos_stream.data.turns import REASONING_KEYS, ROLE_WORDS
from tagcos_stream.types import ROLES, UserError

_TYPES = {"chat_template": "messages", "sharegpt": "messages", "alpaca": "alpaca"}
_COLUMNS = {"field_messages": "messages", "field_tools": "tools", "field_system": "system"}
_KEYS = {"message_field_training": "train", "message_field_training_detail": "train_detail"}
_KEYS |= {"message_field_role": "role", "message_field_content": "content"}
_OTHER = {"path", "type", "split", "name", "ds_type", "data_files", "roles", "roles_to_train", "drop_system_message"}
_OTHER |= {"message_property_mappings", "train_on_inputs", "train_on_eos", "train_on_eot", "chat_template"}
_OTHER |= {"chat_template_jinja", "eot_tokens", "field_thinking"}
# keys of a turn that reach our messages under their own names
_OWN_KEYS = {"name", "tool_calls", "tool_call_id", *REASONING_KEYS}
# of the whole configuration: what holds for every entry, what would change the rows, and what is the trainer's tokenizer alone
_FOR_ALL = ("train_on_inputs",)
_CHANGES_ROWS = {
    "default_system_message": "give the rows a system turn, or remove it where no row is to have it",
    "rl": 'only supervised datasets are read: name preference pairs as sources of a .toml list with preference = "chosen"',
}
_TOKENIZER = ("chat_template", "chat_template_jinja", "tokens", "added_tokens_overrides", "eot_tokens")
_FILES = (".json", ".jsonl", ".parquet", ".csv")
_LOADERS = ("json", "jsonl", "csv", "parquet", "arrow")  # in place of a path: the files are in data_files


def entries(text: str, path: Path) -> tuple[list[Any], Mapping[str, Any]]:
    """The list `datasets` and the whole configuration. UserError where there is none, or a key that is refused."""
    import yaml

    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise UserError(f"{path}: is not YAML: {e}") from None
    rows = data.get("datasets") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: has no list `datasets`")
    for name, remedy in _CHANGES_ROWS.items():
        if data.get(name):
            raise UserError(f"{path}: {name} is not read: {remedy}")
    return rows, data


def sources_of(i: int, row: Any, config: Mapping[str, Any], path: Path) -> list[SourceSpec]:
    """A source for each file of an entry.

    Parameters
    ----------
    i, row
        The entry and its position.
    config
        The whole configuration, some of whose keys hold for all entries.
    path
        The configuration's file.

    Raises
    ------
    UserError
        An option that changes the rows and is not read; the message names it.
    """
    what = f"datasets[{i}]"
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        raise UserError(f"{path}: {what}: has no path")
    kind = re.split(r"[.:]", str(row.get("type") or "chat_template"))[0]
    if not isinstance(row.get("type"), str | None) or kind not in _TYPES:
        raise UserError(f"{path}: {what}: type {row['type']!r} is not read; there are {', '.join(_TYPES)}")
    row = {name: config[name] for name in _FOR_ALL if config.get(name) is not None} | row
    _refuse(row, f"{path}: {what}")
    shape = _TYPES[kind]
    roles = {
        word: role for role, words in (row.get("roles") or {}).items() for word in ([words] if isinstance(words, str) else words)
    }
    asked = ["assistant"] if row.get("roles_to_train") is None else row["roles_to_train"]  # []: turns that are marked, no others
    trained = list(ROLES) if row.get("train_on_inputs") else asked
    spec: dict[str, Any] = {"columns": _columns(row, shape), "roles": roles, "shape": shape}
    spec["drop_system"] = bool(row.get("drop_system_message"))
    spec["train_roles"] = [roles.get(r) or ROLE_WORDS.get(str(r).lower(), r) for r in trained]
    notes, places = _notes(row, config), _places(row, what, path)
    if row.get("split"):
        spec["split"] = row["split"]
    elif not row.get("data_files") and _has_splits(places[0], path):
        spec["split"] = "train"  # axolotl's default, of a dataset that may have several
    return [spec_from({**spec, "path": place}, path, what, notes) for place in places]


def _refuse(row: Mapping[str, Any], what: str) -> None:
    """UserError for an option that is not read, or has a value that is not."""
    if unknown := sorted(set(row) - _OTHER - set(_COLUMNS) - set(_KEYS)):
        raise UserError(f"{what}: option {', '.join(unknown)} is not read; remove it where it does not change the data")
    for name in ("train_on_eos", "train_on_eot"):
        if row.get(name, "turn") != "turn":
            raise UserError(
                f"{what}: {name} {row[name]!r} is not supported: the end of a trained turn is always trained on ('turn')"
            )
    if row.get("field_thinking", REASONING_KEYS[0]) not in REASONING_KEYS:
        raise UserError(f"{what}: field_thinking {row['field_thinking']!r} is not read; there are {', '.join(REASONING_KEYS)}")
    keys: Mapping[str, str] = row.get("message_property_mappings") or {}
    for ours, theirs in keys.items():
        if ours not in ("role", "content") and (ours != theirs or ours not in _OWN_KEYS):
            raise UserError(
                f"{what}: message_property_mappings has {ours}: {theirs}, which is not read; there are role, content, and "
                f"{', '.join(sorted(_OWN_KEYS))} under their own names"
            )


def _columns(row: Mapping[str, Any], shape: str) -> dict[str, str]:
    columns = {ours: row[theirs] for theirs, ours in (_COLUMNS | _KEYS).items() if row.get(theirs)}
    keys: Mapping[str, str] = row.get("message_property_mappings") or {}
    columns |= {ours: keys[ours] for ours in ("role", "content") if ours in keys}
    if shape == "messages":
        # a turn's flags count only under the names that the configuration gives
        columns = {"train": "", "train_detail": ""} | columns
        if "messages" in columns:  # then only what is mapped is read, of which these have defaults
            columns = {"tools": "tools", "system": "system"} | columns
    return columns


def _notes(row: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """What the configuration says of the tokenizer: our rows are rendered by the model's own."""
    names = [name for name in _TOKENIZER if row.get(name) or config.get(name)]
    plain = [row.get("chat_template"), config.get("chat_template")]
    if all(value in (None, "tokenizer_default") for value in plain):
        names = [name for name in names if name != "chat_template"]
    if not names:
        return []
    return [f"{', '.join(names)} of the axolotl configuration not used: rows are rendered by the model's own template and tokens"]


def _places(row: Mapping[str, Any], what: str, path: Path) -> list[str]:
    """The entry's files: `data_files` stand in its folder or hub dataset, where `path` is one, and else next to the list."""
    where, files = row["path"], row.get("data_files") or []
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise UserError(f"{path}: {what}: data_files must be paths, got {files!r}")
    if where in _LOADERS and files:
        return [_place(name, path) for name in files]
    base = _place(where, path)
    if row.get("name") and base.startswith("hf://") and row["name"] != "default":
        base = f"{base}/{row['name']}"  # a configuration of a hub dataset is a folder of it
    if files and (base.startswith("hf://") or (path.parent / base).is_dir()):
        return [f"{base.rstrip('/')}/{name}" for name in files]
    return [_place(name, path) for name in files] or [base]


def _has_splits(place: str, path: Path) -> bool:
    return (place.startswith("hf://") and not place.endswith(_FILES)) or (path.parent / place).is_dir()


def _place(where: str, path: Path) -> str:
    local = (path.parent / where).exists() or "://" in where or where.endswith(_FILES)
    return where if local else f"hf://datasets/{where}"
