"""A chosen example in the shapes that trainers read. What a shape cannot hold is refused with a reason, never dropped.

Every shape is a function (example, notes) -> rows. An example is a mapping with messages (`Message`), tools and template_kwargs
(JSON text or None) and the columns of `COMMON`; `notes` counts what a reader of the file should know.

Tool calls are written as OpenAI has them, arguments as JSON text, so that a column of calls has one type whatever the tools.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from tagcos_stream.data.canonical import characters

# where a row was read, and by which run it was selected
ORIGIN = ("source_file", "source_row", "run_id", "method", "fraction", "model")
COMMON = ("example_id", "dataset", "weight", "group_id", "rank", *ORIGIN)
FROM = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}

_common = [
    ("example_id", pa.string()), ("dataset", pa.string()), ("weight", pa.float64()), ("group_id", pa.int32()),
    ("rank", pa.int32()), ("source_file", pa.string()), ("source_row", pa.int64()), ("run_id", pa.string()),
    ("method", pa.string()), ("fraction", pa.float64()), ("model", pa.string()),
]  # fmt: skip
_train = pa.list_(pa.struct([("begin", pa.uint32()), ("end", pa.uint32())]))
_detail = pa.list_(pa.struct([("begin_offset", pa.int64()), ("end_offset", pa.int64()), ("train", pa.bool_())]))
_flags = [("train", pa.bool_()), ("train_detail", _detail)]
_call = pa.struct([("name", pa.string()), ("arguments", pa.string())])
_calls = pa.list_(pa.struct([("id", pa.string()), ("type", pa.string()), ("function", _call)]))
_turn_extras = [("name", pa.string()), ("reasoning_content", pa.string()), ("tool_calls", _calls), ("tool_call_id", pa.string())]
_role_content = [("role", pa.string()), ("content", pa.string())]
_turn = [("from", pa.string()), ("value", pa.string())]
_plain = pa.list_(pa.struct([*_role_content, *_turn_extras]))
_row = [("tools", pa.string()), ("chat_template_kwargs", pa.string()), *_common]
# What Parquet files leave out if no row has it. Trainers take a null for a value: TRL unpacks `chat_template_kwargs`, and hands
# `tool_calls` to the chat template, where that of Llama 3.1 asks how many there are.
SPARSE = ("name", "reasoning_content", "tool_calls", "tool_call_id", "train", "train_detail", "chat_template_kwargs")
_function = pa.struct([("name", pa.string()), ("description", pa.string()), ("parameters", pa.string())])

MESSAGES = pa.schema([("messages", pa.list_(pa.struct([*_role_content, *_turn_extras, ("train", _train)]))), *_row])
SHAREGPT = pa.schema([("conversations", pa.list_(pa.struct([*_turn, *_turn_extras, *_flags]))), *_row])
ALPACA = pa.schema(
    [(name, pa.string()) for name in ("instruction", "input", "output", "system")]
    + [("history", pa.list_(pa.list_(pa.string()))), *_common]
)
PROMPT_COMPLETION = pa.schema(
    [("prompt", _plain), ("completion", _plain), ("turn", pa.int32()), ("tools", pa.string()), *_common]
)
LLAMA_FACTORY = pa.schema([("conversations", pa.list_(pa.struct(_turn))), ("tools", pa.string()), *_common])
AXOLOTL = pa.schema(
    [
        ("messages", pa.list_(pa.struct([*_role_content, *_turn_extras, *_flags]))),
        ("tools", pa.list_(pa.struct([("type", pa.string()), ("function", _function)]))),
        *_common,
    ]
)
TOKENS = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32())), *_common])

Example = Mapping[str, Any]
Row = dict[str, Any]


class Unfit(ValueError):
    """The shape cannot hold this example; the text is the reason, alike for all examples of one kind."""


def messages(example: Example, notes: Counter[str]) -> list[Row]:
    """Return a row in our own shape, which holds everything.

    Every key of a turn, trained character ranges included, tools and arguments of the template.
    """
    turns = [{"role": m["role"], "content": m["content"], **_structure(m), "train": m["train"]} for m in example["messages"]]
    return [{"messages": turns, "tools": example["tools"], **_arguments(example, notes), **_extra(example)}]


def sharegpt(example: Example, notes: Counter[str]) -> list[Row]:
    """Return conversations of from and value; a turn's train flag is `train`, its character ranges axolotl's `train_detail`."""
    turns = [{"from": FROM[m["role"]], "value": m["content"], **_structure(m), **_axolotl_flags(m)} for m in example["messages"]]
    return [{"conversations": turns, "tools": example["tools"] or "", **_arguments(example, notes), **_extra(example)}]


def alpaca(example: Example, notes: Counter[str]) -> list[Row]:
    """Return the last exchange as instruction and output, those before it as `history`.

    `history` holds pairs, whose answers count as trained.
    """
    if any(m["tool_calls"] for m in example["messages"]):
        raise Unfit("tool calls")
    if any(m["reasoning"] for m in example["messages"]):
        raise Unfit("reasoning besides the answer")
    system, turns = _exchanges(example, "Alpaca")
    if example["tools"]:
        raise Unfit("tools")
    if any(m["role"] == "tool" for m in turns):
        raise Unfit("turns of tools")
    pairs = [[turns[i]["content"], turns[i + 1]["content"]] for i in range(0, len(turns), 2)]
    if not pairs[-1][0]:
        raise Unfit("an empty instruction")
    last = {"instruction": pairs[-1][0], "input": "", "output": pairs[-1][1]}
    return [{**last, "system": system or "", "history": pairs[:-1], **_extra(example)}]


def prompt_completion(example: Example, notes: Counter[str]) -> list[Row]:
    """Return a row for each trained turn, the turns before it as its prompt: the same is trained on as in the whole conversation.

    Rows share the example's weight by the characters of their completions. `turn`: number of the completion.
    """
    if example["template_kwargs"]:
        raise Unfit("arguments for the chat template")
    turns = [{"role": m["role"], "content": m["content"], **_structure(m)} for m in example["messages"]]
    lengths = [characters(m) for m in example["messages"]]
    wanted = []
    for i, message in enumerate(example["messages"]):
        part = trained(message)
        if part == "part":
            raise Unfit("train flags for parts of a turn")
        if part == "whole":
            if message["role"] != "assistant":
                raise Unfit("trained turns that are not the assistant's")
            if i == 0:
                raise Unfit("an answer to nothing")
            wanted.append(i)
    total = sum(lengths[i] for i in wanted)
    if len(wanted) > 1:
        notes["conversations became a row for each of their trained turns"] += 1
    if wanted[-1] < len(turns) - 1:
        notes["turns after the last trained one, on which nothing depends, are not in the rows"] += len(turns) - 1 - wanted[-1]
    if any(m["tool_calls"] for m in example["messages"]):
        notes["arguments of calls are JSON text, which many chat templates print in quotes: use --format trl"] += 1
    rows = []
    for i in wanted:
        share = {"weight": example["weight"] * lengths[i] / total}
        own = {"prompt": turns[:i], "completion": [turns[i]], "tools": example["tools"], "turn": i}
        rows.append({**own, **_extra(example), **share})
    return rows


def llama_factory(example: Example, notes: Counter[str]) -> list[Row]:
    """Return LLaMA-Factory's sharegpt formatting, which trains every answer and has neither flags nor names nor weights.

    Calls are turns of their own; reasoning stands before the answer, as LLaMA-Factory's templates print it.
    """
    system, turns = _exchanges(example, "LLaMA-Factory")
    if example["weight"] != 1:
        notes["weights stand in a column that LLaMA-Factory does not read"] += 1
    if any(m["tool_call_id"] or (m["role"] == "tool" and m["name"]) for m in turns):
        notes["tools' turns name neither their tool nor their call, for which LLaMA-Factory has no place"] += 1
    head = [{"from": "system", "value": system}] if system else []
    return [
        {
            "conversations": head + [_llama_factory_turn(m, notes) for m in turns],
            "tools": example["tools"] or "",
            **_extra(example),
        }
    ]


def axolotl(example: Example, notes: Counter[str]) -> list[Row]:
    """Return axolotl's chat_template rows: turns keep flags and ranges as message_field_training and _detail."""
    if example["template_kwargs"]:
        raise Unfit("arguments for the chat template")
    if example["weight"] != 1:
        notes["weights stand in a column that axolotl does not read"] += 1
    turns = []
    for m in example["messages"]:
        if trained(m) == "part" and m["train"][-1]["end"] < len(m["content"].rstrip()):
            notes["turns are trained on up to a place before their end; axolotl also trains their end-of-turn token"] += 1
        turns.append({"role": m["role"], "content": m["content"], **_structure(m), **_axolotl_flags(m)})
    return [{"messages": turns, "tools": _functions(example["tools"]), **_extra(example)}]


def trained(message: Mapping[str, Any]) -> str:
    """How much of a turn is trained on: whole (with its end-of-turn token), part or none."""
    ranges = message["train"]
    if ranges is None:
        return "whole" if message["role"] == "assistant" else "none"
    if not ranges:
        return "none"
    to_the_end = ranges[0]["end"] >= len(message["content"].rstrip())  # as the loss mask has it: white space does not count
    return "whole" if ranges[0]["begin"] == 0 and to_the_end else "part"


def _extra(example: Example) -> Row:
    return {name: example[name] for name in COMMON}


def _arguments(example: Example, notes: Counter[str]) -> Row:
    if example["template_kwargs"]:
        notes["arguments for the chat template are JSON text, at which TRL's SFTTrainer stops: use --format trl"] += 1
    return {"chat_template_kwargs": example["template_kwargs"]}


def _structure(message: Mapping[str, Any]) -> Row:
    """What a turn has besides role and text, in the columns of `_turn_extras`."""
    calls = json.loads(message["tool_calls"]) if message["tool_calls"] else None
    return {
        "name": message["name"],
        "reasoning_content": message["reasoning"],
        "tool_calls": [call | {"function": _with_text(call["function"])} for call in calls] if calls else None,
        "tool_call_id": message["tool_call_id"],
    }


def _with_text(function: Mapping[str, Any]) -> Row:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"name": function["name"], "arguments": text}


def _llama_factory_turn(message: Mapping[str, Any], notes: Counter[str]) -> Row:
    role, value = FROM[message["role"]], message["content"]
    if message["tool_calls"]:
        if value:
            raise Unfit("text besides tool calls")
        calls = json.loads(message["tool_calls"])
        if any("id" in call for call in calls):
            notes["calls have no id, for which LLaMA-Factory has no place"] += 1
        functions = [call["function"] for call in calls]
        role, value = "function_call", json.dumps(functions[0] if len(functions) == 1 else functions, ensure_ascii=False)
    if message["reasoning"]:
        if "</think>" in message["reasoning"]:
            raise Unfit("reasoning with </think> in it, at which LLaMA-Factory would end it")
        notes["reasoning stands in the text, between <think> and </think>"] += 1
        value = f"<think>\n{message['reasoning']}\n</think>\n\n{value}"
    return {"from": role, "value": value}


def _axolotl_flags(message: Mapping[str, Any]) -> Row:
    """`train` where the whole turn departs from its role's default, else `train_detail` for ranges (ends included)."""
    ranges, assistant = message["train"], message["role"] == "assistant"
    if ranges is None or (not ranges and not assistant):
        return {"train": None, "train_detail": None}
    if not ranges:
        return {"train": False, "train_detail": None}
    if not assistant and ranges == [{"begin": 0, "end": len(message["content"])}]:
        return {"train": True, "train_detail": None}
    detail = [{"begin_offset": r["begin"], "end_offset": r["end"] - 1, "train": True} for r in ranges]
    return {"train": None, "train_detail": detail}


def _exchanges(example: Example, reader: str) -> tuple[str | None, Sequence[Mapping[str, Any]]]:
    """(system text, the other turns), where the turns are exchanges that end with an answer and every answer is trained on."""
    turns = example["messages"]
    system = turns[0]["content"] if turns[0]["role"] == "system" else None
    if system == "":
        raise Unfit("an empty system turn")
    turns = turns if system is None else turns[1:]
    if example["template_kwargs"]:
        raise Unfit("arguments for the chat template")
    if any(m["name"] for m in turns if m["role"] != "tool") or (system is not None and example["messages"][0]["name"]):
        raise Unfit("names of speakers")
    if len(turns) % 2 or any((m["role"] == "assistant") != (i % 2 == 1) or m["role"] == "system" for i, m in enumerate(turns)):
        raise Unfit("turns that are not question and answer in turn, the answer last")
    if any(trained(m) != ("whole" if m["role"] == "assistant" else "none") for m in example["messages"]):
        raise Unfit(f"train flags, where {reader} trains every answer and nothing else")
    return system, turns


def _functions(tools: str | None) -> list[Row] | None:
    """Tools as columns with one type: their parameters, of which no two need to be alike, stay JSON text, which axolotl reads."""
    if tools is None:
        return None
    found = []
    for tool in json.loads(tools):
        function = tool.get("function") if isinstance(tool, dict) and set(tool) == {"type", "function"} else None
        if not isinstance(function, dict) or set(function) != {"name", "description", "parameters"}:
            raise Unfit("tools that are not {type, function: {name, description, parameters}}")
        found.append(
            {"type": tool["type"], "function": {**function, "parameters": json.dumps(function["parameters"], ensure_ascii=False)}}
        )
    return found
