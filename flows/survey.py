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
from tagcos_stream.data.read import read_file
from tagcos_stream.data.sources import SourceFile, resolve_sources
from tagcos_stream.identity import file_id
from tagcos_stream.types import IngestBlock

Clean = Callable[[IngestBlock], IngestBlock]
Progress = Callable[[float, float], None]
SAMPLE = 1024  # examples that are tokenised
READ_SECONDS = 20.0  # for counting rows; what was not read is taken to be like what was
SECOND_STEP = 5.0  # more seconds for a file whose rows cannot be counted by its bytes yet
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
    rows_read: int
    examples: int  # different ones among the rows
    rejected: int
    sample: pl.DataFrame  # example_id, messages, tools, template_kwargs of up to SAMPLE examples
    keys: pl.Series  # uint64, first halves of the ids of the different examples read


def sample_sources(
    files: list[SourceFile], progress: Progress = lambda done, of: None, seconds: float = READ_SECONDS
) -> SourceSample:
    """Count and sample the rows of files.

    Parameters
    ----------
    files
        As `resolve_sources` gives them.
    progress
        Gets bytes read so far and in all.
    seconds
        Shared among the files by size: what is not read by then is taken to be like what was.

    Returns
    -------
    SourceSample
        Counts, and up to SAMPLE examples in proportion to the files' rows.
    """
    total = max(sum(file.size for file in files), 1)
    rows = rejected = read = before = 0
    ids: list[pl.Series] = []
    kept: list[tuple[int, pl.DataFrame]] = []
    generator = np.random.default_rng(0)
    for file in files:
        deadline = time.perf_counter() + max(seconds * file.size / total, 0.2)
        most = max(8, math.ceil(4 * SAMPLE * file.size / total))
        seen = bad = at = 0
        within = (0, 0)  # rows, and the bytes of the file that hold them
        mine: pl.DataFrame | None = None
        block: IngestBlock | None = None
        for block in read_file(file):
            found = block.occurrences
            if block.bytes_read > at:  # files are read ahead: the rows so far lie in the bytes before this step, not after it
                within, at = (seen, at), block.bytes_read
            seen, bad = seen + len(found) + len(block.rejects), bad + len(block.rejects)
            ids.append(found.select(_keys(pl.col("example_id")))["example_id"])
            drawn = found.select("example_id", "messages", "tools", "template_kwargs").with_columns(
                draw=pl.Series(generator.random(len(found)))
            )
            mine = (drawn if mine is None else pl.concat([mine, drawn])).sort("draw").head(most)
            progress(before + at, total)
            # before the second step into a file, nothing says how many rows its bytes hold
            if block.last or time.perf_counter() > deadline + (0 if within[1] else SECOND_STEP):
                at = file.size if block.last else at
                break
        scale = max(file.size, 1) / max(at, 1)
        if within[1] and block is not None and not block.last:
            scale = file.size / within[1] * within[0] / seen
        rows, rejected, read, before = rows + round(seen * scale), rejected + round(bad * scale), read + seen, before + file.size
        if mine is not None and len(mine):
            kept.append((round((seen - bad) * scale), mine))
    usable = sum(n for n, _ in kept)
    parts = [frame.head(max(1, round(SAMPLE * n / usable))) for n, frame in kept]
    sample = pl.concat(parts).unique("example_id", keep="first", maintain_order=True) if parts else pl.DataFrame()
    keys = pl.concat([pl.Series(dtype=pl.UInt64), *ids]).unique()
    examples = round((rows - rejected) * len(keys) / max(sum(map(len, ids)), 1))
    return SourceSample(len(files), total, rows, read, examples, rejected, sample, keys)


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
