"""Examples as the model of an evaluation reads them: those of selections, and those that are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from flows.models import encode_row, max_length
from flows.progress import Reporter
from storage.catalog import heldout, pool
from storage.database import Catalog
from storage.examples import ExampleReader
from storage.root import Root
from tagcos_stream.config import Settings
from tagcos_stream.data.canonical import EXAMPLE_COLUMNS
from tagcos_stream.data.read import read_file
from tagcos_stream.data.sources import resolve_sources
from tagcos_stream.gradients.chat import Encoded, SpecialTokens
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from tagcos_stream.gradients.model import LoadedModel

KEPT = 100_000  # encoded examples that are kept for the next selection


@dataclass
class Texts:
    """Reads stored examples and encodes them for a model; what two selections share is encoded once."""

    reader: ExampleReader
    tokenizer: Any
    longest: int
    reject_long: bool
    special_tokens: SpecialTokens
    _known: dict[str, Encoded | None] = field(default_factory=dict)

    def encode(self, rows: pl.DataFrame) -> list[Encoded | None]:
        """Of every row (example_id, segment, row), in its order; None where this model has no target token to train on."""
        if len(self._known) > KEPT:
            self._known.clear()
        unknown = rows.filter(~pl.col("example_id").is_in(list(self._known)))
        if len(unknown):
            for frame in self.reader.iterate(unknown.select("segment", "row", "example_id")):
                for row in frame.iter_rows(named=True):
                    self._known[row["example_id"]] = self.encode_row(row)
        return [self._known[example_id] for example_id in rows["example_id"]]

    def encode_row(self, row: dict[str, Any]) -> Encoded | None:
        """Encode a row of the store; None if this model has no target token for it or it is too long."""
        one = encode_row(self.tokenizer, row, self.longest, self.reject_long, self.special_tokens)
        return one if isinstance(one, Encoded) else None


def texts(reader: ExampleReader, loaded: LoadedModel, settings: Settings) -> Texts:
    """Return the reader of a root's texts as the model and the run's settings encode them."""
    return Texts(reader, loaded.tokenizer, max_length(settings, loaded), settings.too_long == "reject", settings.special_tokens)


@dataclass(frozen=True)
class Heldout:
    """What the loss is measured on: examples in a fixed order, and the dataset of each."""

    encoded: list[Encoded]
    datasets: np.ndarray  # (n,) of str

    @property
    def tokens(self) -> int:
        """Number of tokens of all examples, without padding."""
        return sum(map(len, self.encoded))

    @property
    def digest(self) -> str | None:
        """Hash of tokens, targets and datasets; None where there is nothing."""
        if not self.encoded:
            return None
        whole = hashlib.blake2b(digest_size=16)
        for dataset, one in zip(self.datasets, self.encoded, strict=True):
            whole.update(f"{dataset}\0{len(one)}\0".encode() + one.input_ids.astype("<i4").tobytes() + one.target.tobytes())
        return whole.hexdigest()


def held_out(root: Root, run_id: str, read: Texts, files: Sequence[str], rows_per_dataset: int, reporter: Reporter) -> Heldout:
    """Return the run's held-out examples, or those of the user's own files.

    Of every dataset those with the lowest ids, at most `rows_per_dataset` (0: all). Those without a target token for this model
    are
    left out.
    """
    frame = _from_files(root.catalog, run_id, files, reporter) if files else heldout.heldout(root.catalog, run_id)
    frame = frame.with_columns(pl.col("dataset").fill_null("")).sort("dataset", "example_id")
    if rows_per_dataset:
        frame = frame.group_by("dataset", maintain_order=True).head(rows_per_dataset)
    encoded = [read.encode_row(row) for row in frame.iter_rows(named=True)] if files else read.encode(frame)
    good = [i for i, one in enumerate(encoded) if one is not None]
    if len(good) < len(encoded):
        reporter.say(f"{len(encoded) - len(good)} held-out examples have no target token within {read.longest} tokens: left out")
    return Heldout([one for one in encoded if one is not None], frame["dataset"].to_numpy()[good])


def _from_files(catalog: Catalog, run_id: str, files: Sequence[str], reporter: Reporter) -> pl.DataFrame:
    """EXAMPLE_COLUMNS of the rows that are not in the run's pool, each example once."""
    frames = [block.occurrences for file in resolve_sources(files) for block in read_file(file)]
    found = pl.concat(frames).unique("example_id", keep="first", maintain_order=True)
    known = found["example_id"].is_in(pool.pool(catalog, run_id)["example_id"].implode())
    if known.any():
        reporter.say(f"{known.sum()} of {len(found)} examples of {', '.join(files)} are in the pool itself: left out")
    found = found.filter(~known)
    if found.is_empty():
        raise UserError(f"heldout_files {', '.join(files)}: no example to measure on that is not in the pool itself")
    return found.select(EXAMPLE_COLUMNS)
