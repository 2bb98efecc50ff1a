"""The loss of answers behind an empty prompt, block by block: what a worker runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from flows.models import AdaptedModel, encode_row, gradient_token_budget, lent, load_of_space, max_length
from flows.workers.work import Progress, WorkerResources
from storage.catalog.spaces import Space, load_checkpoints
from storage.examples import ExampleReader
from storage.files.base import Files
from tagcos_stream.config import Settings
from tagcos_stream.gradients.chat import Encoded


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
    from tagcos_stream.gradients.answers import answer_losses, without_prompt
    from tagcos_stream.gradients.extract import GradientExtractor
    from tagcos_stream.gradients.hidden import without_adapter
    from tagcos_stream.gradients.projection.projections import make_projection

    settings = spec.settings
    if resources.threads:
        import torch

        torch.set_num_threads(resources.threads)
    with lent(spec.model) as model:
        loaded = load_of_space(model, settings, resources.device, spec.space)
        longest = max_length(settings, loaded)
        projection = make_projection(settings.projection, dim=spec.space.dim, seed=settings.feature_seed)
        extractor = GradientExtractor(loaded.model, variants=[spec.space.variant], projection=projection)
        checkpoints = load_checkpoints(spec.files, spec.space) or [without_adapter(extractor.parameters)]
        budget = gradient_token_budget(settings, loaded, 1, len(checkpoints), spec.processes)
        for task in tasks:
            frame = spec.reader.read(task.segment, int(task.rows[0]), int(task.rows[-1]) + 1)
            frame = frame.filter(pl.col("row").is_in(task.rows.tolist()))
            losses = np.full(len(frame), np.nan)
            alone: list[Encoded] = []
            at: list[int] = []
            for i, row in enumerate(frame.iter_rows(named=True)):
                whole = encode_row(loaded.tokenizer, row, longest, False, settings.special_tokens)
                if isinstance(whole, Encoded):
                    found = without_prompt(
                        loaded.tokenizer, row, whole, max_length=longest, special_tokens=settings.special_tokens
                    )
                    if found is not None:
                        alone.append(found)
                        at.append(i)
            if alone:
                losses[at] = answer_losses(extractor, checkpoints, alone, token_budget=budget)
            losses[~np.isfinite(losses)] = np.nan
            yield frame.select("row", segment=pl.lit(task.segment), loss=pl.Series(losses, nan_to_null=True))
