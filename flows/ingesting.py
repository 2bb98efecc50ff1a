"""Stage 1: the rows of the sources become examples, occurrences and rejects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from flows.job import Job
from storage import gc, pool, runs
from tagcos_stream.ingest import read_file
from tagcos_stream.sources import SourceFile, resolve_sources
from tagcos_stream.types import UserError


def ingest(job: Job) -> dict[str, Any]:
    """Read every file version that is not yet known, block by block; a killed run goes on at the first row not committed.

    Raises:
        UserError: no such source, an unreadable file, too many rejects, or nothing usable at all.
    """
    gc.sweep(job.root, gc.orphans(job.root))
    files = resolve_sources(job.settings.sources)
    listed = [{"source": f.source, "url": f.url, "digest": f.digest, "size": f.size, "format": f.format} for f in files]
    known = pool.add_files(job.catalog, job.run_id, pl.DataFrame(listed))
    total = sum(file.size for file in files)
    before = new = 0
    with job.reporter.stage("ingest", "bytes") as progress:
        for file, row in zip(files, known.iter_rows(named=True), strict=True):
            if not row["complete"]:
                new += _ingest_file(job, file, row, lambda done, before=before: progress(before + done, total))  # type: ignore[misc]
            before += file.size
            progress(before, total)
    status = runs.run_status(job.catalog, job.run_id)
    counts = {"files": len(files), "examples": status.examples, "new": new, "rejected": status.rejects}
    if status.examples == 0:
        raise UserError(
            f"no usable example in {', '.join(job.settings.sources)} ({status.rejects} rows rejected); "
            f"`tagcos sql --root {job.settings.root} 'FROM rejects'` tells each one's reason"
        )
    return counts


def _ingest_file(job: Job, file: SourceFile, known: dict[str, Any], progress: Callable[[float], None]) -> int:
    """Commit the file's remaining blocks; returns the number of new examples."""
    rows = rejected = new = 0  # of this reading: what an earlier attempt committed has been judged then
    for block in read_file(file, start_row=known["rows_done"]):
        counts = pool.commit_ingest(job.root, job.run_id, known["file_id"], block)
        rows, rejected, new = rows + counts.rows, rejected + counts.rejected, new + counts.new
        _check_rejects(job.settings.max_rejects, file.url, rows, rejected, block.rejects)
        progress(block.bytes_read)
    return new


def _check_rejects(limit: float, url: str, rows: int, rejected: int, latest: pl.DataFrame) -> None:
    # a share means something only once there are some rows
    if rejected > limit if limit >= 1 else rows >= 100 and rejected > limit * rows:
        first = latest.row(0, named=True) if len(latest) else {"row": "?", "reason": "see rejects"}
        raise UserError(
            f"{url}: {rejected} of {rows} rows rejected, more than max_rejects {limit:g}; "
            f"lately row {first['row']}: {first['reason']}. Mend the file or raise --max-rejects"
        )
