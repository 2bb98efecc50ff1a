"""`tagcos evaluate`: one base model trained on each selection, measured on rows that none of them has seen: docs/evaluation.md.

A unit is committed when it is measured, so that a kill costs one. The model is loaded once; every unit draws its own adapter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from flows.compare.examples import held_out, texts
from flows.compare.metrics import measures, summary_line
from flows.compare.trials import Unit, plan_units, run_settings
from flows.context import versions
from flows.models import AdaptedModel, check_device, check_model, token_budget
from flows.progress import Reporter, default_reporter
from storage.catalog import evaluations, heldout, runs, selections, spaces
from storage.catalog.evaluations import Setup, Training, UnitKey
from storage.root import Root, open_root
from tagcos_stream.config import Settings
from tagcos_stream.evaluation.config import BASE, TRAINING_FIELDS, Evaluation
from tagcos_stream.evaluation.tasks import Task, read_tasks
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.identity import evaluation_id
from tagcos_stream.types import UserError


def evaluate(asked: Evaluation, reporter: Reporter | None = None) -> str:
    """Select, train and measure all that is asked for and not there yet; returns the evaluation's id.

    Raises
    ------
    UserError
        No such run, nothing to measure on, or a model, file or setting that does not fit.
    """
    reporter = reporter or default_reporter()
    root = open_root(asked.root, create=False, wait_seconds=asked.wait, on_wait=reporter.say)
    root.catalog.upgrade()
    base = runs.complete_run(root.catalog, asked.run)
    tasks = read_tasks(asked.tasks, asked.task, asked.task_items, asked.protocol) if asked.tasks else []
    if not tasks and not asked.heldout_files and heldout.heldout(root.catalog, base["run_id"]).is_empty():
        raise UserError(
            f"nothing to measure on: run {base['run_id']} holds no example out. Start a root with `tagcos run --heldout 0.05`, "
            "or give --heldout-files with examples that are not in the pool, or --tasks"
        )
    settings = model_settings(run_settings(base, asked), asked)
    check_model(settings)
    check_device(settings)
    units = list(plan_units(asked, base, root, reporter))
    if asked.threads:
        import torch

        torch.set_num_threads(asked.threads)
    reporter.say(f"loading model {settings.model}")
    with AdaptedModel() as model:
        loaded = model.load(settings, settings.device)
        with root.writer():  # for as long as it takes: an hour's training is not to be lost to another who holds the root by then
            bench = _Bench(root, base, asked, settings, loaded, tasks, reporter)
            bench.run(units)
    return bench.evaluation_id


def model_settings(settings: Settings, asked: Evaluation) -> Settings:
    """Those that loading and memory look at: the run's, unless another model or another value is asked for."""
    own = not asked.model
    return settings.model_copy(
        update={
            "model": asked.model or settings.model,
            "revision": settings.revision if own else asked.revision,
            "trust_remote_code": asked.trust_remote_code,  # not what a root says, which others may have made
            "dtype": asked.dtype or settings.dtype,
            "quantize": asked.quantize or settings.quantize,
            "max_length": asked.max_length or settings.max_length,
            "device": asked.device or settings.device,
            "batch_tokens": asked.batch_tokens or settings.batch_tokens,
            "memory_limit": asked.memory_limit,
            "adapter": None,
            "lora_rank": asked.lora_rank,
            "lora_alpha": asked.lora_alpha,
            "lora_dropout": asked.lora_dropout,
            "lora_targets": asked.lora_targets,
            "lora_ranks": (),
            "rslora": False,
        }
    )


class _Bench:
    """What all units share: the model, the rows measured on, the plan of training."""

    def __init__(
        self,
        root: Root,
        base: dict[str, Any],
        asked: Evaluation,
        settings: Settings,
        loaded: Any,
        tasks: Sequence[Task],
        reporter: Reporter,
    ) -> None:
        from tagcos_stream.evaluation.finetune import Plan
        from tagcos_stream.gradients.memory import model_shape, warmup_bytes

        self.root, self.asked, self.reporter, self.model = root, asked, reporter, loaded.model
        self.texts = texts(root, loaded, settings)
        rows = held_out(root, base["run_id"], self.texts, asked.heldout_files, asked.heldout_rows, reporter)
        if not rows.encoded and not tasks:
            raise UserError(f"no held-out example has a target token within {self.texts.longest} tokens: raise --max-length")
        shape, longest = model_shape(self.model), self.texts.longest
        need = partial(warmup_bytes, shape, longest, dropout=asked.lora_dropout > 0, checkpoints=0)
        self.token_budget = token_budget(settings, loaded, "training", need)
        self.measures = measures(rows, tasks, loaded.tokenizer, loaded.max_positions, self.token_budget, reporter)
        self.plan = Plan(asked.batch_size, asked.learning_rate, asked.schedule, asked.rise)
        self.pool = spaces.features_pool(root.catalog, base["run_id"], base["space_id"]).select("example_id", "segment", "row")
        largest = max(run_settings(base, asked, fraction=fraction).budget(len(self.pool)) for fraction in asked.fraction)
        self.steps = asked.steps or self._passes(largest)
        config = {name: value for name, value in asked.model_dump(mode="json").items() if name in TRAINING_FIELDS}
        if asked.equal == "examples":  # what all evaluations were before
            del config["equal"]
        config |= {"max_length": longest, "steps": self.steps, "dtype": loaded.dtype, "quantize": settings.quantize}
        config |= {"tasks": self.measures.digests}  # a digest covers the protocol
        if tasks and asked.protocol != "chat":
            config["protocol"] = asked.protocol
        self.evaluation_id = evaluation_id(base["run_id"], loaded.fingerprint, config, rows.digest)
        setup = Setup(base["run_id"], settings.model, loaded.fingerprint, len(rows.encoded), rows.digest, config, versions())
        evaluations.begin(root.catalog, self.evaluation_id, setup)

    def run(self, units: Sequence[Unit]) -> None:
        done = evaluations.units(self.root.catalog, self.evaluation_id)
        left = [unit for unit in units if unit.key not in done]
        self.reporter.say(
            f"evaluation {self.evaluation_id}: {len(units)} units, {len(units) - len(left)} of them done; regime steps trains "
            f"{self.steps} steps of {self.plan.batch_size}, regime epochs {self.asked.epochs:g} passes; measured on "
            f"{len(self.measures.heldout.encoded)} held-out examples of {len(set(self.measures.heldout.datasets))} datasets"
        )
        costs = [self._cost(unit) for unit in left]
        before = 0.0
        with self.reporter.stage("evaluate", "tokens") as progress:
            for n, (unit, cost) in enumerate(zip(left, costs, strict=True), len(units) - len(left) + 1):
                outcome = self._do(unit, lambda tokens, at=before, most=cost: progress(at + min(tokens, most), sum(costs)))  # type: ignore[misc]
                before += cost
                self.reporter.say(f"{n}/{len(units)} {unit.name}: {outcome}")

    def _passes(self, examples: int) -> int:
        return max(1, round(self.asked.epochs * examples / self.plan.batch_size))

    def _steps(self, key: UnitKey, examples: int) -> int:
        return 0 if key.method == BASE else self.steps if key.regime == "steps" else self._passes(examples)

    def _cost(self, unit: Unit) -> float:
        """Tokens to train on, about, and those to measure on as far as they count."""
        trained = self._steps(unit.key, unit.rows) * self.plan.batch_size * unit.mean_tokens
        return trained + self.measures.cost

    def _do(self, unit: Unit, progress: Callable[[float], None]) -> str:
        """Train, measure and commit a unit; return a line on the outcome."""
        from tagcos_stream.evaluation.finetune import finetune
        from tagcos_stream.gradients.adapter import draw_adapter

        key, start = unit.key, time.perf_counter()
        ids, encoded, weights = self._examples(unit)
        steps = self._steps(key, len(encoded))
        tokens, train_loss = 0, None
        if key.method == BASE:
            draw_adapter(self.model, key.seed)  # lora_B is zero: the model as it is
        elif other := self._same_training(key, steps, len(encoded)):
            evaluations.copy(self.root.catalog, self.evaluation_id, other, key.regime)
            return f"the same training as in regime {other.regime}"
        else:
            trained = finetune(
                self.model,
                encoded,
                ids,
                self.plan,
                steps=steps,
                seed=key.seed,
                weights=weights,
                token_budget=self.token_budget,
                progress=progress,
            )
            self.token_budget, tokens = trained.token_budget, trained.tokens
            train_loss = float(trained.losses[-max(1, steps // 10) :].mean())
        trained_at = time.perf_counter()
        scores = self.measures.of(self.model, lambda done: progress(tokens + done))
        measured_at = time.perf_counter()
        passes = steps * self.plan.batch_size / max(1, len(encoded))
        seconds = {"train_seconds": trained_at - start, "measure_seconds": measured_at - trained_at}
        training = Training(unit.selection, len(encoded), steps, passes, tokens, train_loss, **seconds)
        evaluations.commit(self.root.catalog, self.evaluation_id, key, training, scores)
        took = "; {} tokens trained in {train_seconds:.0f} s, measured in {measure_seconds:.0f} s"
        return summary_line(scores) + took.format(tokens, **seconds)

    def _same_training(self, key: UnitKey, steps: int, examples: int) -> UnitKey | None:
        """The unit of the other regime, where it is done and both regimes come to the same training."""
        other = UnitKey(**{**vars(key), "regime": "epochs" if key.regime == "steps" else "steps"})
        twin = evaluations.units(self.root.catalog, self.evaluation_id).get(other)
        return other if twin is not None and (twin["steps"], twin["examples"]) == (steps, examples) else None

    def _examples(self, unit: Unit) -> tuple[list[str], list[Encoded], np.ndarray | None]:
        """(ids, encoded, weights of mean 1 or None) of what the unit trains on."""
        from tagcos_stream.evaluation.finetune import order

        if unit.key.method == BASE:
            return [], [], None
        if unit.selection is not None:
            rows = selections.selection(self.root.catalog, unit.selection).sort("segment", "row")
            wanted = len(rows)
        else:
            # of the whole pool no more than the steps will see, and some in reserve where this model has no targets in others
            wanted = min(len(self.pool), self._steps(unit.key, len(self.pool)) * self.plan.batch_size)
            first = order(self.pool["example_id"].to_list(), min(len(self.pool), wanted + wanted // 10 + 8), unit.key.seed)
            rows = self.pool[first]
        encoded = self.texts.encode(rows.select("example_id", "segment", "row"))
        good = [i for i, one in enumerate(encoded) if one is not None][:wanted]
        if not good:
            raise UserError(f"{unit.name}: no example has a target token within {self.texts.longest} tokens: raise --max-length")
        ids = rows["example_id"].gather(good).to_list()
        kept = [one for one in (encoded[i] for i in good) if one is not None]
        if not unit.key.weighted:
            return ids, kept, None
        shares = rows["share"].to_numpy()[good]
        return ids, kept, shares * len(shares) / shares.sum() if shares.sum() > 0 else None
