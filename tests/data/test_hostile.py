"""Files made to cost time, or taken for others: their cost is bounded, and one message says what is wrong."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tagcos_stream.data.oasst import MAX_THREADS
from tagcos_stream.data.read import Limits, read_file, resolve_sources
from tagcos_stream.data.transcripts import _llama2
from tagcos_stream.types import UserError
from tests.data.tools import GOOD, chat, read, write, write_bytes

GOOD_LINE = json.dumps(GOOD).encode()


def packed(data: bytes) -> bytes:
    return gzip.compress(data, 1)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.json"])
@pytest.mark.parametrize("block_rows", [8192, 7])
def test_blank_lines__end_the_file_at_the_limit(tmp_path: Path, name: str, block_rows: int) -> None:
    limits = Limits(max_blank_lines=50)
    row, blank = (b"a,b\n", b"\n") if name == "a.csv" else (GOOD_LINE + b"\n", b" \r\n")
    head, between = b"prompt,completion\n" if name == "a.csv" else b"", b""
    if name == "a.json":
        row, blank, head = GOOD_LINE + b",", b" ,", b"["
        between = b"]"
    few = head + row + blank * 50 + row + blank * 20 + row.rstrip(b",") + between
    got = read(write_bytes(tmp_path / name, few), limits=limits, block_rows=block_rows)
    assert got.occurrences.height == 3
    assert set(got.reasons.values()) <= {"broken_json"}  # a list's empty elements are rows
    many = head + row + blank * 40 + row + blank * 51 + row.rstrip(b",") + between
    path = write_bytes(tmp_path / name, many)
    got = read(path, limits=limits, block_rows=block_rows)
    assert got.occurrences.height == 2
    stopped = [row for row, reason in got.reasons.items() if reason == "blank_lines"]
    assert stopped == [{"a.csv": 2, "a.json": 92}.get(name, 92)]
    again = read(path, limits=limits, block_rows=block_rows, start_row=1)
    assert again.reasons == {row: reason for row, reason in got.reasons.items() if row >= 1}
    if name.startswith("a.jsonl"):
        assert read(path, limits=limits, start_row=93).rejects.height == 0


def test_turns_and_columns__beyond_their_limits(tmp_path: Path) -> None:
    limits = Limits(max_turns=4, max_columns=3)
    long = {"messages": chat(0)["messages"] * 3}
    for rows in ([long, chat(1)], [long | {"odd": 1}, chat(1) | {"system": "s"}]):  # in columns, and row by row
        got = read(write(tmp_path / "a.jsonl", rows), limits=limits)
        assert got.reasons == {0: "too_many_turns"}
        assert "6 messages, limit max_turns 4" in got.rejects["detail"][0]
        assert got.occurrences.height == 1
    (tmp_path / "a.csv").write_text("prompt,completion,a,b\n1,2,3,4\n")
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"], "c": [1], "d": [2]}), tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(UserError, match=r"4 columns, limit max_columns 3"):
            read(tmp_path / name, limits=limits)


def _tree(depth: int, answers: int, text: str = "a") -> dict[str, Any]:
    node: dict[str, Any] = {"role": "prompter", "text": text, "replies": []}
    tree = node
    for _ in range(depth):
        node["replies"] = [{"role": "prompter", "text": "b", "replies": []}]
        node = node["replies"][0]
    node["replies"] = [{"role": "assistant", "text": "c", "replies": []} for _ in range(answers)]
    return {"message_tree_id": "t", "prompt": tree}


@pytest.mark.parametrize(("tree", "says"), [(_tree(200, 1500), "messages"), (_tree(1, 150, "x" * 500_000), "characters")])
def test_trees__whose_threads_repeat_too_much_are_rejects(tmp_path: Path, tree: dict[str, Any], says: str) -> None:
    got = read(write(tmp_path / "a.jsonl", [tree]))
    assert got.reasons == {0: "tree_broken"}
    assert f"{says}, limit MAX_THREADS" in got.rejects["detail"][0]
    assert read(write(tmp_path / "a.jsonl", [_tree(2, 3)])).reasons == {0: "role_order"}, "not for its size"
    flat: list[dict[str, Any]] = []
    waiting: list[tuple[str | None, dict[str, Any]]] = [(None, tree["prompt"])]
    while waiting:
        parent, node = waiting.pop()
        flat.append({"message_id": str(len(flat)), "parent_id": parent, "role": node["role"], "text": node["text"]})
        waiting += [(flat[-1]["message_id"], reply) for reply in node["replies"]]
    got = read(write(tmp_path / "b.jsonl", [row | {"message_tree_id": "t"} for row in flat]))
    assert set(got.reasons.values()) <= {"tree_broken", "no_assistant"}
    assert got.occurrences.height == 0
    assert MAX_THREADS == 200_000


def _big(pieces: int) -> dict[str, bytes]:
    """Rows whose work might grow faster than they do; twice the pieces are twice the bytes."""
    talk = '{"role":"user","content":"a"},{"role":"assistant","content":"b"}'
    call = r'{"role":"tool_call","content":"{\"name\":\"f\",\"arguments\":{}}"}'
    texts = [
        '{"messages":[{"role":"user","content":["a"' + ',"a"' * pieces + ']},{"role":"assistant","content":"b"}]}',
        '{"messages":[{"role":"user","content":"a"}' + f",{call}" * pieces + "]}",
        '{"messages":[' + talk + '],"choices":' + "[" * 500 + '"a"' + ',"a"' * pieces + "]" * 500 + "}",
        '{"messages":[' + ",".join([talk] * 100) + '],"prompt":["x' + '","'.join(f"{i:020d}" for i in range(pieces)) + '"]}',
        '{"messages":[' + ",".join([talk] * 100) + '],"text":"' + "no" * pieces + '"}',
        '{"text":"[INST] a [/INST] b ' + "[INST] " * pieces + '"}',
        '{"text":"' + r"### Human: a\n### Assistant: b\n" * pieces + '"}',
    ]
    return {text[:50]: text.encode() for text in texts}


def test_rows__cost_time_in_proportion_to_their_bytes(tmp_path: Path) -> None:
    """Four times the pieces cost at most ten times the time; what is quadratic costs sixteen times, at these sizes seconds."""

    def seconds(rows: list[bytes]) -> list[float]:
        out = []
        for row in rows:
            path = write(tmp_path / "a.jsonl", [row])
            begin = time.process_time()
            read(path, limits=Limits(max_turns=1 << 30))
            out.append(time.process_time() - begin)
        return out

    few, many = _big(5_000), _big(20_000)
    seconds(list(few.values()))  # what the first reading compiles and imports
    for name, one, four in zip(few, seconds(list(few.values())), seconds(list(many.values())), strict=True):
        assert four < 10 * max(one, 0.1), f"{name}: {one:.3f} s, four times as large {four:.3f} s"


def test_lists_in_an_object__cost_no_copy_of_the_file_each(tmp_path: Path) -> None:
    lists = {f"list {i}": [1] for i in range(50_000)} | {"r\\ows": [chat(0), chat(1)]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(lists))
    begin = time.process_time()
    assert read(path).occurrences.height == 2
    assert read(path, key="r\\\\ows").occurrences.height == 2
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("block_rows", [65_536, 500])
def test_rows_of_no_shape__hide_no_others(tmp_path: Path, block_rows: int) -> None:
    """Whatever a block begins with, its other rows are read; the way to read a row is said of those that are listed."""
    rows = (
        [{"a": i} for i in range(1_500)] + [chat(i) for i in range(300)] + [{"TEXT": "no marks"}, {"Prompt": "a", "output": "b"}]
    )
    got = read(write(tmp_path / "a.jsonl", rows), block_rows=block_rows)
    assert got.occurrences["row"].to_list() == [*range(1_500, 1_800), 1_801]
    assert set(got.reasons.values()) == {"unknown_shape"}
    assert got.rejects["detail"][0].startswith("no shape has these fields: a; say what to read with `columns`")
    assert got.rejects["detail"][-1] is None or got.rejects["detail"][-1].startswith("no shape has these fields: text; ")


def test_trees__field_names_with_escapes(tmp_path: Path) -> None:
    parts = (("null", "prompter", "q"), ('"0"', "assistant", "a"))
    rows = [
        rf'{{"message_\u0069d":"{i}","parent_id":{parent},"role":"{role}","text":"{text}"}}'.encode()
        for i, (parent, role, text) in enumerate(parts)
    ]
    got = read(write_bytes(tmp_path / "a.jsonl", b"\n".join(rows)))
    assert [turn["content"] for turn in got.occurrences["messages"][0]] == ["q", "a"]


def test_llama2__turns_are_those_between_the_marks() -> None:
    text = "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\na [/INST] b </s><s> [INST] c [/INST] d <s>[INST]e[/INST]"
    assert [(t["role"][0], t["content"]) for t in _llama2(text, "text")] == [
        ("s", "s"), ("u", "a"), ("a", "b"), ("u", "c"), ("a", "d"), ("u", "e"),
    ]  # fmt: skip


def _zip(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.jsonl", data)
    return out.getvalue()


def _tar(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("a.jsonl")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _parquet(data: bytes) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"a": [data]}), out)
    return out.getvalue()


def _arrow() -> bytes:
    out = io.BytesIO()
    pl.DataFrame({"prompt": ["a"], "completion": ["b"]}).write_ipc(out)
    return out.getvalue()


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


LINES = GOOD_LINE + b"\n" + GOOD_LINE + b"\n"
CONTENTS = {
    "gz in gz": (packed(packed(LINES)), "gzip within gzip: unpack it once"),
    "zip": (_zip(LINES), "a zip archive: unpack it"),
    "zip in gz": (packed(_zip(LINES)), "a zip archive within gzip: unpack it once"),
    "tar": (_tar(LINES), "a tar archive: unpack it"),
    "tar in gz": (packed(_tar(LINES)), "a tar archive within gzip: unpack it"),
    "parquet": (_parquet(LINES), "a Parquet file: name it .parquet, or set"),
    "parquet in gz": (packed(_parquet(LINES)), "a Parquet file within gzip: unpack it and name it .parquet"),
    "arrow in zst": (zstd(_arrow()), "an Arrow file within zstd: unpack it and name it .arrow"),
    "Feather 1": (b"FEA1\0\0\0\0", "a Feather file of version 1: write it as .feather of version 2"),
    "bzip2": (b"BZh91AY" + LINES, "bzip2: unpack it"),
    "UTF-16 with a mark": (LINES.decode().encode("utf-16"), r"text in UTF-16: convert it to UTF-8 \(iconv -f UTF-16 -t UTF-8\)"),
    "UTF-16": (LINES.decode().encode("utf-16-be"), "text in UTF-16BE: convert"),
    "UTF-32": (LINES.decode().encode("utf-32-le"), "text in UTF-32LE: convert"),
    "UTF-16 in gz": (packed(LINES.decode().encode("utf-16")), "text in UTF-16: convert"),
    "web page": (b"<!doctype html>\n<html>404</html>\n", "a web page: download the file itself"),
    "web page behind blank lines": (b"\xef\xbb\xbf\r\n <HTML><body>404", "a web page: download the file itself"),
    "error of a store": (b'<?xml version="1.0"?>\n<Error><Code>NoSuchKey</Code></Error>', "XML, as the errors of object stores"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a pointer of Git LFS, not the file"),
}


NO_TABLES = {name: found for name, found in CONTENTS.items() if name != "parquet" and "UTF" not in name} | {
    "JSON lines": (LINES, "JSON: name it .jsonl, or set"),
    "JSON lines in gz": (packed(LINES), r"JSON within gzip: name it .jsonl.gz, or set"),
    "JSON list": (b"\xef\xbb\xbf [" + GOOD_LINE + b"]", "a JSON list: name it .json, or set"),
    "CSV": (b"prompt,completion\n\xc3\xa4,b\n", "CSV: name it .csv"),
    "TSV in zst": (zstd(b"prompt\tcompletion\na,\tb\n"), "tab-separated text within zstd: name it .tsv.zst"),
    "an error's text": (b"Entry not found", r"text \('Entry not found'\): download the file itself"),
    "gzip": (packed(bytes(range(1, 200))), "gzip: unpack it"),
    "damaged gzip": (packed(LINES)[:9] + b"\xff" * 9, "damaged gzip: download it again"),
    "UTF-16": (LINES.decode().encode("utf-16"), r"text in UTF-16: convert it .* and name it by what it holds, as .jsonl"),
}


@pytest.mark.parametrize("name", list(NO_TABLES))
@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather", "ipc"])
def test_tables__of_another_kind_are_one_message(tmp_path: Path, name: str, ending: str) -> None:
    data, says = NO_TABLES[name]
    (tmp_path / f"a.{ending}").write_bytes(data)
    with pytest.raises(UserError, match=f"a.{ending}: the file is {says}"):
        read(tmp_path / f"a.{ending}")


def test_tables__named_as_each_other_and_damaged_ones(tmp_path: Path) -> None:
    for data, ending, says in (
        (_parquet(LINES), "arrow", "the file is a Parquet file: name it .parquet"),
        (_arrow(), "parquet", "the file is an Arrow file: name it .arrow"),
        (_parquet(LINES)[:-9], "parquet", "is not a readable Parquet file"),
        (_arrow()[:-9], "arrow", "is not a readable Arrow file"),
        (bytes(range(200)), "parquet", "is not a readable Parquet file"),
    ):
        (tmp_path / f"a.{ending}").write_bytes(data)
        with pytest.raises(UserError, match=says):
            read(tmp_path / f"a.{ending}")


def test_csv__that_is_json(tmp_path: Path) -> None:
    for name, ending in {"a.csv": ".jsonl", "a.tsv.gz": ".jsonl.gz"}.items():
        with pytest.raises(UserError, match=rf"the file is JSON.*: name it {ending}, or set `format`"):
            read(write(tmp_path / name, [GOOD, GOOD]))


@pytest.mark.parametrize("name", list(CONTENTS))
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_containers__by_content_are_one_message(tmp_path: Path, name: str, ending: str) -> None:
    data, says = CONTENTS[name]
    (tmp_path / f"a.{ending}").write_bytes(data)
    if ending == "csv":
        with pytest.raises(UserError, match=says):
            read(tmp_path / "a.csv")
        return
    got = read(tmp_path / f"a.{ending}")
    assert got.reasons == {0: "wrong_container"}
    assert re.search(says, got.rejects["detail"][0])


def test_containers__bare_carriage_returns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES.replace(b"\n", b"\r"))
    got = read(tmp_path / "a.jsonl")
    assert got.reasons == {0: "wrong_container"}
    assert "bare carriage returns: convert them to line feeds (tr '\\r' '\\n')" in got.rejects["detail"][0]
    (tmp_path / "b.jsonl").write_bytes(GOOD_LINE + b"\r")
    (tmp_path / "c.jsonl").write_bytes(LINES.replace(b"\n", b"\r\n"))
    (tmp_path / "d.json").write_bytes(b"[\r" + GOOD_LINE + b",\r" + GOOD_LINE + b"]\r")
    assert [read(tmp_path / name).occurrences.height for name in ("b.jsonl", "c.jsonl", "d.json")] == [1, 2, 2]
    (tmp_path / "e.csv").write_bytes(b"prompt,completion\ra,b\r")
    (file,) = resolve_sources([str(tmp_path / "e.csv")])
    with pytest.raises(UserError, match="bare carriage returns"):
        next(read_file(file))
