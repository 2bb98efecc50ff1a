"""Numeric columns of the user's own (`scores` of a source): read with a row, kept with its occurrence, no part of the example.

A row without the column, with null, NaN or an empty cell has no value. Text counts if it is a number in decimal notation, since
CSV has nothing else; any other value rejects the row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import polars as pl

from tagcos_stream.data.reasons import RowError

NUMBER = r"^[ \t]*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?[ \t]*$"
SCORES = pl.List(pl.Struct({"name": pl.String(), "value": pl.Float64()}))


class Score(TypedDict):
    """One value of a row."""

    name: str
    value: float


def read_scores(row: Mapping[str, Any], names: Sequence[str]) -> list[Score] | None:
    """Read the scores of a row.

    Parameters
    ----------
    row
        Values by column of the file.
    names
        Columns to read.

    Returns
    -------
    list or None
        The scores that the row has, in the order of the names; None if it has none.

    Raises
    ------
    RowError
        A value is not a number.
    """
    found: list[Score] = []
    for name in names:
        value = row.get(name)
        if isinstance(value, str):
            if not value.strip():
                continue
            number = float(value) if re.match(NUMBER, value) else None
        else:
            number = None if isinstance(value, bool) else _float(value)
        if value is None or (number is not None and math.isnan(number)):
            continue
        if number is None:
            raise RowError("wrong_type", f"{name} is {str(value)[:60]!r}: the scores of a source are numbers")
        found.append({"name": name, "value": number})
    return found or None


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def score_columns(frame: pl.DataFrame, names: Sequence[str]) -> tuple[pl.Series, np.ndarray]:
    """Read the scores of many rows.

    Parameters
    ----------
    frame
        N rows, with any of the columns `names`.
    names
        Columns to read.

    Returns
    -------
    pl.Series
        (N,) of SCORES, as `read_scores` gives them.
    np.ndarray
        (N,) bool, False for rows that `read_scores` has to decide: a value may not be a number.
    """
    clean = np.ones(frame.height, bool)
    parts = []
    for name in (name for name in names if name in frame.columns):
        column = frame[name]
        if column.dtype == pl.String:
            clean &= (column.str.contains(NUMBER) | (column.str.strip_chars() == "")).fill_null(True).to_numpy()
            values = column.str.strip_chars().cast(pl.Float64, strict=False)
        elif column.dtype.is_numeric():
            values = column.cast(pl.Float64)
        else:
            clean &= column.is_null().to_numpy()
            values = pl.repeat(None, frame.height, dtype=pl.Float64, eager=True)
        there = values.is_not_null() & values.is_not_nan()
        both = pl.struct(name=pl.lit(name), value=pl.col("value"))
        parts.append(pl.DataFrame({"value": values, "there": there}).select(pl.when("there").then(both)).to_series())
    if not parts:
        return pl.repeat(None, frame.height, dtype=SCORES, eager=True), clean
    columns = pl.DataFrame({str(n): part for n, part in enumerate(parts)})
    listed = columns.select(scores=pl.concat_list(pl.all()).list.drop_nulls())
    return listed.select(pl.when(pl.col("scores").list.len() > 0).then("scores")).to_series().cast(SCORES), clean
