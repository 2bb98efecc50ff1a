"""How fast a model's passes are on this machine, measured on a sample of examples."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from flows.models import gradient_token_budget
from tagcos_stream.config import Settings
from tagcos_stream.gradients.chat import Encoded


class Probe:
    """Real passes over the sample, with the settings' adapter, variants and projection."""

    def __init__(self, settings: Settings, loaded: Any, encoded: list[Encoded]) -> None:
        self.settings, self.loaded = settings, loaded
        self.encoded = encoded
        self.token_budget = gradient_token_budget(settings, loaded, len(settings.model_variants), settings.checkpoints)
        self.checkpoint: Any = None
        self._extractor: Any = None

    def warm_up(self) -> float:
        """Train two steps; the gradient passes use their moments.

        A given adapter is imported instead, in no time; hidden states of the model without adapter need none.

        Returns
        -------
        float
            Seconds a token of the second step.
        """
        from tagcos_stream.gradients import warmup
        from tagcos_stream.gradients.adapter import adapter_parameters
        from tagcos_stream.gradients.hidden import without_adapter
        from tagcos_stream.gradients.import_checkpoint import import_checkpoint

        if self.settings.reads_base_model:
            self.checkpoint = without_adapter(adapter_parameters(self.loaded.model))
            return 0.0
        if self.settings.adapter:
            moments = bool(self.settings.moment_variants)
            self.checkpoint = import_checkpoint(self.settings.adapter, self.loaded.model, moments=moments)
            return 0.0
        size = min(self.settings.warmup_batch_size, len(self.encoded))
        sample = self.encoded[: 2 * size]
        ends: list[float] = []
        done = warmup.run_warmup(
            self.loaded.model,
            sample,
            steps=2,
            batch_size=size,
            learning_rate=self.settings.learning_rate,
            checkpoints=[2],
            seed=0,
            token_budget=self.token_budget,
            progress=lambda step, of: ends.append(time.perf_counter()),
        )
        self.checkpoint = done.checkpoints[0]
        return (ends[1] - ends[0]) / (sum(map(len, sample)) / len(sample) * size)

    def gradients(self, seconds: float, progress: Any) -> tuple[float, float]:
        """Measure passes of blocks planned as the run would, in random order; a first one, which compiles, is not counted.

        Parameters
        ----------
        seconds
            How long to measure.
        progress
            Called with the seconds that have passed.

        Returns
        -------
        tuple of float
            Tokens a second of one checkpoint, and the seconds measured.
        """
        from tagcos_stream.gradients.batching import plan_batches
        from tagcos_stream.gradients.extract import GradientExtractor
        from tagcos_stream.gradients.memory import MAX_BATCH_ROWS
        from tagcos_stream.gradients.projection.projections import make_projection

        settings = self.settings
        self._extractor = extractor = GradientExtractor(
            self.loaded.model,
            variants=settings.model_variants,
            projection=make_projection(settings.projection, dim=settings.dim, seed=settings.feature_seed),
        )
        extractor.use(self.checkpoint)
        passes: list[list[Encoded]] = []
        for start in range(0, len(self.encoded), settings.block_rows):
            block = self.encoded[start : start + settings.block_rows]
            plan = plan_batches([len(e) for e in block], self.token_budget, MAX_BATCH_ROWS)
            passes += [[block[i] for i in batch] for batch in plan]
        order = np.random.default_rng(0).permutation(len(passes))
        self._pass(extractor, min(passes, key=lambda batch: sum(map(len, batch))))
        tokens, turn, begun = 0, 0, time.perf_counter()
        while not turn or time.perf_counter() - begun < seconds:
            batch = passes[order[turn % len(order)]]
            self._pass(extractor, batch)
            tokens, turn = tokens + sum(map(len, batch)), turn + 1
            progress(tokens)
        spent = time.perf_counter() - begun
        return tokens / spent, spent

    def answers(self, seconds: float) -> float:
        """Measure tokens a second of forward passes over examples, after `gradients`.

        Parameters
        ----------
        seconds
            How long; at least one pass is made.

        Returns
        -------
        float
            Tokens a second and checkpoint.
        """
        from tagcos_stream.gradients.batching import plan_batches
        from tagcos_stream.gradients.memory import MAX_BATCH_ROWS

        tokens, begun = 0, time.perf_counter()
        for batch in plan_batches([len(e) for e in self.encoded], self.token_budget, MAX_BATCH_ROWS):
            examples = [self.encoded[i] for i in batch]
            self._extractor.losses(examples).cpu()  # waits for a device to be done
            tokens += sum(map(len, examples))
            if time.perf_counter() - begun >= seconds:
                break
        return tokens / (time.perf_counter() - begun)

    @staticmethod
    def _pass(extractor: Any, batch: list[Encoded]) -> None:
        for rows in extractor.features(batch).features.values():
            rows.cpu()  # waits for a device to be done
