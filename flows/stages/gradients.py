"""Stages 2 and 3: the warmed-up adapter that defines a feature space, and the gradient feature of every example in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

from flows.context import Job
from flows.token_budget import tokens_per_pass
from flows.workers.executor import partitioned, place_of, sharing
from flows.workers.gradients import (
    AHEAD,
    Done,
    EngineSpec,
    Task,
    compute,
    encode_row,
    load_adapted,
    max_length,
)
from storage.arrays import checkpoints, segments
from storage.catalog import pool, runs, spaces
from tagcos_stream import identity
from tagcos_stream.config import Settings, Variant
from tagcos_stream.gradients.chat import Encoded, template_fingerprint
from tagcos_stream.types import Checkpoint, UserError


def variants(settings: Settings) -> tuple[str, ...]:
    """The variant that is selected by, then those that are computed beside it."""
    return tuple(dict.fromkeys((settings.gradient, *settings.also_gradients)))


def warm_up(job: Job) -> dict[str, Any]:
    """Find the feature spaces of these settings, or make them: a short LoRA training on a seeded sample of the pool.

    Spaces that differ in nothing but the gradient variant share one adapter.
    """
    settings = job.settings
    wanted = variants(settings)
    known = {variant: spaces.find_space(job.catalog, identity.space_recipe(settings, variant)) for variant in get_args(Variant)}
    detail: dict[str, Any] = {"reused": True}
    if any(known[variant] is None for variant in wanted):
        sibling = next((space for space in known.values() if space is not None), None)
        if sibling is not None:
            made, fingerprint = spaces.load_checkpoints(job.root.files, sibling), sibling.fingerprint
        else:
            made, fingerprint, detail = _make_adapter(job)
        for variant in wanted:
            if known[variant] is None:
                _add_space(job, variant, made, fingerprint)
    chosen = _space(job, settings.gradient)
    runs.set_run(job.catalog, job.run_id, space_id=chosen.space_id)
    return {"space_id": chosen.space_id, **detail}


def _make_adapter(job: Job) -> tuple[list[Checkpoint], dict[str, Any], dict[str, Any]]:
    """Warm up, or import: (checkpoints, what they come from, what to report)."""
    from tagcos_stream.gradients import warmup  # torch, transformers and peft take seconds to import
    from tagcos_stream.gradients.adapter import adapter_settings
    from tagcos_stream.gradients.memory import model_shape, warmup_bytes

    settings = job.settings
    job.reporter.say(f"loading model {settings.model}")
    loaded = load_adapted(settings, settings.device)
    if settings.adapter:
        from tagcos_stream.gradients.import_checkpoint import import_checkpoint

        made = [import_checkpoint(settings.adapter, loaded.model)]
        detail = {"reused": False, "imported": settings.adapter}
        detail |= {"imported_step": made[0].step, "adapter": adapter_settings(loaded.model)}
    else:
        sample = _warmup_sample(job, loaded)
        longest, shape = max(map(len, sample)), model_shape(loaded.model)
        need = partial(warmup_bytes, shape, longest, dropout=settings.lora_dropout > 0, checkpoints=settings.checkpoints)
        tokens = tokens_per_pass(settings, loaded, "the warm-up", need)
        steps = math.ceil(len(sample) / settings.warmup_batch_size)
        with job.reporter.stage("warm-up", "steps") as progress:
            done = warmup.run_warmup(
                loaded.model,
                sample,
                steps=steps,
                batch_size=settings.warmup_batch_size,
                learning_rate=settings.learning_rate,
                checkpoints=warmup.checkpoint_steps(steps, settings.checkpoints),
                seed=settings.feature_seed,
                warmup_steps=settings.rise_steps,
                schedule_steps=settings.schedule_steps,
                micro_batch_tokens=tokens,
                progress=progress,
            )
        made = done.checkpoints
        losses = [round(loss, 4) for loss in done.losses]
        detail = {"reused": False, "examples": len(sample), "tokens": sum(map(len, sample)), "losses": losses}
    fingerprint = {
        "settings": identity.space_settings(settings),
        "adapter": adapter_settings(loaded.model),
        "model": loaded.fingerprint,
        "model_name": loaded.name,
        "dtype": loaded.dtype,
        "chat_template": template_fingerprint(loaded.tokenizer),
        "loss_mask": "assistant turns with end of turn, or train ranges",
        "checkpoints": [{"step": c.step, "weight": c.weight, "content": identity.checkpoint_content(c)} for c in made],
    }
    return made, fingerprint, detail


def _add_space(job: Job, variant: str, made: Sequence[Checkpoint], fingerprint: dict[str, Any]) -> None:
    own = {**fingerprint, "settings": {**fingerprint["settings"], "gradient": variant}}
    space_id = identity.space_id(own)
    saved = [checkpoints.save_checkpoint(job.root.files, space_id, checkpoint) for checkpoint in made]
    checkpoints.save_space(job.root.files, space_id, own)
    spaces.add_space(
        job.catalog,
        job.run_id,
        space_id,
        recipe=identity.space_recipe(job.settings, variant),
        variant=variant,
        dim=job.settings.dim,
        fingerprint=own,
        checkpoints=list(zip(made, saved, strict=True)),
    )


def _warmup_sample(job: Job, loaded: Any) -> list[Encoded]:
    settings = job.settings
    wanted = settings.warmup_size(len(pool.pool(job.catalog, job.run_id)))
    # drawn with reserves: an example without target tokens is passed over for the next
    drawn = pool.pool_sample(job.catalog, job.run_id, 2 * wanted, settings.feature_seed)
    encoded: dict[str, Encoded] = {}
    for frame in pool.example_reader(job.root).iterate(drawn.select("segment", "row", "example_id")):
        for row in frame.iter_rows(named=True):
            one = encode_row(loaded.tokenizer, row, max_length(settings, loaded), settings.too_long == "reject")
            if isinstance(one, Encoded):
                encoded[row["example_id"]] = one
    sample = [encoded[example_id] for example_id in drawn["example_id"] if example_id in encoded][:wanted]
    if not sample:
        raise UserError(
            f"none of {len(drawn)} examples drawn for the warm-up has a target token within max_length {settings.max_length}: "
            "raise --max-length, or check that answers are in assistant turns"
        )
    return sample


def gradients(job: Job) -> dict[str, Any]:
    """Compute the features that the pool lacks in its spaces, block by block; a committed block is never computed again."""
    settings = job.settings
    asked = tuple(_space(job, variant) for variant in variants(settings))
    total, tasks = _plan(job, asked)
    left = sum(task.rows for task in tasks)
    summary = {"rows": total, "computed": left, "tokens": 0, "truncated": 0, "rejected": 0, "halvings": 0}
    if not tasks:
        return summary
    job.reporter.say(f"loading model {settings.model}")
    if place_of(settings) != "threads":
        load_adapted.cache_clear()  # the workers load their own
    spec = EngineSpec(job.root.files, pool.example_reader(job.root), settings, asked, sharing(settings, len(tasks)))
    seconds = model_seconds = 0.0
    done = total - left
    with job.reporter.stage("gradients", "examples") as progress:
        progress(done, total)
        within = lambda n: progress(total - left + n, total)  # noqa: E731
        for block in partitioned(compute, spec, tasks, settings, ahead=AHEAD, progress=within):
            for space_id in block.task.spaces:
                _commit(job, space_id, block)
            done += len(block.rows)
            progress(done, total)
            seconds, model_seconds = seconds + block.seconds, model_seconds + block.model_seconds
            summary["tokens"] += int(block.rows["tokens"].sum())
            summary["truncated"] += block.truncated
            summary["rejected"] += len(block.rejects)
            summary["halvings"] += block.halvings
    return summary | {"batch_tokens": block.token_budget, "model_share": round(model_seconds / seconds, 4)}


def _plan(job: Job, asked: Sequence[spaces.Space]) -> tuple[int, list[Task]]:
    """(rows of all segments, the blocks that some space lacks, in order); their segments are presized."""
    total = 0
    rows: dict[tuple[str, int], int] = {}
    lacking: dict[tuple[str, int], list[str]] = {}
    for space in asked:
        plan = spaces.plan_segments(job.catalog, job.run_id, space.space_id, dim=space.dim, block_rows=job.settings.block_rows)
        total = int(plan["rows"].sum())
        lacks = spaces.missing(job.catalog, space.space_id, job.run_id)
        for row in plan.iter_rows(named=True):
            missing = lacks.get(row["segment"], [])
            if missing:
                writer = segments.create_segment(
                    job.root.files,
                    space.space_id,
                    row["segment"],
                    example_ids=spaces.segment_ids(job.catalog, row["segment"]),
                    dim=space.dim,
                    chunk_rows=row["block_rows"],
                )
            for block in missing:
                start, stop = writer.block_range(block)
                rows[row["segment"], block] = stop - start
                lacking.setdefault((row["segment"], block), []).append(space.space_id)
    return total, [Task(*key, rows[key], tuple(lacking[key])) for key in sorted(lacking)]


def _commit(job: Job, space_id: str, block: Done) -> None:
    spaces.commit_block(
        job.catalog,
        job.run_id,
        space_id,
        block.task.segment,
        block.task.block,
        block.rows,
        checksum=block.checksums[space_id],
        seconds=block.seconds,
        rejects=block.rejects,
    )


def _space(job: Job, variant: str) -> spaces.Space:
    known = spaces.find_space(job.catalog, identity.space_recipe(job.settings, variant))
    assert known is not None, "the warm-up stage comes first"
    return known
