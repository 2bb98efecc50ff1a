"""When too many rows are rejected, and how a reader is told what was."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from tagcos_stream.types import UserError

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


def summary(rejects: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Reasons with their count and one case each: reason, rows, first_row, detail; the most frequent first. Frames of
    canonical.REJECTS.
    """
    counts: dict[str, list[object]] = {}
    for frame in rejects:
        grouped = frame.group_by("reason", maintain_order=True).agg(pl.len(), pl.col("row", "detail").first())
        for reason, n, row, detail in grouped.iter_rows():
            kept = counts.setdefault(reason, [0, row, detail])
            kept[0] += n
    rows = [(reason, *values) for reason, values in counts.items()]
    schema = {"reason": pl.String, "rows": pl.Int64, "first_row": pl.UInt64, "detail": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row").sort("rows", "reason", descending=[True, False])
