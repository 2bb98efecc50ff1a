"""Rows of every shape made hostile, and what must hold of a file of them: every row is an example or a reject.

The fast way gives what the exact way gives, in blocks of any size.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tagcos_stream.data.canonical import KEPT
from tagcos_stream.data.containers.base import Raw
from tagcos_stream.data.convert_rows import row_by_row
from tagcos_stream.data.reasons import REASONS
from tagcos_stream.data.rejects import Rejects
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.turns import CONTENT_KEYS, ROLE_KEYS, ROLE_WORDS, TURN_KEYS
from tests.data.tools import Read, read, write_bytes

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
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "It is 7."}], "answer": "7", "turns": 1},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "reasoning": "on"},
    {"input": [{"role": "user", "content": "a"}], "output": "b", "reasoning": "Off", "system_message": "s"},
    {"prompt": '[{"role": "user", "content": "a"}]', "completion": '[{"content": "b", "role": "assistant"}]'},
    {"question": "\n\nHuman: a\n\nAssistant:", "answer": " b"},
    {"prompt": "<|im_start|>user\na<|im_end|>\n", "completion": "<|im_start|>assistant\nb<|im_end|>", "label": 1},
    {"instruction": "a", "output": "b", "image_url": "u", "passage": "p"},
    {"prompt": "a", "completion": "b", "label": 0},
    {"instruction": "a", "output": "b", "kto_tag": False},
    {"problem": "a", "solution": "It is 7.", "answer": "7", "generations": ["b"]},
    {"question": "a", "solution": "b", "answer": "", "metadata": {"k": 1}},
    {"inputs": "a", "targets": "b", "metadata": '{"tools": [{"name": "f"}]}'},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "solution": "c", "attempt": 1},
    {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "metadata": {"tools": [{"name": "f"}]},
    },
    {"conversations": ["a", "b"]},
    {"messages": [{"role": "user", "content": "a"}], "reasoning": "r", "answer": "b"},
    {"problem": "a", "generated_solution": "b", "is_correct": True},
    {"problem": "a", "generated_solution": "b", "is_correct": False},
    {"prompt": "a", "input": "b", "output": "c"},
    {"prompt": "a", "input": "b", "response": "c"},
    {"prompt": "a", "output": "c", "text": "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nc<|im_end|>"},
    {"Question": "a", "Answer": "b", "Complex_CoT": None},
    {"conversation": [{"human": "a", "assistant": "b"}]},
    {"prompt": "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc", "response": "d"},
    {"instruction": "Human:a\nAssistant:b\nHuman:c\nAssistant:", "output": "d"},
    {"text": "<start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"},
    {
        "message_tree_id": "t",
        "prompt": {"role": "prompter", "text": "q", "replies": [{"role": "assistant", "text": "r", "replies": []}]},
    },
]


def exact(lines: list[bytes]) -> tuple[pl.DataFrame, pl.DataFrame]:
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


def check_lines(path: Path, lines: list[bytes], block_rows: int = 8192) -> Read:
    """Read the lines as a file: each that is not blank is an example or a reject, as row by row reading says."""
    write_bytes(path, b"\n".join(lines) + b"\n")
    lines = (b"\n".join(lines)).split(b"\n")
    got = read(path, block_rows=block_rows)
    occurrences, rejects = exact(lines)
    assert got.occurrences.equals(occurrences)
    assert _as_listed(got.rejects).equals(_as_listed(rejects))
    rows = {*got.occurrences["row"].to_list(), *got.rejects["row"].to_list()}
    blank = {i for i, line in enumerate(lines) if not line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r")}
    assert rows | blank == set(range(len(lines)))
    assert not rows & blank
    assert set(got.rejects["reason"]) <= set(REASONS)
    assert not set(got.rejects["row"]) & set(got.occurrences["row"])
    return got


def mutated(data: bytes, rng: random.Random) -> bytes:
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


def mutated_lines(n: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    base = [json.dumps(r, ensure_ascii=i % 2 == 0).encode() for i, r in enumerate(SHAPED * 2)]
    for _ in range(n):
        yield mutated(rng.choice(base), rng).replace(b"\n", b" ")


def check_file(path: Path, block_rows: int) -> Read:
    """Read a damaged file, of which nothing is known but what its rows may be; UserError where it is refused as a whole."""
    got = read(path, block_rows=block_rows)
    rows = [*got.occurrences["row"].to_list(), *got.rejects["row"].to_list()]
    assert len(rows) == len(set(rows))
    assert set(rows) <= set(range(got.blocks[-1].next_row))
    if path.name.split(".")[1] not in ("jsonl", "ndjson"):  # a blank line is no row
        assert len(rows) == got.blocks[-1].next_row
    return got


WORDS = {"user": ("user", "human", "User"), "assistant": ("assistant", "assistant", "gpt", "gpt", "function_call")}
TEXTS = ("Hi", "Ho", "Well, a text that is long enough", '{"name": "f", "arguments": {}}', "<think>\nhm\n</think>\n\nHo", " ", "")
COMMON = (20, 20, 3, 12, 3, 1, 1)
HEADS = (
    ("instruction", "output"), ("prompt", "completion"), ("question", "answer"), ("query", "response"), ("input", "output"),
    ("problem", "solution"), ("inputs", "targets"), ("prompt", "output"), ("problem", "generated_solution"),
    ("input", "response"), ("Question", "Answer"),
)  # fmt: skip
BESIDE = (
    "system", "input", "context", "prompt", "text", "label", "images", "tools", "history", "dataset", "id", "turns", "data",
    "metadata", "kto_tag", "solution", "generations", "target", "output", "response",
    "is_correct", "image_id",
)  # fmt: skip


def plain_rows(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows as the fast way takes them, each perhaps with something that it must leave to the exact way."""
    rng = random.Random(seed)
    for _ in range(n):
        if rng.random() < 0.7:
            names = rng.choice((("role", "content"), ("from", "value")))
            turns = [_plain_turn(rng, names, ("user", "assistant")[i % 2]) for i in range(rng.choice((2, 2, 2, 3, 4)))]
            row: dict[str, Any] = {rng.choice(("messages", "conversations")): turns}
        else:
            row = dict(zip(rng.choice(HEADS), rng.choices(TEXTS, COMMON, k=2), strict=True))
        if rng.random() < 0.2:
            beside: tuple[Any, ...] = (
                None,
                "",
                "Hi",
                "Ho",
                "false",
                "0",
                False,
                0,
                1.0,
                [],
                ["Hi"],
                {"a": "Hi"},
                {"tools": "Hi"},
            )
            row.setdefault(rng.choice(BESIDE), rng.choice(beside))
        yield row


def _plain_turn(rng: random.Random, names: tuple[str, str], role: str) -> dict[str, Any]:
    word = rng.choice(WORDS[role]) if rng.random() < 0.9 else rng.choice((*ROLE_WORDS, "pirate"))
    turn: dict[str, Any] = dict(zip(names, (word, rng.choices(TEXTS, COMMON)[0]), strict=True))
    if rng.random() < 0.1:
        turn[rng.choice((*ROLE_KEYS, *CONTENT_KEYS, *TURN_KEYS, "input", "more"))] = rng.choice(("Hi", "user", "", None))
    if rng.random() < 0.03:
        del turn[rng.choice(list(turn))]
    return turn
