"""What sources would bring into a root, without writing: files to read, examples that are known, examples that are new."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from flows.survey_target import TargetSurvey, survey_target
from storage.catalog import heldout, planning
from storage.database import Catalog
from tagcos_stream.config import Settings
from tagcos_stream.data.containers.registry import open_blocks
from tagcos_stream.data.read import BLOCK_ROWS, Limits, read_file
from tagcos_stream.data.sources import SourceFile, resolve_sources
from tagcos_stream.identity import file_id
from tagcos_stream.types import IngestBlock

Clean = Callable[[IngestBlock], IngestBlock]
Progress = Callable[[float, float], None]
SAMPLE = 1024  # examples that are tokenised
READ_SECONDS = 20.0  # for reading rows; what was not read is taken to be like what was
COUNT_SECONDS = 60.0  # for counting the rows of files that were not read whole, without interpreting them
MIN_SECONDS = 0.2  # of each, for a file however small
NO_EXAMPLES = pl.DataFrame(schema={"example_id": pl.String, "segment": pl.String, "row": pl.Int64})


@dataclass(frozen=True)
class SourceFiles:
    """The files of a run's sources, and how their rows are read."""

    files: list[SourceFile]
    rules: str  # names what rows are decontaminated by
    clean: Clean  # applied to every block: decontamination

    @property
    def specs(self) -> list[str]:
        """Of each file the rules by which its rows are read, as text."""
        return [file.version + self.rules for file in self.files]

    @property
    def ids(self) -> list[str]:
        """The file versions, as the catalog names them."""
        return [file_id(file.url, file.digest, spec) for file, spec in zip(self.files, self.specs, strict=True)]


@dataclass(frozen=True)
class Survey:
    """What a run of these sources would have to choose from."""

    files: int
    unread: int  # of the files, those with rows that the catalog lacks
    known: pl.DataFrame = field(default_factory=lambda: NO_EXAMPLES)  # example_id, segment, row: in the catalog, not held out
    new: int = 0  # examples that the catalog lacks and the pool will have
    heldout: int = 0  # of all examples of the sources
    met: int = 0  # of all examples of the sources, those that the catalog has, held out or not
    exact: bool = True  # False where rows are still to be left out (near-duplicates, repeats of a target), or were only sampled
    target: TargetSurvey = field(default_factory=TargetSurvey)


def source_files(settings: Settings) -> SourceFiles:
    """Resolve the sources. UserError: no such source, or one that cannot be read."""
    files = resolve_sources(settings.sources)
    if not settings.decontaminate:
        return SourceFiles(files, "", lambda block: block)
    from tagcos_stream.data.decontaminate import decontaminated, read_eval

    runs_of_eval = read_eval(settings.decontaminate)
    digests = sorted(file.digest for file in resolve_sources(settings.decontaminate))
    return SourceFiles(files, ",".join(digests), lambda block: decontaminated(block, runs_of_eval))


def survey(settings: Settings, catalog: Catalog | None, progress: Progress = lambda done, of: None) -> Survey:
    """Read the rows that the catalog lacks, and count what they would bring.

    Parameters
    ----------
    settings
        With sources.
    catalog
        Of the root; None where there is none yet.
    progress
        Gets bytes read so far and in all.
    """
    sources = source_files(settings)
    rows_done: dict[str, int] = {}
    complete: set[str] = set()
    if catalog is not None:
        met = planning.file_progress(catalog, sources.ids)
        rows_done = dict(met.select("file_id", "rows_done").iter_rows())
        complete = set(met.filter("complete")["file_id"])
    unread = [(name, file) for name, file in zip(sources.ids, sources.files, strict=True) if name not in complete]
    total, before = sum(file.size for _, file in unread), 0
    frames = [pl.DataFrame(schema={"example_id": pl.String, "dataset": pl.String})]
    for name, file in unread:
        for block in read_file(file, start_row=rows_done.get(name, 0)):
            frames.append(sources.clean(block).occurrences.select("example_id", "dataset"))
            progress(before + block.bytes_read, total)
        before += file.size
    target = survey_target(settings, catalog)
    found = pl.concat(frames).unique("example_id", keep="first", maintain_order=True).filter(_not_in(target))
    exact = settings.near_duplicates is None and not target.ids
    if catalog is None:
        aside = new_heldout(found, None, settings.heldout or 0.0)
        return Survey(len(sources.files), len(unread), new=len(found) - aside, heldout=aside, exact=exact, target=target)
    known = planning.examples(catalog).filter(_not_in(target))
    mine = pl.concat([planning.occurring(catalog, sources.ids), found["example_id"]])
    here = known.filter(pl.col("example_id").is_in(mine.implode()))
    fresh = found.join(known, on="example_id", how="anti")
    aside = new_heldout(fresh, catalog, heldout.share(catalog, settings.heldout))
    kept = here.filter(~pl.col("heldout")).drop("heldout")
    held = len(here) - len(kept) + aside
    return Survey(len(sources.files), len(unread), kept, len(fresh) - aside, held, len(here), exact, target)


def _not_in(target: TargetSurvey) -> pl.Expr:
    """Rows that are not of a target: its examples are in no pool."""
    return ~pl.col("example_id").is_in(target.ids)


def new_heldout(new: pl.DataFrame, catalog: Catalog | None, share: float) -> int:
    """How many of the new examples (example_id, dataset) ingest would hold out, as storage.catalog.heldout.choose does."""
    if not share or new.is_empty():
        return 0
    arrived = new.group_by("dataset").len("arrived")
    if catalog is None:
        met = arrived.with_columns(known=pl.lit(0), held=pl.lit(0))
    else:
        counts = catalog.read(heldout.COUNTS)
        met = arrived.join(counts, on="dataset", how="left", nulls_equal=True).fill_null(0)
    return int(met.select(heldout.quota(share).clip(0, pl.col("arrived")).sum()).item())


@dataclass(frozen=True)
class SourceSample:
    """What the sources hold. rows_read = rows where they were read whole."""

    files: int
    bytes: int
    rows: int
    rows_counted: bool  # False: of a file that takes long to count, they are those that its size makes likely
    rows_read: int
    read_seconds: float  # that reading rows_read took
    examples: int  # different ones among the rows
    rejected: int
    sample: pl.DataFrame  # example_id, messages, tools, template_kwargs of up to SAMPLE examples
    keys: pl.Series  # uint64, first halves of the ids of the different examples read


def sample_sources(
    files: list[SourceFile],
    progress: Progress = lambda done, of: None,
    seconds: float = READ_SECONDS,
    count_seconds: float = COUNT_SECONDS,
) -> SourceSample:
    """Count and sample the rows of files.

    Parameters
    ----------
    files
        As `resolve_sources` gives them.
    progress
        Gets bytes read so far and in all.
    seconds
        For reading, shared among the files by size: examples and rejects that are not read by then are taken to be like those
        that were.
    count_seconds
        For counting the rows of files that were not read whole, shared in the same way. A file that takes longer has the rows
        that its size makes likely.

    Returns
    -------
    SourceSample
        Counts, and up to SAMPLE examples in proportion to the files' rows.
    """
    total = max(sum(file.size for file in files), 1)
    rows = rejected = read = before = 0
    took, whole = 0.0, True
    ids: list[pl.Series] = []
    kept: list[tuple[int, pl.DataFrame]] = []
    generator = np.random.default_rng(0)
    for file in files:
        begin = time.perf_counter()
        most = max(8, math.ceil(4 * SAMPLE * file.size / total))
        seen = bad = 0
        mine: pl.DataFrame | None = None
        block: IngestBlock | None = None
        for block in read_file(file):
            found = block.occurrences
            seen, bad = seen + len(found) + len(block.rejects), bad + len(block.rejects)
            ids.append(found.select(_keys(pl.col("example_id")))["example_id"])
            drawn = found.select("example_id", "messages", "tools", "template_kwargs").with_columns(
                draw=pl.Series(generator.random(len(found)))
            )
            mine = (drawn if mine is None else pl.concat([mine, drawn])).sort("draw").head(most)
            progress(before + block.bytes_read, total)
            if time.perf_counter() > begin + max(seconds * file.size / total, MIN_SECONDS):
                break
        took += time.perf_counter() - begin
        scale = 1.0
        if block is not None and not block.last:
            counted, exact = count_rows(file, max(count_seconds * file.size / total, MIN_SECONDS))
            scale, whole = counted / max(block.next_row, 1), whole and exact
        rows, rejected, read, before = rows + round(seen * scale), rejected + round(bad * scale), read + seen, before + file.size
        progress(before, total)
        if mine is not None and len(mine):
            kept.append((round((seen - bad) * scale), mine))
    usable = sum(n for n, _ in kept)
    parts = [frame.head(max(1, round(SAMPLE * n / usable))) for n, frame in kept]
    sample = pl.concat(parts).unique("example_id", keep="first", maintain_order=True) if parts else pl.DataFrame()
    keys = pl.concat([pl.Series(dtype=pl.UInt64), *ids]).unique()
    examples = round((rows - rejected) * len(keys) / max(sum(map(len, ids)), 1))
    return SourceSample(len(files), total, rows, whole, read, took, examples, rejected, sample, keys)


def count_rows(file: SourceFile, seconds: float) -> tuple[float, bool]:
    """Count the rows of a file without interpreting them.

    Parameters
    ----------
    file
        As `resolve_sources` gives it.
    seconds
        After which counting ends, once anything is known of the rest.

    Returns
    -------
    (float, bool)
        Rows up to the source's limit, blank lines of JSONL among them; whether all were counted, or what was not is taken to have
        as many rows a byte as what was.
    """
    most = math.inf if file.spec.limit is None else file.spec.limit
    deadline = time.perf_counter() + seconds
    rows, at, within = 0, 0, (0, 0)
    for raw in open_blocks(file, 0, BLOCK_ROWS, Limits()):
        if raw.bytes_read > at:  # files are read ahead: the rows so far lie in the bytes before this step, not after it
            within, at = (rows, at), raw.bytes_read
        rows = raw.next_row
        if rows >= most:
            return float(most), True
        if within[1] and time.perf_counter() > deadline:
            return min(within[0] * file.size / within[1], most), False
    return float(rows), True


def survey_of(sample: SourceSample, settings: Settings, catalog: Catalog | None) -> Survey:
    """What was read for a sample, as a plan counts it: the examples that were not read are not in it."""
    exact = sample.rows_read == sample.rows and not settings.target
    target = survey_target(settings, catalog)
    if catalog is None:
        aside = round(len(sample.keys) * (settings.heldout or 0.0))
        return Survey(sample.files, sample.files, new=len(sample.keys) - aside, heldout=aside, exact=exact, target=target)
    here = planning.examples(catalog).filter(_keys(pl.col("example_id")).is_in(sample.keys.implode()))
    kept = here.filter(~pl.col("heldout")).drop("heldout")
    new = len(sample.keys) - len(here)
    aside = round(new * heldout.share(catalog, settings.heldout))
    held = len(here) - len(kept) + aside
    return Survey(sample.files, sample.files, kept, new - aside, held, len(here), exact, target)


def _keys(ids: pl.Expr) -> pl.Expr:
    """uint64: the first half of an example id."""
    return ids.str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64)
