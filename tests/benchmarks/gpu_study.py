"""The study of tests/benchmarks/gpu.py on a packed file: warm-up, features, selections, trainings, losses. Resumable.

N examples of the pool, D feature dimension, K clusters, S seeds. Everything that takes long is in the folder of the results: the
adapter, the features (N, D) in float16, which are computed block by block, and the rows that each method chose.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tagcos_stream.clustering import kmeans
from tagcos_stream.config import Settings
from tagcos_stream.evaluation.answering import answer
from tagcos_stream.evaluation.finetune import Plan, finetune
from tagcos_stream.evaluation.losses import losses_of
from tagcos_stream.evaluation.questions import Task
from tagcos_stream.gradients.adapter import attach_adapter, draw_adapter
from tagcos_stream.gradients.chat import Encoded
from tagcos_stream.gradients.extract import GradientExtractor, block_features
from tagcos_stream.gradients.model import LoadedModel
from tagcos_stream.gradients.projection.projections import make_projection
from tagcos_stream.gradients.verify import self_check
from tagcos_stream.gradients.warmup import run_warmup
from tagcos_stream.random_bits import draws
from tagcos_stream.selection.groups import Groups, by_label, share_budget, strata
from tagcos_stream.selection.methods import METHODS, Group, Limits, Method
from tagcos_stream.selection.tokens import choose_within
from tagcos_stream.types import ArrayRows, Checkpoint
from tests.benchmarks.packed import Packed

WARMUP_SEED = 0
WARMUP_BATCH, WARMUP_RATE = 8, 1e-4
BASE, WEIGHTED = "base", "+weights"  # the model as it is; a method's selection trained with its weights

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What decides the results, beside the packed file and the model."""

    variant: str = "sgd"
    rank: int = 8
    dim: int = 8192
    fraction: float = 0.05  # of the pool's target tokens
    epochs: float = 1.0  # passes that the steps make over as many random examples
    batch_size: int = 32
    learning_rate: float = 3e-4
    heldout_rows: int = 64  # of each dataset
    rows: int | None = None  # of the pool, by seeded draw; None: all
    block_rows: int = 2048


class Study:
    """The steps, each of which finds what the ones before left in the folder."""

    def __init__(
        self, packed: Packed, loaded: LoadedModel, folder: Path, sizes: Sizes, tokens: int, tasks: Sequence[Task]
    ) -> None:
        self.packed, self.sizes, self.folder, self.tokens, self.tasks = packed, sizes, folder, tokens, tasks
        self.tokenizer, self.max_positions, self.device = loaded.tokenizer, loaded.max_positions, loaded.device
        self.model = attach_adapter(loaded.model, rank=sizes.rank, alpha=4 * sizes.rank, dropout=0.0, seed=WARMUP_SEED)
        rows = np.flatnonzero(packed.heldout == 0)
        if sizes.rows is not None:
            first = np.argsort(draws(packed.example_ids(rows), WARMUP_SEED), kind="stable")[: sizes.rows]
            rows = rows[np.sort(first)]
        self.rows = rows  # (N,) of the packed file
        self.datasets = np.array(packed.facts.datasets)[packed.dataset[rows]]
        self.target_tokens = packed.target_tokens[rows]

    # --- features ---------------------------------------------------------------------------------------------------

    @property
    def is_warmed_up(self) -> bool:
        """Whether the adapter is there."""
        return (self.folder / "adapter.safetensors").exists()

    def warm_up(self) -> Row:
        """Train the adapter that defines the features; leaves `adapter.safetensors`."""
        from safetensors.numpy import save_file

        size = min(max(64, round(0.05 * len(self.rows))), 3840, len(self.rows))
        sample = np.sort(np.argsort(draws(self.packed.example_ids(self.rows), WARMUP_SEED), kind="stable")[:size])
        steps = -(-size // WARMUP_BATCH)
        done = run_warmup(
            self.model,
            self.packed.encoded(self.rows[sample]),
            steps=steps,
            batch_size=min(WARMUP_BATCH, size),
            learning_rate=WARMUP_RATE,
            checkpoints=[steps],
            seed=WARMUP_SEED,
            token_budget=self.tokens,
        )
        (made,) = done.checkpoints
        facts = {"step": made.step, "learning_rate": made.learning_rate, "adam_steps": made.adam_steps}
        save_file(made.arrays(), self.folder / "adapter.safetensors", metadata={"checkpoint": json.dumps(facts)})
        tenth = max(1, steps // 10)
        first, last = np.mean(done.losses[:tenth]), np.mean(done.losses[-tenth:])
        return {"examples": size, "steps": steps, "first_loss": round(float(first), 4), "last_loss": round(float(last), 4)}

    @cached_property
    def checkpoint(self) -> Checkpoint:
        from safetensors import safe_open

        with safe_open(self.folder / "adapter.safetensors", framework="numpy") as file:
            facts = json.loads(file.metadata()["checkpoint"])
            parts: dict[str, Any] = {"weights": {}, "exp_avg": {}, "exp_avg_sq": {}}
            for key in file.keys():  # noqa: SIM118
                part, name = key.split("/", 1)
                parts[part][name] = file.get_tensor(key)
        return Checkpoint(weight=1.0, **facts, **parts)

    @cached_property
    def features(self) -> np.ndarray:
        """(N, D) float16 memory map; zeros where an example has no usable gradient."""
        return self._map("features", np.float16, (len(self.rows), self.sizes.dim))

    @cached_property
    def measured(self) -> np.ndarray:
        """(N, 3) float32 memory map: loss, gradient length, and 1 where there is a feature."""
        return self._map("measured", np.float32, (len(self.rows), 3))

    @property
    def has_features(self) -> bool:
        """Whether the files of the features are there."""
        return all((self.folder / f"{name}.npy").exists() for name in ("features", "measured"))

    def _map(self, name: str, dtype: type, shape: tuple[int, int]) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        if path.exists() and (found := np.lib.format.open_memmap(path, mode="r+")).shape == shape:
            return found
        return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

    def compute_features(self, done: Row, go_on: Callable[[float], bool], save: Callable[[Row], None]) -> Row:
        """Compute blocks until all are there or `go_on(seconds of a block)` is false; `save` records how far it is."""
        sizes, n = self.sizes, len(self.rows)
        ex = GradientExtractor(self.model, variants=[sizes.variant], projection=make_projection(dim=sizes.dim, seed=WARMUP_SEED))
        if done.get("rows", 0) < n:
            # not the shortest: of an answer that the model is all but sure of, bfloat16 leaves little
            by_length = self.rows[np.argsort(self.packed.lengths[self.rows], kind="stable")]
            self_check(ex, self.checkpoint, self.packed.encoded(by_length[n // 2 :][:2]))
        done = {"rows": 0, "seconds": 0.0, "model_seconds": 0.0, "tokens": 0, "unusable": 0} | done
        while done["rows"] < n and go_on(done["seconds"] / max(1, done["rows"]) * sizes.block_rows):
            start, block = time.perf_counter(), slice(done["rows"], min(n, done["rows"] + sizes.block_rows))
            encoded = self.packed.encoded(self.rows[block])
            found = block_features(ex, [self.checkpoint], encoded, token_budget=self.tokens)
            self.tokens = found.token_budget
            rows = found.features[sizes.variant]
            rows[~found.finite] = 0
            self.features[block] = rows
            self.measured[block] = np.stack([found.loss, found.norm, found.finite], axis=1)
            for array in (self.features, self.measured):
                array.flush()  # type: ignore[attr-defined]
            done["rows"], done["tokens"] = block.stop, done["tokens"] + found.tokens
            done["seconds"] += time.perf_counter() - start
            done["model_seconds"] += found.model_seconds
            done["unusable"] += int((~found.finite).sum())
            save(done)
        return done

    # --- selections -------------------------------------------------------------------------------------------------

    def choose(self, name: str, seed: int) -> Row:
        """Choose by a method; leaves the rows, and weights where it gives them, in a file of their own."""
        start, method = time.perf_counter(), METHODS[name]
        labels, distances = self._clusters(seed) if method.within == "clusters" else (None, None)
        groups = self._groups(method, labels)
        costs = self.target_tokens
        budgets = share_budget(groups, round(self.sizes.fraction * int(costs[groups.order[groups.edges[0] :]].sum())), costs)
        columns = {
            "draw": draws(self.packed.example_ids(self.rows), seed),
            "target_tokens": costs,
            "loss": self.measured[:, 0],
            "norm": self.measured[:, 1],
        } | ({} if distances is None else {"distance": distances})
        settings = {name: Settings.model_fields[name].default for name in method.settings}
        rows, weights = [], []
        for number, budget in enumerate(budgets.tolist()):
            members = groups.members(number)
            if not budget or not len(members):
                continue
            whole = len(members) == len(self.rows)
            features = (np.asarray(self.features) if whole else self.features[members]) if method.features else None
            own = {column: columns[column][members] for column in method.columns}
            found = choose_within(method, Group(own, features, costs=costs[members]), budget, settings, Limits())
            rows.append(members[found.indices])
            if found.weights is not None:
                weights.append(found.weights * len(members))
        chosen = np.concatenate(rows)
        order = np.argsort(chosen)
        arrays: dict[str, Any] = {"rows": chosen[order]} | ({"weights": np.concatenate(weights)[order]} if weights else {})
        np.savez(self._chosen(name, seed), **arrays)
        share = np.unique(self.datasets[chosen], return_counts=True)
        return {
            "examples": len(chosen),
            "target_tokens": int(costs[chosen].sum()),
            "clusters": len(groups.sizes) if method.within == "clusters" else None,
            "datasets": dict(zip(share[0].tolist(), share[1].tolist(), strict=True)),
            "seconds": round(time.perf_counter() - start, 1),
        }

    def has_chosen(self, name: str, seed: int) -> bool:
        """Whether the file of a choice is there."""
        return self._chosen(name, seed).exists()

    def _chosen(self, name: str, seed: int) -> Path:
        return self.folder / f"chosen-{name}-{seed}.npz"

    def _groups(self, method: Method, labels: np.ndarray | None) -> Groups:
        usable = self.measured[:, 2] > 0
        if method.within == "clusters":
            assert labels is not None
        elif method.within == "strata":
            labels = strata(self.datasets.tolist(), self.target_tokens)
        elif method.within == "datasets":
            labels = np.unique(self.datasets, return_inverse=True)[1]
        else:
            labels = np.zeros(len(self.rows), np.int64)
        n_groups = int(labels.max()) + 1
        groups = by_label(np.where(usable, labels, -1), n_groups)
        return groups if method.within != "datasets" else Groups(groups.order, groups.edges, weights=np.ones(n_groups))

    def _clusters(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels (N,) and distances (N,) of the clustering of a seed; the last one is kept in memory."""
        if self._last_clustering is None or self._last_clustering[0] != seed:
            rows, settings = ArrayRows(np.asarray(self.features)), Settings.model_fields
            k = kmeans.default_clusters(rows.n_rows)
            *_, state = kmeans.fit(rows, k, seed=seed, device=self.device)
            limits = {name: settings[name].default for name in ("min_cluster_rows", "max_cluster_rows")}
            made = kmeans.finalise(rows, state, self.packed.ids[self.rows, 1], **limits, seed=seed, device=self.device)
            self._last_clustering = seed, made.labels.astype(np.int64), made.distances
        return self._last_clustering[1:]

    _last_clustering: tuple[int, np.ndarray, np.ndarray] | None = None

    # --- trainings --------------------------------------------------------------------------------------------------

    @cached_property
    def steps(self) -> int:
        """Steps of every training: those of as many random examples as the budget pays for."""
        return max(1, round(self.sizes.epochs * self.sizes.fraction * len(self.rows) / self.sizes.batch_size))

    @cached_property
    def heldout(self) -> tuple[list[Encoded], np.ndarray]:
        """Examples measured on, of every dataset those with the lowest ids, and the dataset of each."""
        rows = np.flatnonzero(self.packed.heldout)
        order = rows[np.lexsort((self.packed.ids[rows, 1], self.packed.ids[rows, 0], self.packed.dataset[rows]))]
        own = [order[self.packed.dataset[order] == dataset] for dataset in np.unique(self.packed.dataset[rows])]
        first = np.concatenate([mine[: self.sizes.heldout_rows] for mine in own])
        return self.packed.encoded(first), np.array(self.packed.facts.datasets)[self.packed.dataset[first]]

    def train(self, name: str, seed: int) -> Row:
        """Train on the rows that a method chose with a seed, and measure."""
        start, found = time.perf_counter(), Row(steps=0, tokens=0)
        if name == BASE:
            draw_adapter(self.model, seed)  # lora_B is zero: the model as it is
        else:
            with np.load(self._chosen(name.removesuffix(WEIGHTED), seed), allow_pickle=False) as file:
                chosen = self.rows[file["rows"]]
                weights = file["weights"] if name.endswith(WEIGHTED) else None
            trained = finetune(
                self.model,
                self.packed.encoded(chosen),
                self.packed.example_ids(chosen),
                Plan(self.sizes.batch_size, self.sizes.learning_rate, "cosine", 0.03),
                steps=self.steps,
                seed=seed,
                weights=None if weights is None else weights * len(weights) / weights.sum(),
                token_budget=self.tokens,
            )
            self.tokens, found = trained.token_budget, {"steps": self.steps, "tokens": trained.tokens}
        trained_at = time.perf_counter()
        encoded, datasets = self.heldout
        losses = losses_of(self.model, encoded, token_budget=self.tokens)
        found |= {"loss": float(losses.mean())}
        found["datasets"] = {name: float(losses[datasets == name].mean()) for name in np.unique(datasets).tolist()}
        for task in self.tasks:
            right = answer(self.model, self.tokenizer, task, max_positions=self.max_positions, token_budget=self.tokens)
            parts = np.array([question.part for question in task.questions])
            means = [right[parts == part].mean() for part in np.unique(parts)]
            found.setdefault("tasks", {})[task.name] = float(np.mean(means) if task.by_part else right.mean())
        seconds = {"train_seconds": trained_at - start, "measure_seconds": time.perf_counter() - trained_at}
        return found | {name: round(value, 1) for name, value in seconds.items()}
