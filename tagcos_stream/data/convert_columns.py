"""The common shapes, a block at a time: what `shapes.convert` does row by row, in whole columns.

Only rows that are clean beyond doubt are converted here; every other row goes to `shapes.convert`, which gives its reason. So
the fast way skips work whose result is known and decides nothing of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from tagcos_stream.data.canonical import OCCURRENCES, plain_ids, plain_messages
from tagcos_stream.data.pairs import EXTRAS, MORE_THAN_TEXT
from tagcos_stream.data.parse_columns import FREE_FIELDS, KNOWN_FIELDS, MEANT_KEYS
from tagcos_stream.data.preferences import MARK_FIELDS, refuse_marked
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.scores import score_columns
from tagcos_stream.data.shapes import BY_NAME, CHAT_FIELDS, FLAGS, ID_FIELDS, PAIR_FIELDS, ROW_FIELDS
from tagcos_stream.data.transcripts import BETWEEN
from tagcos_stream.data.turns import (
    CALL_WORDS,
    NEXT_ROLES,
    REASONING_KEYS,
    ROLE_WORDS,
)
from tagcos_stream.types import ROLES

PAIR_SHAPES = ("alpaca", "dolly", "prompt_completion", "question_answer", "input_output", "pair")
PAIRS = tuple(dict.fromkeys(fields for name in PAIR_SHAPES for fields in BY_NAME[name].fields))  # in order of trial
_LAST = set(BY_NAME["pair"].fields).difference(*(BY_NAME[name].fields for name in PAIR_SHAPES[:-1]))
TEXT = r"[^\s\x1c-\x1f]"  # Rust's \s lacks the four separators that str.strip takes off
NOT_A_NUMBER = "a score that may not be a number"  # takes the place of a field that no shape allows: read_scores decides
_NEEDED = {name for fields in PAIRS for name in fields}  # an empty text is still a prompt or an answer
_CODES = {word: ROLES.index(role) for word, role in ROLE_WORDS.items() if word not in CALL_WORDS}  # a call is left to `turns`
_ROLES, _CONTENTS = ("role", "from"), ("content", "value")  # keys that are read here
_ALLOWED = np.zeros((len(ROLES) + 1, len(ROLES)), bool)  # [role before, or len(ROLES) at the start; role]
for _before, _after in NEXT_ROLES.items():
    for _role in _after:
        _ALLOWED[ROLES.index(_before) if _before in ROLES else len(ROLES), ROLES.index(_role)] = True


def can_convert(options: RowOptions) -> bool:
    """Whether these options are the plain ones that this module knows, but for scores; others are read row by row."""
    return replace(options, scores=()) == RowOptions() and KNOWN_FIELDS.isdisjoint(options.scores)


def convert_frame(
    frame: pl.DataFrame, rows: np.ndarray, dataset: str, max_turns: int, scores: Sequence[str] = ()
) -> tuple[pl.DataFrame, np.ndarray]:
    """Occurrences of the clean rows, in order, and which rows those are.

    frame: any columns, N rows; rows (N,) their numbers in the file; dataset: the name where a row has none of its own; max_turns:
    of a clean row; scores: columns to keep (tagcos_stream/data/scores.py).
    Returns a frame of canonical.OCCURRENCES and a mask (N,) bool.
    """
    done = np.zeros(frame.height, bool)
    parts = []
    scored, numeric = score_columns(frame, scores)
    # of the fields that mean something most are in no row
    frame = frame.select([column for column in frame if column.null_count() < frame.height])
    present = {name: _present(frame[name]) for name in frame.columns if name in ROW_FIELDS | set(CHAT_FIELDS)}
    present[NOT_A_NUMBER] = ~numeric
    for picked, flat in _shapes(frame, present, max_turns):
        clean, codes, contents, starts = flat
        if not len(clean):
            continue
        index = picked[clean]
        done[index] = True
        meta = frame.select(_source_id(frame), _dataset(frame, dataset))[index]
        parts.append(
            pl.DataFrame(
                {
                    "row": rows[index].astype(np.uint64),
                    "example_id": plain_ids(codes, contents, starts),
                    "dataset": meta["dataset"],
                    "source_id": meta["source_id"],
                    "messages": plain_messages(codes, contents, starts),
                    "tools": pl.Series([None] * len(index), dtype=pl.String),
                    "template_kwargs": pl.Series([None] * len(index), dtype=pl.String),
                    "scores": scored[index],
                },
                schema=OCCURRENCES,
            )
        )
    out = pl.concat(parts) if parts else pl.DataFrame(schema=OCCURRENCES)
    return (out.sort("row") if len(parts) > 1 else out), done


Flat = tuple[np.ndarray, np.ndarray, pl.Series, np.ndarray]  # clean rows among those picked, role codes, contents, starts


def _shapes(frame: pl.DataFrame, present: dict[str, np.ndarray], max_turns: int):  # type: ignore[no-untyped-def]
    """(row indices, their flat turns) for each shape that occurs in the block; no row is in two."""
    for name in ("messages", "conversations"):
        if name in present and (contents := _contents(frame[name].dtype)):
            repeated = "prompt" in present and frame["prompt"].dtype == pl.String
            picked = _only(present, {name}, {name, *(("prompt",) if repeated else ()), *PAIR_FIELDS, *FREE_FIELDS}, frame.height)
            if repeated and len(picked):
                picked = picked[_is_first(frame["prompt"].gather(picked), frame[name].gather(picked), contents)]
            if len(picked):
                yield picked, _flat_turns(frame[name].gather(picked), max_turns)
    strings = {name for name in frame.columns if frame[name].dtype == pl.String}
    free = np.ones(frame.height, bool)  # rows that no pair before has
    for prompt, answer in PAIRS:
        if {prompt, answer} <= strings & set(present):
            extras = [name for name in EXTRAS if name in strings and name in present and name != prompt]
            text = {"text"} & strings if (prompt, answer) not in _LAST else set()  # which may be a transcript
            picked = _only(present, {prompt, answer}, {prompt, answer, *extras, *text, *FREE_FIELDS}, frame.height)
            picked = picked[free[picked]]
            free &= ~(present[prompt] & present[answer])
            if len(picked):
                yield picked, _flat_pair(frame[picked], prompt, extras, answer, bool(text))


def _is_first(prompts: pl.Series, turns: pl.Series, contents: Sequence[str]) -> np.ndarray:
    """Which rows' `prompt` is absent, or the content of their first turn or the one behind it (UltraChat's messages)."""
    same = prompts.is_null()
    for i in (0, 1):
        turn = turns.list.get(i, null_on_oob=True).struct
        for name in contents:
            same |= (prompts == turn.field(name)).fill_null(False)
    return same.to_numpy()


def _present(column: pl.Series) -> np.ndarray:
    """Which rows have something in the column that must be looked at."""
    if column.name in MARK_FIELDS:
        return _marked(column)
    if column.name == "metadata":
        return _with_tools(column)
    if column.dtype.is_float():
        return (column.is_not_null() & column.is_not_nan()).to_numpy()
    if column.dtype == pl.List and column.name not in CHAT_FIELDS:
        return (column.list.len() > 0).fill_null(False).to_numpy()
    if column.dtype == pl.String and column.name in REASONING_KEYS:
        return (~column.str.to_lowercase().is_in(["", *FLAGS])).fill_null(False).to_numpy()
    if column.dtype == pl.String and column.name not in _NEEDED:
        return (column != "").fill_null(False).to_numpy()
    return column.is_not_null().to_numpy()


def _marked(labels: pl.Series) -> np.ndarray:
    """Which rows' mark says that their answer is bad; a list or an object is never a mark."""
    marks = [] if labels.dtype.is_nested() else [label for label in labels.unique() if _is_mark(label)]
    if not marks:
        return np.zeros(len(labels), bool)
    return labels.is_in(marks).fill_null(False).to_numpy()


def _is_mark(label: Any) -> bool:
    try:
        refuse_marked({"label": label})
    except RowError:
        return True
    return False


def _with_tools(metadata: pl.Series) -> np.ndarray:
    """Which rows' `metadata` may have tools in it."""
    if metadata.dtype == pl.String:
        return metadata.str.contains('"tools"', literal=True).fill_null(False).to_numpy()
    if isinstance(metadata.dtype, pl.Struct) and "tools" in {field.name for field in metadata.dtype.fields}:
        return metadata.struct.field("tools").is_not_null().to_numpy()
    return np.zeros(len(metadata), bool)


def _only(present: dict[str, np.ndarray], needed: set[str], allowed: set[str], n: int) -> np.ndarray:
    """Indices of rows that have all needed fields and no field beyond the allowed ones."""
    mask = np.ones(n, bool)
    for name, has in present.items():
        if name in needed:
            mask &= has
        elif name not in allowed:
            mask &= ~has
    return np.flatnonzero(mask)


def _contents(dtype: pl.DataType) -> list[str]:
    """Keys of the content where the column is one of turns whose role and content are text, else none."""
    if not isinstance(dtype, pl.List) or not isinstance(dtype.inner, pl.Struct):
        return []
    texts = {f.name for f in dtype.inner.fields if f.dtype == pl.String}
    return [name for name in _CONTENTS if name in texts] if not texts.isdisjoint(_ROLES) else []


def _one_of(turns: pl.DataFrame, names: Sequence[str]) -> pl.Series:
    """The text of each turn under one of the names, null where there is none, and where there are several: left to `turns`."""
    texts = [turns[name] for name in names if turns.schema.get(name) == pl.String]
    texts = [text for text in texts if text.null_count() < turns.height] or texts[:1]
    if len(texts) == 1:
        return texts[0]
    several = texts[0].is_not_null() & texts[1].is_not_null()
    return turns.select(pl.when(several).then(None).otherwise(pl.coalesce(texts))).to_series()


def _flat_turns(column: pl.Series, max_turns: int) -> Flat:
    starts = np.zeros(len(column) + 1, np.int64)
    lengths = column.list.len().to_numpy().astype(np.int64)
    np.cumsum(lengths, out=starts[1:])
    turns = column.explode(empty_as_null=False).struct.unnest()
    codes = _one_of(turns, _ROLES).replace_strict(_CODES, default=255, return_dtype=pl.UInt8).to_numpy()
    contents = _one_of(turns, _CONTENTS)
    answer = codes == ROLES.index("assistant")
    bad = contents.is_null().to_numpy() | (codes == 255)
    has_text = contents.str.contains(TEXT).fill_null(False).to_numpy()
    bad |= answer & ~has_text
    for name, dtype in turns.schema.items():
        read = dtype == pl.String and name in (*_ROLES, *_CONTENTS)
        if name in MEANT_KEYS and not read and turns[name].null_count() < turns.height:
            bad |= turns[name].is_not_null().to_numpy()
    before = np.empty_like(codes)
    before[1:] = codes[:-1]
    before[starts[:-1][lengths > 0]] = len(ROLES)
    known = np.where(codes == 255, 0, codes)
    bad |= ~_ALLOWED[np.where(before == 255, 0, before), known]
    good = (lengths <= max_turns) & (_sum(bad, starts) == 0) & (_sum(answer, starts) > 0) & (_sum(has_text & ~answer, starts) > 0)
    keep = np.repeat(good, lengths)
    clean = np.flatnonzero(good)
    kept = np.zeros(len(clean) + 1, np.int64)
    np.cumsum(lengths[clean], out=kept[1:])
    return clean, codes[keep], contents if keep.all() else contents.filter(pl.Series(keep)), kept


def _sum(flags: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(N,) number of set flags in each row's stretch; right for empty rows, where reduceat is not."""
    total = np.zeros(len(flags) + 1, np.int64)
    np.cumsum(flags, out=total[1:])
    return total[starts[1:]] - total[starts[:-1]]


def _flat_pair(frame: pl.DataFrame, prompt: str, extras: list[str], answer: str, rendered: bool) -> Flat:
    """rendered: the frame has a `text`, which must be the row as a template prints it."""
    first = pl.col(prompt)
    for extra in extras:
        more = pl.col(extra).fill_null("")
        first = pl.when(more == "").then(first).when(first == "").then(more).otherwise(pl.concat_str(first, pl.lit("\n\n"), more))
    found = frame.select(first.alias("prompt"), pl.col(answer).alias("answer"))
    good = found.select(pl.col("prompt").str.contains(TEXT) & pl.col("answer").str.contains(TEXT)).to_series()
    good &= frame.select(
        ~pl.any_horizontal(pl.col(prompt, *extras, answer).str.contains(MORE_THAN_TEXT).fill_null(False))
    ).to_series()
    good &= frame.select(~pl.col(prompt).str.contains(BETWEEN, literal=True)).to_series()
    if rendered:
        parts = [
            pl.col("text").str.contains(pl.col(n).fill_null("").str.strip_chars(), literal=True)
            for n in (prompt, *extras, answer)
        ]
        good &= frame.select((pl.col("text").fill_null("") == "") | pl.all_horizontal(parts)).to_series()
    pair = found.filter(good)
    n = pair.height
    contents = pl.concat([pair["prompt"].rename("content"), pair["answer"].rename("content")])
    contents = contents.gather(np.arange(2 * n).reshape(2, n).T.ravel())
    codes = np.tile(np.array([ROLES.index("user"), ROLES.index("assistant")], np.uint8), n)
    return np.flatnonzero(good.to_numpy()), codes, contents, 2 * np.arange(n + 1, dtype=np.int64)


def _source_id(frame: pl.DataFrame) -> pl.Expr:
    kinds = {name: frame[name].dtype for name in ID_FIELDS if name in frame.columns}
    names = [name for name, kind in kinds.items() if kind in (pl.String, pl.Boolean) or kind.is_integer()]
    texts = [pl.col(name).cast(pl.String) for name in names]
    # as Python writes it: True
    texts = [text.str.to_titlecase() if kinds[name] == pl.Boolean else text for name, text in zip(names, texts, strict=True)]
    return pl.coalesce(*texts, pl.lit(None, pl.String)).alias("source_id")


def _dataset(frame: pl.DataFrame, default: str) -> pl.Expr:
    if "dataset" not in frame.columns or frame["dataset"].dtype != pl.String:
        return pl.repeat(pl.lit(default), pl.len()).alias("dataset")
    return pl.when(pl.col("dataset") == "").then(None).otherwise(pl.col("dataset")).fill_null(default).alias("dataset")
