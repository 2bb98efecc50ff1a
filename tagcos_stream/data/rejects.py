"""Rejected rows: how much is kept of each, and how many a run accepts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from tagcos_stream.data.canonical import KEPT, REJECTS
from tagcos_stream.types import UserError

SNIPPET = 200  # characters of a rejected row that are kept
NOT_READ_ON = ("corrupt_file", "zip_bomb", "blank_lines")  # reasons after which a file is not read, or whose rows are lost
BROKEN = ("broken_json", "bad_encoding")  # reasons of a row that may be the first part of one
FIRST_LOOK = 1000  # rows before a share is judged: three bad rows at a file's head are no reason to stop


class Reject(NamedTuple):
    """A rejected row of a file: the reason in general (a key of REASONS) and in particular, and the row's first characters."""

    row: int
    reason: str
    detail: str
    snippet: str


class Rejects:
    """Rejected rows of a block, added in the order of their rows.

    Of each reason, the first KEPT are kept whole and further ones as row numbers: no more are listed of a whole file, and making
    detail and snippet takes several times as long as reading a short row.
    """

    def __init__(self, *rejects: Reject) -> None:
        self._listed: list[Reject] = []
        self._counts: Counter[str] = Counter()
        self._further: defaultdict[str, list[int]] = defaultdict(list)
        for reject in rejects:
            self.add(reject)

    def full(self, reason: str) -> bool:
        """Whether only the row number is kept of a further reject with this reason."""
        return self._counts[reason] >= KEPT

    def add(self, reject: Reject) -> None:
        """Add a reject; beyond the limit of its reason only its row number is kept."""
        if self._counts[reject.reason] >= KEPT:
            self._further[reject.reason].append(reject.row)
        else:
            self._counts[reject.reason] += 1
            self._listed.append(reject)

    def add_row(self, reason: str, row: int) -> None:
        """Add a row with a reason of which there are KEPT already."""
        self._further[reason].append(row)

    def within(self, first: int, end: float = math.inf) -> Rejects:
        """The rejects of rows from `first` to before `end`. A reason that is full here is full there."""
        found = Rejects()
        found._counts = self._counts.copy()
        found._listed = [r for r in self._listed if first <= r.row < end]
        for reason, rows in self._further.items():
            found._further[reason] = [row for row in rows if first <= row < end]
        return found

    def update(self, others: Rejects) -> None:
        """Add rejects of later rows."""
        for reject in others._listed:
            self.add(reject)
        for reason, rows in others._further.items():
            self._further[reason] += rows

    def frame(self) -> pl.DataFrame:
        """Rows of REJECTS in the order of the file; detail and snippet are null beyond the first KEPT of a reason."""
        columns = zip(*self._listed, strict=True) if self._listed else ([] for _ in REJECTS)
        listed = {name: pl.Series(values, dtype=kind) for (name, kind), values in zip(REJECTS.items(), columns, strict=True)}
        further = [
            pl.select(row=pl.Series(rows, dtype=pl.UInt64), reason=pl.lit(reason))
            for reason, rows in self._further.items()
            if rows
        ]
        return pl.concat([pl.DataFrame(listed), *further], how="diagonal").sort("row", maintain_order=True)


def ended_early(rejects: pl.DataFrame, open_row: int | None, broken: Sequence[str] = BROKEN) -> str | None:
    """Why the end of a file is missing or was not read.

    Parameters
    ----------
    rejects
        Rows of REJECTS of a block.
    open_row
        The file's last row, if nothing marks its end.
    broken
        Reasons for which that row counts as a part of one.

    Returns
    -------
    str or None
        The reject's reason; None if the block does not say that the file ends early.
    """
    at_end = pl.lit(False) if open_row is None else (pl.col("row") == open_row) & pl.col("reason").is_in(broken)
    found = rejects.filter(pl.col("reason").is_in(NOT_READ_ON) | at_end)["reason"]
    return str(found[0]) if len(found) else None


def check_rejects(limit: float, rows: int, rejects: int, *, done: bool, where: str) -> None:
    """UserError when more rows are rejected than the limit allows: a share of the rows below 1, a count from 1 on.

    rows: read so far, rejects among them. A share is judged once FIRST_LOOK rows are read, or at the end (`done`).
    """
    if limit >= 1:
        if rejects > limit:
            raise UserError(
                f"{where}: {rejects:,} rows rejected of {rows:,}, max_rejects is {limit:,.0f}: mend the file or raise max_rejects"
            )
    elif rows and (done or rows >= FIRST_LOOK) and rejects > limit * rows:
        raise UserError(
            f"{where}: {rejects:,} of {rows:,} rows rejected ({rejects / rows:.0%}), max_rejects is {limit:.0%}: mend the file, "
            "name its shape or columns, or raise max_rejects"
        )
