"""Examples in the store: the Parquet parts that hold them, and their reader."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from storage.arrays.chunked import DamagedStore
from storage.files.base import Files
from storage.root import Root
from tagcos_stream.data.canonical import stored_examples
from tagcos_stream.identity import content_digest

# Polars' default (one group a file) makes later scans hold it whole.
PARQUET_GROUP_ROWS = 1024


@dataclass
class ExampleReader:
    """Reads examples from their parts, each verified whole. Needs no catalog: it can be sent to a worker."""

    files: Files
    parts: pl.DataFrame  # segment, part, first_row, rows, path, digest
    _last: tuple[str, pl.DataFrame] | None = field(default=None, repr=False)

    def read(self, segment: str, start: int, stop: int) -> pl.DataFrame:
        """Rows [start, stop) of a segment: row and EXAMPLE_COLUMNS."""
        wanted = self.parts.filter(
            pl.col("segment") == segment, pl.col("first_row") < stop, pl.col("first_row") + pl.col("rows") > start
        )
        found = [
            self._part(part).filter(pl.col("row").is_between(start, stop, closed="left"))
            for part in wanted.sort("part").iter_rows(named=True)
        ]
        rows = pl.concat(found) if found else pl.DataFrame({"row": []})
        if len(rows) != stop - start:
            raise ValueError(f"segment {segment} has no rows [{start}, {stop}): found {len(rows)}")
        return rows

    def iterate(self, rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """The examples of `rows` (segment, row, and what else should stay with them), a part at a time, by segment and row."""
        for part in self.parts.sort("segment", "part").iter_rows(named=True):
            inside = pl.col("row").is_between(part["first_row"], part["first_row"] + part["rows"], closed="left")
            mine = rows.filter(pl.col("segment") == part["segment"], inside)
            if len(mine):
                texts = self._part(part).select("row", "messages", "tools", "template_kwargs")
                yield mine.join(texts, on="row", how="left", maintain_order="left").sort("row")

    def _part(self, part: dict[str, object]) -> pl.DataFrame:
        path, digest = str(part["path"]), part["digest"]
        if self._last is not None and self._last[0] == path:
            return self._last[1]
        place = self.files.place(path)
        remedy = "restore the file from a copy, or start a new --root from the sources"
        try:
            body = self.files.read(path)
        except FileNotFoundError:
            raise DamagedStore(f"{place} (examples of {part['segment']}, part {part['part']}) is missing; {remedy}") from None
        if content_digest(body) != digest:
            raise DamagedStore(
                f"{place} (examples of {part['segment']}, part {part['part']}) is not what was written: {len(body)} bytes, "
                f"digest {content_digest(body)}, catalog {digest}; {remedy}"
            )
        frame = stored_examples(pl.read_parquet(io.BytesIO(body)))
        frame = frame.insert_column(
            0, pl.Series("row", range(int(str(part["first_row"])), int(str(part["first_row"])) + len(frame)), pl.Int64)
        )
        self._last = (path, frame)
        return frame


def example_reader(root: Root) -> ExampleReader:
    """Return a reader of all example texts of a root."""
    parts = root.catalog.read("SELECT segment, part, first_row, rows, path, digest FROM parts ORDER BY segment, part")
    return ExampleReader(root.files, parts)
