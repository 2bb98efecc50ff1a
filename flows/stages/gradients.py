"""Stage 3: the gradient feature of every example of the pool, in every space asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from flows.context import RunContext
from flows.progress import forward
from flows.results import Features, FeatureSpaces
from flows.stages import vectors
from flows.stages.answers import compute_answer_losses, hash_answers
from flows.stages.eligible import reads_ifd
from flows.workers.executor import partitioned, place_of, sharing
from flows.workers.gradients import BLOCKS_AHEAD, BlockResult, BlockTask, GradientSpec, compute_blocks
from storage.arrays import segments
from storage.catalog import spaces
from storage.catalog.signals import add_answer_losses
from storage.catalog.vectors import share_answer_losses
from storage.examples import example_reader
from tagcos_stream.config import VECTORS
from tagcos_stream.types import UserError

LOUD = 0.01  # a share of the pool that is lost for one reason


def compute_gradients(run: RunContext, asked: FeatureSpaces) -> Features:
    """Compute the features that the pool lacks in its spaces, block by block; a committed block is never computed again.

    Parameters
    ----------
    run, asked
        Context of the run, and the spaces of its settings.

    Returns
    -------
    Features
        Of the space that is selected by.

    Raises
    ------
    UserError
        The model does not fit or is another one, or no example of the pool has a usable gradient.
    """
    of_model = tuple(space for space in asked.spaces if space.variant != VECTORS)
    asks_ifd = bool(of_model) and reads_ifd(run.settings)
    with run.model:  # closed at the end: the next stages need the memory
        detail = _compute(run, of_model, asks_ifd)
        if asks_ifd:
            detail["ifd"] += compute_answer_losses(run, of_model)  # of features that were computed before
    for space in (space for space in asked.spaces if space.variant == VECTORS):
        detail |= _compute_vectors(run, space, of_model[0] if of_model else None)
    hash_answers(run)
    shown = dict.fromkeys(space.space_id for space in asked.spaces if space is asked.chosen or space.variant == VECTORS)
    warnings = [line for space_id in shown for line in _losses(run, space_id)]
    if detail["special_tokens"] and run.settings.special_tokens == "keep":
        warnings.append(
            f"{detail['special_tokens']:,} of {detail['computed']:,} examples have control tokens in their texts, which the "
            "tokenizer reads as such: --special-tokens escape or reject changes that"
        )
    if detail["unprinted"]:
        warnings.append(
            f"{detail['unprinted']:,} of {detail['computed']:,} examples have tool calls or reasoning that the model's chat "
            "template does not print: the model is not trained on them"
        )
    return features_of(run, asked.chosen.space_id, detail | {"warnings": warnings})


def features_of(run: RunContext, space_id: str, detail: Mapping[str, Any]) -> Features:
    """Return the run's examples that have a feature in a space.

    Parameters
    ----------
    run, space_id
        The run whose pool it is, and the space.
    detail
        What the stage reports.

    Returns
    -------
    Features
        With the pool's frame.

    Raises
    ------
    UserError
        No example of the pool has a usable gradient.
    """
    pool = spaces.features_pool(run.catalog, run.run_id, space_id)
    if not len(pool):
        why = "; ".join(_losses(run, space_id))
        raise UserError(f"no example of the pool has a usable gradient; see `tagcos sql 'FROM rejects_by_reason'`. {why}")
    return Features(space_id, pool, detail)


def _losses(run: RunContext, space_id: str) -> list[str]:
    """A sentence for every reason for which more than a hundredth of the pool is without a feature, or any vector is missing."""
    found = spaces.feature_status(run.catalog, run.run_id, space_id)
    total = int(found["rows"].sum())
    return [
        f"WARNING: {row['rows']:,} of {total:,} examples ({row['rows'] / total:.1%}) have no feature and cannot be selected: "
        f"{row['status']}{': ' + row['detail'] if row['detail'] else ''}"
        for row in found.filter(pl.col("status") != "ok").iter_rows(named=True)
        if row["rows"] > LOUD * total or row["status"] in vectors.DETAILS
    ]


def _compute(run: RunContext, asked: tuple[spaces.Space, ...], asks_ifd: bool) -> dict[str, Any]:
    """Compute and commit every missing block; returns what to record of it."""
    settings = run.settings
    total, tasks = _missing_blocks(run, asked)
    left = sum(task.rows for task in tasks)
    summary = {"rows": total, "truncated": 0, "special_tokens": 0, "unprinted": 0, "halvings": 0}
    if asks_ifd:
        summary["ifd"] = 0
    if not tasks:
        return summary | spaces.computed_by(run.catalog, run.run_id, [space.space_id for space in asked])
    in_this_process = place_of(settings) == "threads"
    if not in_this_process:
        run.model.close()  # the workers load their own
    if not run.model.is_loaded:
        run.reporter.say(f"loading model {settings.model}")
    own = run.model if in_this_process else None
    spec = GradientSpec(run.root.files, example_reader(run.root), settings, asked, sharing(settings, len(tasks)), asks_ifd, own)
    seconds = model_seconds = 0.0
    done = total - left
    with run.reporter.stage("gradients", "examples") as stage:
        progress = forward(stage)
        progress(done, total)
        within = lambda n: progress(total - left + n, total)  # noqa: E731
        for block in partitioned(compute_blocks, spec, tasks, settings, ahead=BLOCKS_AHEAD, progress=within):
            for space_id in block.task.spaces:
                _commit(run, space_id, block)
            if block.answers is not None:
                with_feature = block.answers.filter(block.rows["status"] == "ok")
                add_answer_losses(run.catalog, [space.space_id for space in asked], with_feature)
                summary["ifd"] += len(with_feature)
            done += len(block.rows)
            progress(done, total)
            seconds, model_seconds = seconds + block.seconds, model_seconds + block.model_seconds
            summary["truncated"] += block.truncated
            summary["special_tokens"] += block.special_tokens
            summary["unprinted"] += block.unprinted
            summary["halvings"] += block.halvings
    summary |= spaces.computed_by(run.catalog, run.run_id, [space.space_id for space in asked])
    return summary | {"batch_tokens": block.token_budget, "model_share": round(model_seconds / seconds, 4)}


def _compute_vectors(run: RunContext, space: spaces.Space, sibling: spaces.Space | None) -> dict[str, Any]:
    """Compute the features of the user's vectors; `sibling`: a space of the run whose tokens and losses they share."""
    total, tasks = _missing_blocks(run, (space,))
    written = vectors.compute_vectors(run, space, sibling, [(task.segment, task.block) for task in tasks])
    if sibling is None:
        return {"rows": total, "vectors": written} | spaces.computed_by(run.catalog, run.run_id, [space.space_id])
    share_answer_losses(run.catalog, sibling.space_id, space.space_id)
    return {"vectors": written}


def _missing_blocks(run: RunContext, asked: Sequence[spaces.Space]) -> tuple[int, list[BlockTask]]:
    """(rows of all segments, the blocks that some space lacks, in order); their segments are presized."""
    total = 0
    rows: dict[tuple[str, int], int] = {}
    lacking: dict[tuple[str, int], list[str]] = {}
    for space in asked:
        plan = spaces.plan_segments(run.catalog, run.run_id, space.space_id, dim=space.dim, block_rows=run.settings.block_rows)
        total = int(plan["rows"].sum())
        lacks = spaces.missing(run.catalog, space.space_id, run.run_id)
        for row in plan.iter_rows(named=True):
            missing = lacks.get(row["segment"], [])
            if missing:
                writer = segments.create_segment(
                    run.root.files,
                    space.space_id,
                    row["segment"],
                    example_ids=spaces.segment_ids(run.catalog, row["segment"]),
                    dim=space.dim,
                    chunk_rows=row["block_rows"],
                )
            for block in missing:
                start, stop = writer.block_range(block)
                rows[row["segment"], block] = stop - start
                lacking.setdefault((row["segment"], block), []).append(space.space_id)
    return total, [BlockTask(*key, rows[key], tuple(lacking[key])) for key in sorted(lacking)]


def _commit(run: RunContext, space_id: str, block: BlockResult) -> None:
    spaces.commit_block(
        run.catalog,
        run.run_id,
        space_id,
        block.task.segment,
        block.task.block,
        block.rows,
        checksum=block.checksums[space_id],
        seconds=block.seconds,
        rejects=block.rejects,
    )
