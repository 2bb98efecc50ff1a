"""Guards of a repeated run: sources that lost examples or end in the middle of a row stop it before anything is selected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.changes import Changes, losses
from storage.catalog import changes
from storage.database import Catalog
from tagcos_stream.data.containers.base import MAGIC
from tagcos_stream.types import UserError


def check_sources(catalog: Catalog, run_id: str, found: Changes, max_retired: float) -> None:
    """Compare a run's sources with those of the earlier run of the same sources; a first run has nothing to be compared with.

    Parameters
    ----------
    catalog
        Where both runs are recorded.
    run_id
        The run, with its sources read.
    found
        Its changes.
    max_retired
        The setting: of each source, the fraction (below 1) or number of the earlier run's examples that may be gone.

    Raises
    ------
    UserError
        Names each source or file, with counts, limit and remedy.
    """
    if found.base is None:
        return
    cut = [_cut_off(row["url"]) for row in changes.cut_off(catalog, run_id, found.base).to_dicts() if _is_cut_off(row)]
    lost = list(_lost(found, max_retired))
    if not cut and not lost:
        return
    remedies = []
    if cut:
        remedies.append("wait until the file is complete, or write it again")
    if lost:
        most = max(row["retired"] for row in found.sources)
        remedies.append(f"restore the source, or accept the loss in one run with --max-retired {most} (max_retired in a flow)")
    raise UserError(f"{'; '.join(cut + lost)}. Nothing was selected or published: {'; '.join(remedies)}")


def _lost(found: Changes, limit: float) -> Iterator[str]:
    for row in found.sources:
        allowed = limit if limit >= 1 else limit * row["before"]
        if row["retired"] > allowed:
            files = losses([file for file in found.files if file["source"] == row["source"]])
            yield (
                f"source {row['source']}: {row['retired']:,} of {row['before']:,} examples are gone since {found.base} "
                f"({row['retired'] / row['before']:.0%}: {files}), max_retired is {limit:g}"
            )


def _is_cut_off(row: Mapping[str, Any]) -> bool:
    """Whether the end of a file is missing: its reader says so, or its last row is broken and no line end follows it."""
    return row["reason"] == "corrupt_file" or not _ends_in_a_line(row["url"])


def _cut_off(url: str) -> str:
    return f"{Path(url).name} does not end in a whole row"


def _ends_in_a_line(url: str) -> bool:
    """Whether a plain local file ends in a line break. Objects appear in a store as a whole; compressed files mark their end."""
    if "://" in url:
        return True
    with Path(url).open("rb") as file:
        if file.read(4).startswith(tuple(MAGIC.values())):
            return True
        file.seek(-1, 2)
        return file.read(1) == b"\n"
