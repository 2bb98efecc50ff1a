"""Guards of a repeated run: sources that lost examples or end in the middle of a row stop it before anything is selected."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flows.changes import Changes, losses
from storage.catalog import changes
from storage.database import Catalog
from tagcos_stream.types import UserError

NOT_READ = {"zip_bomb": "unpack", "blank_lines": "mend"}  # reasons of files whose end is there but is not read: what to do


def check_sources(catalog: Catalog, run_id: str, found: Changes, max_retired: float, warn: Callable[[str], None]) -> None:
    """Compare a run's sources with those of the earlier run of the same sources.

    A first run has nothing to be compared with: it only names files whose end is missing.

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
    warn
        Called with a message for each file that a first run does not read to its end.

    Raises
    ------
    UserError
        Names each source or file, with counts, limit and remedy.
    """
    early = changes.ended_early(catalog, run_id, found.base)
    cut = [_ends_early(url, reason) for url, reason in early]
    if found.base is None:
        for line in cut:
            warn(line)
        return
    lost = list(_lost(found, max_retired))
    if not cut and not lost:
        return
    reasons = {reason for _, reason in early}
    remedies = [f"{remedy} the file" for reason, remedy in NOT_READ.items() if reason in reasons]
    if reasons - NOT_READ.keys():
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


def _ends_early(url: str, reason: str) -> str:
    name = url.rpartition("/")[2]
    return f"{name} is not read to its end ({reason})" if reason in NOT_READ else f"{name} does not end in a whole row"
