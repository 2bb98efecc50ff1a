"""The loss of answers behind an empty prompt: of the examples of a block, and by itself for blocks that have features already."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from flows.models import AdaptedModel, Rejected, borrowed_model, encode_row, gradient_token_budget, load_of_space, max_length
from flows.workers.work import Progress, WorkerResources, set_threads
from storage.catalog.spaces import Space, load_checkpoints
from storage.examples import ExampleReader
from storage.files.base import Files
from tagcos_stream.config import Settings
from tagcos_stream.gradients.chat import Encoded, SpecialTokens
from tagcos_stream.types import Checkpoint

if TYPE_CHECKING:
    from tagcos_stream.gradients.extract import GradientExtractor


@dataclass(frozen=True)
class AnswerSpec:
    """What all blocks share; plain data that travels to other processes."""

    files: Files
    reader: ExampleReader
    settings: Settings
    space: Space
    processes: int  # that share this machine's memory
    model: AdaptedModel | None = None  # the run's own, in its process; other processes load theirs


@dataclass(frozen=True)
class AnswerTask:
    """Rows of one segment."""

    segment: str
    rows: np.ndarray  # (n,) int64, ascending


@dataclass(frozen=True)
class LoneAnswers:
    """The answers of a block's n examples behind empty prompts."""

    at: list[int]  # numbers, of n, of the examples whose answers can be taken alone
    encoded: list[Encoded]

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        frame: pl.DataFrame,
        encoded: Sequence[Encoded | Rejected],
        longest: int,
        special_tokens: SpecialTokens,
    ) -> LoneAnswers:
        """Encode the answers of `frame`'s rows, which are `encoded` with their prompts."""
        from tagcos_stream.gradients.answers import without_prompt

        found = [
            without_prompt(tokenizer, row, whole, max_length=longest, special_tokens=special_tokens)
            if isinstance(whole, Encoded)
            else None
            for row, whole in zip(frame.iter_rows(named=True), encoded, strict=True)
        ]
        return cls([i for i, one in enumerate(found) if one is not None], [one for one in found if one is not None])

    def losses(
        self,
        segment: str,
        rows: pl.Series,
        extractor: GradientExtractor,
        checkpoints: Sequence[Checkpoint],
        token_budget: int,
    ) -> pl.DataFrame:
        """Compute segment, row, loss of the block's `rows`; null where there is no answer alone, or no finite loss."""
        from tagcos_stream.gradients.answers import answer_losses

        losses = np.full(len(rows), np.nan)
        if self.encoded:
            losses[self.at] = answer_losses(extractor, checkpoints, self.encoded, token_budget=token_budget)
        losses[~np.isfinite(losses)] = np.nan
        return pl.DataFrame({"row": rows, "loss": pl.Series(losses, nan_to_null=True)}).with_columns(segment=pl.lit(segment))


def answer_loss_blocks(
    spec: AnswerSpec, resources: WorkerResources, tasks: Iterator[AnswerTask], progress: Progress | None
) -> Iterator[pl.DataFrame]:
    """Compute the losses of blocks of examples.

    Parameters
    ----------
    spec
        Where examples and checkpoints are, and the settings.
    resources
        Device and threads.
    tasks
        Blocks.
    progress
        Not called within a block.

    Yields
    ------
    pl.DataFrame
        segment, row, loss (null where the example has no answer that can be taken alone) of one block.
    """
    from tagcos_stream.gradients.extract import GradientExtractor
    from tagcos_stream.gradients.hidden import without_adapter
    from tagcos_stream.gradients.projection.projections import make_projection

    settings = spec.settings
    set_threads(resources.threads)
    with borrowed_model(spec.model) as model:
        loaded = load_of_space(model, settings, resources.device, spec.space)
        longest = max_length(settings, loaded)
        projection = make_projection(settings.projection, dim=spec.space.dim, seed=settings.feature_seed)
        extractor = GradientExtractor(loaded.model, variants=[spec.space.variant], projection=projection)
        checkpoints = load_checkpoints(spec.files, spec.space) or [without_adapter(extractor.parameters)]
        budget = gradient_token_budget(settings, loaded, 1, len(checkpoints), spec.processes)
        for task in tasks:
            frame = spec.reader.read(task.segment, int(task.rows[0]), int(task.rows[-1]) + 1)
            frame = frame.filter(pl.col("row").is_in(task.rows.tolist()))
            encoded = [
                encode_row(loaded.tokenizer, row, longest, False, settings.special_tokens) for row in frame.iter_rows(named=True)
            ]
            alone = LoneAnswers.of(loaded.tokenizer, frame, encoded, longest, settings.special_tokens)
            yield alone.losses(task.segment, frame["row"], extractor, checkpoints, budget)
