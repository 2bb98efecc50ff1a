"""Signals that are computed from the texts of answers, once for each example: repetition and instruction-following difficulty."""

from __future__ import annotations

import polars as pl

from flows.context import RunContext
from flows.workers.answers import AnswerSpec, AnswerTask, answer_loss_blocks
from flows.workers.executor import partitioned, place_of, sharing
from storage.catalog import signals
from storage.catalog.spaces import Space
from storage.examples import example_reader


def hash_answers(run: RunContext) -> int:
    """Hash the answers of the pool's examples that have no hash yet, and return how many; equal hashes count as repetition."""
    left = signals.without_answer_key(run.catalog, run.run_id)
    if not len(left):
        return 0
    from tagcos_stream.data.same_words import word_keys

    for frame in example_reader(run.root).iterate(left):
        keys = pl.Series(word_keys(frame["messages"], answers_only=True), dtype=pl.UInt64)
        signals.add_answer_keys(run.catalog, frame.select("segment", "row", key=keys))
    return len(left)


def compute_answer_losses(run: RunContext, spaces: tuple[Space, ...]) -> int:
    """Compute the loss behind an empty prompt of the pool's examples that lack it; a finished block is committed.

    Parameters
    ----------
    run
        With features in these spaces.
    spaces
        Of one adapter, so that they share the losses.

    Returns
    -------
    int
        Number of examples computed.
    """
    left = signals.without_answer_loss(run.catalog, run.run_id, spaces[0].space_id)
    if not len(left):
        return 0
    size = run.settings.block_rows
    blocks = left.with_columns(block=pl.col("row") // size).partition_by("segment", "block", maintain_order=True)
    tasks = [AnswerTask(str(block["segment"][0]), block["row"].to_numpy()) for block in blocks]
    own = run.model if place_of(run.settings) == "threads" else None
    spec = AnswerSpec(run.root.files, example_reader(run.root), run.settings, spaces[0], sharing(run.settings, len(tasks)), own)
    with run.reporter.stage("answers without prompts", "examples") as progress:
        done = 0
        progress(done, len(left))
        for losses in partitioned(answer_loss_blocks, spec, tasks, run.settings):
            signals.add_answer_losses(run.catalog, [space.space_id for space in spaces], losses)
            done += len(losses)
            progress(done, len(left))
    return len(left)
