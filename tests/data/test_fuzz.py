"""Hostile input: whatever the bytes, every row is an occurrence or a reject, and the fast way gives what the exact way gives."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagcos_stream.data.canonical import KEPT
from tagcos_stream.data.containers.base import Raw
from tagcos_stream.data.convert_rows import row_by_row
from tagcos_stream.data.reasons import REASONS
from tagcos_stream.data.rejects import Rejects
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.types import UserError
from tests.data.test_readers import KINDS, _make
from tests.data.tools import chat, read, write, write_bytes

SHAPED: list[Any] = [
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "ä\n"},
            {"role": "assistant", "content": "b  "},
        ]
    },
    {"id": 7, "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]},
    {"instruction": "a", "input": "b", "output": "c", "dataset": "d"},
    {"instruction": "a", "input": "", "output": "c", "system": "", "history": []},
    {"instruction": "a", "context": "b", "response": "c"},
    {"prompt": "a", "completion": "b", "source_id": "x"},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    {"question": "a", "answer": "b", "score": 0.5, "meta": {"k": [1, None]}},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "content": "r"},
        ],
        "tools": [{"name": "f"}],
    },
    {
        "messages": [
            {"role": "user", "content": "a", "train": True},
            {"role": "assistant", "content": "b", "train_detail": [{"begin_offset": 0, "end_offset": 0, "train": True}]},
        ]
    },
    {"prompt": "a", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"prompt": "z", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": False}], "label": True},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "label": False},
    {"instruction": "a", "input": "b", "context": "c", "output": "d", "text": "a b c d"},
    {"instruction": "a", "output": "d", "text": "of something else"},
    {"question": "a", "context": "b", "answer": "c", "images": []},
    {"question": "a", "answer": "c", "images": ["i.png"], "choices": ["c", "d"]},
    {"prompt": "a", "chosen": "b", "rejected": "c"},
    {"query": "a", "response": "b", "history": [["c", "d"]], "chat_template_kwargs": {"x": 1}},
    {"text": "### Human: a\n### Assistant: b"},
    {
        "message_tree_id": "t",
        "prompt": {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "r", "replies": []}]},
    },
]


def _exact(lines: list[bytes]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Occurrences and rejects by the exact way alone."""
    numbered = [(i, line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r")) for i, line in enumerate(lines)]
    kept = [(i, line) for i, line in numbered if line]
    raw = Raw(len(lines), 0, rows=[i for i, _ in kept], texts=[line for _, line in kept])
    rejects = Rejects()
    return row_by_row(raw, np.arange(len(kept)), RowOptions(), "a", rejects, 10_000), rejects.frame()


def _as_listed(rejects: pl.DataFrame) -> pl.DataFrame:
    """The rejects without detail and snippet of those that a catalog counts, which a block may have left out."""
    listed = pl.int_range(pl.len()).over("reason") < KEPT
    return rejects.with_columns(pl.when(listed).then(pl.col("detail", "snippet")))


def check_lines(path: Path, lines: list[bytes], block_rows: int = 8192) -> None:
    write_bytes(path, b"\n".join(lines) + b"\n")
    lines = (b"\n".join(lines)).split(b"\n")
    got = read(path, block_rows=block_rows)
    occurrences, rejects = _exact(lines)
    assert got.occurrences.equals(occurrences)
    assert _as_listed(got.rejects).equals(_as_listed(rejects))
    rows = {*got.occurrences["row"].to_list(), *got.rejects["row"].to_list()}
    blank = {i for i, line in enumerate(lines) if not line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r")}
    assert rows | blank == set(range(len(lines)))
    assert not rows & blank
    assert set(got.rejects["reason"]) <= set(REASONS)
    assert not set(got.rejects["row"]) & set(got.occurrences["row"])


def _mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(7):
            case 0 if out:
                out[min(at, len(out) - 1)] = rng.randrange(256)
            case 1:
                del out[at : at + rng.randrange(1, 9)]
            case 2:
                out[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 5)))
            case 3:
                out[at:at] = rng.choice(
                    (b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"null", b"1e999", b"\\u0000", b"\\ud83d", b"\xff", b"\r")
                )
            case 4:
                del out[at:]
            case 5:
                out[at:at] = out[: rng.randrange(40)]
            case _:
                begin = rng.randrange(len(out) + 1)
                out[at:at] = out[begin : begin + 20]
    return bytes(out)


def _lines(n: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    base = [json.dumps(r, ensure_ascii=i % 2 == 0).encode() for i, r in enumerate(SHAPED * 2)]
    for _ in range(n):
        yield _mutated(rng.choice(base), rng).replace(b"\n", b" ")


@pytest.mark.process
def test_fuzz__ten_thousand_mutated_rows(tmp_path: Path) -> None:
    lines = list(_lines(10_000, seed=1))
    check_lines(tmp_path / "a.jsonl", lines)
    check_lines(tmp_path / "a.jsonl", lines, block_rows=5)  # small blocks, so that many are clean


@pytest.mark.process  # some seconds
def test_fuzz__one_bad_row_among_good_ones(tmp_path: Path) -> None:
    good = [json.dumps(chat(i)).encode() for i in range(3)]
    for i, line in enumerate(_lines(400, seed=2)):
        check_lines(tmp_path / f"{i % 2}.jsonl".replace("0", "a").replace("1", "a"), [good[0], line, good[1], good[2]])


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


@pytest.mark.parametrize("kind", KINDS)
def test_fuzz__mutated_files_of_every_kind(tmp_path: Path, kind: str) -> None:
    path = _make(tmp_path / f"a.{kind}", [chat(i) for i in range(40)])
    data = path.read_bytes()
    rng = random.Random(3)
    for _ in range(60):
        path.write_bytes(_mutated(data, rng) or b" ")
        try:
            got = read(path, block_rows=7)
        except UserError:
            continue
        rows = [*got.occurrences["row"].to_list(), *got.rejects["row"].to_list()]
        assert len(rows) == len(set(rows))
        assert set(rows) <= set(range(got.blocks[-1].next_row))
        if "jsonl" not in kind and kind != "ndjson":
            assert len(rows) == got.blocks[-1].next_row


def test_fuzz__deep_nesting_and_long_rows_do_not_hang(tmp_path: Path) -> None:
    deep = [
        b"[" * 1_000_000,
        b'{"a":' * 300_000 + b"1" + b"}" * 300_000,
        b'{"messages": ' + b"[" * 2000 + b"]" * 2000 + b"}",
        b'"' + b"\\" * 999_999,
    ]
    tools = json.dumps({"prompt": "a", "completion": "b", "tools": "TOOLS"}).encode().replace(b'"TOOLS"', b"[" * 500 + b"]" * 500)
    got = read(write(tmp_path / "a.jsonl", [*deep, tools]))
    assert sorted(got.reasons) == [0, 1, 2, 3, 4]
    assert got.reasons[1] == got.reasons[2] == got.reasons[4] == "too_deep"
    listed = read(write_bytes(tmp_path / "a.json", b"[" + tools + b"," + deep[1] + b"]"))
    assert listed.reasons == {0: "too_deep", 1: "too_deep"}
