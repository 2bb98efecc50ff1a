"""The part of an evaluation that a worker runs: trials trained and measured one after the other, in one loaded model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from flows.compare.examples import Heldout, Texts, texts
from flows.compare.metrics import Measures
from flows.models import AdaptedModel, borrowed_model, token_budget
from flows.workers.work import Progress, WorkerResources, set_threads
from storage.catalog.evaluations import Training
from storage.examples import ExampleReader
from tagcos_stream.config import Settings
from tagcos_stream.evaluation.questions import Task
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.types import UserError

if TYPE_CHECKING:
    from tagcos_stream.evaluation.finetune import Plan
    from tagcos_stream.gradients.model import LoadedModel


@dataclass(frozen=True)
class Trial:
    """One model to train and measure."""

    number: int  # of the unit, which the driver knows it by
    name: str
    rows: pl.DataFrame  # example_id, segment, row, share (null: without weights); empty for the model as it is
    wanted: int  # examples to train on, at most: `rows` may hold some in reserve
    seed: int
    steps: int | None  # None: as many as the passes over its own examples take; 0: not trained
    twin_steps: int | None  # of the same unit in the other regime, likewise
    has_twin: bool  # whether that one is trained already or before this one
    cost: float  # tokens to train on and to measure on, about


@dataclass(frozen=True)
class TrialSpec:
    """What all trials share; plain data that travels to other processes."""

    reader: ExampleReader
    settings: Settings
    fingerprint: str  # content of the model
    plan: Plan
    epochs: float
    heldout: Heldout
    tasks: tuple[Task, ...]
    sizes: tuple[int, ...]  # tokens of each task
    processes: int  # that share this machine's memory
    model: AdaptedModel | None = None  # the driver's own, in its process; other processes load theirs


@dataclass(frozen=True)
class Trained:
    """A trial that is done; without training and scores where they are those of the other regime."""

    number: int
    training: Training | None = None  # its selection_run is the driver's to say
    scores: pl.DataFrame | None = None


def passes(plan: Plan, epochs: float, examples: int) -> int:
    """Return the number of steps that so many passes over `examples` take, at least 1."""
    return max(1, round(epochs * examples / plan.batch_size))


def training_budget(settings: Settings, loaded: LoadedModel, longest: int, processes: int) -> int:
    """Return the padded tokens of a training pass; UserError if it does not fit in memory."""
    from tagcos_stream.gradients.memory import model_shape, warmup_bytes

    need = partial(warmup_bytes, model_shape(loaded.model), longest, dropout=settings.lora_dropout > 0, checkpoints=0)
    return token_budget(settings, loaded, "training", need, processes)


def train_trials(
    spec: TrialSpec, resources: WorkerResources, tasks: Iterator[Trial], progress: Progress | None
) -> Iterator[Trained]:
    """Train and measure trials as they come.

    Parameters
    ----------
    spec, resources
        What they share, and the device and threads.
    tasks
        Trials.
    progress
        Called with the cost of what is done.

    Yields
    ------
    Trained
        In order.

    Raises
    ------
    UserError
        The model is another one than the driver's, a trial has nothing to train on, its loss or that of a held-out example is
        not a number, or memory does not hold one example.
    """
    set_threads(resources.threads)
    with borrowed_model(spec.model) as model:
        loaded = model.load(spec.settings, resources.device)
        if loaded.fingerprint != spec.fingerprint:
            raise UserError(
                f"model {spec.settings.model} has content {loaded.fingerprint} where this worker runs, and {spec.fingerprint} "
                "where the evaluation was started: give all machines the same"
            )
        trainer, before = _Trainer(spec, loaded), 0.0
        for trial in tasks:
            yield trainer.run(trial, partial(_advance, progress, before, trial.cost))
            before += trial.cost


class _Trainer:
    """Trains and measures one trial after the other, in one loaded model."""

    def __init__(self, spec: TrialSpec, loaded: LoadedModel) -> None:
        self.spec, self.model = spec, loaded.model
        self.texts: Texts = texts(spec.reader, loaded, spec.settings)
        self.token_budget = training_budget(spec.settings, loaded, self.texts.longest, spec.processes)
        self.measures = Measures(spec.heldout, spec.tasks, loaded.tokenizer, loaded.max_positions, self.token_budget, spec.sizes)

    def run(self, trial: Trial, progress: Callable[[float], None]) -> Trained:
        from tagcos_stream.evaluation.finetune import finetune
        from tagcos_stream.gradients.adapter import draw_adapter

        start, batch_size = time.perf_counter(), self.spec.plan.batch_size
        ids, encoded, weights = self._examples(trial)
        own = passes(self.spec.plan, self.spec.epochs, len(encoded))
        steps, twin = (own if given is None else given for given in (trial.steps, trial.twin_steps))
        if trial.has_twin and steps == twin:
            return Trained(trial.number)
        tokens, train_loss = 0, None
        if not steps:
            draw_adapter(self.model, trial.seed)  # lora_B is zero: the model as it is
        else:
            trained = finetune(
                self.model,
                encoded,
                ids,
                self.spec.plan,
                steps=steps,
                seed=trial.seed,
                weights=weights,
                token_budget=self.token_budget,
                progress=progress,
            )
            self.token_budget, tokens = trained.token_budget, trained.tokens
            train_loss = float(trained.losses[-max(1, steps // 10) :].mean())
        trained_at = time.perf_counter()
        scores = self.measures.of(self.model, lambda done: progress(tokens + done))
        if not scores["value"].is_finite().all():  # no statistics of it: not to be recorded
            remedy = f"lower --learning-rate, it is {self.spec.plan.learning_rate:g}" if steps else "give --dtype float32"
            raise UserError(f"{trial.name}: the loss of a held-out example is not a number: {remedy}")
        seconds = trained_at - start, time.perf_counter() - trained_at
        repeats = steps * batch_size / max(1, len(encoded))
        return Trained(trial.number, Training(None, len(encoded), steps, repeats, tokens, train_loss, *seconds), scores)

    def _examples(self, trial: Trial) -> tuple[list[str], Sequence[Encoded], np.ndarray | None]:
        """(ids, encoded, weights of mean 1 or None) of what the trial trains on."""
        if trial.rows.is_empty():
            return [], [], None
        found = self.texts.encode(trial.rows)
        good = [i for i, one in enumerate(found) if one is not None][: trial.wanted]
        if not good:
            raise UserError(f"{trial.name}: no example has a target token within {self.texts.longest} tokens: raise --max-length")
        encoded = [one for one in (found[i] for i in good) if one is not None]
        ids = trial.rows["example_id"].gather(good).to_list()
        if trial.rows["share"].null_count():
            return ids, encoded, None
        shares = trial.rows["share"].to_numpy()[good]
        return ids, encoded, shares * len(shares) / shares.sum() if shares.sum() > 0 else None


def _advance(progress: Progress | None, before: float, most: float, now: float) -> None:
    if progress is not None:
        progress(before + min(now, most))
