"""What a report shows of one run, as frames counted in the catalog: small, whatever the size of the pool.

Everything is read in one go on one read-only connection, so that the numbers belong together; a run that is writing meanwhile
waits for it as for any reader.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import polars as pl

from storage.catalog import changes, clusterings, runs
from storage.database import Catalog

STEPS = 50  # points of a cluster's residual curve
CURVES = 100  # the largest clusters, which have curves of their own
BINS = 30
# of the examples with a feature: measure -> (its column, whether it counts something)
MEASURES = {
    "tokens": ("tokens", True),
    "target tokens": ("target_tokens", True),
    "characters": ("chars", True),
    "turns": ("turns", True),
    "loss": ("loss", False),
}


@dataclass(frozen=True)
class Facts:
    """One complete run. `group_id` is the group that shared the budget, `cluster` a cluster, whatever the run selected by.

    `dataset` is null where the input names none.
    """

    run: dict[str, Any]  # its row of `runs`
    clustering_id: str | None  # the run's own, else the newest that covers its pool
    space: dict[str, Any]  # its row of `feature_spaces`, empty where it has none
    stages: pl.DataFrame  # stage, seconds, peak_bytes
    files: pl.DataFrame  # source, url, format, size, rows, digest
    found: int  # examples in the pool, those without a feature included
    datasets: pl.DataFrame  # the columns of by_dataset
    groups: pl.DataFrame  # the columns of coverage_of, and seconds, kept, copied_from
    group_datasets: pl.DataFrame  # group_id, dataset, size, selected
    clusters: pl.DataFrame  # cluster, dataset, size, selected
    match: pl.DataFrame  # the columns of match_of
    sizes: pl.DataFrame  # measure, chosen (null: the whole pool), n, total, mean, median, p90, largest
    histograms: pl.DataFrame  # measure, bin, low, high, dataset, pool, selected
    curves: pl.DataFrame  # group_id, chosen, residual, of the largest groups
    curve: pl.DataFrame  # step (of STEPS), n_groups, p10, median, p90, over all groups
    budgets: pl.DataFrame  # run_id, method, fraction, selected, error_plain, error_weighted: runs on this pool
    rejects: pl.DataFrame  # stage, reason, source, rows, detail, snippet
    exclusions: pl.DataFrame  # reason, examples, share_of_pool: rows with a feature that might not be chosen
    drift: dict[str, Any]  # of `refreshes` and `churn`; empty for a run that had nothing before it
    changes: pl.DataFrame  # change, reason, examples
    since: str | None  # the run that the sources are compared with
    source_changes: pl.DataFrame  # the columns of source_changes since that run
    file_changes: pl.DataFrame  # the columns of file_changes since that run; empty where there is none
    example_changes: dict[str, int]  # new, returned, retired: examples since that run
    moved: pl.DataFrame  # dataset, pool_before, pool, selected_before, selected: those that changed since the run before
    target_name: str | None  # of the target set that the selection stands for
    target: pl.DataFrame  # the columns of target_coverage_of; empty without a target set
    diagnosed: str | None  # the run whose features `comparison` was measured on
    comparison: pl.DataFrame  # the columns of comparison_of
    evaluations: pl.DataFrame  # model, and the columns of evaluation_of: models trained on selections from this pool


def gather(catalog: Catalog, run_id: str) -> Facts:
    """Collect everything that a report shows, except texts.

    Parameters
    ----------
    catalog, run_id
        A complete run.

    Returns
    -------
    Facts
        Frames and counts.

    Raises
    ------
    UserError
        There is no such complete run.
    """
    run = runs.complete_run(catalog, run_id)
    clustering = run["clustering_id"] or clusterings.find_covering(catalog, run_id, run["space_id"])
    since = changes.compared_with(catalog, run_id)
    named = {"run": run_id, "space": run["space_id"]}
    with catalog.reading(VIEWS) as connection:

        def ask(query: str, **values: Any) -> pl.DataFrame:
            known = {**named, "since": since, **values}
            return connection.sql(query, params={name: known[name] for name in re.findall(r"\$(\w+)", query)}).pl()

        def one(query: str) -> dict[str, Any]:
            return next(iter(ask(query).to_dicts()), {})

        _pool(connection, clustering, named)
        drift = one(DRIFT)
        sizes = pl.concat([_sizes(connection, name) for name in MEASURES])
        return Facts(
            run=run,
            clustering_id=clustering,
            space=one("SELECT * FROM feature_spaces WHERE space_id = $space"),
            stages=ask("SELECT stage, seconds, peak_bytes FROM stages WHERE run_id = $run ORDER BY finished_at"),
            files=ask(FILES),
            found=ask("SELECT count(*) AS n FROM report_pool")["n"][0],
            datasets=ask("FROM by_dataset($run) ORDER BY pool DESC, dataset"),
            groups=ask(GROUPS),
            group_datasets=ask(GROUP_DATASETS),
            clusters=ask(CLUSTERS),
            match=ask("FROM match_of($run) ORDER BY cluster NULLS FIRST"),
            sizes=sizes,
            histograms=pl.concat([_histogram(connection, name, sizes) for name in MEASURES]),
            curves=ask(CURVES_OF, steps=STEPS, curves=CURVES),
            curve=ask(CURVE, steps=STEPS),
            budgets=ask(BUDGETS),
            rejects=ask(REJECTS),
            exclusions=ask("FROM exclusions_by_reason_of($run) ORDER BY examples DESC, reason"),
            drift=drift,
            changes=ask(CHANGES, base=drift["base_run"]) if drift.get("base_run") else pl.DataFrame(),
            since=since,
            source_changes=ask("FROM source_changes($since, $run) ORDER BY source"),
            file_changes=pl.DataFrame() if since is None else ask(FILE_CHANGES),
            example_changes=dict(ask(EXAMPLE_CHANGES).iter_rows()) if since else {},
            target_name=one(TARGET).get("name"),
            target=ask("FROM target_coverage_of($run) ORDER BY part"),
            moved=ask(MOVED, base=drift["base_run"]) if drift.get("base_run") else pl.DataFrame(),
            **_compared(connection, run),
        )


def _pool(connection: duckdb.DuckDBPyConnection, clustering: str | None, named: dict[str, Any]) -> None:
    """The pool with all that is known of each example, once: in the connection's own temporary table, which may spill to disk."""
    connection.execute(
        """CREATE TEMP TABLE report_pool AS
        SELECT p.dataset, p.turns, p.chars, r.tokens, r.target_tokens, r.loss, r.status, a.cluster,
            s.example_id IS NOT NULL AS chosen
        FROM pool_of($run) p
        LEFT JOIN (SELECT * FROM feature_rows WHERE space_id = $space) r ON r.segment = p.segment AND r.row = p.row
        LEFT JOIN (SELECT * FROM assignments WHERE clustering_id = $clustering) a ON a.segment = p.segment AND a.row = p.row
        LEFT JOIN (SELECT example_id FROM selections WHERE run_id = $run) s ON s.example_id = p.example_id""",
        {**named, "clustering": clustering},
    )


def _sizes(connection: duckdb.DuckDBPyConnection, measure: str) -> pl.DataFrame:
    column = MEASURES[measure][0]  # ours, never a user's
    return connection.sql(
        f"""SELECT $measure AS measure, chosen, count(x) AS n, sum(x)::DOUBLE AS total, avg(x) AS mean,
            median(x)::DOUBLE AS median, quantile_cont(x, 0.9)::DOUBLE AS p90, min(x)::DOUBLE AS smallest,
            max(x)::DOUBLE AS largest
        FROM (SELECT chosen, {column} AS x FROM report_pool WHERE status = 'ok' AND isfinite({column}::DOUBLE))
        GROUP BY GROUPING SETS ((chosen), ()) ORDER BY chosen NULLS FIRST""",
        params={"measure": measure},
    ).pl()


def _histogram(connection: duckdb.DuckDBPyConnection, measure: str, sizes: pl.DataFrame) -> pl.DataFrame:
    column, whole = MEASURES[measure]
    everything = sizes.filter(pl.col("measure") == measure, pl.col("chosen").is_null(), pl.col("n") > 0)
    lows = edges(everything["smallest"][0], everything["largest"][0], whole=whole) if len(everything) else [0.0, 1.0]
    bins = pl.DataFrame({"bin": range(len(lows) - 1), "low": lows[:-1], "high": lows[1:]})
    connection.register("report_bins", bins.to_arrow())
    return connection.sql(
        f"""SELECT $measure AS measure, b.bin, b.low, b.high, v.dataset, count(*) AS pool,
            count(*) FILTER (v.chosen) AS selected
        FROM (
            SELECT dataset, chosen, {column}::DOUBLE AS x FROM report_pool WHERE status = 'ok' AND isfinite({column}::DOUBLE)
        ) v ASOF JOIN report_bins b ON v.x >= b.low GROUP BY ALL ORDER BY b.bin, v.dataset""",
        params={"measure": measure},
    ).pl()


def edges(smallest: float, largest: float, *, whole: bool, bins: int = BINS) -> list[float]:
    """Return increasing edges of bins [low, high) that hold everything from smallest to largest.

    Whole numbers get whole edges: one bin for each value if there are few, otherwise widths that grow by a constant factor.
    Other numbers get equal widths; the last edge is `largest`, which its bin includes.

    Parameters
    ----------
    smallest, largest
        Of the values.
    whole
        Whether they are whole numbers.
    bins
        Limit of the number of bins.

    Returns
    -------
    list of float
        At most `bins` + 1 edges.
    """
    if not whole:
        width = (largest - smallest) / bins
        return [smallest + n * width for n in range(bins)] + [largest] if width > 0 else [smallest, smallest + 1]
    if largest - smallest < bins:
        return [float(value) for value in range(int(smallest), int(largest) + 2)]
    low, high = math.log(smallest + 1), math.log(largest + 2)
    grown = {round(math.exp(low + (high - low) * n / bins)) - 1 for n in range(bins + 1)}
    return [float(value) for value in sorted(grown | {int(smallest), int(largest) + 1})]


def _compared(connection: duckdb.DuckDBPyConnection, run: dict[str, Any]) -> dict[str, Any]:
    """What `tagcos diagnose` measured on this pool, of the run or of the one that it selects from again; and evaluations."""
    asked: Sequence[str] = [name for name in (run["run_id"], run["reselects"]) if name]
    measured = {row[0] for row in connection.execute("SELECT run_id FROM diagnostics WHERE dimensions = 'reserved'").fetchall()}
    diagnosed = next((name for name in asked if name in measured), None)
    return {
        "diagnosed": diagnosed,
        "comparison": connection.sql(
            "FROM comparison_of($run) ORDER BY fraction, error_fitted, error_plain, method", params={"run": diagnosed}
        ).pl(),
        "evaluations": _evaluations(connection, asked),
    }


def _evaluations(connection: duckdb.DuckDBPyConnection, asked: Sequence[str]) -> pl.DataFrame:
    """The macro evaluation_of for every evaluation of these runs."""
    known = connection.execute(
        "SELECT evaluation_id, model FROM evaluations WHERE run_id IN (SELECT unnest(?)) ORDER BY started_at DESC", [list(asked)]
    ).fetchall()
    found = [
        connection.sql(
            "SELECT $model AS model, * FROM evaluation_of($id) WHERE part IS NULL ORDER BY measure, regime, fraction, value",
            params={"id": identity, "model": model},
        ).pl()
        for identity, model in known
    ]
    return pl.concat(found) if found else pl.DataFrame()


# of the catalog, that the queries here use
VIEWS = """by_dataset, candidate_rows_of, churn, comparison_of, coverage_of, evaluation_of, example_changes,
    exclusions_by_reason_of, file_changes, match_of, pool_of, rejects_by_reason_of, selection_diff, source_changes,
    target_coverage_of"""
FILES = """SELECT r.source, f.url, f.format, f.size, f.rows_done AS rows, f.digest FROM run_files r JOIN files f USING (file_id)
    WHERE r.run_id = $run ORDER BY r.source, f.url"""
GROUPS = """SELECT c.*, k.seconds, k.kept, k.copied_from FROM coverage_of($run) c
    JOIN run_groups k ON k.run_id = $run AND k.group_id = c.group_id ORDER BY c.group_id"""
GROUP_DATASETS = """SELECT c.group_id, e.dataset, count(*) AS size, count(s.example_id) AS selected
    FROM candidate_rows_of($run) c
    JOIN examples e ON e.segment = c.segment AND e.row = c.row
    LEFT JOIN (SELECT example_id FROM selections WHERE run_id = $run) s ON s.example_id = e.example_id
    GROUP BY ALL ORDER BY c.group_id, size DESC, e.dataset"""
CLUSTERS = """SELECT cluster, dataset, count(*) AS size, count(*) FILTER (chosen) AS selected FROM report_pool
    WHERE cluster IS NOT NULL GROUP BY ALL ORDER BY cluster, size DESC, dataset"""
# the residual after each fiftieth of a group's budget; a group that chose fewer has the same point more than once
_CURVE = """FROM run_groups k CROSS JOIN range(1, $steps + 1) g(step)
    JOIN selections s ON s.run_id = k.run_id AND s.group_id = k.group_id AND s.rank = ceil(g.step * k.selected / $steps) - 1
    WHERE k.run_id = $run AND s.residual_after IS NOT NULL"""
CURVES_OF = f"""SELECT DISTINCT s.group_id, s.rank + 1 AS chosen, s.residual_after AS residual {_CURVE}
    AND k.group_id IN (SELECT group_id FROM run_groups WHERE run_id = $run ORDER BY size DESC, group_id LIMIT $curves)
    ORDER BY s.group_id, chosen"""
CURVE = f"""SELECT g.step::INTEGER AS step, count(*) AS n_groups, quantile_cont(s.residual_after, 0.1) AS p10,
    median(s.residual_after) AS median, quantile_cont(s.residual_after, 0.9) AS p90 {_CURVE} GROUP BY g.step ORDER BY g.step"""
BUDGETS = """WITH read AS (SELECT run_id, list(file_id ORDER BY file_id) AS files FROM run_files GROUP BY run_id),
        measured AS (
            SELECT d.*, f.files FROM diagnostics d JOIN runs r USING (run_id) JOIN read f USING (run_id)
            WHERE d.dimensions = 'seen' AND d.cluster IS NULL AND r.status = 'complete' AND r.space_id = $space
        )
    SELECT m.run_id, m.method, m.fraction, m.selected, m.error_plain, m.error_weighted FROM measured m
    JOIN (FROM measured WHERE run_id = $run) own ON m.files = own.files AND m.size = own.size
    ORDER BY m.method, m.fraction, m.run_id"""
TARGET = "SELECT t.name FROM runs r JOIN target_sets t USING (target_id) WHERE r.run_id = $run"
REJECTS = "SELECT * RENAME (for_example AS detail) FROM rejects_by_reason_of($run) ORDER BY rows DESC, stage, reason, source"
DRIFT = """SELECT f.*, c.earlier, c.left_it, c.kept_by_sticky, c.churn, c.churn_without_sticky FROM refreshes f
    LEFT JOIN churn c USING (run_id) WHERE f.run_id = $run"""
CHANGES = """SELECT change, reason, count(*) AS examples FROM selection_diff($base, $run)
    GROUP BY ALL ORDER BY change, examples DESC, reason"""
FILE_CHANGES = "FROM file_changes($since, $run) ORDER BY retired DESC, url"
EXAMPLE_CHANGES = "SELECT change, count(DISTINCT example_id) AS n FROM example_changes($since, $run) GROUP BY change"
MOVED = """SELECT coalesce(a.dataset, b.dataset) AS dataset, coalesce(a.pool, 0) AS pool_before, coalesce(b.pool, 0) AS pool,
        coalesce(a.selected, 0) AS selected_before, coalesce(b.selected, 0) AS selected
    FROM by_dataset($base) a FULL JOIN by_dataset($run) b ON a.dataset IS NOT DISTINCT FROM b.dataset
    WHERE a.pool IS DISTINCT FROM b.pool OR a.selected IS DISTINCT FROM b.selected
    ORDER BY abs(coalesce(a.pool, 0) - coalesce(b.pool, 0)) + abs(coalesce(a.selected, 0) - coalesce(b.selected, 0)) DESC, 1"""
