"""`tagcos evaluate`: one base model trained on each selection, measured on rows that none of them has seen: docs/evaluation.md.

A unit is committed when it is measured, so that a kill costs one a worker. Each worker loads the model once; every unit draws
its own adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from flows.compare.examples import held_out, texts
from flows.compare.metrics import measures, summary_line
from flows.compare.training import Trained, Trial, TrialSpec, passes, train_trials, training_budget
from flows.compare.trials import Unit, plan_units, require_same_lists, run_settings
from flows.context import versions
from flows.models import AdaptedModel, check_device, check_model
from flows.progress import Reporter, default_reporter, forward
from flows.workers.executor import partitioned, place_of, sharing
from flows.workers.work import set_threads
from storage.catalog import evaluations, heldout, runs, selections, spaces
from storage.catalog.evaluations import Setup, UnitKey
from storage.examples import example_reader
from storage.root import Root, open_root
from tagcos_stream.config import Settings
from tagcos_stream.evaluation.config import BASE, FULL, TRAINING_FIELDS, Evaluation
from tagcos_stream.evaluation.tasks import Task, read_tasks
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
    tasks = read_tasks(asked.tasks, asked.task, asked.items_of_task(), asked.protocol) if asked.tasks else []
    if not tasks and not asked.heldout_files and heldout.heldout(root.catalog, base["run_id"]).is_empty():
        raise UserError(
            f"nothing to measure on: run {base['run_id']} holds no example out. Start a root with `tagcos run --heldout 0.05`, "
            "or give --heldout-files with examples that are not in the pool, or --tasks"
        )
    settings = model_settings(run_settings(base, asked), asked)
    require_same_lists(root, base, settings)
    check_model(settings)
    check_device(settings)
    units = list(plan_units(asked, base, root, reporter))
    set_threads(asked.threads)
    reporter.say(f"loading model {settings.model}")
    with AdaptedModel() as model, root.writer():  # for as long as it takes: an hour's training is not to be lost
        driver = _Driver(root, base, asked, settings, model, tasks, reporter)
        driver.run(units)
    return driver.evaluation_id


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
            "threads": asked.threads,
            "workers": asked.workers,
            "run_on": asked.run_on,
            "gpus_per_worker": asked.gpus_per_worker,
            "adapter": None,
            "lora_rank": asked.lora_rank,
            "lora_alpha": asked.lora_alpha,
            "lora_dropout": asked.lora_dropout,
            "lora_targets": asked.lora_targets,
            "lora_ranks": (),
            "rslora": False,
        }
    )


class _Driver:
    """Makes trials of the units that are left, hands them to workers, and records what these find.

    It holds what all units share: the rows measured on and the plan of training.
    """

    def __init__(
        self,
        root: Root,
        base: dict[str, Any],
        asked: Evaluation,
        settings: Settings,
        model: AdaptedModel,
        tasks: Sequence[Task],
        reporter: Reporter,
    ) -> None:
        from tagcos_stream.evaluation.finetune import Plan

        self.root, self.asked, self.settings, self.model, self.reporter = root, asked, settings, model, reporter
        loaded = model.load(settings, settings.device)
        self.fingerprint = loaded.fingerprint
        read = texts(example_reader(root), loaded, settings)
        rows = held_out(root, base["run_id"], read, asked.heldout_files, asked.heldout_rows, reporter)
        if not rows.encoded and not tasks:
            raise UserError(f"no held-out example has a target token within {read.longest} tokens: raise --max-length")
        budget = training_budget(settings, loaded, read.longest, sharing(settings, settings.workers))
        self.measures = measures(rows, tasks, loaded.tokenizer, loaded.max_positions, budget, reporter)
        self.plan = Plan(asked.batch_size, asked.learning_rate, asked.schedule, asked.rise)
        self.pool = spaces.features_pool(root.catalog, base["run_id"], base["space_id"]).select("example_id", "segment", "row")
        largest = max(run_settings(base, asked, fraction=fraction).budget(len(self.pool)) for fraction in asked.fraction)
        self.steps = asked.steps or passes(self.plan, asked.epochs, largest)
        config = {name: value for name, value in asked.model_dump(mode="json").items() if name in TRAINING_FIELDS}
        if asked.equal == "examples":  # what all evaluations were before
            del config["equal"]
        config |= {"max_length": read.longest, "steps": self.steps, "dtype": loaded.dtype, "quantize": settings.quantize}
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
        if not left:
            return
        trials, known = [], set(done)
        for n, unit in enumerate(left):
            trials.append(self._trial(n, unit, _twin(unit.key) in known))
            known.add(unit.key)
        total, spent = sum(trial.cost for trial in trials), 0.0
        spec = self._spec(len(trials))
        copies: dict[UnitKey, UnitKey] = {}  # units that wait for their twin
        with self.reporter.stage("evaluate", "tokens") as stage:
            progress = forward(stage)
            progress(0, total)
            within = lambda cost: progress(cost, total)  # noqa: E731
            for n, found in enumerate(partitioned(train_trials, spec, trials, self.settings, progress=within), 1):
                unit = left[found.number]
                outcome = self._commit(unit, found, copies)
                spent += trials[found.number].cost
                progress(spent, total)
                self.reporter.say(f"{len(units) - len(left) + n}/{len(units)} {unit.name}: {outcome}")

    def _spec(self, trials: int) -> TrialSpec:
        """What the workers get; the model is closed where they load their own."""
        own = self.model if place_of(self.settings) == "threads" else None
        if own is None:
            self.model.close()
        measured = self.measures
        return TrialSpec(
            example_reader(self.root),
            self.settings,
            self.fingerprint,
            self.plan,
            self.asked.epochs,
            measured.heldout,
            measured.tasks,
            measured.sizes,
            sharing(self.settings, trials),
            own,
        )

    def _commit(self, unit: Unit, found: Trained, copies: dict[UnitKey, UnitKey]) -> str:
        """Record a trial, and the one that is the same training and waits for it; return a line on the outcome."""
        catalog, key, twin = self.root.catalog, unit.key, _twin(unit.key)
        if found.training is None or found.scores is None:
            if twin in evaluations.units(catalog, self.evaluation_id):
                evaluations.copy(catalog, self.evaluation_id, twin, key.regime)
            else:
                copies[twin] = key
            return f"the same training as in regime {twin.regime}"
        training = replace(found.training, selection_run=unit.selection)
        evaluations.commit(catalog, self.evaluation_id, key, training, found.scores)
        if key in copies:
            evaluations.copy(catalog, self.evaluation_id, key, copies.pop(key).regime)
        took = (
            f"; {training.tokens} tokens trained in {training.train_seconds:.0f} s, measured in {training.measure_seconds:.0f} s"
        )
        return summary_line(found.scores) + took

    def _steps(self, key: UnitKey) -> int | None:
        """Steps of a unit; None for as many as the passes over its own examples take."""
        if key.method == BASE:
            return 0
        if key.regime == "steps":
            return self.steps
        part = key.method == FULL and self.asked.epochs < 1  # which does not see all of the pool
        return passes(self.plan, self.asked.epochs, len(self.pool)) if part else None

    def _trial(self, number: int, unit: Unit, has_twin: bool) -> Trial:
        """The unit as a worker gets it; `has_twin`: whether its twin is trained before it."""
        from tagcos_stream.evaluation.finetune import order

        key, steps = unit.key, self._steps(unit.key)
        about = passes(self.plan, self.asked.epochs, unit.rows) if steps is None else steps
        rows, wanted = self.pool.clear(), 0
        if unit.selection is not None:
            rows = selections.selection(self.root.catalog, unit.selection).sort("segment", "row")
            wanted = len(rows)
        elif key.method == FULL:
            # of the whole pool no more than the steps will see, and some in reserve where this model has no targets in others
            wanted = min(len(self.pool), about * self.plan.batch_size)
            rows = self.pool[order(self.pool["example_id"].to_list(), min(len(self.pool), wanted + wanted // 10 + 8), key.seed)]
        return Trial(
            number,
            unit.name,
            rows.select("example_id", "segment", "row", share=pl.col("share") if key.weighted else pl.lit(None, pl.Float64)),
            wanted,
            key.seed,
            steps,
            self._steps(_twin(key)),
            has_twin,
            about * self.plan.batch_size * unit.mean_tokens + self.measures.cost,
        )


def _twin(key: UnitKey) -> UnitKey:
    """The unit of the other regime, which comes to the same training where both have as many steps."""
    return replace(key, regime="epochs" if key.regime == "steps" else "steps")
