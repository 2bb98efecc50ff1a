"""The model with its adapter, turning blocks of examples into feature chunks: the part of the gradient stage that a worker runs.

A worker needs the root's address, the settings and block numbers; it writes chunks and says what it measured. Only the driver,
which owns the catalog, makes a block true.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from flows.models import AdaptedModel, Rejected, borrowed_model, encode_row, gradient_token_budget, load_of_space, max_length
from flows.workers.answers import LoneAnswers
from flows.workers.work import Progress, WorkerResources, set_threads
from storage.arrays import segments
from storage.catalog.spaces import Space, load_checkpoints
from storage.examples import ExampleReader
from storage.files.base import Files
from tagcos_stream.config import Settings
from tagcos_stream.data.rejects import SNIPPET
from tagcos_stream.gradients.chat import Encoded

if TYPE_CHECKING:
    from tagcos_stream.gradients.model import LoadedModel

NON_FINITE = "non-finite gradient"


@dataclass(frozen=True)
class BlockTask:
    """A block to compute."""

    segment: str
    block: int
    rows: int
    spaces: tuple[str, ...]  # that lack it


@dataclass(frozen=True)
class BlockResult:
    """A block whose chunks are written, ready to be committed."""

    task: BlockTask
    rows: pl.DataFrame  # row, tokens, target_tokens, loss, norm, status
    rejects: pl.DataFrame  # row, reason, detail, snippet
    checksums: dict[str, int]  # by space
    seconds: float  # since the block before was computed: waiting for tokens, for chunks on disk and for the driver included
    model_seconds: float  # of these within forward and backward passes
    truncated: int
    special_tokens: int  # examples with control tokens in their texts
    unprinted: int  # examples with tool calls or reasoning that the template does not print
    token_budget: int  # halved after running out of device memory
    halvings: int
    answers: pl.DataFrame | None  # segment, row, loss behind an empty prompt; None where it was not asked for


@dataclass(frozen=True)
class GradientSpec:
    """All that a worker needs to open an engine; plain data that travels to other processes."""

    files: Files
    reader: ExampleReader
    settings: Settings
    spaces: tuple[Space, ...]  # of one adapter, one per gradient variant
    processes: int = 1  # that share this machine's memory
    answers: bool = False  # whether to compute losses of answers behind an empty prompt, too
    model: AdaptedModel | None = None  # the run's own, in its process; other processes load theirs


Prepared = tuple[BlockTask, pl.DataFrame, list[Encoded | Rejected], LoneAnswers | None]
BLOCKS_AHEAD = 3  # blocks in an engine's hands: one being tokenised, one computed, one written


def compute_blocks(
    spec: GradientSpec, resources: WorkerResources, tasks: Iterator[BlockTask], progress: Progress | None
) -> Iterator[BlockResult]:
    """The work of a gradient worker: blocks as they come, with one engine."""
    set_threads(resources.threads)
    with borrowed_model(spec.model) as model:
        yield from Engine(spec, load_of_space(model, spec.settings, resources.device, spec.spaces[0])).run(tasks, progress)


class Engine:
    """Computes blocks, one after the other, with tokenising a block ahead and writing a block behind."""

    def __init__(self, spec: GradientSpec, loaded: LoadedModel) -> None:
        from tagcos_stream.gradients.extract import GradientExtractor
        from tagcos_stream.gradients.hidden import without_adapter
        from tagcos_stream.gradients.projection.projections import make_projection

        self.spec = spec
        first = spec.spaces[0]
        self.tokenizer = loaded.tokenizer
        self.max_length = max_length(spec.settings, loaded)
        self.extractor = GradientExtractor(
            loaded.model,
            variants=[space.variant for space in spec.spaces],
            projection=make_projection(spec.settings.projection, dim=first.dim, seed=spec.settings.feature_seed),
        )
        # a space without checkpoints is of the model without adapter
        self.checkpoints = load_checkpoints(spec.files, first) or [without_adapter(self.extractor.parameters)]
        self.token_budget = gradient_token_budget(spec.settings, loaded, len(spec.spaces), len(self.checkpoints), spec.processes)
        self.answer_budget = gradient_token_budget(spec.settings, loaded, 1, len(self.checkpoints), spec.processes)
        self._checked = False
        self._writers: dict[tuple[str, str], segments.SegmentWriter] = {}

    def run(self, tasks: Iterable[BlockTask], progress: Callable[[float], None] | None = None) -> Iterator[BlockResult]:
        """Compute blocks in order; each is yielded once its chunks are on disk. `progress` gets the number of examples done."""
        done = 0
        upcoming, start = iter(tasks), time.perf_counter()
        with ThreadPoolExecutor(1, "tokenise") as ahead, ThreadPoolExecutor(1, "write") as behind:
            prepared = self._submit(ahead, upcoming)
            written: Future[BlockResult] | None = None
            while prepared is not None:
                task, frame, encoded, alone = prepared.result()
                prepared = self._submit(ahead, upcoming)
                count = len(encoded)
                outcome = self._compute(encoded, partial(_advance, progress, done))
                if outcome is not None:
                    self.token_budget = outcome.token_budget  # what ran out of memory once would do so again
                answers = self._answers(task, frame, alone)
                start, before = time.perf_counter(), start
                if written is not None:
                    yield written.result()
                written = behind.submit(self._write, task, frame, encoded, outcome, answers, start - before)
                done += count
            if written is not None:
                yield written.result()

    def _submit(self, pool: ThreadPoolExecutor, tasks: Iterator[BlockTask]) -> Future[Prepared] | None:
        task = next(tasks, None)
        return None if task is None else pool.submit(self._prepare, task)

    def _prepare(self, task: BlockTask) -> Prepared:
        frame = self.spec.reader.read(task.segment, *self._writer(task, task.spaces[0]).block_range(task.block))
        settings, longest = self.spec.settings, self.max_length
        reject_long = settings.too_long == "reject"
        encoded = [
            encode_row(self.tokenizer, row, longest, reject_long, settings.special_tokens) for row in frame.iter_rows(named=True)
        ]
        if not self.spec.answers or self.spec.spaces[0].space_id not in task.spaces:  # computed with the first space's features
            return task, frame, encoded, None
        return task, frame, encoded, LoneAnswers.of(self.tokenizer, frame, encoded, longest, settings.special_tokens)

    def _answers(self, task: BlockTask, frame: pl.DataFrame, alone: LoneAnswers | None) -> pl.DataFrame | None:
        if alone is None:
            return None
        return alone.losses(task.segment, frame["row"], self.extractor, self.checkpoints, self.answer_budget)

    def _compute(self, encoded: Sequence[Encoded | Rejected], progress: Callable[[float], None]) -> Any:
        """BlockFeatures of the examples that can be computed, or None where there are none."""
        from tagcos_stream.gradients.extract import block_features
        from tagcos_stream.gradients.verify import self_check

        good = [e for e in encoded if isinstance(e, Encoded)]
        if not good:
            return None
        if not self._checked:
            # the shortest two: the check takes several plain passes, more than a few new rows do
            self_check(self.extractor, self.checkpoints[0], sorted(good, key=len)[:2])
            self._checked = True
        return block_features(
            self.extractor,
            self.checkpoints,
            good,
            token_budget=self.token_budget,
            progress=lambda done, of: progress(done / of * len(encoded)),
        )

    def _write(
        self,
        task: BlockTask,
        frame: pl.DataFrame,
        encoded: Sequence[Encoded | Rejected],
        outcome: Any,
        answers: pl.DataFrame | None,
        seconds: float,
    ) -> BlockResult:
        at = np.array([i for i, e in enumerate(encoded) if isinstance(e, Encoded)], dtype=np.int64)
        tokens, targets = np.zeros((2, len(encoded)), np.int64)
        loss, norm = np.full((2, len(encoded)), np.nan)
        reasons = [e.reason if isinstance(e, Rejected) else "ok" for e in encoded]
        details = [e.detail if isinstance(e, Rejected) else None for e in encoded]
        if outcome is not None:
            good = [e for e in encoded if isinstance(e, Encoded)]
            tokens[at], targets[at] = [len(e) for e in good], [e.n_target for e in good]
            loss[at], norm[at] = outcome.loss, outcome.norm
            for i in at[~outcome.finite]:
                reasons[i] = NON_FINITE
        checksums = {}
        for space in (space for space in self.spec.spaces if space.space_id in task.spaces):
            rows = np.full((len(encoded), space.dim), np.nan, np.float16)
            if outcome is not None:
                rows[at] = outcome.features[space.variant]
            checksums[space.space_id] = self._writer(task, space.space_id).write_block(task.block, rows)
        last_turn = pl.col("messages").list.last().struct.field("content").str.slice(0, SNIPPET)
        bad = frame.with_columns(reason=pl.Series(reasons), detail=pl.Series(details, dtype=pl.String))
        lengths = pl.Series(norm) if self.extractor.of_gradient else pl.repeat(None, len(norm), dtype=pl.Float64, eager=True)
        measured = {"tokens": tokens, "target_tokens": targets, "loss": loss, "norm": lengths, "status": reasons}
        return BlockResult(
            task=task,
            rows=frame.select("row").hstack(pl.DataFrame(measured)),
            rejects=bad.filter(pl.col("reason") != "ok").select("row", "reason", "detail", snippet=last_turn),
            checksums=checksums,
            seconds=seconds,
            model_seconds=0.0 if outcome is None else outcome.model_seconds,
            truncated=sum(isinstance(e, Encoded) and e.truncated for e in encoded),
            special_tokens=sum(isinstance(e, Encoded) and e.special_tokens > 0 for e in encoded),
            unprinted=sum(isinstance(e, Encoded) and e.unprinted for e in encoded),
            token_budget=self.token_budget if outcome is None else outcome.token_budget,
            halvings=0 if outcome is None else outcome.halvings,
            answers=answers,
        )

    def _writer(self, task: BlockTask, space_id: str) -> segments.SegmentWriter:
        key = (space_id, task.segment)
        if key not in self._writers:
            self._writers[key] = segments.open_writer(self.spec.files, *key)
        return self._writers[key]


def _advance(progress: Callable[[float], None] | None, before: int, now: float) -> None:
    if progress is not None:
        progress(before + now)
