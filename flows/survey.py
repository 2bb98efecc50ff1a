"""What sources would bring into a root, without writing: files to read, examples that are known, examples that are new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

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

    Returns
    -------
    Survey
        Counts, and the examples that the catalog has.

    Raises
    ------
    UserError
        No such source or target, or one that cannot be read.
    """
    sources = source_files(settings)
    unread, read = _read_new(sources, catalog, progress)
    target = survey_target(settings, catalog)
    found = read.filter(_not_in(target))
    exact = settings.near_duplicates is None and not target.ids
    if catalog is None:
        aside = new_heldout(found, None, settings.heldout or 0.0)
        return Survey(len(sources.files), unread, new=len(found) - aside, heldout=aside, exact=exact, target=target)
    known = planning.examples(catalog).filter(_not_in(target))
    mine = pl.concat([planning.occurring(catalog, sources.ids), found["example_id"]])
    here = known.filter(pl.col("example_id").is_in(mine.implode()))
    fresh = found.join(known, on="example_id", how="anti")
    aside = new_heldout(fresh, catalog, heldout.share(catalog, settings.heldout))
    kept = here.filter(~pl.col("heldout")).drop("heldout")
    held = len(here) - len(kept) + aside
    return Survey(len(sources.files), unread, kept, len(fresh) - aside, held, len(here), exact, target)


def _read_new(sources: SourceFiles, catalog: Catalog | None, progress: Progress) -> tuple[int, pl.DataFrame]:
    """(files with rows that the catalog lacks; example_id and dataset of the different examples among these rows)."""
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
    return len(unread), pl.concat(frames).unique("example_id", keep="first", maintain_order=True)


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
