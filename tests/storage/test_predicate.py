"""Predicates of users: what they may say, and what is refused with a reason."""

from __future__ import annotations

import pytest

from storage import predicate
from storage.catalog.signals import shown
from tagcos_stream.types import UserError

COLUMNS = {"loss": "DOUBLE", "repeated": "BIGINT", "dataset": "VARCHAR"}


def test_predicate__conditions_joined_by_and_are_told_apart() -> None:
    found = predicate.parse("loss < 4 AND (repeated<3 AND dataset IN ('a', 'b''c')) and not (loss > 1 or isnan(loss))", COLUMNS)
    assert found.columns == {"loss", "repeated", "dataset"}
    assert [shown(condition) for condition in found.conditions] == [
        "loss < 4",
        "repeated < 3",
        "dataset IN ('a', 'b''c')",
        "NOT ((loss > 1) OR isnan(loss))",
    ]
    assert shown("(a < 1) OR (b < 2)") == "(a < 1) OR (b < 2)"


@pytest.mark.parametrize(
    "text",
    [
        "true", "LOSS < 3", '"loss" BETWEEN 1 AND 2', "loss::INTEGER = 3", "coalesce(loss, 0) < ln(repeated) + abs(loss)",
        "dataset ILIKE 'a%' OR regexp_matches(dataset, 'x')", "CASE WHEN loss > 1 THEN true ELSE false END", "loss IS NOT NULL",
        "loss < 4 -- and nothing else",
    ],
)  # fmt: skip
def test_predicate__takes_any_condition_on_a_row(text: str) -> None:
    assert predicate.parse(text, COLUMNS).keeps_all == (text == "true")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ifd < 1", "there is no column ifd; choose from loss, repeated, dataset"),
        ("signals.loss < 1", "there is no column signals.loss"),
        ("loss", "it gives DOUBLE, not true or false"),
        ("dataset > 3", "Cannot compare"),
        ("", "it is empty"),
        ("(loss < 1", "DuckDB can parse: it is not complete, or has a bracket too many"),
        ("loss <", "DuckDB can parse: it is not complete, or has a bracket too many"),
        ("loss ) < 1", "or has a bracket too many"),
        ("loss < 1; DROP TABLE runs", "can parse"),
        ("1) FROM runs -- ", "can parse"),
        ("true) FROM runs WHERE (true", "give one expression"),
        ("true), (true", "give one expression"),
        ("loss IN (SELECT 1)", "subquery is not allowed"),
        ("EXISTS (FROM read_csv('/etc/passwd'))", "subquery is not allowed"),
        ("read_text('/etc/passwd') = ''", "function read_text is not allowed"),
        ("getenv('HOME') = ''", "function getenv is not allowed"),
        ("current_setting('threads') > 1", "function current_setting is not allowed"),
        ("random() < loss", "function random is not allowed"),
        ("sleep_ms(1000) IS NULL", "function sleep_ms is not allowed"),
        ("loss > avg(loss)", "function avg is not allowed"),
        ("row_number() OVER () < 3", "window is not allowed"),
        ("list_contains(list_filter([1], lambda x: x > 1), 1)", "lambda is not allowed"),
        ("loss < ?", "parameter is not allowed"),
        ("*", "star is not allowed"),
    ],
)  # fmt: skip
def test_predicate__refuses_all_else_and_says_why(text: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        predicate.parse(text, COLUMNS, "where")
    assert str(caught.value).startswith(f"where {text!r}: ")
    assert why in str(caught.value)
