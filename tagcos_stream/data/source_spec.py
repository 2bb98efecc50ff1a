"""A source as the user names it: plain values, readable without opening anything."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.shapes import ROW_FIELDS
from tagcos_stream.data.turns import CALL_WORDS
from tagcos_stream.paths import expanded
from tagcos_stream.types import ROLES, SIGNALS, UserError


@dataclass(frozen=True)
class SourceSpec:
    """One source.

    path: file, folder, glob or URL, or a list of sources in another tool's form (`dataset_info.json#name`), whose entries then
    take what is given here. name: of the source, default the path's last part. dataset: written to every row that does not carry
    its own; default the file's name without its endings. format: json, jsonl, csv, tsv, parquet or arrow where the name does not
    tell. key: which list of a JSON object. split: read only files of this split, by their names or folders (`train` finds
    train-00000.parquet, and all files where none names a split). limit: rows read of each file. weight: for whoever shares a
    budget over sources; ingest does not use it. options: how rows become messages. notes: what a run reports about the source.
    """

    path: str
    name: str | None = None
    dataset: str | None = None
    format: str | None = None
    key: str | None = None
    split: str | None = None
    limit: int | None = None
    weight: float = 1.0
    options: RowOptions = field(default_factory=RowOptions)
    notes: tuple[str, ...] = ()


SPEC_FIELDS = {f.name for f in fields(SourceSpec)} - {"options", "notes"}
COLUMN_FIELDS = ROW_FIELDS | {"role", "content", "train", "train_detail"}  # that `columns` may map
OPTION_FIELDS = {f.name for f in fields(RowOptions)}
_KINDS: dict[str, tuple[type, ...]] = {
    "limit": (int,),
    "max_chars": (int,),
    "weight": (int, float),
    "columns": (dict,),
    "roles": (dict,),
    "train_roles": (list,),
    "scores": (list,),
    "drop_system": (bool,),
    "check_order": (bool,),
}  # of the other fields: text


def spec_from(row: dict[str, Any], path: Path, what: str, notes: Sequence[str] = ()) -> SourceSpec:
    """A SourceSpec from plain values whose names are those of SourceSpec and RowOptions.

    Parameters
    ----------
    row
        The values by name.
    path
        The list file that they come from; a relative path of the source is relative to its folder.
    what
        Names the source in messages.
    notes
        See SourceSpec.

    Raises
    ------
    UserError
        An unknown name, a value of the wrong type or out of range, or no path.
    """
    if unknown := sorted(set(row) - SPEC_FIELDS - OPTION_FIELDS):
        raise UserError(
            f"{path}: {what}: unknown field {', '.join(unknown)}; there are {', '.join(sorted(SPEC_FIELDS | OPTION_FIELDS))}"
        )
    if not isinstance(row.get("path"), str) or not row["path"]:
        raise UserError(f"{path}: {what}: has no path")
    for name, value in row.items():
        kind = _KINDS.get(name, (str,))
        if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind):
            raise UserError(f"{path}: {what}: {name} is {value!r}, must be {' or '.join(k.__name__ for k in kind)}")
    for name in ("limit", "max_chars", "weight"):
        if name in row and not row[name] > 0:
            raise UserError(f"{path}: {what}: {name} is {row[name]}, must be above 0")
    if (split := re.match(r"(.*?)(?:\[|\+)", row.get("split", ""))) is not None:
        raise UserError(
            f"{path}: {what}: split {row['split']!r} is a slice or a sum, which is not read: name one whole split, such as "
            f"{split[1] or 'train'!r}; `limit` of a source bounds the rows of each file (num_samples in dataset_info.json)"
        )
    if row.get("preference", "chosen") != "chosen":
        raise UserError(f"{path}: {what}: preference is {row['preference']!r}, must be chosen")
    named = {
        "train_roles": (row.get("train_roles", ()), ROLES),
        "roles": (row.get("roles", {}).values(), (*ROLES, CALL_WORDS[0])),
    }
    for name, (values, known) in named.items():
        if wrong := [str(v) for v in values if v not in known]:
            raise UserError(f"{path}: {what}: {name} has {', '.join(wrong)}; roles are {', '.join(known)}")
    _check_columns(row.get("columns", {}), f"{path}: {what}")
    _check_scores(row.get("scores", []), f"{path}: {what}")
    options: dict[str, Any] = {k: tuple(v) if k in ("train_roles", "scores") else v for k, v in row.items() if k in OPTION_FIELDS}
    own = {k: v for k, v in row.items() if k in SPEC_FIELDS} | {"path": relative_to_list(path, row["path"])}
    return SourceSpec(**own, options=RowOptions(**options), notes=tuple(notes))


def _check_columns(columns: dict[str, Any], what: str) -> None:
    """Refuse names of ours that nothing reads, and names of theirs that are no text."""
    if unknown := sorted(set(columns) - COLUMN_FIELDS):
        raise UserError(
            f"{what}: columns has {', '.join(unknown)}, which no shape reads; on the left stand our names of fields: "
            f"{', '.join(sorted(COLUMN_FIELDS))}"
        )
    if wrong := [f"{ours} = {theirs!r}" for ours, theirs in columns.items() if not isinstance(theirs, str)]:
        raise UserError(f"{what}: columns has {wrong[0]}, must be the name of the file's field")


def _check_scores(names: list[Any], what: str) -> None:
    """Refuse names of scores that are the same as each other or as other signals, in any case of letters."""
    if wrong := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise UserError(f"{what}: scores has {wrong[0]!r}, must be names of columns")
    lower = [name.lower() for name in names]
    if taken := [name for name in names if name.lower() in SIGNALS | {"segment", "row", "scores"}]:
        raise UserError(f"{what}: scores has {taken[0]}, which is a signal of every example: rename the column")
    if twice := [name for name, key in zip(names, lower, strict=True) if lower.count(key) > 1]:
        raise UserError(f"{what}: scores has {' and '.join(twice)}: name each column once")


def relative_to_list(path: Path, name: str) -> str:
    """A path in a list is relative to the list's folder; a URL or an absolute path is kept."""
    if "://" in name:
        return name
    below = expanded(name)
    is_pattern = glob.has_magic(name) and not (path.parent / below).exists()
    return str(Path(glob.escape(f"{path.parent}") if is_pattern else path.parent) / below)
