"""Stage 2: the warmed-up adapter that defines a feature space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from flows.context import RunContext
from flows.models import Rejected, encode_row, max_length, none_encoded, token_budget
from flows.results import FeatureSpaces, Pool
from flows.reuse import find_model_spaces
from flows.stages.vectors import vector_space
from storage.arrays import checkpoints
from storage.catalog import runs, spaces
from storage.catalog.pool import pool_sample
from storage.examples import example_reader
from tagcos_stream import identity
from tagcos_stream.config import VECTORS
from tagcos_stream.gradients.chat import Encoded, template_fingerprint
from tagcos_stream.types import Checkpoint, UserError


def warm_up(run: RunContext, pool: Pool) -> FeatureSpaces:
    """Find the feature spaces of these settings, or make them by a short LoRA training on a seeded sample of the pool.

    Spaces that differ only in the gradient variant share one adapter. Where only hidden states are asked for, they are those of
    the model without adapter, and nothing is trained. The space of vectors of the user's own needs no model.

    Parameters
    ----------
    run
        Context of the run.
    pool
        To draw from.

    Returns
    -------
    FeatureSpaces
        One for each variant of the settings, in their order.

    Raises
    ------
    UserError
        The model, the adapter or the user's vectors cannot be used, or the training does not fit in memory.
    """
    settings = run.settings
    wanted = settings.model_variants
    known = find_model_spaces(run.catalog, settings)
    detail: dict[str, Any] = {"reused": True}
    if any(variant not in known for variant in wanted):
        sibling = next(iter(known.values()), None)
        if sibling is not None:
            made, fingerprint = spaces.load_checkpoints(run.root.files, sibling), sibling.fingerprint
            if settings.moment_variants and any(checkpoint.adam_steps == 0 for checkpoint in made):
                raise UserError(
                    f"adapter {settings.adapter}: no Adam moments were found with it, and {', '.join(settings.moment_variants)} "
                    "reads them: give the folder its optimizer.pt, run the warm-up here, or use --gradient sgd"
                )
        else:
            made, fingerprint, detail = _make_adapter(run, pool)
        for variant in wanted:
            if variant not in known:
                _add_space(run, variant, made, fingerprint)
        known = find_model_spaces(run.catalog, settings)
    if VECTORS in settings.variants:
        measures = known[wanted[0]] if wanted else None
        known[VECTORS], detail["vectors"] = vector_space(run, measures)
    asked = tuple(known[variant] for variant in settings.variants)
    runs.set_run(run.catalog, run.run_id, space_id=asked[0].space_id)
    return FeatureSpaces(asked, {"space_id": asked[0].space_id, **detail})


def _make_adapter(run: RunContext, pool: Pool) -> tuple[list[Checkpoint], dict[str, Any], dict[str, Any]]:
    """Warm up, or import: (checkpoints, what they come from, what to report)."""
    from tagcos_stream.gradients import warmup  # torch, transformers and peft take seconds to import
    from tagcos_stream.gradients.adapter import adapter_settings
    from tagcos_stream.gradients.memory import model_shape, warmup_bytes

    settings = run.settings
    run.reporter.say(f"loading model {settings.model}")
    loaded = run.model.load(settings, settings.device)
    made: list[Checkpoint] = []
    if settings.reads_base_model:
        detail: dict[str, Any] = {"reused": False, "trained": False}
    elif settings.adapter:
        from tagcos_stream.gradients.import_checkpoint import import_checkpoint

        made = [import_checkpoint(settings.adapter, loaded.model, moments=bool(settings.moment_variants))]
        detail = {"reused": False, "imported": settings.adapter}
        detail |= {"imported_step": made[0].step, "moments": made[0].adam_steps > 0, "adapter": adapter_settings(loaded.model)}
    else:
        sample = _warmup_sample(run, pool, loaded)
        longest, shape = max(map(len, sample)), model_shape(loaded.model)
        need = partial(warmup_bytes, shape, longest, dropout=settings.lora_dropout > 0, checkpoints=settings.checkpoints)
        budget = token_budget(settings, loaded, "the warm-up", need)
        steps = math.ceil(len(sample) / settings.warmup_batch_size)
        with run.reporter.stage("warm-up", "steps") as progress:
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
                token_budget=budget,
                progress=progress,
            )
        made = done.checkpoints
        losses = [round(loss, 4) for loss in done.losses]
        detail = {"reused": False, "examples": len(sample), "tokens": sum(map(len, sample)), "losses": losses}
    fingerprint = {
        "settings": identity.space_settings(settings),
        "adapter": adapter_settings(loaded.model) if made else None,
        "model": loaded.fingerprint,
        "model_name": loaded.name,
        "dtype": loaded.dtype,
        "chat_template": template_fingerprint(loaded.tokenizer),
        "loss_mask": "assistant turns with end of turn, or train ranges",
        "checkpoints": [{"step": c.step, "weight": c.weight, "content": identity.checkpoint_content(c)} for c in made],
    }
    return made, fingerprint, detail


def _add_space(run: RunContext, variant: str, made: Sequence[Checkpoint], fingerprint: dict[str, Any]) -> None:
    own = {**fingerprint, "settings": {**fingerprint["settings"], "gradient": variant}}
    space_id = identity.space_id(own)
    saved = [checkpoints.save_checkpoint(run.root.files, space_id, checkpoint) for checkpoint in made]
    checkpoints.save_space(run.root.files, space_id, own)
    spaces.add_space(
        run.catalog,
        run.run_id,
        space_id,
        recipe=identity.space_recipe(run.settings, variant),
        variant=variant,
        dim=run.settings.dim,
        fingerprint=own,
        checkpoints=list(zip(made, saved, strict=True)),
    )


def _warmup_sample(run: RunContext, pool: Pool, loaded: Any) -> list[Encoded]:
    settings = run.settings
    wanted = settings.warmup_size(pool.examples)
    # drawn with reserves: an example without target tokens is passed over for the next
    drawn = pool_sample(run.catalog, run.run_id, 2 * wanted, settings.feature_seed)
    longest = max_length(settings, loaded)
    encoded: dict[str, Encoded] = {}
    rejected: list[tuple[str, Rejected]] = []
    for frame in example_reader(run.root).iterate(drawn.select("segment", "row", "example_id")):
        for row in frame.iter_rows(named=True):
            one = encode_row(loaded.tokenizer, row, longest, settings.too_long == "reject", settings.special_tokens)
            if isinstance(one, Encoded):
                encoded[row["example_id"]] = one
            else:
                rejected.append((row["example_id"], one))
    sample = [encoded[example_id] for example_id in drawn["example_id"] if example_id in encoded][:wanted]
    if not sample:
        raise none_encoded(rejected, settings)
    return sample
