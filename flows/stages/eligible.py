"""Which rows of the pool a run may choose from, and which count for the mean that is matched."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from flows.context import RunContext
from flows.results import Features
from flows.stages.alignment import compute_alignments
from flows.stages.answers import hash_answers
from storage import predicate
from storage.catalog import signals
from tagcos_stream.config import Settings
from tagcos_stream.data.sources import score_names
from tagcos_stream.paths import is_id_list
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.types import UserError

IS_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Eligible:
    """The rows that a selection is made from. Frames have the columns of storage.catalog.spaces.features_pool, in its order."""

    rows: pl.DataFrame  # n rows that may be chosen
    counted: pl.DataFrame  # m rows whose mean is matched
    of: int  # rows of the pool with a feature, whether they may be chosen or not
    excluded: Mapping[str, int] = field(default_factory=dict)  # rows that may not be chosen, by reason
    pinned: np.ndarray | None = None  # (n,) bool, those of `rows` that must be chosen; None where there are none

    @property
    def same(self) -> bool:
        """Whether the rows that count are those that may be chosen."""
        return self.counted is self.rows


def check_predicates(settings: Settings, scores: Sequence[str]) -> dict[str, predicate.Predicate]:
    """Check the predicates of the settings; needs neither root nor rows.

    Parameters
    ----------
    settings, scores
        Those of a run, and the columns that its sources name as scores.

    Returns
    -------
    dict
        Predicates by setting, without those that are not given or hold for every row.

    Raises
    ------
    UserError
        A predicate is not one that can be asked of `signals`; see `storage.predicate.parse`.
    """
    given = {name: getattr(settings, name) for name in ("where", "target_where", "exclude", "include")}
    for name in ("exclude", "include"):
        if given[name] is not None and is_id_list(given[name]):
            listed_ids(given.pop(name), name)
    columns = signals.columns(scores)
    return {name: predicate.parse(text, columns, name) for name, text in given.items() if text is not None}


def listed_ids(path: str, setting: str) -> list[str]:
    """Read a list of example ids.

    Parameters
    ----------
    path
        A text file with an id a line, or a .csv, .jsonl or .parquet file with the column `example_id`, such as an export.
    setting
        That names the file, for messages.

    Returns
    -------
    list of str
        The ids, in the order of the file.

    Raises
    ------
    UserError
        The file cannot be read, has no ids, or has something else.
    """
    kind = Path(path).suffix
    try:
        if kind in (".txt", ".ids"):
            found = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            readers: dict[str, Callable[[str], pl.LazyFrame]] = {
                ".csv": pl.scan_csv,
                ".jsonl": pl.scan_ndjson,
                ".parquet": pl.scan_parquet,
            }
            found = (
                readers[kind](path).select(pl.col("example_id").cast(pl.String)).collect()["example_id"].drop_nulls().to_list()
            )
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{setting} {path}: {first}; give a file with an id a line, or with the column example_id") from error
    if not found:
        raise UserError(f"{setting} {path}: it has no ids")
    if wrong := next((text for text in found if not IS_ID.fullmatch(text)), None):
        raise UserError(f"{setting} {path}: {wrong!r} is not an example id, which has 32 hexadecimal digits")
    return found


def reads_ifd(settings: Settings) -> bool:
    """Return whether a run needs instruction-following difficulty.

    Parameters
    ----------
    settings
        Those of the run.

    Returns
    -------
    bool
        It was asked for, or the method or a condition reads it.
    """
    return settings.ifd or _chooses_by_ifd(settings, check_predicates(settings, score_names(settings.sources)))


def _chooses_by_ifd(settings: Settings, checked: Mapping[str, predicate.Predicate]) -> bool:
    return "ifd" in METHODS[settings.method].columns or any("ifd" in found.columns for found in checked.values())


def eligible(run: RunContext, features: Features, clustering_id: str | None) -> Eligible:
    """Apply the run's predicates to its pool, and record which rows they exclude.

    Parameters
    ----------
    run
        With its space, and its clustering where the method has one, set in the catalog.
    features
        The pool with features.
    clustering_id
        The clustering; None where the method has none.

    Returns
    -------
    Eligible
        All rows, the frame of `features` itself, where no predicate excludes any.

    Raises
    ------
    UserError
        Fewer rows may be chosen than are to be, or none counts for the mean.
    """
    pool = features.pool
    # a fraction is of all rows with a feature, whether they may be chosen or not; tokens set no number of rows
    budget = 1 if run.settings.tokens is not None else run.settings.budget(len(pool))
    checked = check_predicates(run.settings, signals.score_names(run.catalog, run.run_id))
    if _chooses_by_ifd(run.settings, checked):
        lacking = len(signals.without_answer_loss(run.catalog, run.run_id, features.space_id))
        if lacking:
            raise UserError(f"ifd was not computed for {lacking:,} of {len(pool):,} examples: `tagcos run --ifd` computes it")
    include, exclude = run.settings.include, run.settings.exclude
    if include is None and exclude is None and all(found.keeps_all for found in checked.values()):
        return Eligible(pool, pool, len(pool))
    if any("repeated" in found.columns for found in checked.values()):
        hash_answers(run)  # of a root that was filled before answers were hashed
    asked = frozenset(signals.ALIGNMENTS) & {name for found in checked.values() for name in found.columns}
    if asked:
        compute_alignments(run, features, clustering_id, asked)
    where = checked.get("where", predicate.parse("true", signals.COLUMNS))
    judged = signals.judge(
        run.catalog, run.run_id, {name: checked.get(name, where) for name in ("where", "target_where", "exclude", "include")}
    )
    reasons = pool.select("segment", "row").join(judged, on=["segment", "row"], how="left", maintain_order="left")
    if exclude is not None:
        is_condition = "exclude" in checked
        banned = reasons["exclude"].is_null() if is_condition else pool["example_id"].is_in(listed_ids(exclude, "exclude"))
        reason = pl.when(banned).then(pl.lit(f"exclude {exclude}"))
        # by default what may not be chosen does not count either
        names = ["where"] if "target_where" in checked else ["where", "target_where"]
        reasons = reasons.with_columns(reason.otherwise(pl.col(name)).alias(name) for name in names)
    excluded = reasons.filter(pl.col("where").is_not_null()).select("segment", "row", reason="where")
    signals.record_exclusions(run.catalog, run.run_id, excluded)
    counts = dict(excluded.group_by("reason").len().sort("len", "reason", descending=[True, False]).iter_rows())
    rows = pool.filter(reasons["where"].is_null()) if len(excluded) else pool
    if len(rows) < budget:
        failed = "; ".join(f"{n:,} fail {reason}" for reason, n in counts.items())
        raise UserError(
            f"{len(rows):,} of {len(pool):,} examples may be chosen, but {budget:,} are to be: {failed}. "
            "Relax where or exclude, or lower fraction or count"
        )
    pinned = None
    if include is not None:
        held = reasons["include"].is_null() if "include" in checked else _in_list(pool, include)
        _require_eligible(include, reasons.filter(held)["where"])
        signals.record_pins(run.catalog, run.run_id, pool.filter(held).select("segment", "row"))
        pinned = held.filter(reasons["where"].is_null()).to_numpy() if held.any() else None
    counts_for_mean = reasons["target_where"].is_null()
    counted = rows if reasons["where"].is_null().equals(counts_for_mean) else pool.filter(counts_for_mean)
    if not len(counted):
        raise UserError(f"target_where {run.settings.target_where!r} holds for none of {len(pool):,} examples: relax it")
    return Eligible(rows, counted, len(pool), counts, pinned)


def _in_list(pool: pl.DataFrame, include: str) -> pl.Series:
    """Which rows of the pool a file pins. UserError if it names others."""
    ids = pl.Series(listed_ids(include, "include"), dtype=pl.String).unique(maintain_order=True)
    unknown = ids.filter(~ids.is_in(pool["example_id"].to_list()))
    if len(unknown):
        raise UserError(
            f"include {include}: {len(unknown):,} of {len(ids):,} examples have no feature in this pool, such as {unknown[0]}; "
            "`tagcos sql \"FROM why('ID')\"` states the reason of each"
        )
    return pool["example_id"].is_in(ids.to_list())


def _require_eligible(include: str, reasons: pl.Series) -> None:
    """Refuse pins that may not be chosen; `reasons`: of every pin, null where it may be."""
    failed = reasons.drop_nulls()
    if len(failed):
        counts = ", ".join(f"{n:,} by {reason}" for reason, n in failed.value_counts(sort=True).iter_rows())
        raise UserError(
            f"include {include}: {len(failed):,} of {len(reasons):,} pinned examples may not be chosen ({counts}); pin others, "
            "or relax where or exclude"
        )
