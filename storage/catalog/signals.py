"""Signals of a run's pool in the catalog, the rows that satisfy a predicate, and the rows that a run did not choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb
import polars as pl

from storage.database import Catalog
from storage.predicate import Predicate
from storage.tables import insert, quoted, quoted_name, replace_of_run, require
from tagcos_stream.types import UserError

# columns of the macro signals_of that a predicate may name, with their DuckDB types
COLUMNS = {
    "example_id": "VARCHAR",
    "dataset": "VARCHAR",
    "turns": "INTEGER",
    "chars": "BIGINT",
    "tokens": "INTEGER",
    "target_tokens": "INTEGER",
    "loss": "DOUBLE",
    "norm": "DOUBLE",
    "ifd": "DOUBLE",
    "repeated": "BIGINT",
    "cluster": "INTEGER",
    "distance": "FLOAT",
    "pool_alignment": "DOUBLE",
    "cluster_alignment": "DOUBLE",
    "target_alignment": "DOUBLE",
    "alike": "BIGINT",
}
# those that are computed from features, for a run whose conditions name one
ALIGNMENTS = ("pool_alignment", "cluster_alignment", "target_alignment", "alike")


def score_names(catalog: Catalog, run_id: str) -> list[str]:
    """Return the numeric columns that the sources of a run name as scores, in lower case, sorted."""
    return catalog.read(
        """SELECT DISTINCT lower(unnest(f.scores)) AS name FROM run_files r JOIN files f USING (file_id) WHERE r.run_id = ?
        ORDER BY name""",
        [run_id],
    )["name"].to_list()


def scores_without_value(catalog: Catalog, run_id: str) -> list[str]:
    """Return those of `score_names` that no row of the run's sources has a value of."""
    if not (names := score_names(catalog, run_id)):
        return []
    found = catalog.read("SELECT DISTINCT unnest(map_keys(scores)) AS name FROM scores_of(?)", [run_id])["name"].to_list()
    return [name for name in names if name not in found]


def columns(scores: Sequence[str]) -> dict[str, str]:
    """Return the columns that a predicate may name, with their DuckDB types: COLUMNS and these scores."""
    return COLUMNS | dict.fromkeys(scores, "DOUBLE")


def judge(catalog: Catalog, run_id: str, predicates: Mapping[str, Predicate]) -> pl.DataFrame:
    """Evaluate predicates on the signals of a run's pool.

    Parameters
    ----------
    catalog
        Where the run is recorded, with its feature space and clustering.
    run_id
        The run.
    predicates
        Checked predicates by name.

    Returns
    -------
    pl.DataFrame
        segment, row, and for each predicate a column of its name: null where it holds, else the first condition that does not
        hold. A condition on a missing value does not hold.

    Raises
    ------
    UserError
        A predicate fails on some value, such as a text that is compared with a number.
    """
    failed = [
        "CASE "
        + " ".join(
            f"WHEN ({condition}) IS NULL THEN {quoted(shown(condition) + ': no value')} "
            f"WHEN NOT ({condition}) THEN {quoted(shown(condition))}"
            for condition in predicate.conditions
        )
        + f" END AS {quoted_name(name)}"
        for name, predicate in predicates.items()
    ]
    own = {name for predicate in predicates.values() for name in predicate.columns - set(COLUMNS)}
    named = "".join(f", scores[{quoted(name.lower())}] AS {quoted_name(name)}" for name in sorted(own))
    try:
        return catalog.read(f"SELECT segment, row, {', '.join(failed)} FROM (SELECT *{named} FROM signals_of(?))", [run_id])
    except duckdb.Error as error:
        texts = " or ".join(repr(predicate.text) for predicate in predicates.values())
        raise UserError(f"{texts} cannot be computed: {str(error).strip().splitlines()[0]}") from error


def shown(condition: str) -> str:
    """Return a condition without the parentheses that DuckDB writes around it.

    Parameters
    ----------
    condition
        Of `Predicate.conditions`.

    Returns
    -------
    str
        SQL.
    """
    inner = condition[1:-1]
    depth = 0
    for letter in inner:
        depth += (letter == "(") - (letter == ")")
        if depth < 0:
            return condition
    return inner if condition.startswith("(") and condition.endswith(")") else condition


def record_exclusions(catalog: Catalog, run_id: str, excluded: pl.DataFrame) -> None:
    """Record the rows that a run does not choose from, in place of an earlier list.

    Parameters
    ----------
    catalog
        Where the run is recorded.
    run_id
        The run.
    excluded
        segment, row, reason.
    """
    _replace(catalog, run_id, "exclusions", require(excluded, ["segment", "row", "reason"]))


def record_alignments(catalog: Catalog, run_id: str, found: pl.DataFrame) -> None:
    """Record the signals that are computed from features (segment, row, and the columns ALIGNMENTS), in place of earlier ones."""
    _replace(catalog, run_id, "alignments", require(found, ["segment", "row", *ALIGNMENTS]))


def exclusions(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """Return segment and row of the rows that a run might not choose from."""
    return catalog.read("SELECT segment, row FROM exclusions WHERE run_id = ?", [run_id])


def excluded_ids(catalog: Catalog, run_id: str, reason: str) -> set[str]:
    """Return the examples that a run might not choose from for one reason.

    Parameters
    ----------
    catalog, run_id
        The run.
    reason
        As it was recorded.

    Returns
    -------
    set of str
        Their ids.
    """
    query = "SELECT example_id FROM exclusions JOIN examples USING (segment, row) WHERE run_id = ? AND reason = ?"
    return set(catalog.read(query, [run_id, reason])["example_id"])


def record_pins(catalog: Catalog, run_id: str, pinned: pl.DataFrame) -> None:
    """Record the rows that a run has to choose (segment, row), in place of an earlier list."""
    _replace(catalog, run_id, "pins", require(pinned, ["segment", "row"]))


def _replace(catalog: Catalog, run_id: str, table: str, rows: pl.DataFrame) -> None:
    """Record rows of a run in one of this module's tables, in place of those that it had."""
    with catalog.transaction() as connection:
        replace_of_run(connection, table, run_id, rows)


def pins(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """Return segment and row of the rows that a run had to choose."""
    return catalog.read("SELECT segment, row FROM pins WHERE run_id = ?", [run_id])


def pinned_ids(catalog: Catalog, run_id: str) -> set[str]:
    """Return the examples that a run had to choose.

    Parameters
    ----------
    catalog, run_id
        The run.

    Returns
    -------
    set of str
        Their ids.
    """
    query = "SELECT example_id FROM pins JOIN examples USING (segment, row) WHERE run_id = ?"
    return set(catalog.read(query, [run_id])["example_id"])


def without_answer_key(catalog: Catalog, run_id: str) -> pl.DataFrame:
    """Return segment and row, in this order, of the examples of a run's pool whose answers are not hashed."""
    return catalog.read(
        "SELECT segment, row FROM pool_of(?) ANTI JOIN answer_keys USING (segment, row) ORDER BY segment, row", [run_id]
    )


def add_answer_keys(catalog: Catalog, keys: pl.DataFrame) -> None:
    """Record the hashes of answers: segment, row, key (uint64, 0 for an answer without a word)."""
    with catalog.transaction() as connection:
        insert(connection, "answer_keys", require(keys, ["segment", "row", "key"]))


def without_answer_loss(catalog: Catalog, run_id: str, space_id: str) -> pl.DataFrame:
    """List the examples of a run's pool that have a feature but no loss behind an empty prompt.

    Parameters
    ----------
    catalog, run_id
        The run.
    space_id
        Its feature space.

    Returns
    -------
    pl.DataFrame
        segment, row, in this order.
    """
    return catalog.read(
        """SELECT p.segment, p.row FROM pool_of($run) p
        JOIN feature_rows r ON r.space_id = $space AND r.segment = p.segment AND r.row = p.row AND r.status = 'ok'
        LEFT JOIN answer_losses l ON l.space_id = $space AND l.segment = p.segment AND l.row = p.row
        WHERE l.row IS NULL ORDER BY p.segment, p.row""",
        {"run": run_id, "space": space_id},
    )


def add_answer_losses(catalog: Catalog, space_ids: Sequence[str], losses: pl.DataFrame) -> None:
    """Record losses behind an empty prompt.

    Parameters
    ----------
    catalog
        Where they are recorded.
    space_ids
        Feature spaces of one adapter.
    losses
        segment, row, loss (nats, or null where there is none) of rows that have none in the first of the spaces.
    """
    rows = require(losses, ["segment", "row", "loss"])
    with catalog.transaction() as connection:
        connection.register("computed", rows.to_arrow())
        connection.execute(
            """INSERT INTO answer_losses BY NAME SELECT s.space_id, c.segment, c.row, c.loss
            FROM (SELECT unnest(?::VARCHAR[]) AS space_id) s CROSS JOIN computed c
            LEFT JOIN answer_losses l ON l.space_id = s.space_id AND l.segment = c.segment AND l.row = c.row
            WHERE l.row IS NULL""",
            [list(space_ids)],
        )
