"""What every model of an evaluation is measured by: the same held-out rows and the same questions, in the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from flows.compare.examples import Heldout
from flows.progress import Reporter
from tagcos_stream.evaluation.questions import Task

FORWARD = 1 / 3  # of the time that training on a token takes, measuring on it takes about this share


@dataclass(frozen=True)
class Measures:
    """What trained models are measured on: held-out examples and tasks."""

    heldout: Heldout
    tasks: tuple[Task, ...]
    tokenizer: Any
    max_positions: int
    token_budget: int
    sizes: tuple[int, ...]  # tokens of each task

    @property
    def cost(self) -> float:
        """What measuring a model costs, in tokens trained on."""
        return FORWARD * (self.heldout.tokens + sum(self.sizes))

    @property
    def digests(self) -> dict[str, str]:
        """Digest of each task's questions, by task."""
        return {task.name: task.digest for task in self.tasks}

    def of(self, model: Any, progress: Callable[[float], None]) -> pl.DataFrame:
        """The rows of evaluation_scores: measure, part, value, sd, items. `progress` gets the cost so far."""
        from tagcos_stream.evaluation.answering import answer
        from tagcos_stream.evaluation.losses import losses_of

        frames, before = [], 0
        if self.heldout.encoded:
            losses = losses_of(
                model, self.heldout.encoded, token_budget=self.token_budget, progress=lambda done: progress(FORWARD * done)
            )
            by_dataset, whole = summed("loss", self.heldout.datasets.tolist(), losses)
            over = by_dataset["value"].to_numpy()
            frames += [whole, summed("dataset_loss", [""] * len(over), over)[1], by_dataset]
            before = self.heldout.tokens
        for task, size in zip(self.tasks, self.sizes, strict=True):
            right = answer(
                model,
                self.tokenizer,
                task,
                max_positions=self.max_positions,
                token_budget=self.token_budget,
                progress=lambda done, at=before: progress(FORWARD * (at + done)),  # type: ignore[misc]
            )
            by_part, whole = summed(task.name, [question.part for question in task.questions], right)
            if task.by_part:
                whole = summed(task.name, [""] * len(by_part), by_part["value"].to_numpy())[1]
            frames += [whole, by_part]
            before += size
        return pl.concat(frames)


def measures(
    heldout: Heldout, tasks: Sequence[Task], tokenizer: Any, max_positions: int, token_budget: int, reporter: Reporter
) -> Measures:
    """Measures with the size of each task, from which the remaining time is estimated."""
    from tagcos_stream.evaluation.answering import cost

    for task in tasks:
        reporter.say(f"{task.name}: {len(task.questions)} questions in {len({q.part for q in task.questions})} parts")
    sizes = tuple(cost(tokenizer, task, max_positions) for task in tasks)
    return Measures(heldout, tuple(tasks), tokenizer, max_positions, token_budget, sizes)


def summed(measure: str, parts: list[str], values: np.ndarray) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(a row a part, a row over all): measure, part, value, sd, items of values (n,)."""
    frame = pl.DataFrame({"part": pl.Series(parts, dtype=pl.String), "value": pl.Series(values, dtype=pl.Float64)})
    columns = [pl.lit(measure).alias("measure"), "part", "value", "sd", "items"]
    over = [pl.col("value").mean(), pl.col("value").std().alias("sd"), pl.len().cast(pl.Int64).alias("items")]
    whole = frame.select(pl.lit(None, pl.String).alias("part"), *over)
    return frame.group_by("part", maintain_order=True).agg(over).select(columns), whole.select(columns)


def summary_line(scores: pl.DataFrame) -> str:
    """The measures over all, in words."""
    whole = scores.filter(pl.col("part").is_null())
    return ", ".join(f"{measure} {value:.4f}" for measure, value in whole.select("measure", "value").iter_rows())
