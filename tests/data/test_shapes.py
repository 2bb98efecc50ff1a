"""Every line of the tables in docs/formats.md."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tagcos_stream.data.containers.base import Limits
from tagcos_stream.data.reasons import REASONS, RowError
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.shapes import SHAPE_NAMES, convert, recognise
from tagcos_stream.data.source_spec import OPTION_FIELDS, SPEC_FIELDS
from tagcos_stream.data.turns import ROLE_WORDS, TurnOptions, read_turns
from tests import naive
from tests.data.tools import read, write

DOCS = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")


def _table(header: str) -> list[list[str]]:
    lines = DOCS[DOCS.index(header) :].splitlines()[2:]
    end = next(i for i, line in enumerate(lines) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:end]]


SHAPES = _table("| shape | row | messages |")


@pytest.mark.parametrize(("shape", "row", "messages"), SHAPES)
def test_shapes__documented_row_gives_documented_messages(tmp_path: Path, shape: str, row: str, messages: str) -> None:
    record = json.loads(row.strip("`"))
    assert recognise(record) == shape.strip("`")
    got = read(write(tmp_path / "a.jsonl", [record]))
    shown = []
    for m in got.occurrences["messages"].to_list()[0]:
        train = "" if m["train"] is None else "* [" + ",".join(f"{r['begin']}-{r['end']}" for r in m["train"]) + "]"
        beside = "".join(f" {{{k}: {m[k]}}}" for k in ("reasoning", "tool_calls", "tool_call_id") if m[k] is not None)
        shown.append(f"{m['role']}{train}{beside}: {m['content']}".replace("\n", "\\n"))
    assert shown == re.findall(r"`([^`]*)`", messages)
    # the shape by name gives the same, and so does the exact way
    options = RowOptions(shape=shape.strip("`"))
    assert read(write(tmp_path / "a.jsonl", [record]), options=options).occurrences.equals(got.occurrences)
    tools = json.loads(record["tools"]) if isinstance(record.get("tools"), str) else record.get("tools")
    given = (got.occurrences["messages"].to_list()[0], tools, record.get("chat_template_kwargs"))
    assert got.occurrences["example_id"].to_list() == [naive.example_id(*given)]


def test_docs__name_every_shape_reason_limit_and_field() -> None:
    assert {shape.strip("`") for shape, *_ in SHAPES} | {"oasst_messages"} == set(SHAPE_NAMES)
    assert {r[0].strip("`"): r[1] for r in _table("| reason | meaning |")} == REASONS
    options = {name for meaning in REASONS.values() for name in re.findall(r"`(\w+)", meaning)} - {"label"}  # a field of the row
    assert options <= SPEC_FIELDS | OPTION_FIELDS
    limits = {r[0].strip("`"): int(r[1].replace(",", "")) for r in _table("| limit | value |")}
    assert limits == {f.name: getattr(Limits(), f.name) for f in fields(Limits)}
    assert {r[0].strip("`") for r in _table("| field of a source |")} == SPEC_FIELDS | OPTION_FIELDS


def test_shapes__equal_naive_on_the_common_four(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": " a\t"},
                {"role": "assistant", "content": "b\n\n"},
            ]
        },
        {"conversations": [{"from": "human", "value": "é"}, {"from": "gpt", "value": "漢字"}, {"from": "human", "value": "c"}]},
        {"instruction": "a", "input": "b", "output": "c"},
        {"instruction": "a", "input": "", "output": "c"},
        {"instruction": "a", "output": "c"},
        {"prompt": "a", "completion": "b"},
    ]
    got = read(write(tmp_path / "a.jsonl", rows * 3))
    assert got.texts == [naive.plain_conversation(r) for r in rows] * 3


def test_round_trip__messages_keep_their_ids(tmp_path: Path) -> None:
    rows = [json.loads(row.strip("`")) for _, row, _ in SHAPES]
    first = read(write(tmp_path / "a.jsonl", rows)).occurrences
    out = first.select("messages", "tools", "dataset", "source_id", chat_template_kwargs="template_kwargs").with_columns(
        weight=0.5, cluster=3, rank=1
    )
    out.write_parquet(tmp_path / "b.parquet")
    out.write_ndjson(tmp_path / "b.jsonl")
    out.with_columns(pl.Series("messages", [json.dumps(m) for m in out["messages"].to_list()])).write_csv(tmp_path / "b.csv")
    for name in ("b.parquet", "b.jsonl", "b.csv"):
        again = read(tmp_path / name).occurrences
        assert again["example_id"].to_list() == first["example_id"].to_list()
        assert again["messages"].to_list() == first["messages"].to_list()
        assert again["dataset"].to_list() == first["dataset"].to_list()


def _reason(record: object, **options: object) -> str:
    try:
        convert(record, RowOptions(**options))  # type: ignore[arg-type]
    except RowError as e:
        return e.reason
    return "fine"


def _turns(*roles: str) -> dict:
    return {"messages": [{"role": r, "content": "x"} for r in roles]}


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ("user assistant", "fine"),
        ("system user assistant user", "fine"),
        ("user assistant tool tool assistant user assistant", "fine"),
        ("user assistant tool user assistant", "fine"),
        ("system system user assistant", "role_order"),
        ("user system assistant", "role_order"),
        ("user user assistant", "role_order"),
        ("user assistant assistant", "role_order"),
        ("user tool assistant", "role_order"),
        ("assistant user assistant", "role_order"),
        ("system assistant", "role_order"),
        ("user", "no_assistant"),
    ],
)
def test_order__of_turns(roles: str, reason: str) -> None:
    assert _reason(_turns(*roles.split())) == reason
    if reason == "role_order":
        assert _reason(_turns(*roles.split()), check_order=False) == "fine"


def test_options__are_honoured() -> None:
    row = _turns("system", "user", "assistant")
    [(messages, _, _)] = convert(row, RowOptions(drop_system=True, train_roles=("user",)))
    assert messages == [
        {"role": "user", "content": "x", "train": [{"begin": 0, "end": 1}]},
        {"role": "assistant", "content": "x", "train": []},
    ]
    assert _reason(row, train_roles=()) == "nothing_trained"
    assert _reason(row, max_chars=2) == "too_long"
    assert _reason(row, max_chars=3) == "fine"
    mapped = {"ask": "a", "tell": "b", "prompt": "not this"}
    [(messages, _, _)] = convert(mapped, RowOptions(columns={"prompt": "ask", "completion": "tell"}))
    assert [m["content"] for m in messages] == ["a", "b"]
    assert _reason(mapped, columns={"prompt": "nothing", "completion": "tell"}) == "missing_column"
    odd = {"log": [{"who": "pirate", "says": "Arr"}, {"who": "parrot", "says": "Aye"}]}
    options = RowOptions(
        columns={"messages": "log", "role": "who", "content": "says"}, roles={"pirate": "user", "parrot": "assistant"}
    )
    [(messages, _, _)] = convert(odd, options)
    assert [(m["role"], m["content"]) for m in messages] == [("user", "Arr"), ("assistant", "Aye")]


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"train": [{"begin": 0, "end": 2}]}, "fine"),
        ({"train": [{"begin": 1, "end": 9}]}, "wrong_type"),
        ({"train": [{"begin": -1, "end": 1}]}, "wrong_type"),
        ({"train": "yes"}, "wrong_type"),
        ({"train": [5]}, "wrong_type"),
        ({"weight": 0.5}, "unsupported_weight"),
        ({"weight": 1}, "fine"),
        ({"weight": 0}, "nothing_trained"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 99, "train": True}]}, "fine"),
        ({"train_detail": []}, "nothing_trained"),
        ({"train_detail": 7}, "wrong_type"),
        ({"content": [{"type": "image_url"}]}, "unsupported_content"),
        ({"name": 5}, "wrong_type"),
        ({"tool_calls": [{"function": {}}]}, "wrong_type"),
        ({"content": None}, "wrong_type"),
        ({"role": 5}, "wrong_type"),
    ],
)
def test_turns__odd_fields(turn: dict, reason: str) -> None:
    assert _reason({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "ok"} | turn]}) == reason


@pytest.mark.parametrize(
    "options",
    [
        TurnOptions(),
        TurnOptions(roles={"x": "user", "bot": "tool_call", "user": "assistant"}),
        TurnOptions(train_roles=("assistant", "user")),
        TurnOptions(train_roles=()),
        TurnOptions(keys={"content": "role"}),
    ],
)
def test_turns__of_a_role_and_a_text_are_read_like_others(options: TurnOptions) -> None:
    def outcome(turn: dict[str, Any]) -> object:
        try:
            return read_turns([turn], options)
        except RowError as e:
            return e.args

    for word in (*ROLE_WORDS, " User ", "x", "odd", "", None, 1):
        for content in ("a", "", " ", '{"name": "f", "arguments": {}}', ["a"], None, math.nan):
            turn = {"role": word, "content": content}
            assert outcome(turn) == outcome(turn | {"nothing": None})
