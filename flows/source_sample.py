"""How many rows sources hold and what these are like, within a given time: files are read in part, and counted."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from flows.survey import Progress, Survey
from flows.survey_target import survey_target
from storage.catalog import heldout, planning
from storage.database import Catalog
from tagcos_stream.config import Settings
from tagcos_stream.data.containers.registry import open_blocks
from tagcos_stream.data.read import BLOCK_ROWS, Limits, read_file
from tagcos_stream.data.sources import SourceFile

SAMPLE = 1024  # examples that are tokenised
READ_SECONDS = 20.0  # for reading rows; what was not read is taken to be like what was
COUNT_SECONDS = 60.0  # for counting the rows of files that were not read whole, without interpreting them
MIN_SECONDS = 0.2  # of each, for a file however small


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

    Raises
    ------
    UserError
        A file cannot be read.
    """
    total, before = max(sum(file.size for file in files), 1), 0
    generator = np.random.default_rng(0)
    found: list[_Part] = []
    for file in files:
        part = _Part(math.ceil(4 * SAMPLE * file.size / total))
        for bytes_read in part.read(file, generator, max(seconds * file.size / total, MIN_SECONDS)):
            progress(before + bytes_read, total)
        part.count(file, max(count_seconds * file.size / total, MIN_SECONDS))
        found.append(part)
        before += file.size
        progress(before, total)
    rows, rejected = sum(part.scaled(part.rows) for part in found), sum(part.scaled(part.rejected) for part in found)
    ids = [keys for part in found for keys in part.keys]
    keys = pl.concat([pl.Series(dtype=pl.UInt64), *ids]).unique()
    return SourceSample(
        files=len(files),
        bytes=total,
        rows=rows,
        rows_counted=all(part.counted for part in found),
        rows_read=sum(part.rows for part in found),
        read_seconds=sum(part.seconds for part in found),
        examples=round((rows - rejected) * len(keys) / max(sum(map(len, ids)), 1)),
        rejected=rejected,
        sample=_in_proportion(found),
        keys=keys,
    )


@dataclass
class _Part:
    """What was read of one file, to its end or for some time, and of its examples some by lot; filled by `read` and `count`."""

    most: int  # examples to draw, but never fewer than 8
    rows: int = 0
    rejected: int = 0
    seconds: float = 0.0
    keys: list[pl.Series] = field(default_factory=list)
    drawn: pl.DataFrame | None = None  # in the order of their draws
    scale: float = 1.0  # rows of the file for each that was read
    counted: bool = True
    next_row: int = 0  # where reading ended
    whole: bool = True

    def read(self, file: SourceFile, generator: np.random.Generator, seconds: float) -> Iterator[int]:
        """Read blocks until the time is over, at least one; yields the bytes read so far."""
        begin = time.perf_counter()
        for block in read_file(file):
            found = block.occurrences
            self.rows, self.rejected = self.rows + len(found) + len(block.rejects), self.rejected + len(block.rejects)
            self.keys.append(found.select(_keys(pl.col("example_id")))["example_id"])
            draws = pl.Series(generator.random(len(found)))
            drawn = found.select("example_id", "messages", "tools", "template_kwargs").with_columns(draw=draws)
            self.drawn = drawn if self.drawn is None else pl.concat([self.drawn, drawn])
            self.drawn = self.drawn.sort("draw").head(max(8, self.most))
            self.next_row, self.whole = block.next_row, block.last
            yield block.bytes_read
            if time.perf_counter() > begin + seconds:
                break
        self.seconds = time.perf_counter() - begin

    def count(self, file: SourceFile, seconds: float) -> None:
        """Count the rows of a file that was not read to its end."""
        if not self.whole:
            rows, self.counted = count_rows(file, seconds)
            self.scale = rows / max(self.next_row, 1)

    def scaled(self, rows: int) -> int:
        """Of the whole file, where these are of what was read."""
        return round(rows * self.scale)


def _in_proportion(parts: list[_Part]) -> pl.DataFrame:
    """SAMPLE of the examples drawn, of each file as many as its share of the rows that can be used."""
    drawn = [(part.scaled(part.rows - part.rejected), part.drawn) for part in parts if part.drawn is not None and len(part.drawn)]
    usable = sum(rows for rows, _ in drawn)
    taken = [frame.head(max(1, round(SAMPLE * rows / usable))) for rows, frame in drawn]
    return pl.concat(taken).unique("example_id", keep="first", maintain_order=True) if taken else pl.DataFrame()


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


def survey_of_sample(sample: SourceSample, settings: Settings, catalog: Catalog | None) -> Survey:
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
