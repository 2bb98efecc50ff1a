"""Files of every kind: rows and their numbers, resuming, damage, limits."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tagcos_stream.data.containers.arrow_sizes import BatchSizes
from tagcos_stream.data.containers.parquet import rows_at_once
from tagcos_stream.data.containers.parquet_pages import TooManyValues, held_at_once
from tagcos_stream.data.read import Limits, SourceFile, SourceSpec, read_file
from tagcos_stream.types import TransientError, UserError
from tests.data.tools import FILE_KINDS, GOOD, chat, make_file, read, write, write_bytes

BAD: Any = {"messages": [{"role": "user", "content": "no answer"}]}
ROWS = [BAD if i % 7 == 3 else chat(i) for i in range(60)]


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_read_file__every_kind_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    got = read(make_file(tmp_path / f"a.{kind}", ROWS))
    good = [i for i, r in enumerate(ROWS) if r is not BAD]
    assert got.occurrences["row"].to_list() == good
    assert got.texts == [[("user", f"Question {i}?"), ("assistant", f"Answer {i} é")] for i in good]
    assert got.occurrences["source_id"].to_list() == [f"row-{i}" for i in good]
    assert got.occurrences["dataset"].unique().to_list() == [
        "a.pretty" if "pretty" in kind else "a.object" if "object" in kind else "a.stream" if "stream" in kind else "a"
    ]
    assert got.reasons == {i: "no_assistant" for i in range(60) if i % 7 == 3}
    assert got.blocks[-1].next_row == 60
    assert got.blocks[-1].bytes_read > 0


@pytest.mark.parametrize("kind", FILE_KINDS)
def test_read_file__resumes_exactly(tmp_path: Path, kind: str) -> None:
    path = make_file(tmp_path / f"a.{kind}", ROWS)
    whole = read(path)
    for start in (0, 1, 16, 17, 18, 59, 60, 61):
        rest = read(path, start_row=start, block_rows=7)
        assert rest.occurrences.equals(whole.occurrences.filter(pl.col("row") >= start))
        assert rest.rejects.equals(whole.rejects.filter(pl.col("row") >= start))
        assert all(b.occurrences.height + b.rejects.height <= 7 for b in rest.blocks)
    at = 0
    for block in read(path, block_rows=9).blocks:
        there = {*block.occurrences["row"].to_list(), *block.rejects["row"].to_list()}
        assert there == set(range(at, block.next_row))
        at = block.next_row


def test_read_file__limit_takes_the_first_rows(tmp_path: Path) -> None:
    for kind in ("jsonl", "json", "parquet", "csv"):
        got = read(make_file(tmp_path / f"a.{kind}", ROWS), limit=10, block_rows=4)
        assert got.blocks[-1].next_row == 10
        assert got.occurrences.height + got.rejects.height == 10


def test_jsonl__counts_every_physical_line(tmp_path: Path) -> None:
    text = json.dumps(GOOD).encode()
    path = write_bytes(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + text + b"\r\n\n  \t\n" + text + b"\r\n{broken\n\n" + text)
    got = read(path)
    assert got.occurrences["row"].to_list() == [0, 3, 6]
    assert got.reasons == {4: "broken_json"}
    assert got.blocks[-1].next_row == 7


def test_jsonl__bad_lines_name_their_reason(tmp_path: Path) -> None:
    cases = {
        b"{broken": "broken_json",
        b'{"messages": [1, 2}': "broken_json",
        b'{"prompt": "a", "completion": "b"} {"prompt": "a", "completion": "b"}': "broken_json",
        b'{"prompt": "caf\xe9", "completion": "b"}': "bad_encoding",
        b'{"prompt": "\\ud800", "completion": "b"}': "bad_encoding",
        b'{"prompt": "a", "completion": "\\udc00x"}': "bad_encoding",
        b"[1, 2]": "wrong_type",
        b"null": "wrong_type",
        b'"text"': "wrong_type",
        b'{"prompt": 5, "completion": "b"}': "wrong_type",
        b'{"prompt": "a", "completion": ["b", {"type": "image_url"}]}': "unsupported_content",
        b'{"prompt": "a", "completion": 5}': "wrong_type",
        b'{"messages": "hello"}': "wrong_type",
        b'{"messages": {"role": "user", "content": "x"}}': "wrong_type",
        b'{"a": 1}': "unknown_shape",
        b"{}": "unknown_shape",
        b'{"prompt": "a", "completion": ""}': "empty_answer",
        b'{"prompt": "a", "completion": null}': "empty_answer",
        b'{"prompt": "a", "completion": " \\u2003\\n"}': "only_whitespace",
        b'{"prompt": "a", "completion": "\\u001c"}': "only_whitespace",
        b'{"prompt": " ", "completion": "b"}': "only_whitespace",
        b'{"messages": []}': "no_assistant",
        b'{"messages": [{"role": "assistant", "content": "b"}]}': "role_order",
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 5}]}': "wrong_type",
        b'{"messages": [{"role": "pirate", "content": "a"}, {"role": "assistant", "content": "b"}]}': "unknown_role",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b', "prompt": "a", "completion": 1}': "too_deep",
    }
    good = json.dumps(GOOD).encode()
    rows = [line for bad in cases for line in (bad, good)]
    got = read(write(tmp_path / "a.jsonl", rows))
    assert list(got.reasons.values()) == list(cases.values())
    assert list(got.reasons) == list(range(0, 2 * len(cases), 2))
    assert got.occurrences.height == len(cases)
    # one at a time: what a row gives does not depend on its neighbours
    for bad, reason in cases.items():
        assert read(write(tmp_path / "b.jsonl", [bad])).reasons == {0: reason}
    for snippet in got.rejects["snippet"]:
        assert len(snippet) <= 200


def test_jsonl__oversized_line_is_read_over(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode()
    limits = Limits(max_row_bytes=1000, block_bytes=4000)
    long = b'{"prompt": "a", "completion": "' + b"x" * 5_000_000 + b'"}'
    for rows, bad in (([good, long, good], 1), ([long, good], 0), ([good, long], 1)):
        got = read(write(tmp_path / "a.jsonl", rows), limits=limits)
        assert got.reasons == {bad: "oversized_row"}
        assert "max_row_bytes 1,000" in got.rejects["detail"][0]
        assert got.occurrences.height == len(rows) - 1
        listed = write_bytes(tmp_path / "a.json", b"[" + b", ".join(rows) + b"]")
        again = read(listed, limits=limits)
        assert again.reasons == {bad: "oversized_row"}
        assert again.occurrences.equals(got.occurrences)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_packed__damage_keeps_what_came_before(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.jsonl.{ending}", [{**chat(i), "noise": hash_text(i)} for i in range(4000)])
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], data[: len(data) // 2] + b"\0" * 500 + data[len(data) // 2 :]):
        path.write_bytes(broken)
        got = read(path)
        assert 0 < got.occurrences.height < 4000
        last = got.blocks[-1].next_row - 1
        assert got.reasons[last] in ("corrupt_file", "broken_json")
        assert "corrupt_file" in got.reasons.values() or broken != data[: len(data) // 2]
        assert got.occurrences.height + got.rejects.height == got.blocks[-1].next_row


def hash_text(i: int) -> str:
    import hashlib

    return hashlib.sha256(str(i).encode()).hexdigest()


def test_packed__zip_bomb_stops(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode() + b"\n"
    limits = Limits(ratio_from=1 << 20)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(good + b" " * (20 << 20)))
    (tmp_path / "b.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(good + b" " * (100 << 20)))
    for name in ("a.jsonl.gz", "b.jsonl.zst"):
        got = read(tmp_path / name, limits=limits)
        assert "zip_bomb" in got.reasons.values()
        assert got.texts == [[("user", "Why?"), ("assistant", "Because.")]]
    got = read(tmp_path / "b.jsonl.zst", limits=Limits(max_unpacked_bytes=1 << 20, max_ratio=1 << 40))
    assert "max_unpacked_bytes" in got.rejects["detail"][-1]


LINE = json.dumps(GOOD)
CELLS = '"id","prompt","completion"\n"1","a","b"\n'
TREE = {"message_id": "a", "parent_id": None, "message_tree_id": "a", "role": "prompter", "text": "x"}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.jsonl", f"{LINE}\n{LINE[:-9]}", "broken_json"),
        ("a.jsonl.gz", f"{LINE}\n{LINE[:-9]}", "broken_json"),  # what was compressed was cut before
        ("a.jsonl", "{\n" * 3000 + LINE[:-9], "broken_json"),  # behind more rejects than are listed
        ("a.jsonl", f"{LINE}\n{LINE}", None),
        ("a.jsonl", f"{LINE}\n{LINE[:-9]}\n", None),  # a broken row, but a whole line
        ("a.jsonl", LINE + "\n" + json.dumps({"other": 1}), None),
        ("a.json", f"[{LINE},\n{LINE},\n", "broken_json"),  # cut between rows
        ("a.json", '{"data": [' + LINE + ", " + LINE[:-9], "broken_json"),
        ("a.json", LINE[:-9], "broken_json"),
        ("a.json", f"[{LINE}, {LINE[1:-1]}]", None),
        ("a.json", f"[{LINE}], {LINE}]", "broken_json"),  # rows behind the end of the list
        ("a.json", f"[{LINE}]" + " " * (2 << 20) + LINE, "broken_json"),
        ("a.json", '{"data": [' + LINE + "]} " + LINE, "broken_json"),
        ("a.json", '{"data": [' + LINE + "], " + LINE + "]}", "broken_json"),
        ("a.json", '{"data": [' + LINE + ']} {"more": [' + LINE + "]}", "broken_json"),
        ("a.json", '{"data": [' + LINE + '], "more": [{"a": 1}}, {"a": 2}]}', "broken_json"),
        ("a.json", '{"data": [' + LINE + "]", "broken_json"),
        ("a.json", '{"data": [' + LINE + '], "n": 1, "o": {"p": "]}\\""}, "q": [[], {}]\n}\n', None),
        ("a.json", '{"data": [' + LINE + "}, " + LINE + "]}", None),  # a broken row
        ("a.csv", CELLS + '"2","c', "wrong_type"),
        ("a.csv", CELLS + '"2","c\n', "wrong_type"),
        ("a.csv", CELLS + '"2","c"', "wrong_type"),
        ("a.csv", CELLS + '"2","c"\n', None),
        ("a.csv", CELLS.rstrip(), None),
        ("a.jsonl", f"{json.dumps(TREE)}\n{json.dumps(TREE)[:-9]}", "broken_json"),
    ],
)
def test_file__whose_end_is_missing(tmp_path: Path, name: str, text: str, reason: str | None) -> None:
    path = write_bytes(tmp_path / name, text.encode())
    for rows in (8192, 2):
        assert {block.ended_early for block in read(path, block_rows=rows).blocks} - {None} == {reason} - {None}


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "json.zst"])
def test_packed__whose_end_is_missing(tmp_path: Path, kind: str) -> None:
    path = make_file(tmp_path / f"a.{kind}", [{**row, "id": hash_text(i)} for i, row in enumerate(ROWS)])
    assert read(path).blocks[-1].ended_early is None
    path.write_bytes(path.read_bytes()[:-20])
    assert "corrupt_file" in {block.ended_early for block in read(path).blocks}


@pytest.mark.parametrize("kind", ["jsonl.gz", "json.zst", "csv.gz"])
def test_packed__of_many_short_rows_stops(tmp_path: Path, kind: str) -> None:
    n, row = 60_000, json.dumps({"prompt": "a", "completion": "b"})
    rows = [row] * n
    cells = "prompt,completion" + "\na,b" * n
    texts = {"jsonl.gz": "\n".join(rows), "json.zst": f"[{','.join(rows)}]", "csv.gz": cells}
    path = write_bytes(tmp_path / f"a.{kind}", texts[kind].encode())
    got = read(path, limits=Limits(rows_from=5_000), block_rows=1_000)
    assert 5_000 < len(got.occurrences) < n
    assert got.blocks[-1].ended_early == "zip_bomb"
    assert "less than min_row_bytes 16 a row; rows from here on are not read; unpack" in got.rejects["detail"][-1]
    again = read(path, limits=Limits(rows_from=5_000), start_row=3_000, block_rows=1_000)  # goes on to the same end
    assert again.rejects.equals(got.rejects)
    assert len(read(path, limits=Limits(rows_from=n)).occurrences) == n


TABLES = ["a.parquet", "coded.arrow", "zstd.arrow"]


def _table(path: Path, prompts: list[str], answers: list[str]) -> Path:
    table = pa.table({"prompt": prompts, "completion": answers})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=len(table) // 3)
        return path
    if path.stem == "coded":
        table = pa.table({name: table[name].dictionary_encode() for name in table.column_names}).combine_chunks()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(path, table.schema, options=options) as out:
        out.write_table(table, max_chunksize=None if path.stem == "coded" else len(table) // 3)
    return path


@pytest.mark.parametrize("name", TABLES)
def test_table__of_long_rows_that_repeat_stops(tmp_path: Path, name: str) -> None:
    n = 1_200
    path = _table(tmp_path / name, ["x" * 8_000] * n, [str(i) for i in range(n)])
    limits = Limits(ratio_from=1 << 20, max_table_ratio=100, block_bytes=1 << 18)
    got = read(path, limits=limits)
    assert 100 < len(got.occurrences) < n
    assert got.blocks[-1].ended_early == "zip_bomb"
    assert "more than max_table_ratio 100; rows from here on are not read; unpack the file" in got.rejects["detail"][-1]
    again = read(path, limits=limits, start_row=50)  # goes on to the same end
    assert again.rejects.equals(got.rejects)
    assert len(read(path, limits=Limits(block_bytes=1 << 18)).occurrences) == n  # below ratio_from


@pytest.mark.parametrize("name", TABLES)
def test_table__of_many_short_rows_stops(tmp_path: Path, name: str) -> None:
    n = 30_000
    path = _table(tmp_path / name, ["a"] * n, ["b"] * n)
    got = read(path, limits=Limits(rows_from=5_000), block_rows=1_000)
    assert 5_000 <= len(got.occurrences) < n
    assert got.blocks[-1].ended_early == "zip_bomb"
    assert "less than min_row_bytes 16 a row; rows from here on are not read; unpack" in got.rejects["detail"][-1]
    again = read(path, limits=Limits(rows_from=5_000), start_row=3_000, block_rows=1_000)  # goes on to the same end
    assert again.rejects.equals(got.rejects)
    assert len(read(path, limits=Limits(rows_from=n)).occurrences) == n


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("packing", [None, "zstd", "lz4"])
def test_batch_sizes__are_those_of_the_batches(kind: str, packing: str | None) -> None:
    n = 2_000
    columns: dict[str, Any] = {
        "text": [f"{i}" * (i % 50) for i in range(n)],
        "coded": pa.array([("u", "v", "w")[i % 3] for i in range(n)]).dictionary_encode(),
        "turns": [[{"role": "user", "content": "c" * (i % 9)}] * (i % 4) for i in range(n)],
        "missing": [None if i % 3 else i for i in range(n)],
        "views": pa.array([f"{i}" * (i % 30) for i in range(n)]).cast(pa.string_view()),
        "nothing": pa.nulls(n),
    }
    batches = pa.table(columns).to_batches(700)
    out, options = io.BytesIO(), pa.ipc.IpcWriteOptions(compression=packing)
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(out, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    with pa.BufferReader(out.getvalue()) as source:
        source.seek(5)
        sizes = BatchSizes(source, is_file=kind == "file")
        found = [sizes.next() for _ in range(len(batches) + 1)]
        assert source.tell() == 5
    # the parts of a sliced array are padded to whole bytes, and view buffers are written whole with each batch
    most = [batch.nbytes + sum(b.size for b in batch["views"].buffers()[2:]) + 1_000 for batch in batches]
    assert found[-1] == 0
    for size, batch, limit in zip(found, batches, most, strict=False):
        assert size == 0 if packing is None else batch.nbytes <= size <= limit


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow__batches_beyond_the_limit_are_not_unpacked(tmp_path: Path, kind: str) -> None:
    path, options = tmp_path / "a.arrow", pa.ipc.IpcWriteOptions(compression="zstd")
    small, large = (pa.record_batch({"prompt": ["x" * n] * 10, "completion": ["y"] * 10}) for n in (10, 300_000))
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(path, small.schema, options=options) as out:
        for batch in (small, large, small):
            out.write_batch(batch)
    limits = Limits(max_batch_bytes=1 << 20)
    got = read(path, limits=limits)
    assert (len(got.occurrences), got.reasons) == (10, {10: "zip_bomb"})
    assert "zip_bomb" in [block.ended_early for block in got.blocks]
    assert got.rejects["detail"][-1].startswith("a batch unpacks to 3,000,")
    assert (
        "more than max_batch_bytes 1,048,576; rows from here on are not read; write the file in smaller"
        in got.rejects["detail"][-1]
    )
    assert read(path, limits=limits, start_row=5).rejects.equals(got.rejects)
    assert len(read(path).occurrences) == 30
    # not unpacked: damage within the batches is not met
    path.write_bytes(path.read_bytes().replace(b"\x28\xb5\x2f\xfd", b"dama"))
    assert read(path, limits=Limits(max_batch_bytes=10)).reasons == {0: "zip_bomb"}
    assert read(path).reasons == {0: "corrupt_file"}


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_batch_sizes__of_damaged_metadata_are_errors_or_harmless(kind: str) -> None:
    batch = pa.record_batch({"prompt": ["x" * 50] * 10, "completion": ["y"] * 10})
    out = io.BytesIO()
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(
        out, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")
    ) as writer:
        writer.write_batch(batch)
    whole, rng = out.getvalue(), random.Random(0)
    seen: set[Any] = set()
    for _ in range(3_000):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        with pa.BufferReader(bytes(data[: rng.choice((len(data), rng.randrange(20, len(data))))])) as source:
            sizes = BatchSizes(source, is_file=kind == "file")
            try:
                for _ in range(5):
                    seen.add(sizes.next() > 0)
            except ValueError as e:
                seen.add(type(e))
    assert seen == {True, False, ValueError}


def test_parquet__batches_of_long_texts_are_few_rows(tmp_path: Path) -> None:
    """A dictionary's text may be megabytes long and stand in every row: what is decoded at once is bounded by it."""
    path = _table(tmp_path / "a.parquet", ["x" * 600_000] * 400, ["b"] * 400)
    with path.open("rb") as raw:
        rows = rows_at_once(raw, pq.ParquetFile(path), 0, ["prompt", "completion"], 8192)
    assert rows == (64 << 20) // (2 * 600_001)


def _chunks(path: Path) -> list[pq.ColumnChunkMetaData]:
    group = pq.ParquetFile(path).metadata.row_group(0)
    return [group.column(i) for i in range(group.num_columns)]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("packing", ["zstd", "snappy", "none"])
def test_parquet__what_is_held_at_once_is_the_largest_page_of_every_column(tmp_path: Path, packing: str, version: str) -> None:
    path, lengths = tmp_path / "a.parquet", (10, 70_000, 20)
    rows = {"prompt": ["x" * n for n in lengths], "turns": [[{"content": "y" * 50_000}]] * 3, "more": ["z" * 900_000] * 3}
    options: dict[str, Any] = {"compression": packing, "data_page_version": version, "use_dictionary": False}
    pq.write_table(pa.table(rows), path, data_page_size=1, write_batch_size=1, **options)
    chunks = _chunks(path)
    with path.open("rb") as raw:
        held = [held_at_once(raw, [chunk], 1_000) for chunk in chunks]
        assert held_at_once(raw, chunks[:2], 1_000) == sum(held[:2])
    for size, texts in zip(held, (70_000, 50_000, 900_000), strict=True):  # a page a row, with its text's length and levels
        assert texts < size < texts + 20
    coded = tmp_path / "coded.parquet"
    pq.write_table(pa.table({"prompt": ["x" * 5_000, "y" * 5_000] * 9}), coded, compression=packing)
    with coded.open("rb") as raw:
        assert held_at_once(raw, _chunks(coded), 1_000) == 2 * 5_004, "a dictionary is a page"


def test_parquet__pages_beyond_the_limit_are_not_unpacked(tmp_path: Path) -> None:
    path, schema = tmp_path / "a.parquet", pa.schema({"prompt": pa.string(), "completion": pa.string()})
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, data_page_size=1 << 30) as out:
        for n in (10, 300_000, 10):
            out.write_table(pa.table({"prompt": ["x" * n] * 10, "completion": ["y"] * 10}))
    limits = Limits(max_batch_bytes=1 << 20)
    got = read(path, limits=limits)
    assert (len(got.occurrences), got.reasons) == (10, {10: "zip_bomb"})
    pages = 10 * (300_000 + 4) + 6 + 10 * (1 + 4) + 6  # texts, their lengths, and the levels of the page
    assert got.rejects["detail"][-1] == (
        f"the largest pages of a row group unpack to {pages:,} bytes: more than max_batch_bytes 1,048,576; rows from here on are "
        "not read; write the file in smaller pages to read it whole"
    )
    assert read(path, limits=limits, start_row=5).rejects.equals(got.rejects)
    assert len(read(path).occurrences) == 30
    # not unpacked: damage within the pages is not met
    path.write_bytes(path.read_bytes().replace(b"\x28\xb5\x2f\xfd", b"dama"))
    assert read(path, limits=Limits(max_batch_bytes=10)).reasons == {0: "zip_bomb"}
    assert set(read(path).reasons.values()) == {"corrupt_file"}


def test_parquet__headers_that_are_all_a_file_has(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"prompt": [f"{i:x}" for i in range(60_000)], "completion": ["b"] * 60_000})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, data_page_size=1, write_batch_size=1)
    got = read(path)
    assert (len(got.occurrences), got.reasons) == (0, {0: "zip_bomb"})
    assert got.rejects["detail"][0] == "a row group has more page headers than its size is worth; rows from here on are not read"


def _held(data: bytes, most_values: int) -> int:
    chunk: Any = SimpleNamespace(data_page_offset=0, has_dictionary_page=False, total_compressed_size=len(data))
    return held_at_once(io.BytesIO(data), [chunk], most_values)


def test_page_headers__what_is_not_known_is_passed_over() -> None:
    """Fields that no writer has yet must not hide the pages behind them."""
    values = {  # by type of the compact protocol: true, false, a byte, numbers, a double, a text, list, set, map, structure, UUID
        1: b"", 2: b"", 3: b"\x07", 4: b"\x80\x01", 5: b"\x02", 6: b"\xff\x7f", 7: bytes(8), 8: b"\x02ab", 9: b"\x22\x01\x02",
        10: b"\xf1\x0f" + bytes(15), 11: b"\x01\x58\x02\x01c", 12: b"\x15\x02\x18\x01d\x00",
        13: bytes(16),
    }  # fmt: skip
    sizes = b"\x15\x00\x15\x0a\x15\x06"  # fields 1 to 3: kind, 5 bytes unpacked, 3 as they lie
    for kind, value in values.items():
        unknown = bytes([kind, 100]) + value  # field 50
        first = sizes + unknown + b"\x00abc"
        second = unknown + b"\x05\x04\x80\x10" + b"\x15\x00" + b"\x00"  # fields 2, with its number in full, and 3
        assert _held(first + second, 100) == 1024, kind
    # more bits than the type has: Arrow leaves them off
    assert _held(b"\x15\x00\x15\x8a\x80\x80\x80\x10\x15\x06\x00", 100) == 5
    assert _held(b"\x15\x00\x15\x8b\x80\x80\x80\x00\x15\x06\x00", 100) == 0, "negative"
    assert _held(b"\x15\x00\x05\x84\x80\x08\x0a\x15\x06\x00", 100) == 5, "field 65,538 is field 2"
    assert _held(sizes + b"\x18\x82\x80\x80\x80\x10ab\x00abc" + second, 100) == 1024, "a text of two bytes"
    too_deep = b"\x1c" * 100 + b"\x00" * 101
    assert _held(first + too_deep + second, 1_000) == 5
    with pytest.raises(TooManyValues):
        _held(sizes + b"\x19\xf3" + b"\xff" * 4 + b"\x07" + bytes(1_000_000), 10_000)  # a list of 2 billion


def test_page_headers__that_are_damaged_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [hash_text(i) for i in range(40)]
    pq.write_table(pa.table({"prompt": texts, "completion": texts}), path, data_page_size=1, write_batch_size=4)
    chunks, whole, rng = _chunks(path), path.read_bytes(), random.Random(0)
    seen: set[Any] = set()
    for _ in range(3_000):
        data = bytearray(whole[: rng.choice((len(whole), rng.randrange(20, len(whole))))])
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        try:
            seen.add(held_at_once(io.BytesIO(data), chunks, 1_000) > 0)
        except TooManyValues as e:
            seen.add(type(e))
    assert seen >= {True, False}


def test_json__shapes_of_a_file(tmp_path: Path) -> None:
    good = json.dumps(GOOD)
    pretty = json.dumps(GOOD, indent=1)
    path = tmp_path / "a.json"
    for text in (
        good,
        pretty,
        f"[{good}]",
        f" \n[ {good} , \n]\n",
        f'{{"x": [1], "rows": [{pretty}]}}',
        f"{good}\n",
        f"\ufeff[{good}]",
    ):
        path.write_text(text, encoding="utf-8")
        assert read(path).texts == [[("user", "Why?"), ("assistant", "Because.")]], text
        assert read(path).rejects.height == 0, text
    user, model = ({"role": role, "parts": [{"text": text}]} for role, text in (("user", "Why?"), ("model", "Because.")))
    for row in (
        {"contents": [user, model]},
        {"input": [GOOD["messages"][0]], "output": "Because."},
        {"query": "Why?", "answers": [{"name": "f", "arguments": {}}], "tools": [{"name": "f"}]},
    ):  # whose lists are parts of it
        path.write_text(json.dumps(row, indent=1), encoding="utf-8")
        assert (read(path).occurrences.height, read(path).rejects.height) == (1, 0), row
    path.write_text(json.dumps({"chosen": GOOD["messages"], "rejected": GOOD["messages"]}), encoding="utf-8")
    assert read(path).reasons == {0: "preference"}
    path.write_text(f"{good}\n{good}\n", encoding="utf-8")  # JSONL under the wrong name
    assert read(path).occurrences["row"].to_list() == [0, 1]
    path.write_text(f'{{"train": [{good}], "test": [{good}, {good}]}}', encoding="utf-8")
    assert (read(path).occurrences.height, read(path).reasons) == (1, {1: "unread_list"})
    assert (read(path, key="test").occurrences.height, read(path, key="test").rejects.height) == (2, 0)
    path.write_text("[]", encoding="utf-8")
    assert read(path).blocks[-1].next_row == 0


def test_json__a_text_for_all_rows_of_a_list_is_not_lost(tmp_path: Path) -> None:
    rows = [{"input": str(n), "output": ["Yes"]} for n in range(3)]
    task = {"Source": ["s"], "Definition": ["Is it odd?"], "Positive Examples": rows[:1], "Instances": rows, "Source URL": ["u"]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(task, indent=4), encoding="utf-8")
    got = read(path)
    assert (len(got.occurrences), got.reasons) == (0, {0: "unread_field", 1: "unread_field"})
    assert got.rejects["detail"][1].startswith("Definition is text for every row of the list 'Instances' beside it")
    for start in range(4):
        assert read(path, start_row=start).rejects.equals(got.rejects.filter(pl.col("row") >= start))
    assert read(path, key="Instances").reasons == {0: "unread_field"}
    without: tuple[dict[str, Any], ...] = (
        {"Definition": []},
        {"system": ""},
        {"description": "of the file"},
        {"a": {"instruction": "deeper"}},
    )
    for beside in without:
        path.write_text(json.dumps(beside | {"rows": rows}), encoding="utf-8")
        assert (len(read(path).occurrences), read(path).reasons) == (3, {})


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_tables__columns_in_another_case(tmp_path: Path, name: str) -> None:
    frame = pl.DataFrame({"Question": ["Why?", "How?"], "Answer": ["So.", "Thus."], "Image": [None, "a.png"]})
    (frame.write_csv if name == "a.csv" else frame.write_parquet)(tmp_path / name)
    got = read(tmp_path / name)
    assert (got.texts, got.reasons) == ([[("user", "Why?"), ("assistant", "So.")]], {1: "unsupported_content"})


@pytest.mark.parametrize("first", ["{", "[", "{ ", "[\r", '{"', "[{", "[1"])
def test_jsonl__a_first_row_that_was_cut_costs_one_row(tmp_path: Path, first: str) -> None:
    good = json.dumps(GOOD)
    path = tmp_path / "a.jsonl"
    for following in (f"{good}\n{good}\n", f"\n{good}\n{good}", f"{good}\n{good}\n{{"):
        path.write_text(f"{first}\n{following}", encoding="utf-8")
        got = read(path)
        assert len(got.occurrences) == 2
        assert got.reasons[0] == "broken_json"
    lists = [json.dumps([GOOD, GOOD], indent=1), f"[\n{good},\n{good}\n]", f"[\n{good}\n,\n{good}]"]
    for whole in (
        *lists,
        f"[{good},\n{good}]",
        f"[{good}\n,{good}\n]",
        json.dumps([GOOD, GOOD], indent=1).replace("[\n {", "[{", 1),
    ):
        path.write_text(whole, encoding="utf-8")
        assert (len(read(path).occurrences), read(path).reasons) == (2, {})


def test_json__a_broken_element_costs_one_row(tmp_path: Path) -> None:
    good = json.dumps(GOOD)
    path = tmp_path / "a.json"
    path.write_text(f'[{good}, {{"a" 1}}, {good}, {{"prompt": NaN}}, 5, "x, ]", {good}, , {good}]', encoding="utf-8")
    got = read(path)
    assert got.occurrences["row"].to_list() == [0, 2, 6, 8]
    assert got.reasons == {1: "broken_json", 3: "unknown_shape", 4: "wrong_type", 5: "wrong_type", 7: "broken_json"}
    path.write_text(f"[{good}, {good[:-9]}", encoding="utf-8")
    got = read(path)
    assert (got.occurrences["row"].to_list(), got.reasons) == ([0], {1: "broken_json"})
    path.write_text(f"[{good}] and more", encoding="utf-8")
    assert read(path).reasons == {1: "broken_json"}
    # a quote that is not escaped, in a file with line breaks: the list is found again at the line's end
    lines = json.dumps([GOOD, {"prompt": "a QUOTE b", "completion": "c"}, GOOD], indent=1).replace("QUOTE", '"')
    path.write_text(lines, encoding="utf-8")
    assert (read(path).occurrences["row"].to_list(), read(path).reasons) == ([0, 2], {1: "broken_json"})


@pytest.mark.parametrize("form", ["[{}]", '{{"data": [{}]}}', '{{"n": 1, "data": [{}], "end": {{"a": []}}}}'])
def test_json__a_brace_that_closes_nothing_costs_one_row(tmp_path: Path, form: str) -> None:
    rows = [json.dumps(chat(i)) for i in range(1000)]
    rows[3] += "}"
    rows[5] = rows[5].replace("[", "[}", 1)
    rows[990] = rows[990][:-1] + "]}"
    path = write_bytes(tmp_path / "a.json", form.format(",\n".join(rows)).encode())
    got = read(path, block_rows=100)
    assert got.reasons == dict.fromkeys((3, 5, 990), "broken_json")
    assert (len(got.occurrences), got.blocks[-1].next_row) == (997, 1000)
    assert {block.ended_early for block in got.blocks} == {None}


def test_json__what_stands_behind_a_list_is_one_reject(tmp_path: Path) -> None:
    rows = ", ".join(json.dumps(chat(i)) for i in range(5))
    for text in (f"[{rows}], {rows}]", f'{{"a": [{rows}]}} {rows}', f'{{"a": [{rows}], "b": [{{}}}}, {rows}]}}'):
        path = write_bytes(tmp_path / "a.json", text.encode())
        got = read(path)
        assert (len(got.occurrences), set(got.reasons.values()) - {"unread_list"}) == (5, {"broken_json"})
        assert got.rejects["detail"][-1].endswith("rows from here on are not read")
        for start in range(8):
            again = read(path, start_row=start, block_rows=2)
            assert again.rejects.equals(got.rejects.filter(pl.col("row") >= start))


def test_json__lists_at_the_end_of_what_is_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({"note": ["x"], "train": [GOOD, GOOD], "n": 1, "test": [GOOD]}, indent=1)
    path = write_bytes(tmp_path / "a.json", text.encode())
    for size in range(1, 60):
        monkeypatch.setattr("tagcos_stream.data.containers.json_list.CHUNK", size)
        assert (len(read(path).occurrences), read(path).reasons) == (2, {2: "unread_list"})


def test_json__one_object_a_line_whose_first_line_is_long(tmp_path: Path) -> None:
    rows = [{**GOOD, "pad": "x" * n} for n in (3 << 20, 5, 5)]
    assert len(read(write(tmp_path / "a.json", rows)).occurrences) == 3
    assert len(read(write_bytes(tmp_path / "b.json", b"\xef\xbb\xbf \n" + json.dumps(rows[0]).encode())).occurrences) == 1


def test_csv__quotes_that_are_not_doubled_end_the_file(tmp_path: Path) -> None:
    """No line from inside of a cell becomes an example."""
    poem, answer = "Write a {0}poem{0}\nDear Ann, how are you\nlast, line", '"OK"\nq2,a2\n'
    cases = {
        "backslashes.csv": f'a,b\n"{poem.format(chr(92) + chr(34))}",{answer}',
        "one line.csv": 'a,b\n"say \\"hi\\"",a\nDear Ann, how are you\n',
        "nothing.csv": f'a,b\n"{poem.format(chr(34))}",{answer}',
        "literal.tsv": '"q0 begins with one\ta0\nq1\ta1\n"q2\ta2\nq3\ta3\n',
        "returns.csv": '"q" x\ry,a\nDear Ann, how are you\n',
    }
    for name, text in cases.items():
        head = "prompt\tcompletion\n" if name.endswith("tsv") else "prompt,completion\n"
        path = write_bytes(tmp_path / name, (head + text).encode())
        got = read(path)
        first = int(text.startswith("a,b"))
        assert (len(got.occurrences), got.reasons) == (first, {first: "corrupt_file"}), name
        assert got.blocks[-1].ended_early == "corrupt_file"
        assert 'quotes in a cell must be doubled ("")' in got.rejects["detail"][0]
        assert read(path, start_row=first).rejects.equals(got.rejects)
    # a record that surely ends with its line costs itself
    got = read(write_bytes(tmp_path / "a.csv", b'prompt,completion\n"q" x,a\nq,a\n'))
    assert (got.occurrences["row"].to_list(), got.reasons) == ([1], {0: "wrong_type"})


def test_csv__oversized_cells_are_read_over_to_their_end(tmp_path: Path) -> None:
    limits, tail = Limits(max_row_bytes=1 << 20), ",answer\nq2,a2\n"
    line = "Dear Ann, hello\n"
    for cell in (
        "x" * (3 << 20) + " the, tail",
        line * 100_000 + "the, tail",
        "x" * (2 << 20) + '""\n' + line * 9 + "y" * (2 << 20),
    ):
        path = write_bytes(tmp_path / "a.csv", f'prompt,completion\n"{cell}"{tail}'.encode())
        got = read(path, limits=limits)
        assert (got.texts, got.reasons) == ([[("user", "q2"), ("assistant", "a2")]], {0: "oversized_row"})
        path = write_bytes(tmp_path / "b.csv", f'prompt,completion\n"{cell}{tail}'.encode())  # a quote that does not close
        got = read(path, limits=limits)
        assert (len(got.occurrences), got.reasons) == (0, {0: "corrupt_file"})
        assert got.blocks[-1].ended_early == "corrupt_file"


def test_csv__cells_keep_their_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('instruction,input,output\r\n"a, ""b""\nc",,"  d\n"\r\nx,y,z\r\n\r\nonly,two\r\nq,,\r\n', encoding="utf-8")
    got = read(path)
    assert got.texts == [[("user", 'a, "b"\nc'), ("assistant", "  d\n")], [("user", "x\n\ny"), ("assistant", "z")]]
    assert got.reasons == {2: "wrong_type", 3: "empty_answer"}
    path.write_bytes(b"prompt,completion\na\xff,b\nc,d\n" + b"x" * 3000 + b",y\ne,f\n")
    got = read(path, limits=Limits(max_row_bytes=2000))
    assert (got.reasons, got.occurrences["row"].to_list()) == ({0: "bad_encoding", 2: "oversized_row"}, [1, 3])


def test_csv__cells_that_hold_lists(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    rows: list[list[str]] = [
        ["prompt", "completion", "history", "images", "reasoning", "turns"],
        [json.dumps(turns[:1]), json.dumps(turns[1:]), "", "", "on", "1"],
        ["Hi", "Ho", "[]", "[]", "False", "1"],
        ["Well?", "So", json.dumps([["Hi", "Ho"]]), "null", "", "2"],
        [str(turns[:1]), str(turns[1:]), "", "", "", ""],
        ["Hi", "Ho", "", '["a.png"]', "", ""],
    ]
    with (tmp_path / "a.csv").open("w", newline="") as f:
        csv.writer(f).writerows(rows)
    got = read(tmp_path / "a.csv")
    pair = [("user", "Hi"), ("assistant", "Ho")]
    assert got.texts == [pair, pair, [*pair, ("user", "Well?"), ("assistant", "So")]]
    assert got.reasons == {3: "broken_json", 4: "unsupported_content"}
    assert not any(m["reasoning"] for row in got.occurrences["messages"].to_list() for m in row)


def test_tables__missing_columns_are_the_users_to_mend(tmp_path: Path) -> None:
    pl.DataFrame({"foo": ["a"], "bar": ["b"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="columns foo, bar make no known shape"):
        read(tmp_path / "a.parquet")
    from tagcos_stream.data.row_options import RowOptions

    with pytest.raises(UserError, match="no column 'answer'"):
        read(tmp_path / "a.parquet", options=RowOptions(columns={"prompt": "foo", "completion": "answer"}))
    got = read(tmp_path / "a.parquet", options=RowOptions(columns={"prompt": "foo", "completion": "bar"}))
    assert got.texts == [[("user", "a"), ("assistant", "b")]]
    for name, magic in {"b.parquet": b"PAR1", "b.arrow": b"ARROW1"}.items():
        (tmp_path / name).write_bytes(magic + b" not really")
        with pytest.raises(UserError, match="not a readable"):
            read(tmp_path / name)


def test_parquet__damage_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame([{**chat(i), "noise": hash_text(i)} for i in range(2000)]).write_parquet(path, row_group_size=500)
    data = bytearray(path.read_bytes())
    at = len(data) * 7 // 10
    data[at : at + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    got = read(path, block_rows=100)
    assert got.occurrences.height + got.rejects.height == 2000
    assert 500 <= got.occurrences.height < 2000
    assert set(got.reasons.values()) == {"corrupt_file"}


def test_arrow__small_batches_are_joined(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.arrow", [(f"q{i}", f"a{i}") for i in range(30)]
    schema = pa.schema({"prompt": pa.string(), "completion": pa.string()})
    with pa.ipc.new_stream(path, schema) as out:
        for i in range(0, 30, 3):
            out.write_batch(pa.record_batch(list(zip(*rows[i : i + 3], strict=True)), schema=schema))
    for start, sizes in ((0, [9, 9, 9, 3]), (7, [2, 9, 9, 3])):
        got = read(path, start_row=start, block_rows=10)
        assert [len(block.occurrences) for block in got.blocks if len(block.occurrences)] == sizes
        assert [(q[1], a[1]) for q, a in got.texts] == rows[start:]
    path.write_bytes(path.read_bytes()[:-400])
    got = read(path)
    assert got.occurrences.height in (24, 27), "what came before the damage"
    assert got.reasons == {got.occurrences.height: "corrupt_file"}


def test_arrow__batches_with_dictionaries_that_do_not_join(tmp_path: Path) -> None:
    path, coded = tmp_path / "a.arrow", pa.dictionary(pa.int8(), pa.string())
    schema = pa.schema({"prompt": coded, "completion": pa.string()})
    with pa.ipc.new_stream(path, schema) as out:
        for i in range(3):
            prompts = pa.array([f"q{i}-{j}" for j in range(100)]).dictionary_encode().cast(coded)
            out.write_batch(pa.record_batch([prompts, pa.array(["a"] * 100)], schema=schema))
    got = read(path)
    assert [row[0][1] for row in got.texts] == [f"q{i}-{j}" for i in range(3) for j in range(100)]
    assert not got.reasons


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables__text_that_is_not_utf8_costs_its_row(tmp_path: Path, kind: str) -> None:
    good, bad = [b"a", b"b", b"c", b"d"], [b"a", b"b", b"\xff\xfe", b"d"]

    def table(prompts: list[bytes]) -> pa.Table:
        # no writer makes such a file from Python text: relabel the bytes
        text = pa.StringArray.from_buffers(4, *pa.array(prompts, pa.binary()).buffers()[1:])
        return pa.table({"prompt": text, "completion": pa.array(["x"] * 4), "unread": pa.array([b"\xff"] * 4)})

    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table(bad), path)
        assert read(path).reasons == {2: "bad_encoding"}
        assert read(path).occurrences["row"].to_list() == [0, 1, 3]
    else:
        with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, table(good).schema) as out:
            out.write_table(table(good))
            out.write_table(table(bad))
        # a batch that fails its check is not touched further
        assert (read(path).occurrences["row"].to_list(), read(path).reasons) == ([0, 1, 2, 3], {4: "corrupt_file"})


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables__json_maps_bytes_and_uuids(tmp_path: Path, kind: str) -> None:
    """As DuckDB writes them. Beside a column of JSON, the others are what they are without it."""
    tools = pa.ExtensionArray.from_storage(
        pa.json_(), pa.array(['[{"name": "f", "parameters": {"n": 123456789012345678901}}]'] * 2)
    )
    turns = [[[("role", "user"), ("content", "Hi")], [("role", "assistant"), ("content", "Ho"), ("name", None)]]] * 2
    ids = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(range(16)), None], pa.binary(16)))
    maps = pa.array(turns, pa.list_(pa.map_(pa.string(), pa.string())))
    pair = {"prompt": pa.array(["Hi"] * 2), "completion": ["Ho"] * 2}
    for beside in ({}, {"tools": tools}):
        for columns in ({"messages": maps}, pair):
            table = pa.table({"id": ids, **columns, **beside})
            if kind == "parquet":
                pq.write_table(table, tmp_path / "a.parquet")
            else:
                with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as out:
                    out.write_table(table)
            got = read(tmp_path / f"a.{kind}")
            assert got.texts == [[("user", "Hi"), ("assistant", "Ho")]] * 2
            assert got.occurrences["source_id"].to_list() == ["00010203-0405-0607-0809-0a0b0c0d0e0f", None]
        pq.write_table(
            pa.table({**pair, "prompt": pa.array([b"Hi", None]), "id": pa.array([b"x", b"y"]), **beside}), tmp_path / "b.pq"
        )
        assert read(tmp_path / "b.pq").reasons[0] == "wrong_type"


def test_jsonl__what_a_deep_row_gives_does_not_depend_on_its_block(tmp_path: Path) -> None:
    for depth, reason in ((900, None), (1_010, None), (1_500, "too_deep"), (5_000, "too_deep")):
        deep = b'{"prompt": "a", "completion": "b", "x": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"
        for rows in ([deep], [GOOD, deep], [GOOD, deep, {"prompt": 5, "completion": "b"}]):
            assert read(write(tmp_path / "a.jsonl", rows)).reasons.get(len(rows[:2]) - 1) == reason, depth
    brackets = {"prompt": "[{" * 5_000, "completion": '\\"' + "[" * 5_000, "x": 1}
    assert len(read(write(tmp_path / "a.jsonl", [GOOD, brackets])).occurrences) == 2


def test_tables__names_that_cannot_be_used(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["prompt", "prompt"]), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("prompt,completion,prompt\na,b,c\n", encoding="utf-8")
    for name in ("a.parquet", "b.csv"):
        with pytest.raises(UserError, match="column prompt occurs more than once"):
            read(tmp_path / name)
    (tmp_path / "c.csv").write_bytes(b"prompt,completion,\xff\na,b,c\n")
    assert read(tmp_path / "c.csv").texts == [[("user", "a"), ("assistant", "b")]]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux has a file that can be opened and not be read")
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv"])
def test_read_file__a_failing_disk_is_not_damaged_data(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/proc/self/mem")
    file = SourceFile("a", str(tmp_path / name), 100, "digest", name.split(".")[1], SourceSpec("a"))
    with pytest.raises(TransientError, match=f"{name}: cannot be read on: Input/output error; mend the disk"):
        list(read_file(file))
