"""Predicates of users: one DuckDB expression over named columns, parsed by DuckDB and checked node by node.

An expression may hold columns, constants, comparisons, AND, OR, NOT, BETWEEN, IN, CASE, casts, and scalar functions whose result
depends on their arguments alone. Statements, subqueries, aggregates, windows, table functions and functions with side effects are
refused, so that a predicate reads nothing but the row that it is asked about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from storage.connections import NO_EXTENSIONS
from storage.interrupts import interruptible
from storage.tables import quoted_name
from tagcos_stream.types import UserError

CLASSES = frozenset(
    {"COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "BETWEEN", "CASE", "CAST", "TYPE", "FUNCTION"}
)


@dataclass(frozen=True)
class Predicate:
    """A checked predicate."""

    text: str  # as the user wrote it
    columns: frozenset[str]  # that it reads
    conditions: tuple[str, ...]  # joined by AND they are the predicate; each is SQL as DuckDB writes it

    @property
    def keeps_all(self) -> bool:
        """Whether it is the constant `true`."""
        return self.conditions == ("true",)


def parse(text: str, columns: Mapping[str, str], setting: str = "where") -> Predicate:
    """Parse and check a predicate.

    Parameters
    ----------
    text
        One expression in DuckDB's SQL.
    columns
        DuckDB type of every column that it may name.
    setting
        Name of the setting, for messages.

    Returns
    -------
    Predicate
        With its conditions, of which all must hold.

    Raises
    ------
    UserError
        It is not one expression, names an unknown column, uses what is not allowed, or is not a condition.
    """

    def refuse(why: str) -> UserError:
        return UserError(f"{setting} {text!r}: {why}")

    if not text.strip():
        raise refuse("it is empty: leave it out, or say `true` for every row")
    with interruptible(), duckdb.connect(config={**NO_EXTENSIONS, "enable_external_access": False}) as connection:
        # the parentheses and the line break: neither a comment nor a comma nor a clause can end the expression early
        before = f"SELECT (\n{text}\n"
        parsed = json.loads(_one(connection, "SELECT json_serialize_sql(?)", [f"{before})"]))
        if parsed["error"]:
            early = int(parsed.get("position") or 0) >= len(before.encode())  # at our parenthesis, which the user did not write
            why = "it is not complete, or has a bracket too many" if early else parsed.get("error_message", "unknown error")
            raise refuse(f"not an expression that DuckDB can parse: {why}")
        node = parsed["statements"][0]["node"]
        expressions = node.get("select_list", [])
        bare = node["type"] == "SELECT_NODE" and node["from_table"]["type"] == "EMPTY" and not node["modifiers"]
        clauses = [node.get(name) for name in ("where_clause", "having", "qualify", "sample")]
        if len(parsed["statements"]) != 1 or len(expressions) != 1 or not bare or any(clauses) or node["group_expressions"]:
            raise refuse("give one expression, such as \"loss < 4 AND dataset <> 'forum'\"")
        read = set()
        for part in _nodes(expressions[0]):
            if part["class"] not in CLASSES:
                raise refuse(
                    f"{part['class'].lower()} is not allowed: a predicate is computed from one row alone, by comparisons, AND, "
                    "OR, NOT, BETWEEN, IN, CASE and functions of its columns"
                )
            if part["class"] == "COLUMN_REF":
                name = ".".join(part["column_names"])
                known = next((column for column in columns if column.lower() == name.lower()), None)
                if known is None:
                    raise refuse(f"there is no column {name}; choose from {', '.join(columns)}")
                read.add(known)
            if part["class"] == "FUNCTION" and not _allowed(connection, part["function_name"]):
                raise refuse(
                    f"function {part['function_name']} is not allowed: use functions of a row's values, such as abs or log"
                )
        connection.execute(f"CREATE TABLE signals ({', '.join(f'{quoted_name(name)} {kind}' for name, kind in columns.items())})")
        conditions = tuple(_text(connection, part, parsed) for part in _conjuncts(expressions[0]))
        try:
            (kind,) = {str(connection.sql(f"SELECT {condition} FROM signals").types[0]) for condition in conditions} or {""}
        except (duckdb.Error, ValueError) as error:
            raise refuse(str(error).strip().splitlines()[0]) from error
        if kind != "BOOLEAN":
            raise refuse(f"it gives {kind}, not true or false: compare it with something")
    return Predicate(text, frozenset(read), conditions)


def _one(connection: duckdb.DuckDBPyConnection, query: str, parameters: list[Any]) -> Any:
    return connection.execute(query, parameters).fetchall()[0][0]


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """Every expression node below and including this one."""
    if isinstance(node, dict):
        if "class" in node:
            yield node
        for value in node.values():
            yield from _nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _nodes(value)


def _conjuncts(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if node["class"] == "CONJUNCTION" and node["type"] == "CONJUNCTION_AND":
        for child in node["children"]:
            yield from _conjuncts(child)
    else:
        yield node


def _text(connection: duckdb.DuckDBPyConnection, node: dict[str, Any], parsed: dict[str, Any]) -> str:
    """The node as SQL, without the SELECT around it."""
    statement = parsed["statements"][0]
    alone = {**parsed, "statements": [{**statement, "node": {**statement["node"], "select_list": [{**node, "alias": ""}]}}]}
    written = str(_one(connection, "SELECT json_deserialize_sql(?::JSON)", [json.dumps(alone)]))
    return written.removeprefix("SELECT ").strip()


def _allowed(connection: duckdb.DuckDBPyConnection, name: str) -> bool:
    found = connection.execute(
        """SELECT bool_and(function_type = 'scalar' AND stability = 'CONSISTENT') FROM duckdb_functions()
        WHERE function_name = lower(?)""",
        [name],
    ).fetchall()
    return bool(found[0][0])
