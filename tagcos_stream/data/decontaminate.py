"""Pool rows that share a run of words with evaluation data, which training on them would spoil.

The rule is GPT-3's (arXiv 2005.14165, appendix C): a run of 13 words in common. Ours has no upper frequency: a run that many
evaluation rows share counts too. Texts shorter than the run can share none. Memory: 12 bytes for each run of the evaluation
data, nothing for the pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from tagcos_stream.data.canonical import REJECTS, TEXT_KEYS, message_text
from tagcos_stream.data.containers.base import Limits, Raw, snippet
from tagcos_stream.data.containers.registry import open_blocks
from tagcos_stream.data.convert_rows import loads, records
from tagcos_stream.data.reasons import REASONS, RowError
from tagcos_stream.data.shingles import Words, find_words, runs
from tagcos_stream.data.source_spec import SourceSpec
from tagcos_stream.data.sources import SourceFile, resolve_sources
from tagcos_stream.types import IngestBlock, UserError

RUN = 13  # words


@dataclass(frozen=True)
class EvalRuns:
    """Runs of words of the evaluation rows.

    hashes (M,) uint64, ascending; rows (M,) uint32 into `places`, (file, row) of the first that has the run.
    """

    hashes: np.ndarray
    rows: np.ndarray
    places: list[tuple[str, int]]
    n: int


def read_eval(sources: Sequence[str | SourceSpec], n: int = RUN, limits: Limits | None = None) -> EvalRuns:
    """Read the runs of every text in the rows of evaluation files, of any fields.

    UserError where a file or a row of it cannot be read, since what it holds would not be protected, or where there is no run at
    all.
    """
    hashes, rows = [np.empty(0, np.uint64)], [np.empty(0, np.uint32)]
    places: list[tuple[str, int]] = []
    for file in resolve_sources(sources):
        # whatever the columns are: here a row is only its texts
        anything = replace(file, spec=replace(file.spec, options=replace(file.spec.options, shape="any")))
        for raw in open_blocks(anything, 0, 8192, limits or Limits()):
            raw.cut(limits or Limits())
            for row, reason, detail in raw.rejects.frame().select("row", "reason", "detail").iter_rows():
                raise _unread(file, row, reason, detail)
            texts, owners = _texts(raw, file, places)
            found, starts = runs(find_words(texts), n)
            hashes.append(found)
            rows.append(np.repeat(np.array(owners, np.uint32), np.diff(starts)))
    every = np.concatenate(hashes)
    if not len(every):
        raise UserError(f"decontamination: no text of {n} words in {', '.join(str(s) for s in sources)}")
    unique, first = np.unique(every, return_index=True)
    return EvalRuns(unique, np.concatenate(rows)[first], places, n)


def _texts(raw: Raw, file: SourceFile, places: list[tuple[str, int]]) -> tuple[list[str], list[int]]:
    texts: list[str] = []
    owners: list[int] = []
    for row, value in zip(raw.rows, records(raw, np.arange(len(raw.rows))), strict=True):
        try:
            record = loads(value) if isinstance(value, bytes) else value
        except RowError as e:
            raise _unread(file, row, e.reason, e.detail) from None
        found = list(_strings(record))
        texts += found
        owners += [len(places)] * len(found)
        places.append((file.url, row))
    return texts, owners


def _unread(file: SourceFile, row: int, reason: str, detail: str | None) -> UserError:
    return UserError(
        f"decontamination: {file.url}: row {row} cannot be read ({reason}: {detail or REASONS[reason]}), and its text would not "
        "be protected: mend the file, or leave the row out"
    )


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                yield text
            case dict() as members:
                # keys too: a CSV without a header line has its first row there
                waiting += [*members.keys(), *members.values()]
            case list() as items:
                waiting += items


def decontaminated(block: IngestBlock, runs_of_eval: EvalRuns) -> IngestBlock:
    """Return the block with contaminated rows moved to its rejects.

    Their reason is `contaminated`, their detail the evaluation file, row and words.
    """
    turn = pl.concat_str([pl.element().struct.field(key) for key in TEXT_KEYS], separator="\n", ignore_nulls=True)
    texts = block.occurrences.select(pl.col("messages").list.eval(turn).list.join("\n")).to_series()
    found = overlaps(texts.to_list(), runs_of_eval)
    if not found:
        return block
    index = pl.Series(list(found), dtype=pl.UInt32)
    taken = block.occurrences[index]
    rejects = pl.DataFrame(
        {
            "row": taken["row"],
            "reason": ["contaminated"] * len(found),
            "detail": list(found.values()),
            "snippet": [snippet(message_text(m[0])) for m in taken["messages"].to_list()],
        },
        schema=REJECTS,
    )
    keep = np.ones(block.occurrences.height, bool)
    keep[index.to_numpy()] = False
    return replace(
        block,
        occurrences=block.occurrences.filter(pl.Series(keep)),
        rejects=pl.concat([block.rejects, rejects]).sort("row", maintain_order=True),
    )


def overlaps(texts: Sequence[str], runs_of_eval: EvalRuns) -> dict[int, str]:
    """Index of each text that shares a run with the evaluation data -> where and which words, of its first such run."""
    words = find_words(texts)
    hashes, starts = runs(words, runs_of_eval.n)
    at = np.searchsorted(runs_of_eval.hashes, hashes)
    hit = np.flatnonzero(runs_of_eval.hashes[np.minimum(at, len(runs_of_eval.hashes) - 1)] == hashes)
    owner = np.searchsorted(starts, hit, side="right") - 1
    out: dict[int, str] = {}
    for text, run in zip(owner.tolist(), hit.tolist(), strict=True):
        if text not in out:
            file, row = runs_of_eval.places[runs_of_eval.rows[at[run]]]
            out[text] = f"{file} row {row}: {_shown(words, text, run - int(starts[text]), runs_of_eval.n)}"
    return out


def _shown(words: Words, text: int, run: int, n: int) -> str:
    first = int(words.starts[text]) + run
    return words.data[words.begin[first] : words.end[first + n - 1]].decode("utf-8", "replace")[:300]
