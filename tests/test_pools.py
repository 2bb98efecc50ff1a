"""The pools of the experiments: drawn as stated, the same by the same seed, and bad in the ways that are named."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl

from tests.benchmarks.pools import CANNED, WAYS, draw, shares, spoil


def conversations(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": f"The number {n} in five words"},
            ]
        }
        for n in range(count)
    ]


def answer(row: dict[str, Any]) -> str:
    return str(row["messages"][-1]["content"])


def test_draw__is_in_proportion_seeded_and_in_order() -> None:
    assert shares({"a": 900, "b": 100}, 50) == {"a": 45, "b": 5}
    frame = pl.DataFrame({"n": range(200)})
    drawn = draw(frame, "a", 40, seed=0)["n"].to_list()
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 40
    assert drawn == draw(frame, "a", 40, seed=0)["n"].to_list()
    assert drawn != draw(frame, "b", 40, seed=0)["n"].to_list()
    assert len(draw(frame, "a", 500, seed=0)) == 200


def test_spoil__a_share_of_the_answers_in_the_ways_that_are_named() -> None:
    rows = conversations(100)
    made = spoil(rows, "a", 0.3, seed=0)
    assert made == spoil(rows, "a", 0.3, seed=0)
    assert Counter(row["made_bad"] for row in made) == {None: 70} | dict.fromkeys(WAYS, 10)
    answers = set(map(answer, rows))
    for before, after in zip(rows, made, strict=True):
        assert after["messages"][:-1] == before["messages"][:-1]
        match after["made_bad"]:
            case None:
                assert answer(after) == answer(before)
            case "exchanged":
                assert answer(after) in answers - {answer(before)}
            case "canned":
                assert answer(after) in CANNED
            case "shuffled":
                assert sorted(answer(after).split()) == sorted(answer(before).split())
