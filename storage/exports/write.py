"""Writing a selection where a trainer reads it: the chosen conversations with weight, cluster and rank.

One pass over the examples, a part of the store at a time; files and folders are written beside their place, renamed when whole.
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
from storage.exports.files import BESIDE, MARK, beside, open_writer
from storage.root import Root
from tagcos_stream.types import UserError

Encode = Callable[[Mapping[str, Any]], tuple[list[int], list[int]]]  # example -> input_ids, labels; Unfit


@dataclass(frozen=True)
class Format:
    """A shape, its columns, and whether it is one file (of the suffix given) or a folder."""

    shape: Callable[[shapes.Example, Counter[str]], list[shapes.Row]] | None
    schema: pa.Schema
    folder: bool = False


FORMATS = {
    "messages": Format(shapes.messages, shapes.MESSAGES),
    "sharegpt": Format(shapes.sharegpt, shapes.SHAREGPT),
    "alpaca": Format(shapes.alpaca, shapes.ALPACA),
    "prompt-completion": Format(shapes.prompt_completion, shapes.PROMPT_COMPLETION),
    "datasets": Format(shapes.messages, shapes.MESSAGES, folder=True),
    "llama-factory": Format(shapes.llama_factory, shapes.LLAMA_FACTORY, folder=True),
    "axolotl": Format(shapes.axolotl, shapes.AXOLOTL, folder=True),
    "trl": Format(None, shapes.TOKENS, folder=True),  # tokenised by who calls: the store knows no tokenizer
}
SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True)
class Exported:
    """What an export came to: examples = held + left_out; a held example is one row or, where the format says so, several."""

    run_id: str
    format: str
    path: str
    examples: int
    rows: int
    left_out: dict[str, int]
    notes: dict[str, int]


def export(
    root: Root, run_id: str, path: Path, *, format: str | None = None, leave_out: bool = False, encode: Encode | None = None
) -> Exported:
    """Write a run's selection to `path`, a .jsonl or .parquet file or a folder, as `format` says; it appears whole or not at all.

    `weight` is the example's share of the pool's mean gradient (its weight in the cluster times the cluster's share of the pool;
    alike for all where the method has no weights), scaled to mean 1 over the selection, so that a weighted loss keeps the scale
    of a plain one. `rank` is the order of choice in the cluster, from 0. Rows are in order of segment and row.

    Args:
        format: one of FORMATS; default messages.
        leave_out: leave out the examples that the format cannot hold, and count them, instead of refusing.
        encode: for `trl`, an example's token ids and labels (-100 where nothing is trained on); raises shapes.Unfit.

    Raises:
        UserError: a format that does not fit the name, a run without a selection, examples that the format cannot hold, or a path
            that cannot be written.
    """
    name = check_target(path, format)
    chosen = FORMATS[name]
    shape = chosen.shape or _tokens(encode)
    left_out: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    first_unfit: dict[str, str] = {}
    examples = written = 0
    with beside(path, chosen.folder) as partial:
        with open_writer(partial, path.suffix if not chosen.folder else ".parquet", chosen.schema, chosen.folder) as write:
            for batch in _examples(root, run_id):
                rows = []
                for example in batch:
                    examples += 1
                    try:
                        rows += shape(example, notes)
                    except shapes.Unfit as reason:
                        left_out[str(reason)] += 1
                        first_unfit.setdefault(str(reason), example["example_id"])
                if left_out and not leave_out:
                    continue  # read to the end all the same: the message says how many
                write(rows)
                written += len(rows)
        if left_out and not leave_out:
            raise _does_not_fit(name, left_out, first_unfit, examples)
        if not written:
            raise UserError(f"none of the {examples} examples fits {name}: {_told(left_out)}; choose another --format")
        done = Exported(run_id, name, str(path), examples, written, dict(left_out), dict(notes))
        if chosen.folder:
            for file, text in BESIDE[name](path, done).items():
                (partial / file).write_text(text, encoding="utf-8")
            (partial / MARK).write_text(json.dumps(done.__dict__, indent=2) + "\n", encoding="utf-8")
    return done


def check_target(path: Path | None, format: str | None = None) -> str:
    """The format's name; UserError where the format is unknown, or the path's name does not suit it. None is no path."""
    name = format or "messages"
    if name not in FORMATS:
        raise UserError(f"format {name!r} is unknown; choose from {', '.join(FORMATS)}")
    if path is None:
        return name
    if FORMATS[name].folder:
        if path.suffix in SUFFIXES:
            raise UserError(f"format {name} is a folder, {path} is named as a file: choose a name without {path.suffix}")
    elif path.suffix not in SUFFIXES:
        folders = ", ".join(n for n, f in FORMATS.items() if f.folder)
        raise UserError(
            f"cannot export to {path}: the name must end in {' or '.join(SUFFIXES)}; folders need --format ({folders})"
        )
    return name


def _examples(root: Root, run_id: str, at_a_time: int = 1024) -> Iterator[list[dict[str, Any]]]:
    share = selections.selection(root.catalog, run_id)["share"]
    scale = len(share) / share.sum() if share.sum() > 0 else 1.0
    columns = ["messages", "tools", "template_kwargs", *shapes.COMMON]
    for frame in selections.selected_with_text(root, run_id):
        weighted = frame.with_columns(weight=pl.col("share") * scale).select(columns)
        for part in weighted.iter_slices(at_a_time):
            yield part.to_dicts()


def _tokens(encode: Encode | None) -> Callable[[shapes.Example, Counter[str]], list[shapes.Row]]:
    if encode is None:
        raise ValueError("format trl needs encode: flows.export makes it from the run's model")

    def shape(example: shapes.Example, notes: Counter[str]) -> list[shapes.Row]:
        input_ids, labels = encode(example)
        return [{"input_ids": input_ids, "labels": labels, **{name: example[name] for name in shapes.COMMON}}]

    return shape


def _told(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{n} with {reason}" for reason, n in left_out.items())


def _does_not_fit(name: str, left_out: Counter[str], first: Mapping[str, str], examples: int) -> UserError:
    reason, identity = next(iter(first.items()))
    return UserError(
        f"{sum(left_out.values())} of {examples} examples do not fit {name}: {_told(left_out)} "
        f"(the first with {reason}: {identity}); --leave-out writes the others and counts these, "
        "--format messages or datasets holds everything"
    )
