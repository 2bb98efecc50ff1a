"""Export files, written atomically: rows as JSON lines or Parquet, and the files that their readers need next to them."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.files.base import FULL, read_error, reason, sync_path
from tagcos_stream.types import UserError

MARK = "tagcos-export.json"
DATA = "tagcos.parquet"  # the one data file of folders for trainers
GROUP_ROWS = 1024
PARTIAL = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)-(?P<host>[0-9a-f]{8})\.(?P<kind>partial|old)", re.DOTALL)

Write = Callable[[list[dict[str, Any]]], None]


@contextmanager
def replacing(path: Path, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `path` that replaces it, durably, at the end; a folder only if an earlier export made it."""
    mine = f".{path.name}.{os.getpid()}-{_host()}"
    partial, old = path.with_name(f"{mine}.partial"), path.with_name(f"{mine}.old")
    try:
        if folder and path.exists() and not (path / MARK).is_file() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists and is not an earlier export: choose another --out, or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep_partials(path.parent, path.name)
        try:
            if folder:
                partial.mkdir()
            yield partial
            for written in (partial, *partial.rglob("*")) if folder else (partial,):
                sync_path(written)
            if folder and path.exists():
                path.rename(old)
            try:
                os.replace(partial, path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
            sync_path(path.parent)
        finally:
            for left in (partial, old):
                _remove(left)
    except OSError as error:
        named = Path(str(error.filename or path))
        if named in (path, old, *partial.parents) or partial in (named, *named.parents):
            remedy = "free some or choose another --out" if error.errno in FULL else "choose another --out"
            raise UserError(f"cannot write {path}: {reason(str(path.absolute()), error)}; {remedy}") from error
        raise read_error(str(named), error) from error  # the body reads what is to be written


def may_replace(path: Path) -> bool:
    """Tell an earlier export from other files, such as a source, which an export must not replace.

    Parameters
    ----------
    path
        A .jsonl or .parquet file, or no file yet.

    Returns
    -------
    bool
        There is no such file, it is empty, or its first row names its example and run, as all rows of an export do.
    """
    if not path.is_file() or not path.stat().st_size:
        return True
    try:
        if path.suffix == ".parquet":
            names = set(pq.read_schema(path).names)
        else:
            with path.open("rb") as file:
                names = set(json.loads(file.readline()))
    except (OSError, ValueError, TypeError, pa.ArrowException):
        return False
    return {"example_id", "run_id"} <= names


def sweep_partials(folder: Path, name: str | None = None) -> None:
    """Remove what killed exports of this machine left in a folder; an earlier export that one had moved aside is put back.

    Parameters
    ----------
    folder
        Where the exports were written.
    name
        Only of this file or folder; by default of all.
    """
    for left in folder.glob(".*") if folder.is_dir() else ():
        found = PARTIAL.fullmatch(left.name)
        if found is None or found["host"] != _host() or name not in (None, found["name"]) or _runs(int(found["pid"])):
            continue
        if found["kind"] == "old" and not (place := left.with_name(found["name"])).exists():
            left.rename(place)
        else:
            _remove(left)


def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"  # short: file names are limited to 255 bytes


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def open_writer(path: Path, suffix: str, schema: pa.Schema, folder: bool, sparse: Collection[str] = ()) -> Iterator[Write]:
    """Yield a function that takes rows. Parquet files lack what is `sparse` and in no row.

    In folders the data are Parquet: `datasets`, with which trainers read JSON lines, takes a column's type from a file's first
    megabytes and fails where a flag or a tool comes later.
    """
    if suffix == ".jsonl":
        with path.open("wb") as file:
            yield lambda rows: file.writelines(_line(row) for row in rows)
        return
    data = path / DATA if folder else path
    used: set[str] = set()
    with data.open("wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:

        def write(rows: list[dict[str, Any]]) -> None:
            table = pa.Table.from_pylist(rows, schema=schema)
            used.update(_used(table))
            writer.write_table(table, row_group_size=GROUP_ROWS)

        yield write
    narrow = _without(schema, {name for name in sparse if name not in used})
    if narrow != schema:
        with data.open("rb") as wide:
            data.unlink()  # still read by its handle: a killed export leaves no second file
            with (
                pq.ParquetFile(wide) as earlier,
                data.open("wb") as file,
                pq.ParquetWriter(file, narrow, compression="zstd") as writer,
            ):
                for group in range(earlier.num_row_groups):
                    writer.write_table(earlier.read_row_group(group).select(narrow.names).cast(narrow))


def _used(table: pa.Table) -> Iterator[str]:
    """Names of the columns, and of the fields of their turns, that hold a value."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count < len(column):
            yield name
        if _of_turns(column.type):
            turns = column.combine_chunks().flatten()
            yield from (field.name for field in turns.type if turns.field(field.name).null_count < len(turns))


def _without(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    """The schema without these columns and fields of turns."""
    kept = []
    for field in schema:
        if _of_turns(field.type):
            turn = pa.struct([own for own in field.type.value_type if own.name not in names])
            kept.append(field.with_type(pa.list_(turn)))
        elif field.name not in names:
            kept.append(field)
    return pa.schema(kept)


def _of_turns(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) and pa.types.is_struct(kind.value_type))


def without_examples(path: Path, ids: Collection[str]) -> int:
    """Write an export again without some examples.

    Parameters
    ----------
    path
        A .jsonl or .parquet file.
    ids
        Examples to leave out, by `example_id`.

    Returns
    -------
    int
        Rows removed. Counts in the folder's tagcos-export.json follow.
    """
    removed = 0
    with replacing(path) as partial:
        if path.suffix == ".jsonl":
            with path.open("rb") as earlier, partial.open("wb") as file:
                for line in earlier:
                    row = json.loads(line) if line.strip() else {}
                    if isinstance(row, dict) and row.get("example_id") in ids:
                        removed += 1
                    else:
                        file.write(line)
        else:
            with (
                pq.ParquetFile(path) as earlier,
                partial.open("wb") as file,
                pq.ParquetWriter(file, earlier.schema_arrow, compression="zstd") as writer,
            ):
                for group in range(earlier.num_row_groups):
                    table = earlier.read_row_group(group)
                    kept = table.filter(pc.invert(pc.is_in(table["example_id"], pa.array(list(ids), pa.string()))))
                    removed += len(table) - len(kept)
                    writer.write_table(kept)
    mark = path.with_name(MARK)
    if removed and mark.is_file():
        counts = json.loads(mark.read_text(encoding="utf-8"))
        counts |= {"rows": counts["rows"] - removed, "forgotten_rows": counts.get("forgotten_rows", 0) + removed}
        with replacing(mark) as partial:
            partial.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    return removed


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(_without_null(row), ensure_ascii=False).encode() + b"\n"


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_null(v) for k, v in value.items() if v is not None}
    return [_without_null(v) for v in value] if isinstance(value, list) else value


def _card(path: Path, done: Any, columns: str) -> str:
    return (
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: " + DATA + "\n---\n\n"
        f"{done.rows:,} rows of {done.examples:,} examples that tagcos run `{done.run_id}` selected. "
        f"`{MARK}` says what was left out.\n\n"
        "```python\nfrom datasets import load_dataset\n\n"
        f'selected = load_dataset({str(path)!r}, split="train")\n```\n\n{columns}\n'
    )


DATASETS_COLUMNS = (
    "`messages` (role, content, name, reasoning_content, tool_calls with arguments as JSON text, tool_call_id, train: "
    "trained character ranges, null for the role's default), `tools` (JSON), `chat_template_kwargs` (JSON), "
    "`example_id`, `dataset`, `weight` (mean 1), `group_id`, `rank`, `source_file`, `source_row`, `run_id`, `method`, "
    "`fraction`, `model`. What no example has of the optional ones is left out."
)
TRL_COLUMNS = (
    "`input_ids`, `labels` (-100 where nothing is trained on), `weight` (mean 1): for `trl.SFTTrainer` as they are, "
    "and for `tagcos_stream.weighted_sft.weighted_sft_trainer`, which takes the weights."
)


def _datasets(path: Path, done: Any) -> dict[str, str]:
    return {"README.md": _card(path, done, DATASETS_COLUMNS)}


def _trl(path: Path, done: Any) -> dict[str, str]:
    return {"README.md": _card(path, done, TRL_COLUMNS)}


def _llama_factory(path: Path, done: Any) -> dict[str, str]:
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
    tags |= {"observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"}
    columns = {"messages": "conversations", "tools": "tools"}
    entry = {"file_name": DATA, "formatting": "sharegpt", "columns": columns, "tags": tags}
    return {"dataset_info.json": json.dumps({"tagcos": entry}, indent=2) + "\n"}


def _axolotl(path: Path, done: Any) -> dict[str, str]:
    place = json.dumps((path.absolute() / DATA).as_posix(), ensure_ascii=False)  # a JSON string is a YAML string
    return {
        "axolotl.yaml": f"""# Copy into your axolotl configuration; the path changes when the folder is moved.
datasets:
  - path: {place}
    ds_type: parquet
    type: chat_template
    field_messages: messages
    field_tools: tools
    message_property_mappings:
      role: role
      content: content
      name: name
    message_field_training: train
    message_field_training_detail: train_detail
    roles_to_train: [assistant]
    train_on_eos: turn
"""
    }


# format -> the texts written with its data, by file name
BESIDE: dict[str, Callable[[Path, Any], dict[str, str]]] = {
    "datasets": _datasets,
    "trl": _trl,
    "llama-factory": _llama_factory,
    "axolotl": _axolotl,
}
