"""The canonical form and its hash."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tagcos_stream.data.canonical import canonical_bytes, canonical_json, plain_ids, plain_messages
from tagcos_stream.data.read import example_id
from tagcos_stream.types import ROLES, Message
from tests import naive

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
plain = st.lists(st.tuples(st.sampled_from(ROLES), texts), min_size=1, max_size=5)
ranges = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda t: {"begin": t[0], "end": t[1]}), max_size=2)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3)
)
calls = st.lists(json_values, min_size=1, max_size=2).map(json.dumps)
full = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(ROLES), "content": texts},
        optional={
            "name": st.none() | texts,
            "train": st.none() | ranges,
            "reasoning": st.none() | texts,
            "tool_calls": st.none() | calls,
            "tool_call_id": st.none() | texts,
        },
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(
    full, st.none() | st.lists(json_values, min_size=1, max_size=2), st.none() | st.dictionaries(texts, json_values, max_size=2)
)
def test_example_id__equals_naive(messages: list[Any], tools: list | None, kwargs: dict | None) -> None:
    given = (None if tools is None else json.dumps(tools), None if kwargs is None else json.dumps(kwargs))
    assert example_id(messages, *given) == naive.example_id(messages, tools, kwargs)


@settings(max_examples=100, deadline=None)
@given(st.lists(plain, min_size=1, max_size=4))
def test_plain_ids__equal_one_by_one(rows: list[list[tuple[str, str]]]) -> None:
    codes = np.array([ROLES.index(role) for row in rows for role, _ in row], np.uint8)
    contents = pl.Series("content", [text for row in rows for _, text in row], dtype=pl.String)
    starts = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    messages = [[Message(role=role, content=text) for role, text in row] for row in rows]
    assert plain_ids(codes, contents, starts) == [example_id(m) for m in messages]
    assert [[(m["role"], m["content"]) for m in row] for row in plain_messages(codes, contents, starts).to_list()] == rows


def test_example_id__is_the_same_for_ever() -> None:
    # written down once: a change here changes every id that anyone ever stored
    messages: list[Message] = [{"role": "user", "content": "Grüß Gott 👋"}, {"role": "assistant", "content": "Hi\n"}]
    assert canonical_bytes(messages) == "user 16\nGrüß Gott 👋\nassistant 3\nHi\n\n".encode()
    assert example_id(messages) == "5bea599aea4e515a57023162949232eb"
    called: list[Message] = [
        {"role": "assistant", "content": "", "reasoning": "Ä?", "tool_calls": '[{"function": {"arguments": {"x": null}}}]'},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ]
    assert (
        canonical_bytes(called, None, '{"b": 1, "a": true}')
        == (
            "reasoning 3\nÄ?\ntool_calls 43\n[{s8:function;{s9:arguments;{s1:x;null;}}}]\nassistant 0\n\n"
            "tool_call_id 2\nc1\ntool 1\n2\ntemplate_kwargs 20\n{s1:a;true;s1:b;i1;}\n"
        ).encode()
    )
    tools = '[{"name": "f", "max": 2.5, "min": 1.0}]'
    assert canonical_bytes(messages[:1], tools).endswith(b"tools 56\n[{s3:max;f0x1.4000000000000p+1;s3:min;i1;s4:name;s1:f;}]\n")


def test_example_id__absent_fields_leave_no_trace() -> None:
    bare: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    padded: list[Message] = [
        {"role": "user", "content": "a", "name": None, "train": None},
        {"role": "assistant", "content": "b", "train": None},
    ]
    assert example_id(bare) == example_id(padded, None)
    assert example_id([*bare[:1], {"role": "assistant", "content": "b", "train": []}]) != example_id(bare)


def test_canonical_json__ignores_spelling_not_meaning() -> None:
    assert canonical_json(json.loads('{"b": 1.0, "a": [null, "\\u00e9"]}')) == canonical_json(
        json.loads('{"a":[null,"é"],"b":1,"c":null}')
    )
    assert canonical_json({"a": "1"}) != canonical_json({"a": 1})
    assert canonical_json({"a": True}) != canonical_json({"a": 1})
    with pytest.raises(RecursionError):
        canonical_json(json.loads("[" * 100 + "]" * 100))
