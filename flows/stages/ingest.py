"""Stage 1: the rows of the sources become examples, occurrences and rejects."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import polars as pl

from flows import changes
from flows.context import RunContext
from flows.guards import check_sources
from flows.results import Pool
from flows.stages.target import leave_out_repeats, read_target
from flows.survey import source_files
from storage import gc
from storage.catalog import changes as catalog_changes
from storage.catalog import choices, heldout, pool, runs, signals, stages, targets
from storage.examples import example_reader
from tagcos_stream.data.read import read_file
from tagcos_stream.data.rejects import check_rejects
from tagcos_stream.data.sources import listing
from tagcos_stream.identity import reading
from tagcos_stream.memory import require_memory
from tagcos_stream.selection.shares import parse_shares, require_datasets
from tagcos_stream.types import UserError


def ingest(run: RunContext) -> Pool:
    """Read every file version that is not yet in the catalog, block by block.

    A resumed run continues at the first row that is not committed.

    Parameters
    ----------
    run
        Context of the run.

    Returns
    -------
    Pool
        Counts, and what the catalog records.

    Raises
    ------
    UserError
        There is no such source, a file cannot be read, too many rows are rejected, no example is usable, finding near-duplicates
        does not fit in memory, or a source lost more of its examples than `max_retired` since the last run of the same sources.
    """
    gc.sweep(run.root, gc.orphans(run.root))
    settings = run.settings
    aside = heldout.share(run.catalog, settings.heldout)
    target = read_target(run)  # first, so that none of its examples is held out
    sources = source_files(settings)
    files = sources.files
    for note in dict.fromkeys(note for file in files for note in file.spec.notes):
        run.reporter.say(note)
    known = pool.add_files(run.catalog, run.run_id, listing(files, sources.specs))
    rows, rejected = pool.not_accepted(run.catalog, known["file_id"])
    total, before = sum(file.size for file in files), 0
    with run.reporter.stage("ingest", "bytes") as progress:
        for file, row in zip(files, known.iter_rows(named=True), strict=True):
            if not row["complete"]:
                for block in read_file(file, start_row=row["rows_done"]):
                    counts = pool.commit_ingest(run.root, run.run_id, row["file_id"], sources.clean(block), aside)
                    rows, rejected = rows + counts.rows, rejected + counts.rejected
                    check_rejects(settings.max_rejects, rows, rejected, done=False, where=file.url)
                    progress(before + block.bytes_read, total)
            before += file.size
            progress(before, total)
    repeats = 0 if target is None else leave_out_repeats(run, target)
    near = _leave_out_near_duplicates(run, target)
    detail = _conclude(run, rows, rejected)
    named = {} if target is None else {"target": target.name, "target_repeats": repeats}
    detail = {"files": len(files), "near_duplicates": near, **named, **detail}
    return Pool(len(files), detail["examples"], detail)


def _conclude(run: RunContext, rows: int, rejected: int) -> dict[str, Any]:
    """Say what changed, refuse a pool that cannot be used, and return what the catalog records of it."""
    settings = run.settings
    reads = reading(settings)
    since = catalog_changes.earlier_run(run.catalog, run.run_id, reads)
    changed = changes.gather(run.catalog, run.run_id, since, every_source=False)
    for line in changed.lines():
        run.reporter.say(line)
    check_sources(run.catalog, run.run_id, changed, settings.max_retired, run.reporter.say)
    status = runs.run_status(run.catalog, run.run_id)
    if status.examples == 0:
        raise UserError(
            f"no usable example in {', '.join(settings.sources)} ({status.rejects} rows rejected{_reasons(run)}){_first(run)}; "
            f"`tagcos sql --root {settings.root} 'FROM rejects'` lists the file, row and reason of each"
        )
    check_rejects(settings.max_rejects, rows, rejected, done=True, where=", ".join(settings.sources))
    if settings.share:  # before the gradients are computed; the selection looks again, at the rows that may be chosen
        datasets = pool.pool(run.catalog, run.run_id)["dataset"].fill_null("").unique()
        require_datasets(parse_shares(settings.share), datasets)
    if status.rejects:
        run.reporter.say(f"{status.rejects} rejects{_reasons(run)}")
    digest = _drop_choices_of_another_pool(run)
    for name in signals.scores_without_value(run.catalog, run.run_id):
        run.reporter.say(f"no row has a value of {name}, which the sources name as a score")
    return {
        "examples": status.examples,
        "heldout": status.heldout,
        **pool.read_by(run.catalog, run.run_id),
        "returned": changed.returned,
        "retired": changed.retired,
        "since": since,
        "changes": changed.summary,
        "reads": reads,
        "pool_digest": digest,
    }


def _leave_out_near_duplicates(run: RunContext, target: targets.TargetSet | None) -> int:
    if run.settings.near_duplicates is None:
        return 0
    from tagcos_stream.data.near_duplicates import near_duplicates, peak_bytes

    pool.forget_near_duplicates(run.catalog, run.run_id)  # of an earlier attempt, which the pool would lack

    scratch = None if run.root.path is None else run.root.path / "work" / run.run_id
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    everything = pool.pool(run.catalog, run.run_id).select("segment", "row", "example_id")
    # what is held out, and the target, come first, so that no example like them stays in the pool
    aside = heldout.heldout(run.catalog, run.run_id).select("segment", "row", "example_id")
    if target is not None:
        wanted = targets.examples(run.catalog, target.target_id).select(aside.columns).unique("example_id")
        aside = pl.concat([aside, wanted.join(aside, on="example_id", how="anti")])
    total = len(everything) + len(aside)
    what = f"finding the near-duplicates among {total:,} examples"
    require_memory(what, peak_bytes(total), run.memory_limit, "raise memory_limit, or leave near_duplicates out")
    with tempfile.TemporaryDirectory(dir=scratch) as folder, run.reporter.stage("near-duplicates", "examples") as progress:
        done = 0

        def frames() -> Any:
            nonlocal done
            for rows in (aside, everything):
                for frame in example_reader(run.root).iterate(rows):
                    yield frame.select("example_id", "messages")
                    done += len(frame)
                    progress(done, total)

        found = near_duplicates(frames(), Path(folder), threshold=run.settings.near_duplicates).join(everything, on="example_id")
    pool.exclude_near_duplicates(run.catalog, run.run_id, found)
    return len(found)


def _drop_choices_of_another_pool(run: RunContext) -> str:
    """Where an earlier attempt chose from other sources, its choices go. Returns the digest of the pool as it is now."""
    digest = pool.pool_digest(run.catalog, run.run_id)
    earlier = stages.detail_of(run.catalog, run.run_id, "ingest")
    if earlier is not None and earlier.get("pool_digest") != digest:
        why = "the sources changed since this run began" if "pool_digest" in earlier else "an earlier version began this run"
        run.reporter.say(f"{why}: its choices are made again")
        choices.drop_all(run.catalog, run.run_id)
    return digest


def _first(run: RunContext) -> str:
    detail = catalog_changes.first_reject(run.catalog, run.run_id)
    return "" if detail is None else f", the first: {detail}"


def _reasons(run: RunContext) -> str:
    counted = catalog_changes.reject_reasons(run.catalog, run.run_id)
    return ": " + ", ".join(f"{n} {reason}" for reason, n in counted.items()) if counted else ""
