"""LLaMA-Factory's `dataset_info.json` to SourceSpecs: its column and tag maps become ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.source_spec import SourceSpec, spec_from
from tagcos_stream.types import UserError

_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "kto_tag": "label",
    **{name: name for name in ("history", "messages", "system", "tools", "chosen", "rejected", "images", "videos", "audios")},
}  # theirs -> ours
_MEDIA = {"images", "videos", "audios"}
_ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
_KEY_TAGS = {"role_tag": "role", "content_tag": "content"}


def entries(text: str, path: Path) -> Mapping[str, Any]:
    """Return the datasets of the file by name, unchecked. UserError where it is not a JSON object."""
    try:
        data = json.loads(text)
    except ValueError as e:
        raise UserError(f"{path}: is not JSON: {e}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be an object of datasets by name")
    return data


def source_of(name: str, entry: Any, path: Path, asked: RowOptions) -> SourceSpec:
    """The source that an entry names.

    Parameters
    ----------
    name, entry
        Of the file.
    path
        The file itself.
    asked
        What the user asks of the rows: preference pairs are read where `preference` says which answer is meant.

    Raises
    ------
    UserError
        The entry is not of a form that is read; the message names what is in the way.
    """
    what = f"dataset {name}"
    if not isinstance(entry, dict):
        raise UserError(f"{path}: {what}: must be an object")
    if entry.get("script_url"):
        raise UserError(f"{path}: {what}: loading scripts are not run; name the datasets to use, as {path.name}#a,b")
    if entry.get("ranking") and asked.preference is None:
        raise UserError(
            f"{path}: {what}: ranking: the rows are preference pairs; name the datasets to use, as {path.name}#a,b, or take the "
            f'chosen answers: a .toml list with path = "{path.name}#{name}" and preference = "chosen"'
        )
    kind = entry.get("formatting", "alpaca")
    if kind not in ("alpaca", "sharegpt", "openai"):
        raise UserError(f"{path}: {what}: formatting {kind!r} is unknown")
    row: dict[str, Any] = {"path": _place(entry, f"{path}: {what}"), "name": name, "dataset": name}
    columns = {_COLUMNS[k]: v for k, v in _mapped(entry, "columns", _COLUMNS, f"{path}: {what}").items()}
    if beyond := sorted(set(columns) & _MEDIA):
        raise UserError(
            f"{path}: {what}: column {', '.join(beyond)} is not instruction text; name the datasets to use, as {path.name}#a,b"
        )
    if not entry.get("ranking") and (pairs := sorted(set(columns) & {"chosen", "rejected"})):
        raise UserError(f"{path}: {what}: column {', '.join(pairs)} is of a preference pair, but the entry has no ranking: true")
    tags = _mapped(entry, "tags", {**_ROLE_TAGS, **_KEY_TAGS}, f"{path}: {what}")
    if kind == "alpaca":
        row["shape"] = "alpaca"
    else:
        columns.setdefault("messages", "conversations" if kind == "sharegpt" else "messages")
        columns |= {ours: tags[theirs] for theirs, ours in _KEY_TAGS.items() if theirs in tags}
        row |= {"shape": "messages", "roles": {tags[tag]: role for tag, role in _ROLE_TAGS.items() if tag in tags}}
    if isinstance(entry.get("num_samples"), int):
        row["limit"] = entry["num_samples"]
    if entry.get("split"):
        row["split"] = entry["split"]
    elif not _file(entry):
        row["split"] = "train"  # of a hub dataset, LLaMA-Factory's default
    return spec_from(row | {"columns": columns}, path, what)


def _file(entry: Mapping[str, Any]) -> Any:
    return entry.get("file_name") or entry.get("cloud_file_name")


def _place(entry: Mapping[str, Any], what: str) -> str:
    if where := _file(entry):
        return str(where)
    hub = entry.get("hf_hub_url")
    if not hub:
        raise UserError(f"{what}: has no file_name, cloud_file_name or hf_hub_url")
    return "hf://datasets/" + "/".join(p for p in (hub, entry.get("folder") or entry.get("subset")) if p)


def _mapped(entry: Mapping[str, Any], field: str, known: Mapping[str, str], what: str) -> dict[str, str]:
    """The names of the entry's map that are given. UserError for one that is not known, which would be a text left out."""
    given = entry.get(field) or {}
    if not isinstance(given, dict):
        raise UserError(f"{what}: {field} must be an object")
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"{what}: {field} has {', '.join(unknown)}; there are {', '.join(known)}")
    return {k: v for k, v in given.items() if isinstance(v, str)}
