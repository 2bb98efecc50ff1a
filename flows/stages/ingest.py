"""Stage 1: the rows of the sources become examples, occurrences and rejects."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from flows.context import Job
from storage import gc
from storage.catalog import heldout, pool, runs, spaces
from tagcos_stream.data.read import read_file
from tagcos_stream.data.rejects import check_rejects
from tagcos_stream.data.sources import resolve_sources
from tagcos_stream.identity import space_recipe
from tagcos_stream.types import IngestBlock, UserError

Filter = Callable[[IngestBlock], IngestBlock]


def ingest(job: Job) -> dict[str, Any]:
    """Read every file version that is not yet known, block by block; a killed run goes on at the first row not committed.

    Raises:
        UserError: no such source, an unreadable file, too many rejects, or nothing usable at all.
    """
    gc.sweep(job.root, gc.orphans(job.root))
    settings = job.settings
    aside = heldout.share(job.catalog, settings.heldout)
    files = resolve_sources(settings.sources)
    cleaner, rules = _decontamination(job)
    listed = [
        {"source": f.source, "url": f.url, "digest": f.digest, "size": f.size, "format": f.format, "spec": f.version + rules}
        for f in files
    ]
    known = pool.add_files(job.catalog, job.run_id, pl.DataFrame(listed))
    total, before, rows, rejected, new = sum(file.size for file in files), 0, 0, 0, 0
    with job.reporter.stage("ingest", "bytes") as progress:
        for file, row in zip(files, known.iter_rows(named=True), strict=True):
            if not row["complete"]:
                for block in read_file(file, start_row=row["rows_done"]):
                    counts = pool.commit_ingest(job.root, job.run_id, row["file_id"], cleaner(block), aside)
                    rows, rejected, new = rows + counts.rows, rejected + counts.rejected, new + counts.new
                    check_rejects(settings.max_rejects, rows, rejected, done=False, where=file.url)
                    progress(before + block.bytes_read, total)
            before += file.size
            progress(before, total)
    near = _leave_out_near_duplicates(job)
    status = runs.run_status(job.catalog, job.run_id)
    if status.examples == 0:
        raise UserError(
            f"no usable example in {', '.join(settings.sources)} ({status.rejects} rows rejected{_reasons(job)}); "
            f"`tagcos sql --root {settings.root} 'FROM rejects'` tells each one's file, row and reason"
        )
    check_rejects(settings.max_rejects, rows, rejected, done=True, where=", ".join(settings.sources))
    if status.rejects:
        job.reporter.say(f"{status.rejects} rejects{_reasons(job)}")
    return {
        "files": len(files),
        "examples": status.examples,
        "heldout": status.heldout,
        "new": new,
        "rejected": rejected,
        "near_duplicates": near,
    }


def adopt(job: Job) -> dict[str, Any]:
    """Stage 1 of selecting again: the pool and the feature space are those of an earlier run; no source is read."""
    assert job.reselects is not None
    gc.sweep(job.root, gc.orphans(job.root))
    pool.adopt_pool(job.catalog, job.run_id, job.reselects)
    _adopt_variant(job)
    return {"of": job.reselects, "examples": runs.run_status(job.catalog, job.run_id).examples}


def _adopt_variant(job: Job) -> None:
    """Of the feature spaces computed in one pass (`also_gradients`), the one that is selected by."""
    base = runs.run_status(job.catalog, job.reselects).run
    variant = job.settings.gradient
    if variant == json.loads(base["config"])["gradient"]:
        return
    space = spaces.find_space(job.catalog, space_recipe(job.settings, variant))
    computed = 0 if space is None else len(spaces.features_pool(job.catalog, job.run_id, space.space_id))
    if space is None or computed < len(spaces.features_pool(job.catalog, job.run_id, base["space_id"])):
        raise UserError(
            f"gradient {variant}: {computed} examples of the pool of {base['run_id']} have features of this variant; compute "
            f"them with `tagcos run`, the same settings and --also-gradients {variant}"
        )
    runs.set_run(job.catalog, job.run_id, space_id=space.space_id)


def _decontamination(job: Job) -> tuple[Filter, str]:
    """A filter for blocks, and the name of what it filters by."""
    if not job.settings.decontaminate:
        return (lambda block: block), ""
    from tagcos_stream.data.decontaminate import decontaminated, read_eval

    runs_of_eval = read_eval(job.settings.decontaminate)
    digests = sorted(file.digest for file in resolve_sources(job.settings.decontaminate))
    return (lambda block: decontaminated(block, runs_of_eval)), ",".join(digests)


def _leave_out_near_duplicates(job: Job) -> int:
    if job.settings.near_duplicates is None:
        return 0
    from tagcos_stream.data.near_duplicates import near_duplicates

    scratch = None if job.root.path is None else job.root.path / "work" / job.run_id
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    everything = pool.pool(job.catalog, job.run_id).select("segment", "row", "example_id")
    # what is held out comes first, so that no example like it stays in the pool
    aside = heldout.heldout(job.catalog, job.run_id).select("segment", "row", "example_id")
    total = len(everything) + len(aside)
    with tempfile.TemporaryDirectory(dir=scratch) as folder, job.reporter.stage("near-duplicates", "examples") as progress:
        done = 0

        def frames() -> Any:
            nonlocal done
            for rows in (aside, everything):
                for frame in pool.example_reader(job.root).iterate(rows):
                    yield frame.select("example_id", "messages")
                    done += len(frame)
                    progress(done, total)

        found = near_duplicates(frames(), Path(folder), threshold=job.settings.near_duplicates).join(everything, on="example_id")
    pool.exclude_near_duplicates(job.catalog, job.run_id, found)
    return len(found)


def _reasons(job: Job) -> str:
    counted = job.catalog.read(
        "SELECT reason, count(*) AS n FROM rejects WHERE run_id = ? GROUP BY reason ORDER BY n DESC, reason", [job.run_id]
    )
    return ": " + ", ".join(f"{n} {reason}" for reason, n in counted.iter_rows()) if len(counted) else ""
