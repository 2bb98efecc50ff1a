"""What an evaluation trains: one unit a method, gradient variant, setting, fraction, seed, regime, with or without weights.

Selections are runs like all others: found in the catalog, made where they are not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import polars as pl

from flows.context import run_stage
from flows.pipeline import changed_settings, reselect
from flows.progress import Reporter
from flows.stages.eligible import check_predicates, listed_ids
from storage.catalog import runs, selections, signals, spaces
from storage.catalog.evaluations import UnitKey
from storage.root import Root
from tagcos_stream.config import Settings, load_settings
from tagcos_stream.evaluation.config import BASE, FULL, OWN, Evaluation, changed, varied
from tagcos_stream.identity import config_hash, run_identity
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.types import UserError


@dataclass(frozen=True)
class Unit:
    """One model to train and measure."""

    key: UnitKey
    selection: str | None  # the run whose choice it trains on; None of full and base
    rows: int  # examples that it may train on
    mean_tokens: float  # of them, as the run counted

    @property
    def name(self) -> str:
        """The trial in words, for messages."""
        key = self.key
        share = "" if key.method in (BASE, FULL) else f"{key.fraction:.3g}"
        words = (key.method, key.gradient, key.setting, share, f"seed {key.seed}", key.regime, "weighted" if key.weighted else "")
        return " ".join(word for word in words if word)


def plan_units(asked: Evaluation, base: dict[str, Any], root: Root, reporter: Reporter) -> Iterator[Unit]:
    """Everything asked for, seed by seed, so that what can be compared is there early. `base`: row of the run of the pool."""
    pool = spaces.features_pool(root.catalog, base["run_id"], base["space_id"])
    mean, target_tokens = _mean(pool["tokens"]), int(pool["target_tokens"].sum())
    yield Unit(UnitKey(BASE, "", "", 0.0, 0, "none", False), None, 0, 0.0)
    for seed in range(asked.seeds):
        for regime in asked.regime:
            for method in sorted(asked.method, key=lambda name: name == FULL):  # the longest training last
                if method == FULL:
                    yield Unit(UnitKey(FULL, "", "", 1.0, seed, regime, False), None, len(pool), mean)
                    continue
                weights = (False, True) if asked.weights and METHODS[method].weights else (False,)
                ways = product(asked.fraction, _variants(method, asked, base), varied(method, asked.vary))
                for fraction, gradient, setting in ways:
                    budget: dict[str, Any] = {"fraction": fraction}
                    if asked.equal == "tokens":
                        budget = {"tokens": str(max(1, round(fraction * target_tokens))), "tokens_all": False}
                    run_id = _selection(asked, base, root, reporter, method, gradient, setting, budget, seed)
                    chosen = selections.selection(root.catalog, run_id)["tokens"]
                    for weighted in weights:
                        key = UnitKey(method, gradient, "" if setting == OWN else setting, fraction, seed, regime, weighted)
                        yield Unit(key, run_id, len(chosen), _mean(chosen))


def require_same_lists(root: Root, base: dict[str, Any], settings: Settings) -> None:
    """Refuse files of pinned or excluded examples that are not what they were when the run was made.

    Parameters
    ----------
    root
        The root.
    base
        The row of the run whose pool it is.
    settings
        Its settings.

    Raises
    ------
    UserError
        A file names other examples of the pool now: selections made before and after that choose from other rows.
    """
    conditions = check_predicates(settings, signals.score_names(root.catalog, base["run_id"]))
    catalog, run_id = root.catalog, str(base["run_id"])
    pool = set(spaces.features_pool(catalog, run_id, base["space_id"])["example_id"])
    excluded = f"exclude {json.loads(base['config']).get('exclude')}"  # as that run wrote the path
    for name, recorded in (
        ("exclude", signals.excluded_ids(catalog, run_id, excluded)),
        ("include", signals.pinned_ids(catalog, run_id)),
    ):
        path = getattr(settings, name)
        if path is None or name in conditions:
            continue
        if pool & set(listed_ids(path, name)) != pool & recorded:  # some may have been forgotten
            raise UserError(
                f"{name} {path}: it names other examples than when {run_id} was made; restore it, or evaluate a run made with it"
            )


def _mean(tokens: pl.Series) -> float:
    """Of what the run counted; 0 where it had no tokenizer, as with vectors of the user's own alone."""
    return int(tokens.sum()) / max(tokens.count(), 1)


def run_settings(base: dict[str, Any], asked: Evaluation, **changes: Any) -> Settings:
    """The settings of the run whose pool it is, changed."""
    return load_settings(changed_settings(base, asked.root, changes))


def _variants(method: str, asked: Evaluation, base: dict[str, Any]) -> tuple[str, ...]:
    """The gradient variants that make a difference to the method."""
    if not METHODS[method].reads_features:
        return ("",)
    return asked.gradient or (run_settings(base, asked).gradient,)


def _selection(
    asked: Evaluation,
    base: dict[str, Any],
    root: Root,
    reporter: Reporter,
    method: str,
    gradient: str,
    setting: str,
    budget: dict[str, Any],
    seed: int,
) -> str:
    """The complete run that selected so from the pool of `base`. A method that no seed touches selects by the run's own."""
    # selections of several seeds are to be independent: none keeps choices of the run
    changes: dict[str, Any] = {"sticky": None, "method": method, **budget, **changed(setting)}
    if METHODS[method].seeded:
        changes["seed"] = seed
    if gradient:
        changes["gradient"] = gradient
    settings = run_settings(base, asked, **changes)
    if run_identity(settings) == run_identity(run_settings(base, asked)):
        return str(base["run_id"])
    known = runs.find_complete(root.catalog, config_hash(settings, base["run_id"]))
    if known is not None:
        return known
    machine = {"threads": asked.threads, "memory_limit": asked.memory_limit, "wait": asked.wait}
    changes |= {name: value for name, value in machine.items() if value is not None}
    return reselect(asked.root, base["run_id"], reporter, run_stage, **changes).run_id
