"""Hostile input: whatever the bytes, every row is an occurrence or a reject, and the fast way gives what the exact way gives."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagcos_stream.types import UserError
from tests.data.mutations import check_file, check_lines, mutated, mutated_lines, plain_rows
from tests.data.tools import FILE_KINDS, chat, make_file, read, write, write_bytes


@pytest.mark.process
def test_fuzz__ten_thousand_mutated_rows(tmp_path: Path) -> None:
    lines = list(mutated_lines(10_000, seed=1))
    check_lines(tmp_path / "a.jsonl", lines)
    check_lines(tmp_path / "a.jsonl", lines, block_rows=5)  # small blocks, so that many are clean


@pytest.mark.process  # some seconds
def test_fuzz__one_bad_row_among_good_ones(tmp_path: Path) -> None:
    good = [json.dumps(chat(i)).encode() for i in range(3)]
    for i, line in enumerate(mutated_lines(400, seed=2)):
        check_lines(tmp_path / f"{i % 2}.jsonl".replace("0", "a").replace("1", "a"), [good[0], line, good[1], good[2]])


@pytest.mark.process  # some seconds
def test_fuzz__plain_rows_in_columns_give_what_they_give_one_by_one(tmp_path: Path) -> None:
    lines = [json.dumps(row).encode() for row in plain_rows(800, seed=3)]
    read = sum(check_lines(tmp_path / "a.jsonl", lines[i : i + 4]).occurrences.height for i in range(0, len(lines), 4))
    assert read > 400


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["user", "assistant", "gpt", " ", ""]),
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "text", "x"]), v, max_size=3)
    ),
    max_leaves=6,
)
turns = st.fixed_dictionaries(
    {},
    optional={k: st.sampled_from(["user", "assistant", "human", "gpt", "system", "tool"]) | values for k in ("role", "from")}
    | {k: st.text(max_size=3) | values for k in ("content", "value")}
    | {k: values for k in ("name", "train", "weight", "train_detail", "tool_calls")},
)
FIELDS = (
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "question",
    "answer",
    "system",
    "history",
    "tools",
    "id",
    "dataset",
    "context",
    "response",
    "message_tree_id",
    "query",
    "source_id",
)
records = st.fixed_dictionaries(
    {},
    optional={k: st.lists(turns, max_size=4) | values for k in ("messages", "conversations")}
    | {k: st.text(max_size=4) | st.text(max_size=4) | values for k in FIELDS[2:]},
)


@pytest.mark.process  # some seconds
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(records | values, min_size=1, max_size=8))
def test_fuzz__any_json_values(tmp_path: Path, rows: list[Any]) -> None:
    # a first line of a good row: a file that is one list alone is read as a list
    check_lines(tmp_path / "a.jsonl", [json.dumps(r).encode() for r in [chat(0), *rows]])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_fuzz__any_bytes(tmp_path: Path, data: bytes) -> None:
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "b.jsonl.gz", "b.json.zst"):
        (tmp_path / name).write_bytes(data)
        try:
            got = read(tmp_path / name)
        except UserError:
            continue
        rows = {*got.occurrences["row"].to_list(), *got.rejects["row"].to_list()}
        assert rows <= set(range(got.blocks[-1].next_row))


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_fuzz__mutated_files_of_every_kind(tmp_path: Path, kind: str) -> None:
    path = make_file(tmp_path / f"a.{kind}", [chat(i) for i in range(40)])
    data = path.read_bytes()
    rng = random.Random(3)
    for _ in range(60):
        path.write_bytes(mutated(data, rng) or b" ")
        with suppress(UserError):
            check_file(path, block_rows=7)


def test_fuzz__deep_nesting_and_long_rows_do_not_hang(tmp_path: Path) -> None:
    deep = [
        b"[" * 1_000_000,
        b'{"a":' * 300_000 + b"1" + b"}" * 300_000,
        b'{"messages": ' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'"' + b"\\" * 999_999,
    ]
    row = {"prompt": "a", "completion": "b", "tools": [{"name": "TOOLS"}]}
    tools = json.dumps(row).encode().replace(b'"TOOLS"', b"[" * 500 + b"]" * 500)
    got = read(write(tmp_path / "a.jsonl", [*deep, tools]))
    assert sorted(got.reasons) == [0, 1, 2, 3, 4]
    assert got.reasons[1] == got.reasons[2] == got.reasons[4] == "too_deep"
    listed = read(write_bytes(tmp_path / "a.json", b"[" + tools + b"," + deep[1] + b"]"))
    assert listed.reasons == {0: "too_deep", 1: "too_deep"}
