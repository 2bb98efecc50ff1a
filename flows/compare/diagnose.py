"""`tagcos diagnose`: every method on the same features, selecting by seven eighths of the dimensions, measured on the rest.

One unit is a method, a fraction and a seed; it is committed when done, so a kill costs one. The clusterings that units select
from are fitted on the dimensions they may see, one per seed. Units choose from the rows that the run might choose from (where,
exclude), always with those that it had to choose (include), and are measured against the mean of these rows. Coverage and errors
by cluster are of the run's own clustering.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from flows.context import memory_bytes
from flows.pipeline import changed_settings
from flows.progress import Reporter, default_reporter
from flows.reference import reference_rows
from flows.stages.cluster import keys
from flows.stages.match import coverage, measured_rows
from storage.arrays import segments
from storage.catalog import clusterings, diagnostics, runs, signals, spaces
from storage.files.base import CannotWrite
from storage.root import Root, open_root
from tagcos_stream.clustering.sums import Sums
from tagcos_stream.config import Settings, load_settings
from tagcos_stream.memory import require_memory
from tagcos_stream.rows.blocks import Dimensions
from tagcos_stream.selection.groups import divide, example_columns, share_budget
from tagcos_stream.selection.match import (
    fit_bytes,
    fitted_weights,
    match,
    match_bytes,
    relative_error,
    reserved_dimensions,
)
from tagcos_stream.selection.methods import METHODS, Group, Limits
from tagcos_stream.selection.tokens import choose_within
from tagcos_stream.types import RowBlocks, TransientError, UserError

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Unit:
    """One selection to measure: a method, a fraction and a seed."""

    method: str
    fraction: float
    seed: int


@dataclass(frozen=True)
class Clusters:
    """A clustering of one seed on the dimensions seen."""

    labels: np.ndarray  # (N,) int32
    distances: np.ndarray  # (N,) float32
    means: np.ndarray  # (K, seen) float32


def plan(methods: Sequence[str], fractions: Sequence[float], seeds: Sequence[int]) -> list[Unit]:
    """By seed first, so that a clustering is made once; a method that no seed touches is measured with the first only."""
    if unknown := sorted(set(methods) - set(METHODS)):
        raise UserError(f"unknown method {', '.join(unknown)}; choose from {', '.join(METHODS)}")
    if targeted := [method for method in methods if METHODS[method].needs_target]:
        raise UserError(
            f"{' and '.join(targeted)}: a method that chooses by a target set cannot be held against the pool's mean, by which "
            "diagnose compares; leave it out, or compare it with `tagcos evaluate`"
        )
    if wrong := [fraction for fraction in fractions if not 0 < fraction <= 1]:
        raise UserError(f"fraction {wrong[0]} must lie above 0 and be at most 1")
    return [
        Unit(method, fraction, seed)
        for n, seed in enumerate(seeds)
        for method in methods
        for fraction in fractions
        if n == 0 or METHODS[method].seeded
    ]


def diagnose(
    root: str,
    run_id: str | None = None,
    *,
    methods: Sequence[str] = (),
    fractions: Sequence[float] = FRACTIONS,
    seeds: Sequence[int] = SEEDS,
    memory_limit: float | None = None,
    reporter: Reporter | None = None,
) -> str:
    """Measure methods on the features of a complete run; returns that run's id.

    The default is the latest run, or the newest one with clusters where that one has none, and all methods that the run has the
    signals for and that need no target set. Units that are there already are not measured again; a unit that does not fit in
    memory is left out with a message.

    Raises
    ------
    UserError
        No such run, a run without a clustering, a method that is unknown or needs a target set, or a wrong fraction.
    """
    reporter = reporter or default_reporter()
    plan(methods, fractions, seeds)  # refuses what cannot be asked for, before a root is opened
    opened = open_root(root, create=False, on_wait=reporter.say)
    opened.catalog.upgrade()
    base = runs.complete_run(opened.catalog, run_id)
    if base["clustering_id"] is None and run_id is None and (clustered := runs.newest_clustered(opened.catalog)) is not None:
        reporter.say(f"run {base['run_id']} has no clusters to measure by: measured on {clustered}, the newest run that has them")
        base = runs.complete_run(opened.catalog, clustered)
    if base["clustering_id"] is None:
        raise UserError(
            f"run {base['run_id']} has no clusters to measure by: name another with --run, or make one with "
            "`tagcos select --method tagcos`"
        )
    changes = {} if memory_limit is None else {"memory_limit": memory_limit}
    settings = load_settings(changed_settings(base, root, changes))
    with opened.writer():
        comparison = _Comparison(opened, base, settings, reporter)
        units = plan(methods or comparison.methods(), fractions, seeds)
        done = diagnostics.units_done(opened.catalog, base["run_id"])
        left = [unit for unit in units if (unit.method, unit.fraction, unit.seed) not in done]
        with reporter.stage("diagnose", "selections") as progress:
            for n, unit in enumerate(left):
                progress(len(units) - len(left) + n, len(units))
                try:
                    comparison.measure(unit)
                except (CannotWrite, TransientError):
                    raise
                except UserError as error:
                    reporter.say(f"{unit.method} at {unit.fraction:.1%} is left out: {error}")
            progress(len(units), len(units))
    return str(base["run_id"])


class _Comparison:
    """What all units share: the pool, its features, the reserved dimensions and the means measured against."""

    def __init__(self, root: Root, base: dict[str, object], settings: Settings, reporter: Reporter) -> None:
        self.root, self.settings, self.reporter = root, settings, reporter
        self.run_id, space = str(base["run_id"]), str(base["space_id"])
        self.limit = memory_bytes(settings)
        pool = spaces.features_pool(root.catalog, self.run_id, space)
        self.of = len(pool)  # what a fraction is of, as in the run
        # a method is measured on what the run might choose from, and by how well it stands for that
        self.pool = pool.join(
            signals.exclusions(root.catalog, self.run_id), on=["segment", "row"], how="anti", maintain_order="left"
        )
        if len(self.pool) < self.of:
            reporter.say(f"measured on the {len(self.pool):,} of {self.of:,} examples that {self.run_id} might choose from")
        pins = signals.pins(root.catalog, self.run_id)
        found = self.pool.select("segment", "row").join(
            pins.with_columns(pinned=True), on=["segment", "row"], how="left", maintain_order="left"
        )
        self.pinned = found["pinned"].fill_null(False).to_numpy() if len(pins) else None  # (N,) bool
        if self.pinned is not None:
            reporter.say(f"the {self.pinned.sum():,} examples that {self.run_id} pins are in every selection")
        if settings.target_where is not None:
            reporter.say("target_where is left aside: selections are compared with the mean of the examples that may be chosen")
        self.rows = segments.open_features(root.files, space, self.pool)
        self.held = reserved_dimensions(self.rows.dim)
        self.seen = Dimensions(self.rows, ~self.held)
        assigned = clusterings.assignments(root.catalog, str(base["clustering_id"]))
        found = self.pool.select("segment", "row").join(assigned, on=["segment", "row"], how="left", maintain_order="left")
        self.labels = found["cluster"].to_numpy().astype(np.int64)
        self.sizes = np.bincount(self.labels)
        needed = match_bytes(len(self.sizes), self.rows.dim)
        require_memory(f"measuring {len(self.sizes)} clusters of {self.rows.dim} dimensions", needed, self.limit)
        means = Sums.of(self.rows, self.labels, len(self.sizes), threads=self.settings.threads).means()
        self.held_means = means[:, self.held]
        mean = self.sizes @ means / len(self.pool)
        self.held_mean, self.seen_mean = mean[self.held], mean[~self.held]
        self._clusters: tuple[int, Clusters] | None = None

    def methods(self) -> list[str]:
        """Methods that can be measured on what the run has: without a target set, and with the signals that they read."""
        lacking = {column.name for column in self.pool.iter_columns() if column.null_count() == len(column)}
        return [name for name, method in METHODS.items() if not method.needs_target and not lacking & set(method.columns)]

    def measure(self, unit: Unit) -> None:
        own = self.settings.model_copy(
            update={"method": unit.method, "fraction": unit.fraction, "count": None, "tokens": None, "seed": unit.seed}
        )
        start = time.perf_counter()
        chosen, shares = self._choose(own)
        seconds = time.perf_counter() - start
        found = match(
            self.held_means, self.sizes, lambda part: self.rows.gather(chosen[part])[:, self.held], self.labels[chosen], shares
        )
        diagnostics.commit(
            self.root.catalog,
            self.run_id,
            method=unit.method,
            fraction=unit.fraction,
            seed=unit.seed,
            dimensions="reserved",
            rows=measured_rows(
                found,
                self.sizes,
                coverage(self.pool, chosen, self.labels),
                by_cluster=True,
                fitted=self._fitted(chosen),
                chosen=np.sort(chosen),
            ),
            seconds=seconds,
        )

    def _choose(self, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the chosen (k,) and their shares in the pool's mean."""
        method, budget = METHODS[settings.method], settings.budget(self.of)
        if budget > len(self.pool):
            raise UserError(f"{budget:,} examples are to be chosen, and {len(self.pool):,} may be")
        if self.pinned is not None and self.pinned.sum() > budget:
            raise UserError(f"{budget:,} examples are to be chosen, and include pins {self.pinned.sum():,}")
        made = self._clustering(settings) if method.within == "clusters" else None
        groups = divide(method, self.pool) if made is None else divide(method, self.pool, made.labels, len(made.means))
        if warning := method.warning(len(self.pool), budget, self.seen.dim):
            self.reporter.say(warning)
        reference = reference_rows(self.root.catalog, settings, self.pool, self.run_id)
        columns = example_columns(method, self.pool, settings.seed, None if made is None else made.distances, reference)
        read = {name: getattr(settings, name) for name in method.settings}
        limits = Limits(self.limit, settings.threads)
        positions, shares = [], []
        for g, part in enumerate(share_budget(groups, budget, pinned=self.pinned).tolist()):
            if not part:
                continue
            members = groups.members(g)
            features: np.ndarray | RowBlocks | None = None
            if method.features:
                features = self.seen if method.within == "pool" else self._gather_seen(members)
            mean = None if made is None else made.means[g]
            pinned = np.flatnonzero(self.pinned[members]) if self.pinned is not None and self.pinned[members].any() else None
            group = Group({name: values[members] for name, values in columns.items()}, features, mean, pinned=pinned)
            choice = choose_within(method, group, part, read, limits)
            positions.append(members[choice.indices])
            shares.append(
                np.full(part, 1 / budget) if choice.weights is None else choice.weights * groups.sizes[g] / len(self.pool)
            )
        return np.concatenate(positions), np.concatenate(shares)

    def _gather_seen(self, positions: np.ndarray) -> np.ndarray:
        needed = 4 * len(positions) * self.seen.dim
        require_memory(f"a cluster of {len(positions)} rows of {self.seen.dim} dimensions", needed, self.limit)
        rows = np.empty((len(positions), self.seen.dim), np.float32)
        for at, part in _parts(positions):
            rows[at : at + len(part)] = self.rows.gather(part)[:, ~self.held]
        return rows

    def _clustering(self, settings: Settings) -> Clusters:
        from tagcos_stream.clustering import kmeans

        if self._clusters is None or self._clusters[0] != settings.seed:
            n_clusters = min(settings.clusters or kmeans.default_clusters(len(self.pool)), len(self.pool))
            *_, state = kmeans.fit(self.seen, n_clusters, seed=settings.seed, memory_limit=self.limit)
            made = kmeans.finalise(
                self.seen,
                state,
                keys(self.pool),
                min_cluster_rows=settings.min_cluster_rows,
                max_cluster_rows=settings.max_cluster_rows,
                seed=settings.seed,
            )
            self._clusters = settings.seed, Clusters(made.labels, made.distances, made.totals.centroids())
        return self._clusters[1]

    def _fitted(self, chosen: np.ndarray) -> float | None:
        """Error on the reserved dimensions of weights fitted to the pool's mean on the others; None where memory lacks."""
        if fit_bytes(len(chosen), self.rows.dim) > self.limit:
            return None
        weights = fitted_weights(self._gather_seen(chosen), self.seen_mean, self.settings.ridge)
        estimate = np.zeros(len(self.held_mean))
        for at, part in _parts(chosen):
            estimate += weights[at : at + len(part)] @ self.rows.gather(part)[:, self.held].astype(np.float64)
        return relative_error(estimate, self.held_mean)


def _parts(positions: np.ndarray, size: int = 1024) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(positions), size):
        yield start, positions[start : start + size]


def table(root: str, run_id: str) -> pl.DataFrame:
    """Methods side by side by fraction, means over seeds: the macro comparison_of."""
    return diagnostics.comparison(open_root(root, create=False).catalog, run_id)
