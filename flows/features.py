"""Stages 2 and 3: the warmed-up adapter that defines a feature space, and the gradient feature of every example in it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from flows.job import Job
from storage import blocks, features, pool, runs, spaces
from tagcos_stream.chat import Encoded, NoTargets, encode, template_fingerprint
from tagcos_stream.config import Settings, digest
from tagcos_stream.types import UserError

NO_TARGETS = "no target tokens"
NON_FINITE = "non-finite gradient"
SNIPPET = 200  # characters of a rejected row that are kept
TENSORS = ("weights", "exp_avg", "exp_avg_sq")


def recipe(settings: Settings) -> str:
    """Name of everything that is decided before a warm-up: runs that agree on it share one feature space, whatever their pool."""
    return digest({**settings.space_settings(), "model": settings.model, "revision": settings.revision})


def checkpoint_steps(steps: int, count: int) -> list[int]:
    """`count` steps evenly spaced over 1..steps, the last one included: 30 steps, 3 checkpoints -> 10, 20, 30."""
    if count > steps:
        raise UserError(f"{count} checkpoints need at least as many warm-up steps, there are {steps}: lower --checkpoints")
    return [round(steps * (i + 1) / count) for i in range(count)]


def warm_up(job: Job) -> dict[str, Any]:
    """Find the feature space of these settings, or make it: a short LoRA training on a seeded sample of the pool."""
    known = blocks.find_space(job.catalog, recipe(job.settings))
    if known is not None:
        runs.set_run(job.catalog, job.run_id, space_id=known.space_id)
        return {"space_id": known.space_id, "reused": True}

    from tagcos_stream import warmup  # torch, transformers and peft take seconds to import
    from tagcos_stream.gradients import checkpoint_weights

    settings = job.settings
    loaded = _adapted_model(job)
    sample = _warmup_sample(job, loaded)
    steps = math.ceil(len(sample) / settings.warmup_batch_size)
    wanted = checkpoint_steps(steps, settings.checkpoints)
    with job.reporter.stage("warm-up", "steps") as progress:
        done = warmup.run_warmup(
            loaded.model,
            sample,
            steps=steps,
            batch_size=settings.warmup_batch_size,
            learning_rate=settings.learning_rate,
            checkpoints=wanted,
            seed=settings.feature_seed,
            warmup_steps=settings.rise_steps,
            schedule_steps=settings.schedule_steps,
            micro_batch_tokens=settings.batch_tokens,
            progress=progress,
        )
    weights = checkpoint_weights(done.checkpoints)
    fingerprint = {
        "settings": settings.space_settings(),
        "model": loaded.fingerprint,
        "model_name": loaded.name,
        "dtype": loaded.dtype,
        "chat_template": template_fingerprint(loaded.tokenizer),
        "loss_mask": "assistant turns with end of turn, or train ranges",
        "checkpoints": [
            {"step": c.step, "weight": float(w), "content": c.fingerprint()}
            for c, w in zip(done.checkpoints, weights, strict=True)
        ],
    }
    space_id = spaces.fingerprint_id(fingerprint)
    saved = [spaces.save_checkpoint(job.root.files, space_id, _to_store(c)) for c in done.checkpoints]
    spaces.save_space(job.root.files, space_id, fingerprint)
    blocks.add_space(
        job.catalog,
        job.run_id,
        space_id,
        recipe=recipe(settings),
        variant=settings.gradient,
        dim=settings.dim,
        fingerprint=fingerprint,
        checkpoints=[(c.step, float(w), file) for c, w, file in zip(done.checkpoints, weights, saved, strict=True)],
    )
    return {
        "space_id": space_id,
        "reused": False,
        "examples": len(sample),
        "tokens": sum(len(e) for e in sample),
        "losses": [round(loss, 4) for loss in done.losses],
    }


def gradients(job: Job) -> dict[str, Any]:
    """Compute the features that the pool lacks in its space, block by block."""
    space = blocks.find_space(job.catalog, recipe(job.settings))
    assert space is not None, "the warm-up stage comes first"
    plan = blocks.plan_segments(job.catalog, job.run_id, space.space_id, dim=space.dim, block_rows=job.settings.block_rows)
    work: list[Work] = []
    for row in plan.iter_rows(named=True):
        missing = blocks.missing(job.catalog, space.space_id, row["segment"], job.run_id)
        if missing:
            writer = features.create_segment(
                job.root.files,
                space.space_id,
                row["segment"],
                example_ids=blocks.segment_ids(job.catalog, row["segment"]),
                dim=space.dim,
                chunk_rows=row["block_rows"],
            )
            work += [Work(row["segment"], writer, block) for block in missing]
    total = int(plan["rows"].sum())
    left = sum(stop - start for start, stop in (item.writer.block_range(item.block) for item in work))
    summary = {"space_id": space.space_id, "rows": total, "computed": left, "tokens": 0, "truncated": 0, "rejected": 0}
    if work:
        engine = _Engine.open(job, space)
        with job.reporter.stage("gradients", "examples") as progress:
            progress(total - left, total)
            for counts in _compute_blocks(job, engine, work, lambda done: progress(total - left + done, total)):
                for name, value in counts.items():
                    summary[name] += value
        _load.cache_clear()  # the stages to come need the memory, not the model
    return summary


@dataclass(frozen=True)
class Work:
    """A block to compute."""

    segment: str
    writer: features.SegmentWriter
    block: int


@dataclass
class _Engine:
    """The model with its adapter and checkpoints, ready to turn encoded examples into features."""

    extractor: Any
    tokenizer: Any
    checkpoints: list[Any]
    max_length: int
    variant: str
    space_id: str
    checked: bool = False

    @classmethod
    def open(cls, job: Job, space: blocks.Space) -> _Engine:
        from tagcos_stream.gradients import GradientExtractor
        from tagcos_stream.projection import make_projection

        settings = job.settings
        loaded = _adapted_model(job)
        if space.fingerprint["model"] != loaded.fingerprint:
            raise UserError(
                f"model {settings.model} has content {loaded.fingerprint}, but feature space {space.space_id} was made with "
                f"{space.fingerprint['model']}: features of two models never mix; restore it, or give the new one another path"
            )
        projection = make_projection(settings.projection, dim=space.dim, seed=settings.feature_seed)
        return cls(
            extractor=GradientExtractor(loaded.model, variants=[space.variant], projection=projection),
            tokenizer=loaded.tokenizer,
            checkpoints=[
                _from_store(spaces.load_checkpoint(job.root.files, space.space_id, row["step"], row["digest"]))
                for row in space.checkpoints.iter_rows(named=True)
            ],
            max_length=_max_length(settings, loaded),
            variant=space.variant,
            space_id=space.space_id,
        )


def _compute_blocks(
    job: Job, engine: _Engine, work: Sequence[Work], progress: Callable[[float], None]
) -> Iterator[dict[str, int]]:
    """Compute and commit blocks; the next one is read and tokenised while this one is computed."""
    reader = pool.example_reader(job.root)
    done = 0

    def prepare(item: Work) -> tuple[pl.DataFrame, list[Encoded | str]]:
        frame = reader.read(item.segment, *item.writer.block_range(item.block))
        return frame, [_encode(engine.tokenizer, row, engine.max_length) for row in frame.iter_rows(named=True)]

    with ThreadPoolExecutor(1, thread_name_prefix="tokenise") as ahead:
        upcoming = ahead.submit(prepare, work[0])
        for item, following in zip(work, [*work[1:], None], strict=True):
            frame, encoded = upcoming.result()
            if following is not None:
                upcoming = ahead.submit(prepare, following)
            start = time.perf_counter()
            rows, measured = _compute(engine, encoded, job.settings.batch_tokens, lambda n, done=done: progress(done + n))
            blocks.commit_block(
                job.catalog,
                job.run_id,
                engine.space_id,
                item.segment,
                item.block,
                frame.select("row").hstack(measured),
                checksum=item.writer.write_block(item.block, rows),
                seconds=time.perf_counter() - start,
                rejects=_rejects(frame, encoded, measured["status"]),
            )
            done += len(encoded)
            yield {
                "tokens": int(measured["tokens"].sum()),
                "truncated": sum(isinstance(e, Encoded) and e.truncated for e in encoded),
                "rejected": int((measured["status"] != "ok").sum()),
            }


def _compute(
    engine: _Engine, encoded: Sequence[Encoded | str], batch_tokens: int, progress: Callable[[float], None]
) -> tuple[np.ndarray, pl.DataFrame]:
    """Features (rows, D) float16 of a block, NaN where rejected, and what was measured at each of its rows."""
    from tagcos_stream.gradients import block_features
    from tagcos_stream.selfcheck import self_check

    good = [e for e in encoded if isinstance(e, Encoded)]
    at = np.array([i for i, e in enumerate(encoded) if isinstance(e, Encoded)], dtype=np.int64)
    rows = np.full((len(encoded), engine.extractor.projection.dim), np.nan, np.float16)
    tokens, targets = np.zeros((2, len(encoded)), np.int64)
    loss, norm = np.full((2, len(encoded)), np.nan)
    status = np.full(len(encoded), NO_TARGETS, dtype=object)
    if good:
        if not engine.checked:
            self_check(engine.extractor, engine.checkpoints[0], good[:2])
            engine.checked = True
        outcome = block_features(
            engine.extractor,
            engine.checkpoints,
            good,
            token_budget=batch_tokens,
            progress=lambda done, of: progress(done / of * len(encoded)),
        )
        rows[at] = outcome.features[engine.variant]
        tokens[at], targets[at] = [len(e) for e in good], [e.n_target for e in good]
        loss[at], norm[at] = outcome.loss, outcome.norm
        status[at] = np.where(outcome.finite, "ok", NON_FINITE)
    measured = {"tokens": tokens, "target_tokens": targets, "loss": loss, "norm": norm, "status": status.tolist()}
    return rows, pl.DataFrame(measured)


def _rejects(frame: pl.DataFrame, encoded: Sequence[Encoded | str], status: pl.Series) -> pl.DataFrame:
    last_turn = pl.col("messages").list.last().struct.field("content").str.slice(0, SNIPPET)
    detail = pl.Series("detail", [None if isinstance(e, Encoded) else e for e in encoded], pl.String)
    bad = frame.with_columns(detail, reason=status).filter(pl.col("reason") != "ok")
    return bad.select("row", "reason", "detail", snippet=last_turn)


def _encode(tokenizer: Any, row: dict[str, Any], max_length: int) -> Encoded | str:
    """The example as tokens, or why it has none to train on."""
    try:
        return encode(tokenizer, row["messages"], max_length=max_length, tools=row["tools"])
    except NoTargets as error:
        return str(error)


def _warmup_sample(job: Job, loaded: Any) -> list[Encoded]:
    wanted = job.settings.warmup_size(len(pool.pool(job.catalog, job.run_id)))
    # drawn with reserves: an example without target tokens is passed over for the next
    drawn = pool.pool_sample(job.catalog, job.run_id, 2 * wanted, job.settings.feature_seed)
    encoded: dict[str, Encoded] = {}
    for frame in pool.example_reader(job.root).iterate(drawn.select("segment", "row", "example_id")):
        for row in frame.iter_rows(named=True):
            if isinstance(one := _encode(loaded.tokenizer, row, _max_length(job.settings, loaded)), Encoded):
                encoded[row["example_id"]] = one
    sample = [encoded[example_id] for example_id in drawn["example_id"] if example_id in encoded][:wanted]
    if not sample:
        raise UserError(
            f"none of {len(drawn)} examples drawn for the warm-up has a target token within "
            f"max_length {job.settings.max_length}: raise --max-length, or check that answers are in assistant turns"
        )
    return sample


def _max_length(settings: Settings, loaded: Any) -> int:
    return min(settings.max_length, loaded.max_positions)


def _adapted_model(job: Job) -> Any:
    """The model with its adapter attached, loaded once for the stages of a run."""
    settings = job.settings
    if not settings.model:
        raise UserError("no model given: add --model with a Hugging Face id, a model folder or a .gguf file")
    job.reporter.say(f"loading model {settings.model}")
    return _load(settings)


@lru_cache(maxsize=1)
def _load(settings: Settings) -> Any:
    from transformers.utils import logging

    from tagcos_stream.model import attach_adapter, load_model

    logging.disable_progress_bar()  # ours tell enough
    loaded = load_model(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
    )
    loaded.model = attach_adapter(
        loaded.model,
        rank=settings.lora_rank,
        alpha=settings.lora_alpha,
        dropout=settings.lora_dropout,
        target_modules=list(settings.lora_targets) or "auto",
        seed=settings.feature_seed,
    )
    return loaded


def _to_store(checkpoint: Any) -> spaces.StoredCheckpoint:
    parts = {part: {name: tensor.numpy() for name, tensor in getattr(checkpoint, part).items()} for part in TENSORS}
    return spaces.StoredCheckpoint(
        step=checkpoint.step, learning_rate=checkpoint.learning_rate, adam_steps=checkpoint.adam_steps, **parts
    )


def _from_store(stored: spaces.StoredCheckpoint) -> Any:
    import torch

    from tagcos_stream.warmup import Checkpoint

    parts = {part: {name: torch.from_numpy(np.array(array)) for name, array in getattr(stored, part).items()} for part in TENSORS}
    return Checkpoint(step=stored.step, learning_rate=stored.learning_rate, adam_steps=stored.adam_steps, **parts)
