"""The package's views and macros, in place of those that a catalog's file has."""

from __future__ import annotations

import re

import duckdb
import pytest

from storage.root import Root
from storage.views import create, definitions, named_in, views_text


def test_definitions__are_all_that_the_catalog_has(filled: Root) -> None:
    made = [s.query for s in duckdb.connect().extract_statements(views_text()) if "CREATE OR REPLACE" in s.query]
    names = [found[1] for text in made if (found := re.search(r"CREATE OR REPLACE (?:VIEW|MACRO) (\w+)", text))]
    assert list(definitions()) == names
    with duckdb.connect(str(filled.catalog_path), read_only=True) as connection:
        for name in definitions():
            connection.execute(create(name, temporary=True))
        query = "SELECT {0} FROM {1} WHERE database_name = ? AND NOT internal ORDER BY ALL"
        for columns, table in (("view_name, sql", "duckdb_views()"), ("function_name, macro_definition", "duckdb_functions()")):
            ours, stored = (
                connection.execute(query.format(columns, table), [database]).fetchall() for database in ("temp", "catalog")
            )
            assert [(name, text.replace("TEMPORARY ", "").replace("TEMP ", "")) for name, text in ours] == stored


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("SELECT 1 FROM runs", []),
        ("FROM stands_in_wordy", []),
        ('FROM "Names"', ["named_runs", "names"]),
        ("FROM LATEST_RUN", ["named_runs", "names", "latest_of", "latest_run"]),
        ("FROM latest_selection", ["named_runs", "names", "latest_of", "latest_run", "selection_of", "latest_selection"]),
    ],
)
def test_named_in__has_what_the_named_ones_use(query: str, names: list[str]) -> None:
    assert named_in(query) == names
