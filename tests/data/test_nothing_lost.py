"""Whatever known fields a row has: every text of it stands in the example once, or the row is a reject that names the field."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.shapes import CHAT_FIELDS, ROW_FIELDS, convert
from tagcos_stream.data.turns import CONTENT_KEYS, REASONING_KEYS, UNREAD_KEYS
from tests.data.mutations import check_lines

NAMES = {"dataset", "source_id", "message_tree_id"}  # of the row and its dataset: no text of the example
NUMBERS = itertools.count()


def text() -> str:
    return f"text number {next(NUMBERS):06d}, unlike any other"


texts = st.builds(text)
roles = st.sampled_from(["system", "user", "human", "assistant", "gpt", "tool", "function_call"])
parts = st.one_of(
    st.builds(lambda t: {"type": "text", "text": t}, texts),
    st.builds(lambda t: {"type": "text", "value": t}, texts),
    st.builds(lambda t: {"type": "thinking", "thinking": t}, texts),
    st.builds(lambda t: {"type": "tool_use", "name": "f", "input": {"x": t}}, texts),
    st.builds(lambda t: {"type": "tool_result", "content": t}, texts),
    st.builds(lambda t: {"type": "refusal", "refusal": t}, texts),
)
calls = st.builds(lambda t: [{"function": {"name": "f", "arguments": {"x": t}}}], texts)
contents = texts | st.lists(parts, max_size=3) | st.none() | st.just("")
beside = st.dictionaries(st.sampled_from([*CONTENT_KEYS, *REASONING_KEYS, *UNREAD_KEYS]), texts, max_size=1)
more = st.fixed_dictionaries({}, optional={"tool_calls": calls, "weight": st.sampled_from([0, 1])})
turns = st.builds(lambda role, content, one, two: {**one, **two, "role": role, "content": content}, roles, contents, beside, more)
# mostly conversations that can be read, so that what is read is looked at as well as what is rejected
good_turns = st.builds(
    lambda extra, pairs: [
        t for q, a in pairs for t in ({"role": "user", "content": q}, {"role": "assistant", "content": a, **extra})
    ],
    st.one_of(st.just({}), more, st.builds(lambda t: {"reasoning_content": t}, texts)),
    st.lists(st.tuples(texts, texts), min_size=1, max_size=2),
)
lists = good_turns | st.lists(turns, max_size=4)
gemini = st.lists(
    st.builds(lambda role, t: {"role": role, "parts": [{"text": t}]}, st.sampled_from(["user", "model"]), texts),
    max_size=3,
)
VALUES: dict[str, Any] = dict.fromkeys(CHAT_FIELDS, lists)
VALUES |= {"contents": gemini, "chosen": texts | lists, "rejected": texts | lists}
VALUES |= {"data": st.lists(texts, max_size=3), "history": st.lists(st.lists(texts, min_size=2, max_size=2), max_size=2)}
VALUES |= {"choices": st.lists(texts, max_size=2), "options": st.lists(texts, max_size=2), "answers": st.lists(texts, max_size=2)}
VALUES |= {"tools": st.builds(lambda t: [{"name": t}], texts), "functions": st.builds(lambda t: [{"name": t}], texts)}
VALUES |= {"label": st.booleans(), "chat_template_kwargs": st.builds(lambda t: {"x": t}, texts)}
VALUES |= {"prompt": texts | lists, "completion": texts | lists}
VALUES |= {name: st.lists(texts, max_size=1) for name in ("images", "videos", "audios", "image", "video", "audio")}
PLAIN = texts | st.just("") | st.none() | st.lists(texts, max_size=2)
HEADS = ("instruction", "prompt", "question", "query", "input", "messages", "conversations", "contents", "data")
TAILS = ("output", "response", "completion", "answer", "answers")


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """A head and an answer, mostly, and some other fields."""
    usual = [*draw(st.lists(st.sampled_from(HEADS), max_size=1)), *draw(st.lists(st.sampled_from(TAILS), max_size=1))]
    names = dict.fromkeys([*usual, *draw(st.lists(st.sampled_from(sorted(ROW_FIELDS - NAMES)), max_size=3))])
    return {name: draw(texts | VALUES.get(name, PLAIN) if name in usual else VALUES.get(name, PLAIN)) for name in names}


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [s for v in value.values() for s in strings(v)]
    if isinstance(value, list):
        return [s for v in value for s in strings(v)]
    return [value] if isinstance(value, str) and value.startswith("text number") else []


@pytest.mark.process  # some seconds
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows())
def test_rows__every_text_stands_in_the_example_once_or_the_reject_names_its_field(row: dict[str, Any]) -> None:
    detail = None
    try:
        (found,) = convert(json.loads(json.dumps(row)), RowOptions())
    except RowError as e:
        detail = e.detail
    if detail is not None:
        assert any(name in detail for name in row) or not row
        return
    told = json.dumps([found.messages, found.tools, found.template_kwargs])
    assert {s: told.count(s) for s in strings(row)} == Counter(strings(row))


def reject(row: dict[str, Any], **options: Any) -> tuple[str, str]:
    with pytest.raises(RowError) as e:
        convert(row, RowOptions(**options))
    return e.value.reason, e.value.detail


PAIR = {"question": "Which is odd?", "answer": "7"}


@pytest.mark.parametrize(
    ("row", "reason", "named"),
    [
        (PAIR | {"choices": ["6", "7"]}, "unread_field", "choices"),
        ({"instruction": "Name it.", "output": "Ann", "response": "Bob"}, "unread_field", "response"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "history": [["c", "d"]]},
         "unread_field", "history"),
        ({"system": "x", "messages": [{"role": "system", "content": "y"}, {"role": "user", "content": "a"},
                                      {"role": "assistant", "content": "b"}]}, "unread_field", "system"),
        ({"instruction": "Name one.", "output": ["Ann", "Bob"]}, "several_texts", "output"),
        ({"question": ["a", "b"], "answer": ["c", "d"]}, "several_texts", "question"),
        (PAIR | {"label": False}, "marked_bad", "label"),
        (PAIR | {"images": ["a.png"]}, "unsupported_content", "images"),
        ({"prompt": "Odd?", "chosen": "7", "rejected": "6"}, "preference", "chosen"),
        ({"question": "Odd?", "answer": None}, "empty_answer", "answer is null"),
        ({"question": "Odd?", "answer": ""}, "empty_answer", "answer is empty"),
        ({"chat": "USER: Hi ASSISTANT: Ho"}, "wrong_type", "chat"),
        ({"messages": "[{'role': 'user', 'content': 'Hi'}]"}, "broken_json", "Python literals"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "refusal": "No."}]},
         "unread_field", "refusal"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "gpt", "content": [{"type": "refusal", "refusal": "No"}]}]},
         "unsupported_content", "refusal"),
        ({"conversations": [{"from": "human", "value": "a", "text": "b"}, {"from": "gpt", "value": "c"}]},
         "unread_field", "value and text"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 0.5}]},
         "unsupported_weight", "weight 0.5"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "loss": 1, "train": False}]},
         "wrong_type", "train, loss"),
        ({"messages": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f(x)"}]}, "wrong_type", "turn 1"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "text": ["A text of its own"]},
         "unread_field", "text"),
        ({"question": "Odd?", "answer": "No", "text": {"en": "A text of its own, in a field"}}, "unread_field", "text"),
        ({"query": "Rain?", "tools": "[]", "answers": "[]"}, "empty_answer", "answers"),
    ],
)  # fmt: skip
def test_rows__rejects_name_what_is_in_the_way(row: dict[str, Any], reason: str, named: str) -> None:
    found = reject(row)
    assert found[0] == reason
    assert named in found[1]


def roles_and_texts(row: dict[str, Any], **options: Any) -> list[tuple[str, str, Any]]:
    (found,) = convert(row, RowOptions(**options))
    return [(m["role"], m["content"], m.get("train")) for m in found.messages]


def test_preferences__the_chosen_answer_where_the_source_asks_for_it() -> None:
    human, gpt = {"from": "human", "value": "Odd?"}, {"from": "gpt", "value": "7"}
    first = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    want = [("user", "Odd?", None), ("assistant", "7", None)]
    for row in (
        {"conversations": [human], "chosen": gpt, "rejected": {"from": "gpt", "value": "6"}},
        {"prompt": "Odd?", "chosen": "7", "rejected": "6"},
        {"instruction": "Odd?", "input": "", "chosen": "7", "rejected": "6"},
        {"prompt": "Odd?", "chosen": [human, gpt], "rejected": [human, {"from": "gpt", "value": "6"}]},
        {"prompt": [human], "chosen": [gpt], "rejected": [gpt]},
    ):
        assert roles_and_texts(row, preference="chosen") == want, row
        assert reject(row)[0] == "preference"
    several = {"conversations": [*first, human], "chosen": gpt, "rejected": gpt}
    assert roles_and_texts(several, preference="chosen") == [("user", "Hi", None), ("assistant", "Ho", []), *want]
    assert reject({"prompt": "a", "rejected": "b"}, preference="chosen")[0] == "preference"


def test_train_flags__of_other_trainers() -> None:
    def flagged(user: dict[str, Any], answer: dict[str, Any]) -> list[Any]:
        turns = [{"role": "user", "content": "a", **user}, {"role": "assistant", "content": "b", **answer}]
        last = [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
        return [train for _, _, train in roles_and_texts({"messages": turns + last})][:2]

    for key in ("train", "training", "loss", "loss_mask", "loss_weight", "trainable", "weight"):
        for no, yes in ((False, True), (0, 1), (0.0, 1.0)):
            assert flagged({}, {key: no}) == [None, []]
            assert flagged({}, {key: yes}) == [None, None]
            assert flagged({key: yes}, {}) == [[{"begin": 0, "end": 1}] if key in ("train", "training") else None, None]
    assert flagged({"masked": False}, {"masked": True}) == [None, []]


def test_rows__what_was_wrongly_lost_is_kept() -> None:
    # UltraChat names its first question twice, Alpaca prints the whole row once more
    first = "How do mills turn their sails into the wind?"
    turns = [{"role": "user", "content": first}, {"role": "assistant", "content": "By a fantail."}]
    assert len(roles_and_texts({"prompt": first, "messages": turns})) == 2
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "text": "Below: Add.\n### Input: 1 2\n### Response: 3"}
    assert roles_and_texts(row)[1][1] == "3"
    assert reject(row | {"text": "something else entirely"})[0] == "unread_field"
    # an empty list beside a pair is no conversation
    assert roles_and_texts({"messages": [], **PAIR})[0][1] == "Which is odd?"


def test_columns__only_what_is_mapped_counts() -> None:
    row = {"ask": "a", "tell": "b", "input": "not asked for", "choices": ["c"], "label": False, "images": ["x"]}
    assert [t for _, t, _ in roles_and_texts(row, columns={"prompt": "ask", "completion": "tell"})] == ["a", "b"]
    assert reject(row, columns={"prompt": "ask", "completion": "tell", "label": "label"})[0] == "marked_bad"


@pytest.mark.parametrize(
    "text",
    [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHo<|eot_id|>",
        "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHo</s>",
        "### System: Be kind.\n### Human: Hi\n### Assistant: Ho",
        "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Ho",
    ],
)
def test_transcripts__are_taken_apart(text: str) -> None:
    assert roles_and_texts({"text": text}) == [("system", "Be kind.", None), ("user", "Hi", None), ("assistant", "Ho", None)]


def test_transcripts__plain_marks_only_where_asked_for() -> None:
    text = "USER: Rain?\n\n\nASSISTANT: Let me look. <|endoftext|>\n\n\nFUNCTION RESPONSE: dry\n\n\nASSISTANT: No. <|endoftext|>"
    assert reject({"text": text})[0] == "unknown_shape"
    for name in ("text", "chat"):
        found = roles_and_texts({name: text}, shape="transcript")
        assert [(r, t) for r, t, _ in found] == [
            ("user", "Rain?"),
            ("assistant", "Let me look."),
            ("tool", "dry"),
            ("assistant", "No."),
        ]
    assert reject({"text": "A note. ### Human: Hi\n### Assistant: Ho"})[0] == "unread_field"
    assert reject({"text": "Nothing of the kind"}, shape="transcript")[0] == "unknown_shape"


@pytest.mark.process  # some seconds
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(rows(), min_size=1, max_size=6))
def test_rows__in_columns_give_what_they_give_one_by_one(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    check_lines(tmp_path / "a.jsonl", [json.dumps(row).encode() for row in rows])
