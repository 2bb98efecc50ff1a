"""What a run's sources gained and lost since an earlier run, in words: for logs, artifacts, reports and states of flow runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.catalog import changes
from storage.database import Catalog

MAX_FILES = 3  # named in a sentence
MAX_SOURCES = 20  # lines in a log


@dataclass(frozen=True)
class Changes:
    """Changes by source and by file between an earlier run and a run.

    Parameters
    ----------
    base
        The earlier run; None where there is none.
    sources
        Rows of the macro `source_changes`.
    files
        Rows of the macro `file_changes`, those that lost most examples first; empty without an earlier run.
    new, returned, retired
        Numbers of examples, each counted once.
    rejected
        Rows of the sources that are not examples.
    """

    base: str | None
    sources: Sequence[Mapping[str, Any]]
    files: Sequence[Mapping[str, Any]]
    new: int
    returned: int
    retired: int
    rejected: int

    @property
    def summary(self) -> str:
        """One phrase, such as `+3 new, -40 retired (chat.jsonl gone), 2 rows rejected`."""
        if self.base is None:
            return ", ".join(["first run of these sources", *_rejected(self.rejected)])
        return _phrase(self.new, self.returned, self.retired, self.rejected, self.files)

    def lines(self) -> list[str]:
        """One line for each source that changed, at most MAX_SOURCES."""
        if self.base is None:
            return []
        found = []
        for row in self.sources:
            if not (row["new"] or row["returned"] or row["retired"]):
                continue
            files = [file for file in self.files if file["source"] == row["source"]]
            phrase = _phrase(row["new"], row["returned"], row["retired"], row["rejected"], files)
            found.append(f"source {row['source']}: {phrase}; {row['before']:,} -> {row['pool']:,} examples")
        more = [f"and {len(found) - MAX_SOURCES:,} more sources changed"] if len(found) > MAX_SOURCES else []
        return found[:MAX_SOURCES] + more


def gather(catalog: Catalog, run_id: str, base: str | None, *, every_source: bool = True) -> Changes:
    """Read the changes between two runs from the catalog.

    Parameters
    ----------
    catalog
        Where both are recorded.
    run_id
        A run whose sources are read.
    base
        The earlier run; None where there is none.
    every_source
        Count the examples of every source even if no file differs, which takes seconds for a million examples.
    """
    files = [] if base is None else changes.by_file(catalog, run_id, base).to_dicts()
    counts = changes.totals(catalog, run_id, base) if files else {"new": 0, "returned": 0, "retired": 0}
    sources = changes.by_source(catalog, run_id, base).to_dicts() if files or every_source else []
    return Changes(base, sources, files, **counts, rejected=changes.rejected(catalog, run_id))


def recorded(catalog: Catalog, run_id: str) -> Changes:
    """Read the changes of a run since the run that it was compared with."""
    return gather(catalog, run_id, changes.compared_with(catalog, run_id))


def sentence(catalog: Catalog, run_id: str) -> str:
    """Describe what a run selected and what changed in its sources, in one sentence.

    Parameters
    ----------
    catalog
        Where the run is recorded.
    run_id
        A run with a selection.

    Returns
    -------
    str
        Such as `16 of 160 selected; +3 new, -40 retired (chat.jsonl gone), churn 12%`.
    """
    found = changes.outcome(catalog, run_id)
    churn = "" if found["churn"] is None else f", churn {found['churn']:.0%}"
    if found["reselects"] is not None:
        summary = f"pool of {found['reselects']}"
    else:
        base = changes.compared_with(catalog, run_id)
        summary = found["changes"] or gather(catalog, run_id, base, every_source=False).summary
    return f"{found['selected']:,} of {found['usable']:,} selected; {summary}{churn}"


def happened(file: Mapping[str, Any]) -> str:
    """Say in a few words what became of a file that lost examples."""
    path = Path(file["url"])
    if file["change"] == "gone":
        return "is a folder now" if "://" not in file["url"] and path.is_dir() else "gone"
    if not file["bytes"]:
        return "empty"
    if file["rows"] < (file["rows_before"] or 0):
        return f"shrank from {file['rows_before']:,} to {file['rows']:,} rows"
    return "changed"


def losses(files: Sequence[Mapping[str, Any]]) -> str:
    """Name the files that lost examples and what became of them; empty where none did."""
    lost = [file for file in files if file["retired"]]
    named = [f"{Path(file['url']).name} {happened(file)}" for file in lost[:MAX_FILES]]
    more = [f"{len(lost) - MAX_FILES:,} more files"] if len(lost) > MAX_FILES else []
    return ", ".join(named + more)


def _phrase(new: int, returned: int, retired: int, rejected: int, files: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    if new:
        parts.append(f"+{new:,} new")
    if returned:
        parts.append(f"+{returned:,} returned")
    if retired:
        parts.append(f"-{retired:,} retired" + (f" ({why})" if (why := losses(files)) else ""))
    return ", ".join((parts or ["sources unchanged"]) + _rejected(rejected))


def _rejected(rows: int) -> list[str]:
    return [f"{rows:,} row{'s' * (rows != 1)} rejected"] if rows else []
