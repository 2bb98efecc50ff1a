"""Write a selection for a trainer: the chosen conversations with weight, group and rank.

One pass over the examples, one part of the store at a time. Files and folders are written under a temporary name and renamed
when complete.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from storage.catalog import selections
from storage.exports import shapes
from storage.exports.files import BESIDE, MARK, may_replace, open_writer, replacing
from storage.root import Root
from tagcos_stream.types import UserError

Encode = Callable[[Mapping[str, Any]], tuple[list[int], list[int]]]  # example -> input_ids, labels; Unfit
Remark = Callable[[shapes.Example, list[shapes.Row]], str | None]  # what a reader of an example's rows should know, if anything


@dataclass(frozen=True)
class Format:
    """An export format: its row shape, its columns, whether it is a folder or one file, and which unused columns it lacks."""

    shape: Callable[[shapes.Example, Counter[str]], list[shapes.Row]] | None
    schema: pa.Schema
    folder: bool = False
    sparse: tuple[str, ...] = ()


FORMATS = {
    "messages": Format(shapes.messages, shapes.MESSAGES, sparse=shapes.SPARSE),
    "sharegpt": Format(shapes.sharegpt, shapes.SHAREGPT, sparse=shapes.SPARSE),
    "alpaca": Format(shapes.alpaca, shapes.ALPACA),
    "prompt-completion": Format(shapes.prompt_completion, shapes.PROMPT_COMPLETION, sparse=shapes.SPARSE),
    "datasets": Format(shapes.messages, shapes.MESSAGES, folder=True, sparse=shapes.SPARSE),
    "llama-factory": Format(shapes.llama_factory, shapes.LLAMA_FACTORY, folder=True),
    "axolotl": Format(shapes.axolotl, shapes.AXOLOTL, folder=True),
    "trl": Format(None, shapes.TOKENS, folder=True),  # tokenised by the caller: storage has no tokenizer
}
SUFFIXES = (".jsonl", ".parquet")
FORGOTTEN = "selected examples were forgotten: they have no text"


@dataclass(frozen=True)
class Exported:
    """Counts of a finished export. An example is left out or written, as one row or (in some formats) several."""

    run_id: str
    format: str
    path: str
    examples: int
    rows: int
    left_out: dict[str, int]
    notes: dict[str, int]


def export(
    root: Root,
    run_id: str,
    path: Path,
    *,
    format: str | None = None,
    leave_out: bool = False,
    encode: Encode | None = None,
    remark: Remark | None = None,
) -> Exported:
    """Write the selection of a run to a file or folder, completely or not at all.

    The column `weight` is the example's weight in the pool's mean gradient (its weight in the group times the group's
    fraction of the pool; equal for all if the method has no weights), scaled to mean 1 over the selection. A weighted loss then
    keeps the scale of an unweighted one. `rank` is the order of choice in the group, from 0. Rows are ordered by segment and
    row.

    Parameters
    ----------
    root
        The root of the run.
    run_id
        A complete run.
    path
        A .jsonl or .parquet file, or a folder, depending on the format.
    format
        One of FORMATS. Default: messages.
    leave_out
        Leave out and count the examples that the format cannot represent, in place of raising an error.
    encode
        For `trl`: returns an example's token ids and labels (-100 where nothing is trained on), or raises shapes.Unfit.
    remark
        Looks at every example and its rows; what it returns is counted in the notes.

    Returns
    -------
    Exported
        What was written.

    Raises
    ------
    UserError
        The format does not suit the path, the run has no selection, the format cannot represent an example, or the path cannot
        be written.
    """
    name = check_target(path, format)
    chosen = FORMATS[name]
    shape = chosen.shape or _tokens(encode)
    left_out: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    first_unfit: dict[str, str] = {}
    examples = written = 0
    with replacing(path, chosen.folder) as partial:
        suffix = ".parquet" if chosen.folder else path.suffix
        with open_writer(partial, suffix, chosen.schema, chosen.folder, chosen.sparse) as write:
            for batch in _examples(root, run_id):
                rows = []
                for example in batch:
                    if not example["messages"]:
                        notes[FORGOTTEN] += 1
                        continue
                    examples += 1
                    try:
                        made = shape(example, notes)
                    except shapes.Unfit as reason:
                        left_out[str(reason)] += 1
                        first_unfit.setdefault(str(reason), example["example_id"])
                        continue
                    rows += made
                    if remark is not None and (said := remark(example, made)):
                        notes[said] += 1
                if left_out and not leave_out:
                    continue  # read to the end, since the message counts them
                write(rows)
                written += len(rows)
        if left_out and not leave_out:
            raise _does_not_fit(name, left_out, first_unfit, examples)
        if not examples:
            raise UserError(f"nothing to export: {notes[FORGOTTEN]} {FORGOTTEN}")
        if not written:
            raise UserError(f"none of the {examples} examples fits {name}: {_reasons(left_out)}; choose another --format")
        done = Exported(run_id, name, str(path), examples, written, dict(left_out), dict(notes))
        if chosen.folder:
            for file, text in BESIDE[name](path, done).items():
                (partial / file).write_text(text, encoding="utf-8")
            (partial / MARK).write_text(
                json.dumps({**done.__dict__, **_made_by(root, run_id)}, indent=2) + "\n", encoding="utf-8"
            )
    return done


def check_target(path: Path | None, format: str | None = None) -> str:
    """Check that a format exists and suits a path.

    Parameters
    ----------
    path
        File or folder to write; None to check only the format.
    format
        One of FORMATS. Default: messages.

    Returns
    -------
    str
        Name of the format.

    Raises
    ------
    UserError
        The format is unknown, the path has the wrong suffix for it, or a file is there that no export made.
    """
    name = format or "messages"
    if name not in FORMATS:
        raise UserError(f"format {name!r} is unknown; choose from {', '.join(FORMATS)}")
    if path is None:
        return name
    if FORMATS[name].folder:
        if path.name in ("", ".."):
            raise UserError(f"format {name} is a folder of its own, {path} is one that is there: give --out a new name in it")
        if path.suffix in SUFFIXES:
            raise UserError(f"format {name} is a folder, {path} is named as a file: choose a name without {path.suffix}")
    elif path.suffix not in SUFFIXES:
        folders = ", ".join(n for n, f in FORMATS.items() if f.folder)
        raise UserError(
            f"cannot export to {path}: the name must end in {' or '.join(SUFFIXES)}; folders need --format ({folders})"
        )
    elif not _replaceable(path):
        raise UserError(f"{path} exists and is not an earlier export: choose another --out, or remove it")
    return name


def _replaceable(path: Path) -> bool:
    try:
        return may_replace(path)
    except OSError as error:  # a name that is too long, for example
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another --out") from error


def _examples(root: Root, run_id: str, at_a_time: int = 1024) -> Iterator[list[dict[str, Any]]]:
    forgotten = root.catalog.read("SELECT example_id FROM forgotten")
    share = selections.selection(root.catalog, run_id).join(forgotten, on="example_id", how="anti")["share"]
    scale = len(share) / share.sum() if share.sum() > 0 else 1.0
    columns = ["messages", "tools", "template_kwargs", *shapes.COMMON]
    made = _made_by(root, run_id)
    first = selections.first_occurrences(root.catalog, run_id)
    for frame in selections.selected_with_text(root, run_id):
        known = frame.with_columns(weight=pl.col("share") * scale, **{name: pl.lit(value) for name, value in made.items()})
        known = known.join(first, on="example_id", how="left", maintain_order="left").select(columns)
        for part in known.iter_slices(at_a_time):
            yield part.to_dicts()


def _made_by(root: Root, run_id: str) -> dict[str, Any]:
    """run_id, method, fraction (selected / pool) and model (with its revision, if one was given) of a run."""
    found = root.catalog.read(
        """SELECT run_id, method, (SELECT selected / pool FROM run_sizes s WHERE s.run_id = r.run_id) AS fraction,
            concat_ws('@', nullif(config->>'model', ''), config->>'revision') AS model
        FROM runs r WHERE run_id = ?""",
        [run_id],
    )
    return dict(found.row(0, named=True))


def _tokens(encode: Encode | None) -> Callable[[shapes.Example, Counter[str]], list[shapes.Row]]:
    if encode is None:
        raise ValueError("format trl needs encode: flows.export makes it from the run's model")

    def shape(example: shapes.Example, notes: Counter[str]) -> list[shapes.Row]:
        input_ids, labels = encode(example)
        return [{"input_ids": input_ids, "labels": labels, **{name: example[name] for name in shapes.COMMON}}]

    return shape


def _reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{n} with {reason}" for reason, n in left_out.items())


def _does_not_fit(name: str, left_out: Counter[str], first: Mapping[str, str], examples: int) -> UserError:
    reason, identity = next(iter(first.items()))
    return UserError(
        f"{sum(left_out.values())} of {examples} examples do not fit {name}: {_reasons(left_out)} "
        f"(the first with {reason}: {identity}); --leave-out writes the others and counts these, "
        "--format messages or datasets holds everything"
    )
