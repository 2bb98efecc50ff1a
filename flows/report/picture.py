"""A plot of the report as a PNG, for pages that show pictures and run no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.report import plots
from flows.report.elements import named

WIDTH = 560  # pixels
AROUND = 90  # pixels of height for axis and legend
SHOWN = 30  # datasets


def datasets_png(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw each dataset's share of the pool and of the selection.

    Parameters
    ----------
    rows
        Rows of the macro `by_dataset`; the SHOWN with the largest pool are drawn.

    Returns
    -------
    bytes
        A PNG file.
    """
    import vl_convert  # a JavaScript engine: 1.7 s and 150 MB, only for the command that draws

    largest = sorted(rows, key=lambda row: -row["pool"])[:SHOWN]
    drawn = [
        {"name": named(row["dataset"]), "who": who, "examples": row[count], "share": row[share] or 0}
        for row in largest
        for who, count, share in (("pool", "pool", "share_of_pool"), ("selection", "selected", "share_of_selection"))
    ]
    plot = plots.by_dataset(drawn)
    size = {"width": WIDTH, "height": plot.step * len(largest) + AROUND, "background": "white"}
    return bytes(vl_convert.vegalite_to_png(plot.spec | size | {"datasets": {"rows": drawn}}, scale=1.5))
