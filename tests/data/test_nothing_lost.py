"""Whatever known fields a row has: every text of it stands in the example once, or the row is a reject that names the field."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagcos_stream.data.convert_columns import PAIR_SHAPES
from tagcos_stream.data.preferences import MEDIA_FIELDS
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.shapes import CHAT_FIELDS, PAIR_FIELDS, ROW_FIELDS, convert, recognise
from tagcos_stream.data.train_flags import ADDING, KEEPING
from tagcos_stream.data.turns import CONTENT_KEYS, MEDIA_KEYS, REASONING_KEYS, UNREAD_KEYS
from tests.data.mutations import check_lines
from tests.data.tools import read

NAMES = {"dataset", "source_id", "message_tree_id", "metadata"}  # of the row and its dataset: no text of the example
NAMES |= set(MEDIA_FIELDS) - set(MEDIA_KEYS)  # which are all alike
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
    st.builds(lambda t: {"text": t}, texts),
    st.builds(lambda key, t, u: {key: t, "text": u}, st.sampled_from(["title", "role", "value"]), texts, texts),
    st.builds(lambda key, t: {"type": "tool_call", "name": "f", key: {"x": t}}, st.sampled_from(["args", "more"]), texts),
)
calls = st.builds(
    lambda keys, t: [{"name": "f", **{key: {"x": t} for key in keys}}],
    st.sampled_from([["arguments"], ["args"], ["parameters"], ["more"], ["arguments", "result"]]),
    texts,
)
contents = texts | st.lists(parts, max_size=3) | st.none() | st.just("")
beside = st.dictionaries(st.sampled_from([*CONTENT_KEYS, *REASONING_KEYS, *UNREAD_KEYS]), texts, max_size=1)
more = st.fixed_dictionaries({}, optional={"tool_calls": calls, "tool_call": calls, "weight": st.sampled_from([0, 1])})
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
exchanges = st.lists(
    st.builds(
        lambda keys, beside, q, a: {keys[0]: q, keys[1]: a, **beside},
        st.sampled_from([("input", "output"), ("human", "assistant")]),
        beside | st.builds(lambda t: {"system": t}, texts),
        texts,
        texts,
    ),
    min_size=1,
    max_size=2,
)
VALUES: dict[str, Any] = dict.fromkeys(CHAT_FIELDS, lists | exchanges)
VALUES |= {"contents": gemini, "chosen": texts | lists, "rejected": texts | lists}
VALUES |= {"data": st.lists(texts, max_size=3), "history": st.lists(st.lists(texts, min_size=2, max_size=2), max_size=2)}
VALUES |= {"choices": st.lists(texts, max_size=2), "options": st.lists(texts, max_size=2), "answers": st.lists(texts, max_size=2)}
VALUES |= {"tools": st.builds(lambda t: [{"name": t}], texts), "functions": st.builds(lambda t: [{"name": t}], texts)}
VALUES |= dict.fromkeys(("label", "kto_tag", "is_correct"), st.booleans())
VALUES |= {"chat_template_kwargs": st.builds(lambda t: {"x": t}, texts)}
VALUES |= {"prompt": texts | lists, "completion": texts | lists}
VALUES |= {name: st.lists(texts, max_size=1) for name in ("images", "videos", "audios", "image", "video", "audio")}
PLAIN = texts | st.just("") | st.none() | st.lists(texts, max_size=2)
HEADS = (
    "instruction",
    "prompt",
    "question",
    "problem",
    "query",
    "input",
    "inputs",
    "messages",
    "conversations",
    "contents",
    "data",
)
TAILS = ("output", "response", "completion", "answer", "solution", "targets", "answers", "generation", "generated_solution")


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
    if recognise(row) not in PAIR_SHAPES:  # data about the conversation
        row = {name: value for name, value in row.items() if name not in PAIR_FIELDS}
    assert {s: told.count(s) for s in strings(row)} == Counter(strings(row))


def reject(row: dict[str, Any], **options: Any) -> tuple[str, str]:
    with pytest.raises(RowError) as e:
        convert(row, RowOptions(**options))
    return e.value.reason, e.value.detail


def with_turn(**turn: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}, turn]}


PAIR: dict[str, Any] = {"question": "Which is odd?", "answer": "7"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "9 + 9?"}, {"role": "assistant", "content": "It is 18."}]}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "Well?"}]
HH = "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: Well?\n\nAssistant:"
CHATML = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


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
        ({"chat": "USER: Hi ASSISTANT: Ho"}, "unknown_shape", "chat is text with the marks of a transcript"),
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
        # prompts of which a text would be lost
        *((PAIR | {name: "In 1702 a mill was built."}, "unread_field", name) for name in
          ("document", "documents", "contexts", "passage", "passages", "article", "instructions")),
        (CHAT | {"documents": [{"text": "In 1702 a mill was built."}]}, "unread_field", "documents"),
        # thoughts, and further answers
        *((PAIR | {name: "It is no multiple of 2."}, "unread_field", name) for name in
          ("rationale", "explanation", "cot", "longCOT", "thought", "think", "generation", "attempt")),
        (PAIR | {"thinking_trajectories": ["It is no multiple of 2."]}, "unread_field", "thinking_trajectories"),
        (PAIR | {"solution": "As 6 is a multiple of 2, it is 6."}, "unread_field", "answer"),
        ({"question": "Odd?", "solution": "7", "attempt": "7 is no multiple of 2."}, "unread_field", "attempt"),
        ({"inputs": "6, 7", "targets": "7", "definition": "Which is odd?"}, "unread_field", "definition"),
        ({"inputs": [3, 4], "targets": [5]}, "unsupported_content", "inputs"),
        # tools and system prompts under names of others
        *((CHAT | {name: '[{"name": "f"}]'}, "unread_field", name) for name in
          ("tools_json", "available_tools", "function_description")),
        *((CHAT | {name: "Be kind."}, "unread_field", name) for name in ("meta_instruction", "systemPrompt", "sys_prompt")),
        (with_turn(role="assistant", content="b", function_calls="f(x=1)"), "broken_json", "function_calls"),
        # texts that may be anybody's
        *(({name: ["Hi", "Ho"]}, "wrong_type", name) for name in ("turns", "dialogue", "messages")),
        ({"prompt": "Hi\n<extra_id_1>Assistant\nHo", "response": "So"}, "unsupported_content", "prompt has the marks"),
        (PAIR | {"system": "Be kind.", "system_message": "Be brief."}, "unread_field", "system_message"),
        *((PAIR | {name: "a.png"}, "unsupported_content", name) for name in
          ("image", "image_path", "image_paths", "image_url", "video_path", "audio_path")),
        (PAIR | {"label": 0}, "marked_bad", "label is 0"),
        (PAIR | {"kto_tag": False}, "marked_bad", "kto_tag is false"),
        ({"problem": "Odd?", "generated_solution": "6", "is_correct": False}, "marked_bad", "is_correct is false"),
        *((PAIR | {name: "a.png"}, "unsupported_content", f"{name} is not empty") for name in
          ("image_file", "image_id", "image_1", "decoded_image", "img", "jpg", "audio_filepath")),
        # of several answers none is taken for the answer, nor a reference
        ({"instruction": "Odd?", "generations": ["7", "9"], "ratings": [5, 5]}, "several_texts", "generations is a list of 2"),
        ({"problem": "Odd?", "solution": "7", "generations": ["It is 7."]}, "unread_field", "generations"),
        ({"question": "Odd?", "final_answer": "7", "r1_solution_1": "7", "r1_solution_2": "9"},
         "unknown_shape", 'columns = {question = "question", response = "..."}'),
        ({"problem": "Odd?", "answer": "7"}, "unknown_shape", 'columns = {problem = "problem", response = "..."}'),
        ({"messages": TURNS[:1], "answer": "7"}, "no_assistant", "messages"),
        ({"messages": [*CHAT["messages"], TURNS[0]], "response": "So"}, "unread_field", "response"),
        ({"prompt": "Odd?", "generation": "7", "response": "9"}, "unread_field", "generation"),
        ({"input": "6, 7", "output": "7", "prompt": "Which is odd?"}, "unread_field", "prompt"),
        ({"messages": TURNS[:1], "response": {"choices": [{"message": TURNS[1]}]}}, "wrong_type", "response must be text"),
        (CHAT | {"toolConfig": {"tools": [{"toolSpec": {"name": "f"}}]}}, "unread_field", "toolConfig"),
        # what to do
        (PAIR | {"cot": "Odd."}, "unread_field", '; `columns = {question = "question", answer = "answer"}` does without it'),
        (CHAT | {"tools": [{"name": "f"}], "documents": ["d"]}, "unread_field", '{messages = "messages", tools = "tools"}'),
        ({"Question": "Odd?", "Response": "7", "Complex_CoT": "It is odd."},
         "unread_field", '{question = "Question", response = "Response"}'),
        ({"custom_id": "1", "body": CHAT}, "unknown_shape", "body holds those of shape messages"),
        ({"id": 1, "fields": {"instruction": "Odd?", "response": "7"}}, "unknown_shape", "fields holds those of shape dolly"),
        ({"custom_id": "1", "response": {"body": {}}}, "unknown_shape", "what is within response is not read"),
        ({"items": TURNS}, "unknown_shape", '`columns = {messages = "items"}` reads them'),
        ({"sample": "USER: Hi\nASSISTANT: Ho"}, "unknown_shape", '`columns = {text = "sample"}` and `shape = "transcript"`'),
        ({"Question": "Odd?", "question": "Even?", "Answer": "7"}, "unknown_shape", "Question, question, Answer"),
        (PAIR | {"label": "0"}, "marked_bad", "label is 0"),
        (PAIR | {"prompt": "Which 7 of these is odd?"}, "unread_field", "prompt"),
        (PAIR | {"dialogue": "Ann: Hi. Bob: Ho."}, "unread_field", "dialogue"),
        (PAIR | {"contents": "Ann: Hi. Bob: Ho."}, "unread_field", "contents"),
        ({"contents": "Ann: Hi."}, "wrong_type", "contents must be a list of turns"),
        ({"turns": 3}, "unknown_shape", "turns"),
        (CHAT | {"answer": "8"}, "unread_field", "answer"),
        (CHAT | {"answer": "19"}, "unread_field", "answer"),
        (CHAT | {"output": "18"}, "unread_field", "output"),
        ({"messages": [CHAT["messages"][0], {"role": "assistant", "content": "It is 18.5 or x1.18"}], "answer": "18"},
         "unread_field", "answer"),
        # turns where a text belongs, and texts that are no turns
        (PAIR | {"input": TURNS}, "unsupported_content", "input"),
        (PAIR | {"system": json.dumps(TURNS[:1])}, "unread_field", "system is a list of turns"),
        (PAIR | {"system": ["Be kind.", "Be brief."]}, "several_texts", "system"),
        ({"prompt": TURNS, "context": "c", "response": "So"}, "unread_field", "context is given besides prompt"),
        ({"prompt": "Hi", "reasoning": "r", "completion": TURNS[1:2]}, "unread_field", "reasoning is given besides completion"),
        ({"prompt": str(TURNS), "completion": "So"}, "broken_json", "prompt: a list of turns; these are Python literals"),
        ({"prompt": TURNS, "completion": str(TURNS[1:2])}, "broken_json", "completion: a list of turns; these are Python"),
        ({"data": [["Hi", "Ho"], ["Well", "So"]]}, "unknown_shape", "data"),
        ({"columns": ["prompt", "answer"], "data": [["Hi", "Ho"]]}, "unknown_shape", "data"),
        ({"contents": [{"role": "user", "parts": [{"text": "Hi"}]}, {"role": "model", "parts": [{"functionCall": "f()"}]}]},
         "wrong_type", "functionCall must be an object"),
        ({"contents": [{"parts": [{"text": "Hi", "functionCall": {"name": "f"}}]}]},
         "unsupported_content", "text and functionCall"),
        ({"prompt": CHATML.removesuffix("assistant\n"), "completion": "Ho"}, "unsupported_content", "prompt has the marks"),
        ({"prompt": "[INST] Hi [/INST] Ho [INST] Well?", "completion": "So"}, "unsupported_content", "prompt has the marks"),
        ({"prompt": HH, "completion": " So\n\nHuman: Then?"},
         "unsupported_content", "completion has a mark within a turn, 'Human:'"),
        (with_turn(role="user", content=[{"title": "T", "text": "abc"}]), "unsupported_content", "has title"),
        (with_turn(role="user", content=[{"role": "user", "content": "a"}]), "unsupported_content", "role, content"),
        (with_turn(role="user", content=[{"type": "text", "text": "a", "value": "b"}]), "unsupported_content", "text and value"),
        (with_turn(role="assistant", tool_calls=[{"name": "f", "kwargs": {"x": 1}}]), "wrong_type", "a tool call has kwargs"),
        (with_turn(role="assistant", tool_calls=[{"name": "f", "arguments": {"y": 1}, "args": {"x": 1}}]),
         "wrong_type", "arguments and args"),
        (with_turn(role="assistant", tool_calls=[{"name": "f", "args": {}, "result": "2"}]), "unread_field", "has result"),
        (with_turn(role="assistant", tool_calls=[{"name": "f"}], function_call={"name": "g"}),
         "unread_field", "tool_calls and function_call"),
        (with_turn(role="assistant", tool_calls=[{"name": "f", "id": "c1"}], function_call={"name": "f", "id": "c2"}),
         "unread_field", "tool_calls and function_call"),
        (with_turn(role="assistant", tool_calls=[{"name": "f", "city": "Bonn"}]), "wrong_type", "a tool call has city"),
        (with_turn(role="assistant", tool_calls=[{"name": "f", "result": 0}]), "unread_field", "has result"),
        (with_turn(role="assistant", content="b", tool_call="f"), "broken_json", "tool_call"),
        (with_turn(role="assistant", content="b", thought="c"), "unread_field", "has thought"),
        (with_turn(role="assistant", content="b", tool_results=["2"]), "unread_field", "has tool_results"),
        (with_turn(role="assistant", content="b", mask=True), "unread_field", "has mask"),
        (with_turn(role="assistant", content="b", mask=0), "unread_field", "has mask"),
        (with_turn(role="function_call", content="<think>\na</think>f(x)"), "wrong_type", "turn 1 is a function call"),
        (with_turn(role="assistant", content="b") | {"tools": ["f"]}, "wrong_type", "a tool must be an object"),
        ({"conversation": [{"input": "a", "output": "b"}, {"system": "c", "input": "d", "output": "e"}]}, "role_order", "turn 2"),
        ({"conversation": [{"input": "a", "output": "b", "content": "c"}]}, "unread_field", "content"),
        ({"conversation": [{"instruction": "a", "input": "b", "output": "c"}]}, "unread_field", "instruction besides input"),
        ({"conversation": [{"input": "a", "output": None}]}, "wrong_type", "turn 0"),
    ],
)  # fmt: skip
def test_rows__rejects_name_what_is_in_the_way(row: dict[str, Any], reason: str, named: str) -> None:
    found = reject(row)
    assert found[0] == reason
    assert named in found[1]


def roles_and_texts(row: dict[str, Any], **options: Any) -> list[tuple[str, str, Any]]:
    (found,) = convert(row, RowOptions(**options))
    return [(m["role"], m["content"], m.get("train")) for m in found.messages]


NO_TURNS: list[Any] = [2, "2", 0, [], "[]"]


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        *((PAIR | {name: value}, "7") for name in ("reasoning", "reasoning_content", "thinking")
          for value in ("on", "Off", "TRUE", "no", "high", True, False, 3, 0.7)),
        *((CHAT | {"reasoning": value}, "It is 18.") for value in ("on", "low", "", True)),
        *((PAIR | {"turns": value}, "7") for value in NO_TURNS),
        (CHAT | {"turns": 3, "text": 5, "dialog": True}, "It is 18."),
        (PAIR | {"input": float("nan"), "system": float("nan"), "messages": float("nan")}, "7"),
        *((PAIR | {name: value}, "7") for name in ("history", "images", "choices", "documents")
          for value in ("[]", "{}", "null")),
        (PAIR | {"image": False, "image_path": None, "image_url": []}, "7"),
        (PAIR | {"label": 1}, "7"),
        (PAIR | {"kto_tag": True}, "7"),
        (CHAT | {"answer": "18"}, "It is 18."),
        *((CHAT | {name: "A longer text."}, "It is 18.") for name in ("generation", "rationale", "inputs")),
        *((CHAT | {name: ["A longer text.", "b"]}, "It is 18.") for name in ("generations", "thinking_trajectories")),
        *((CHAT | {"metadata": value}, "It is 18.") for value in ({"a": 1}, "tools", '{"tools": ["python"]}', {"tools": ["f"]})),
        *((PAIR | {name: "[]"}, "7") for name in ("available_tools", "tools_json")),
        (PAIR | {"solution": ""}, "7"),
        (PAIR | {"explanation": "7", "attempt": 2, "think": True}, "7"),
        (CHAT | {"answer": 18, "answers": ["18"], "problem": "9 + 9?", "solution": "A longer text."}, "It is 18."),
        ({"instruction": "Add.", "context": "[1, 2]", "output": "3", "prompt": "Below: Add.\n## With:\n[1, 2]\n## Is:\n3"}, "3"),
    ],
)  # fmt: skip
def test_rows__what_is_no_text_is_in_nobody_s_way(tmp_path: Path, row: dict[str, Any], answer: str) -> None:
    (found,) = convert(row, RowOptions())
    assert [m["role"] for m in found.messages] == ["user", "assistant"]
    assert found.messages[1] == {"role": "assistant", "content": answer}
    check_lines(tmp_path / "a.jsonl", [json.dumps(row).encode()] * 2)


def test_rows__reasoning_that_is_mapped_is_no_flag() -> None:
    row = {"ask": "Odd?", "tell": "Yes.", "why": "no"}
    (found,) = convert(row, RowOptions(columns={"prompt": "ask", "completion": "tell", "reasoning": "why"}))
    assert found.messages[1]["reasoning"] == "no"


TALK: list[tuple[str, str, Any]] = [
    ("user", "Hi", None),
    ("assistant", "Ho", []),
    ("user", "Well?", None),
    ("assistant", "So", None),
]
BE_KIND: tuple[str, str, Any] = ("system", "Be kind.", None)


@pytest.mark.parametrize(
    ("row", "want"),
    [
        *(({prompt: TURNS, answer: "So"}, TALK) for prompt, answer in (
          ("input", "output"), ("instruction", "output"), ("question", "answer"), ("query", "response"), ("prompt", "response")
        )),
        ({"input": TURNS, "output": "So", "system_prompt": "Be kind.", "reasoning": "off"}, [BE_KIND, *TALK]),
        ({"system_message": "Be kind.", "question": "Hi", "answer": "Ho"}, [BE_KIND, TALK[0], ("assistant", "Ho", None)]),
        ({"prompt": json.dumps(TURNS), "completion": json.dumps([{"content": "So", "role": "assistant"}])}, TALK),
        ({"prompt": json.dumps([{"from": "human", "value": "Hi"}]), "completion": "Ho"}, [TALK[0], ("assistant", "Ho", None)]),
        ({"prompt": "Hi", "completion": {"role": "assistant", "content": "Ho"}}, [TALK[0], ("assistant", "Ho", None)]),
        ({"prompt": HH, "response": " So"}, TALK),
        ({"question": HH, "answer": "So"}, TALK),
        ({"prompt": CHATML + "Ho<|im_end|>\n<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n",
          "completion": "So<|im_end|>"}, TALK),
        ({"prompt": "<|im_start|>user\nHi<|im_end|>\n", "completion": "<|im_start|>assistant\nHo<|im_end|>\n"},
         [TALK[0], ("assistant", "Ho", None)]),
        ({"prompt": "<s>[INST] Hi [/INST] Ho </s><s>[INST] Well? [/INST]", "completion": " So </s>"}, TALK),
        ({"prompt": "### Human: Hi### Assistant: Ho### Human: Well?### Assistant:", "completion": "So"}, TALK),
        ({"prompt": "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "completion": "Ho<end_of_turn>"},
         [TALK[0], ("assistant", "Ho", None)]),
        ({"prompt": "Human: Hi\nAssistant: Ho\nHuman: Well?\nAssistant:", "completion": " So"}, TALK),
        ({"prompt": "Hi\n<extra_id_1>Assistant\nHo\n<extra_id_1>User\nWell?\n<extra_id_1>Assistant\n", "response": "So"}, TALK),
        ({"prompt": [], "completion": [{"role": role, "content": text} for role, text, _ in TALK]},
         [(role, text, None) for role, text, _ in TALK]),
        ({"prompt": "[]", "completion": json.dumps([{"role": role, "content": text} for role, text, _ in TALK])},
         [(role, text, None) for role, text, _ in TALK]),
        ({"prompt": TURNS, "completion": json.dumps([{"content": "So", "role": "assistant"}])}, TALK),
        # text that only resembles turns
        *(({"prompt": text, "completion": "Ho"}, [("user", text, None), ("assistant", "Ho", None)]) for text in (
          "Human: Write:\nHuman: a\nAssistant:",
          '[{"role": "cook"}]', '[{"a": 1}]', "[{x}] is a set.", "Human: who are you?", "<s>No</s> yes", "[]", "[INST", "['role']"
        )),
        *(({"prompt": "Hi", "completion": text}, [TALK[0], ("assistant", text, None)]) for text in (
          '[{"role": "cook", "name": "Ann"}]', '[{"author": "Ann", "text": "Hi"}]', '{"role": "user", "content": "x"}', "[1, 2]"
        )),
        # data about chats: answers to a text, and what stands beside the prompt
        *(({"instruction": "Hi", "output": text}, [TALK[0], ("assistant", text, None)]) for text in (
          json.dumps(TURNS[:1]), json.dumps(TURNS[1:2]), str(TURNS)
        )),
        # answers under other names
        *(({prompt: "Hi", answer: "Ho"}, [TALK[0], ("assistant", "Ho", None)]) for prompt, answer in (
          ("problem", "generated_solution"), ("question", "generated_solution"), ("instruction", "generation"),
          ("prompt", "output"), ("input", "response"), ("instruction", "completion"), ("input_text", "output_text"),
        )),
        ({"prompt": "Hi", "generations": ["Ho"]}, [TALK[0], ("assistant", "Ho", None)]),
        ({"prompt": "Hi", "input": "Well?", "response": "Ho"}, [("user", "Hi\n\nWell?", None), ("assistant", "Ho", None)]),
        # the earlier shape keeps its rows
        ({"question": "Hi, what do you say?", "input": "Hi, what do you say? Ho?", "output": "So"},
         [("user", "Hi, what do you say? Ho?", None), ("assistant", "So", None)]),
        ({"text": CHATML + "Ho<|im_end|>", "prompt": "Hi", "output": "Ho"}, [TALK[0], ("assistant", "Ho", None)]),
        *(({"messages": TURNS[:1], answer: "Ho"}, [TALK[0], ("assistant", "Ho", None)])
          for answer in ("response", "completion", "output")),
        ({"conversations": [{"from": "human", "value": "Hi"}], "response": TURNS[1]}, [TALK[0], ("assistant", "Ho", None)]),
        # names in another case
        ({"Question": "Hi", "Answer": "Ho"}, [TALK[0], ("assistant", "Ho", None)]),
        ({"System": "Be kind.", "INSTRUCTION": "Hi", "Input": "", "Output": "Ho"},
         [BE_KIND, TALK[0], ("assistant", "Ho", None)]),
        ({"question": "Hi", "answer": "Ho", "Input": "of no shape"}, [TALK[0], ("assistant", "Ho", None)]),
        *(({"instruction": "Hi", extra: text, "output": "Ho"}, [("user", f"Hi\n\n{text}", None), ("assistant", "Ho", None)])
          for extra in ("input", "context") for text in (json.dumps(TURNS), str(TURNS), CHATML)),
        ({"prompt": HH, "response": json.dumps(TURNS)}, [*TALK[:3], ("assistant", json.dumps(TURNS), None)]),
    ],
)  # fmt: skip
def test_pairs__of_turns(tmp_path: Path, row: dict[str, Any], want: list[tuple[str, str, Any]]) -> None:
    assert roles_and_texts(row) == want
    check_lines(tmp_path / "a.jsonl", [json.dumps(row).encode()] * 2)


def test_pairs__of_turns_train_the_roles_that_are_asked_for() -> None:
    for row in ({"prompt": TURNS[:1], "completion": "So"}, {"prompt": "Hi", "completion": "So"}):
        assert reject(row, train_roles=())[0] == "nothing_trained"


def test_preferences__of_turns_and_transcripts() -> None:
    whole = [*TURNS, {"role": "assistant", "content": "So"}]
    for row in (
        {"chosen": json.dumps(whole), "rejected": json.dumps(whole)},
        {"prompt": "Hi", "chosen": json.dumps(whole), "rejected": "[]"},
        {"chosen": HH + " So", "rejected": HH + " No"},
        {"prompt": HH, "chosen": HH + " So", "rejected": HH + " No"},
        {"prompt": HH, "response": " So", "chosen": " So", "rejected": " No"},
        {"prompt": json.dumps(TURNS), "chosen": "So", "rejected": "No"},
        {"prompt": TURNS, "chosen": {"role": "assistant", "content": "So"}, "rejected": "No"},
        {"chosen": CHATML + "Ho<|im_end|><|im_start|>user\nWell?<|im_end|><|im_start|>assistant\nSo<|im_end|>", "rejected": ""},
    ):
        assert roles_and_texts(row, preference="chosen") == TALK, row
        assert reject(row)[0] == "preference"
    row = {"prompt": "Hi", "chosen": str(whole), "rejected": str(whole)}
    assert reject(row, preference="chosen")[0] == "broken_json"
    row = {"prompt": "Hi there", "chosen": HH + " So", "rejected": "No"}
    assert reject(row, preference="chosen")[0] == "unread_field"


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

    for key in (*ADDING, *KEEPING):
        for no, yes in ((False, True), (0, 1), (0.0, 1.0)):
            assert flagged({}, {key: no}) == [None, []]
            assert flagged({}, {key: yes}) == [None, None]
            assert flagged({key: yes}, {}) == [[{"begin": 0, "end": 1}] if key in ADDING else None, None]
    assert flagged({"masked": False}, {"masked": True}) == [None, []]
    # a flag of two meanings is read where the source says which
    row = {"messages": [{"role": "user", "content": "a", "mask": 0}, {"role": "assistant", "content": "b", "mask": 1}]}
    assert [train for _, _, train in roles_and_texts(row, columns={"train": "mask"})] == [None, None]


def calls_of(**turn: Any) -> str | None:
    (found,) = convert(with_turn(**turn), RowOptions())
    return found.messages[1].get("tool_calls")


@pytest.mark.parametrize(
    "call",
    [
        {"name": "f", "arguments": {"x": 1}, "result": ""},
        {"name": "f", "arguments": {"x": 1}, "output": None, "response": [], "observation": {}},
        {"name": "f", "arguments": {"x": 1}, "input": ""},
        {"name": "f", "arguments": {}, "input": {"x": 1}, "args": "{}", "parameters": []},
        {"function": {"name": "f", "arguments": ""}, "arguments": {"x": 1}},
    ],
)
def test_calls__what_is_empty_is_absent(call: dict[str, Any]) -> None:
    assert calls_of(role="assistant", tool_calls=[call]) == CALL_OF_F


@pytest.mark.parametrize("beside", [{"status": "completed"}, {"description": "The time."}, {"strict": True}, {"city": ""}])
def test_calls__keys_that_are_no_arguments(beside: dict[str, Any]) -> None:
    for call in ({"name": "f", **beside}, {"function": {"name": "f"}, **beside}, {"function": {"name": "f", **beside}}):
        assert calls_of(role="assistant", tool_calls=[call]) == CALL_OF_F.replace('{"x":1}', "{}")


def test_calls__two_spellings_of_which_one_has_the_id() -> None:
    call = {"name": "f", "arguments": {"x": 1}}
    with_id, want = call | {"id": "c1"}, CALL_OF_F.replace("{", '{"id":"c1",', 1)
    assert calls_of(role="assistant", tool_calls=[with_id], function_call=call) == want
    assert calls_of(role="assistant", tool_calls=[call], function_call=with_id) == want


def test_parts__what_is_empty_is_absent() -> None:
    part: dict[str, Any] = {"text": "b", "citations": [], "annotations": None, "title": "", "meta": {}}
    assert roles_and_texts(with_turn(role="assistant", content=[part])) == [("user", "a", None), ("assistant", "b", None)]


CALL_OF_F = '[{"type":"function","function":{"name":"f","arguments":{"x":1}}}]'


def test_calls__arguments_under_every_name_are_the_same() -> None:
    want = CALL_OF_F
    arguments: list[Any] = [{"x": 1}, '{"x": 1}']
    functions = [{"name": "f", key: value} for key in ("arguments", "args", "parameters", "input") for value in arguments]
    for call in [*functions, *({"function": f} for f in functions), {"function": {"name": "f"}, "arguments": {"x": 1}}]:
        for key, calls in (
            ("tool_calls", [call]),
            ("tool_calls", json.dumps([call])),
            ("toolCalls", [call]),
            ("tool_call", call),
        ):
            assert calls_of(role="assistant", **{key: calls}) == want
        assert calls_of(role="assistant", content=[{"type": "tool_call", **call}]) == want
        assert calls_of(role="function_call", content=json.dumps(call)) == want
    assert calls_of(role="assistant", tool_calls=[{"name": "f", "type": "function"}]) == want.replace('{"x":1}', "{}")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"title": "T", "text": "abc", "url": "u"}], '[{"title": "T", "text": "abc", "url": "u"}]'),
        ([{"name": "f", "content": "20 °C"}], '[{"name": "f", "content": "20 °C"}]'),
        ({"temperature": 20}, '{"temperature": 20}'),
        (["Paris", "Rome"], '["Paris", "Rome"]'),
        ([1, 2], "[1, 2]"),
        ([], ""),
        ([{"type": "text", "text": "a"}, {"text": "b", "cache_control": {}}], "ab"),
    ],
)
def test_tools__replies_are_data_or_parts(content: Any, text: str) -> None:
    calls = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}]
    row = {"messages": [*calls, {"role": "tool", "content": content}, {"role": "assistant", "content": "b"}]}
    assert roles_and_texts(row)[2] == ("tool", text, None)
    part = {"type": "tool_result", "content": content}
    inside = {"messages": [*calls, {"role": "user", "content": [part]}, {"role": "assistant", "content": "b"}]}
    assert roles_and_texts(inside)[2] == ("tool", text, None)


def test_tools__within_metadata(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    within = {"tools": tools, "source": "x"}
    rows = [
        {**CHAT, "metadata": value, **more}
        for value in (within, json.dumps(within), {"tools": json.dumps(tools)}, {"tools": [json.dumps(tool) for tool in tools]})
        for more in ({}, {"tools": "[]"}, {"tools": tools}, {"tools": [{"name": "g"}]})
    ]
    want = [json.dumps([{"name": "g"}] if i % 4 == 3 else tools, separators=(",", ":")) for i in range(len(rows))]
    assert [found.tools for row in rows for found in convert(row, RowOptions())] == want
    for part in (rows, rows[:4], [CHAT | {"metadata": "x"}, *rows[4:8]]):
        check_lines(tmp_path / "a.jsonl", [json.dumps(row).encode() for row in part])
    frame = pl.DataFrame({"messages": [CHAT["messages"]] * 2, "metadata": [json.dumps(within), json.dumps({"source": "x"})]})
    frame.write_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").occurrences["tools"].to_list() == [want[0], None]
    frame.with_columns(metadata=pl.Series([within, {"tools": None, "source": "y"}])).write_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").occurrences["tools"].to_list() == [want[0], None]


def test_parts__thinking_in_parts_of_its_own() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "By 2? "}, {"type": "text", "text": "No."}]}
    (found,) = convert(with_turn(role="assistant", content=[thinking, {"type": "text", "text": "Odd."}]), RowOptions())
    assert found.messages[1] == {"role": "assistant", "content": "Odd.", "reasoning": "By 2? No."}


def test_turns__in_an_object_of_lists(tmp_path: Path) -> None:
    talk = {"from": ["human", "gpt", "human", "gpt"], "value": [text for _, text, _ in TALK], "weight": [None, 0, None, 1]}
    assert roles_and_texts({"conversations": talk}) == TALK
    pl.DataFrame({"conversations": [talk]}).write_parquet(tmp_path / "a.parquet")
    assert [text for _, text in read(tmp_path / "a.parquet").texts[0]] == [text for _, text, _ in TALK]
    assert reject({"conversations": {"from": ["human", "gpt"], "value": ["Hi"]}})[0] == "wrong_type"
    assert roles_and_texts(PAIR | {"dialogue": {"speaker": [], "text": []}})[1][1] == "7"


def test_turns__thoughts_that_the_content_repeats() -> None:
    (found,) = convert(with_turn(role="assistant", content="I look.\n\nls", thought="I look.", action="ls"), RowOptions())
    assert found.messages[1] == {"role": "assistant", "content": "I look.\n\nls"}


def test_transcripts__system_of_glaive() -> None:
    row = {"system": "SYSTEM: Be kind.", "chat": "USER: Hi\n\n\nASSISTANT: Ho <|endoftext|>\n\n\n"}
    assert 'shape = "transcript"' in reject(row)[1]
    assert roles_and_texts(row, shape="transcript") == [BE_KIND, TALK[0], ("assistant", "Ho", None)]


def test_tools__of_gemini_are_declared_together() -> None:
    declared = [{"name": "f"}, {"name": "g", "parameters": {}}]
    for key in ("functionDeclarations", "function_declarations"):
        (found,) = convert(CHAT | {"tools": [{key: declared}, {"googleSearch": {}}]}, RowOptions())
        assert found.tools == json.dumps([*declared, {"googleSearch": {}}], separators=(",", ":"))


def test_tools__each_may_be_json_text() -> None:
    tool = {"name": "f", "parameters": {"type": "object"}}
    with_text = tool | {"parameters": json.dumps(tool["parameters"])}
    for tools in ([tool], [json.dumps(tool)], json.dumps([json.dumps(tool)]), [with_text]):
        (found,) = convert(with_turn(role="assistant", content="b") | {"tools": tools}, RowOptions())
        assert found.tools == json.dumps([tool], separators=(",", ":"))


def test_exchanges__flags_and_reasoning_are_the_answer_s() -> None:
    first = {"system": "", "input": "a", "output": "b", "output_with_loss": False}
    row = {"conversation": [first, {"input": "c", "output": "d", "reasoning": "e", "name": "Ann"}]}
    assert roles_and_texts(row) == [("user", "a", None), ("assistant", "b", []), ("user", "c", None), ("assistant", "d", None)]
    (found,) = convert(row, RowOptions())
    assert [(m.get("reasoning"), m.get("name")) for m in found.messages[2:]] == [(None, None), ("e", "Ann")]
    renamed = {"log": [{"input": "a", "output": "b"}]}
    want = [("user", "a", None), ("assistant", "b", None)]
    assert roles_and_texts(renamed, columns={"messages": "log", "role": "who", "content": "says"}) == want


def test_turns__what_is_not_a_number_is_absent() -> None:
    none = float("nan")
    turns = [{"role": "user", "content": "a", "name": none, "weight": none}, {"role": "gpt", "content": "b", "tool_calls": none}]
    assert roles_and_texts({"messages": turns}) == [("user", "a", None), ("assistant", "b", None)]


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
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\nHi [/INST] Ho </s>",
        "<s>[INST] <<SYS>> Be kind. <</SYS>> Hi [/INST] Ho </s>",
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHo<|end|>\n",
        "<|system|>\nBe kind.<|endoftext|>\n<|user|>\nHi<|endoftext|>\n<|assistant|>\nHo<|endoftext|>\n",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHo<|end_of_text|>",
        "<|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHo<|eom_id|><|end_of_text|>",
        "<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|></s>",
        "### System: Be kind.### Human: Hi### Assistant: Ho</s>",
        "### System: Be kind.\n### Human: Hi ### Assistant: Ho",
    ],
)
def test_transcripts__are_taken_apart(text: str) -> None:
    assert roles_and_texts({"text": text}) == [("system", "Be kind.", None), ("user", "Hi", None), ("assistant", "Ho", None)]


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("### Human: Hi\n### Assistant: Write `### Human: x`", "### Human:"),
        ("### Human: What is <|endoftext|> for?\n### Assistant: Ho", "<|endoftext|>"),
        ("<|im_start|>user\nHi<|endoftext|> and\n<|im_start|>assistant\nHo<|im_end|>", "<|endoftext|>"),
        ("<|im_start|>user\nHi<|im_end|> and<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>", "text behind the end"),
        ("<|user|>\nHi<|end|> and<|endoftext|>\n<|assistant|>\nHo<|end|>", "text behind the end"),
        ("<|user|>\nHi</s> and</s>\n<|assistant|>\nHo</s>", "text behind the end"),
        ("<|user|>\nHi <s>and</s>\n<|assistant|>\nHo</s>", "<s>"),
        ("[INST] Hi <s>and [/INST] Ho </s>", "<s>"),
        ("### Human: Hi\n### Assistant: <|python_tag|>f()", "<|python_tag|>"),
        ("[INST] Hi [INST] Ho [/INST] So", "[INST]"),
        ("[INST] Hi <<SYS>> Be kind. <</SYS>> [/INST] Ho", "<<SYS>>"),
        ("<|im_start|>user\nHi [INST]<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>", "[INST]"),
        ("<|im_start|>user\nHi<|eot|><|im_end|>\n<|im_start|>assistant\nHo<|im_end|>", "<|eot|>"),
        ("<|user|>\nHi<|end|> and more\n<|assistant|>\nHo<|end|>", "text behind the end"),
        ("\n\nHuman: Hi\nAssistant: Ho\n\nAssistant: So", "Assistant:"),
    ],
)
def test_transcripts__no_mark_stays_within_a_turn(text: str, mark: str) -> None:
    reason, detail = reject({"text": text})
    assert reason in ("unsupported_content", "unread_field")
    assert mark in detail


CHATML_FORM, PHI = "<|im_start|>{}\n{}<|im_end|>\n", "<|{}|>\n{}<|end|>\n"
LLAMA3, ZEPHYR = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>", "<|{}|>\n{}</s>\n"


@pytest.mark.parametrize(
    ("form", "text"),
    [
        *((form, text) for form in (CHATML_FORM, LLAMA3) for text in (
          "<s>old</s> new", "new <s>old</s>", "What is </s>?", "<s>", "What is <|endoftext|> for?", "What is <eos>?", "<|end|>"
        )),
        *((form, text) for form in (ZEPHYR, PHI) for text in ("What is <|endoftext|> for?", "Why <|eot_id|>", "It is <eos>")),
        (PHI, "What is <|end_of_text|>"), (ZEPHYR, "What is <|endoftext|>"), (LLAMA3, "What is <|end_of_text|>"),
        *(("### {}: {}\n", text) for text in ("<s>old</s> new", "new <s>old</s>", "What is </s> for?", "<s>a</s> <s>b</s>")),
        *(("\n\n{}: {}", text) for text in ("<s>old</s> new", "new <s>old</s>")),
    ],
)  # fmt: skip
def test_transcripts__tokens_of_others_are_text_within_a_turn(form: str, text: str) -> None:
    user = "Human" if form[0] in "#\n" else "user"
    answer = "Assistant" if form[0] in "#\n" else "assistant"
    want = [("user", text, None), ("assistant", text, None)]
    written = form.format(user, text) + form.format(answer, text)
    behind = ("", "</s>", "<|endoftext|>", " </s>\n") if form != ZEPHYR else ("", "</s>")
    for end in behind:  # of the text, as a tokenizer adds it
        assert roles_and_texts({"text": written + end}) == want, end
    prompt, _, answered = written.rpartition(text)
    assert roles_and_texts({"prompt": prompt, "completion": text + answered}) == want


def test_transcripts__a_text_is_closed_like_its_first_turn() -> None:
    for form in (PHI, "<|{}|>\n{}<|endoftext|>\n", CHATML_FORM, LLAMA3):
        text = form.format("user", "Hi") + form.format("assistant", "Ho").rstrip()
        for end in ("<|endoftext|></s>", "</s>", "\n<|endoftext|>\n</s>"):
            assert [t for _, t, _ in roles_and_texts({"text": text + end})] == ["Hi", "Ho"], text + end


def test_transcripts__of_hh_and_guanaco() -> None:
    assert roles_and_texts({"text": HH + " So"})[2:] == [("user", "Well?", None), ("assistant", "So", None)]
    assert [t for _, t, _ in roles_and_texts({"chat": HH})] == ["Hi", "Ho", "Well?"]
    for text in (
        "### Human: Q1### Assistant: A1### Human: Q2### Assistant: A2",
        "### Human: Q1\n### Assistant: A1### Human: Q2### Assistant: A2",
        "### Human: Q1### Assistant: A1\n### Human: Q2 ### Assistant: A2</s>",
    ):
        assert [t for _, t, _ in roles_and_texts({"text": text})] == ["Q1", "A1", "Q2", "A2"]
    assert [t for _, t, _ in roles_and_texts({"text": "### Human: #### Assistant: is a heading### Assistant: A"})] == [
        "#### Assistant: is a heading", "A",
    ]  # fmt: skip


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
