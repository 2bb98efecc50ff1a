"""docs/store.md: every query runs and answers, every view and macro has one, every table of the layout exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from storage.catalog import runs
from storage.root import Root
from storage.views import views_text
from tests.storage import tiny

PAGE = Path(__file__).parents[2] / "docs" / "store.md"
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
# their queries are asked by tests/flows/test_target.py, test_refresh.py and test_evaluate.py
OTHERS = "\n".join(PAGE.with_name(f"{name}.md").read_text() for name in ("targets", "refresh", "evaluation"))


def test_docs__name_every_view_and_macro() -> None:
    made = re.findall(r"CREATE OR REPLACE (?:VIEW|MACRO) (\w+)", views_text())
    assert len(made) >= 13
    shown = "\n".join([*QUERIES, *re.findall(r"```sql\n(.*?)```", OTHERS, flags=re.DOTALL)])
    assert [name for name in made if not re.search(rf"\b{name}\b", shown)] == []


@pytest.mark.process  # some seconds
def test_docs__every_query_answers(filled: Root) -> None:
    first = runs.list_runs(filled.catalog)["run_id"][0]
    second = tiny.run(filled, examples=340).run_id
    for query in QUERIES:
        examples = filled.files.place("examples/*/*.parquet")
        named = query.replace("RUN_A", first).replace("RUN_B", second).replace("EXAMPLES", examples)
        answer = filled.catalog.ask(named, examples=examples)
        assert len(answer) > 0, query


@pytest.mark.parametrize("word", ["layout", "blake2b-128", "crc32c", "catalog-snapshot.duckdb", "tagcos check", "tagcos gc"])
def test_docs__say_what_the_issue_asks_for(word: str) -> None:
    assert word in PAGE.read_text() or word in PAGE.read_text().lower()
