"""Limit on rejected rows, and how much is kept of each."""

from __future__ import annotations

from tagcos_stream.types import UserError

SNIPPET = 200  # characters of a rejected row that are kept
FIRST_LOOK = 1000  # rows before a share is judged: three bad rows at a file's head are no reason to stop


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
