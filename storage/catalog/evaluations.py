"""Catalog records of models trained on selections: evaluations, their units and their scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from storage.database import Catalog
from storage.tables import insert, insert_row, require, utc_now
from tagcos_stream.types import UserError

SCORE_COLUMNS = ["measure", "part", "value", "sd", "items"]


@dataclass(frozen=True)
class UnitKey:
    """One model that is trained and measured; its columns in evaluation_units."""

    method: str
    gradient: str
    setting: str  # NAME=VALUE, where the selection differs in it from the run's own settings
    fraction: float
    seed: int
    regime: str
    weighted: bool


@dataclass(frozen=True)
class Setup:
    """What is the same for all units of an evaluation; its columns in evaluations."""

    run_id: str  # whose pool and features are used
    model: str
    model_fingerprint: str
    heldout_examples: int
    heldout_digest: str | None  # None without held-out examples
    config: Mapping[str, Any]
    versions: Mapping[str, Any]


@dataclass(frozen=True)
class Training:
    """How a unit was trained; its columns in evaluation_units."""

    selection_run: str | None  # run whose selection it was trained on; None for the base model and the full pool
    examples: int
    steps: int  # optimizer steps
    passes: float  # epochs
    tokens: int
    train_loss: float | None  # mean, nats; None without training
    train_seconds: float
    measure_seconds: float


def begin(catalog: Catalog, evaluation_id: str, setup: Setup) -> None:
    """Record the setup of an evaluation. Only the first call is recorded."""
    with catalog.transaction() as connection:
        if connection.execute("SELECT 1 FROM evaluations WHERE evaluation_id = ?", [evaluation_id]).fetchall():
            return
        row = asdict(setup) | {"config": json.dumps(setup.config), "versions": json.dumps(setup.versions)}
        insert_row(connection, "evaluations", evaluation_id=evaluation_id, **row, started_at=utc_now())


def units(catalog: Catalog, evaluation_id: str) -> dict[UnitKey, dict[str, Any]]:
    """Return the complete units, each with its row of evaluation_units."""
    rows = catalog.read("SELECT * FROM evaluation_units WHERE evaluation_id = ?", [evaluation_id]).to_dicts()
    return {UnitKey(**{name: row[name] for name in UnitKey.__dataclass_fields__}): row for row in rows}


def finished_units(catalog: Catalog, evaluation_id: str) -> pl.DataFrame:
    """Return the complete units of an evaluation, in the order in which they were finished.

    Parameters
    ----------
    catalog, evaluation_id
        The evaluation.

    Returns
    -------
    pl.DataFrame
        The columns of evaluation_units, without the evaluation's id.
    """
    query = "SELECT * EXCLUDE (evaluation_id) FROM evaluation_units WHERE evaluation_id = ? ORDER BY finished_at"
    return catalog.read(query, [evaluation_id])


def commit(catalog: Catalog, evaluation_id: str, key: UnitKey, training: Training, scores: pl.DataFrame) -> None:
    """Record a unit and its scores in one transaction; replaces an earlier record of the unit.

    Parameters
    ----------
    catalog
        Where to record.
    evaluation_id
        The evaluation, as given to `begin`.
    key, training
        The unit, and how it was trained.
    scores
        SCORE_COLUMNS; `part` is null for a score over everything.
    """
    unit = {"evaluation_id": evaluation_id, **asdict(key)}
    row = unit | asdict(training) | {"copied": False, "finished_at": utc_now()}
    with catalog.transaction() as connection:
        insert_row(connection, "evaluation_units", replace=True, **row)
        _forget_scores(connection, unit)
        named = {name: pl.lit(value) for name, value in unit.items()}
        insert(connection, "evaluation_scores", require(scores, SCORE_COLUMNS).with_columns(**named))


def copy(catalog: Catalog, evaluation_id: str, key: UnitKey, regime: str) -> None:
    """Record a trained unit under another regime too, in which it would have been trained in the same way."""
    unit = {"evaluation_id": evaluation_id, **asdict(key)}
    same = _same(unit)
    with catalog.transaction() as connection:
        _forget_scores(connection, unit | {"regime": regime})
        connection.execute(
            f"""INSERT OR REPLACE INTO evaluation_units BY NAME
            SELECT * REPLACE ($other AS regime, true AS copied, $now::TIMESTAMP AS finished_at)
            FROM evaluation_units WHERE {same}""",
            unit | {"other": regime, "now": utc_now()},
        )
        connection.execute(
            f"INSERT INTO evaluation_scores BY NAME SELECT * REPLACE ($other AS regime) FROM evaluation_scores WHERE {same}",
            unit | {"other": regime},
        )


def _forget_scores(connection: Any, unit: Mapping[str, Any]) -> None:
    connection.execute(f"DELETE FROM evaluation_scores WHERE {_same(unit)}", dict(unit))


def _same(unit: Mapping[str, Any]) -> str:
    """Return the SQL condition that finds a unit; column names are our constants, values are parameters."""
    return " AND ".join(f"{name} = ${name}" for name in unit)


def results(catalog: Catalog, evaluation_id: str) -> pl.DataFrame:
    """Return the columns of the macro evaluation_of, ordered by regime, fraction, measure, part and method."""
    return catalog.read(
        """FROM evaluation_of(?) ORDER BY regime DESC, fraction, measure, part NULLS FIRST, method = 'base' DESC,
            method = 'full', value, method, gradient, setting, weighted""",
        [evaluation_id],
    )


def scores(catalog: Catalog, evaluation_id: str) -> pl.DataFrame:
    """Return the rows of evaluation_scores: one per unit, measure and part."""
    return catalog.read("SELECT * EXCLUDE (evaluation_id) FROM evaluation_scores WHERE evaluation_id = ?", [evaluation_id])


def described(catalog: Catalog, evaluation_id: str) -> dict[str, Any]:
    """Return the row of `evaluations`, config and versions as dicts; UserError if there is no such evaluation."""
    found = catalog.read("SELECT * FROM evaluations WHERE evaluation_id = ?", [evaluation_id]).to_dicts()
    if not found:
        raise UserError(f"there is no evaluation {evaluation_id} in {catalog.path}: `tagcos sql 'FROM evaluations'` lists them")
    return {**found[0], "config": json.loads(found[0]["config"]), "versions": json.loads(found[0]["versions"])}
