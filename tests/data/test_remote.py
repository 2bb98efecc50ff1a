"""Object stores, against a server on this machine that speaks S3."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from tagcos_stream.data.read import SourceSpec, read_file, resolve_sources
from tagcos_stream.types import UserError
from tests.data.tools import chat, read, write

server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "thing",
    }.items():
        monkeypatch.setenv(name, value)
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/pool", method="PUT")).close()
    yield "s3://pool"
    running.stop()


def _put(url: str, data: bytes) -> None:
    import obstore
    from obstore.store import from_url

    store, _, path = url.removeprefix("s3://").partition("/")
    obstore.put(from_url(f"s3://{store}"), path, data)


def test_s3__reads_what_lies_there(bucket: str, tmp_path: Path) -> None:
    rows = [chat(i) for i in range(300)]
    _put(f"{bucket}/a/one.jsonl.gz", write(tmp_path / "one.jsonl.gz", rows).read_bytes())
    _put(f"{bucket}/a/two.json", json.dumps(rows).encode())
    pl.DataFrame(rows).write_parquet(tmp_path / "three.parquet", row_group_size=64)
    _put(f"{bucket}/a/b/three.parquet", (tmp_path / "three.parquet").read_bytes())
    pl.DataFrame(rows).write_ipc(tmp_path / "four.arrow")
    _put(f"{bucket}/a/b/four.arrow", (tmp_path / "four.arrow").read_bytes())
    _put(f"{bucket}/a/notes.md", b"x")
    local = read(tmp_path / "one.jsonl.gz")
    files = resolve_sources([f"{bucket}/a"])
    assert [f.url for f in files] == [f"{bucket}/a/{n}" for n in ("b/four.arrow", "b/three.parquet", "one.jsonl.gz", "two.json")]
    for file in files:
        got = pl.concat([b.occurrences for b in read_file(file, block_rows=100)])
        assert got.drop("dataset").equals(local.occurrences.drop("dataset"))
        assert file.digest.startswith(f"etag:{file.size}:")
        rest = pl.concat([b.occurrences for b in read_file(file, start_row=150)])
        assert rest["row"].to_list() == list(range(150, 300))
    assert [f.url for f in resolve_sources([f"{bucket}/a/*.json*"])] == [f"{bucket}/a/one.jsonl.gz", f"{bucket}/a/two.json"]
    assert [f.size for f in resolve_sources([f"{bucket}/a/two.json"])] == [files[3].size]
    lines = (tmp_path / "one.jsonl.gz").read_bytes()
    for name, data, reason in (
        ("whole.jsonl", json.dumps(rows[0]).encode(), None),
        ("cut.jsonl", json.dumps(rows[0]).encode()[:-9], "broken_json"),
        ("cut.jsonl.gz", lines[:-30], "corrupt_file"),
    ):
        _put(f"{bucket}/c/{name}", data)
        assert list(read_file(resolve_sources([f"{bucket}/c/{name}"])[0]))[-1].ended_early == reason
    before = files[3].digest
    _put(f"{bucket}/a/two.json", json.dumps(rows[1:]).encode())
    assert resolve_sources([f"{bucket}/a/two.json"])[0].digest != before


def test_s3__patterns_and_folders_as_locally(bucket: str, tmp_path: Path) -> None:
    names = (
        "a.jsonl",
        "train/b.jsonl",
        "test/c.jsonl",
        "_temporary/0/d.jsonl",
        ".cache/e.jsonl",
        "test/.f.jsonl",
        "test/g/h.jsonl",
        "root/tagcos.json",
        "root/snapshots/i.jsonl",
    )
    for name in names:
        _put(f"{bucket}/_in/{name}", json.dumps(chat(0)).encode())  # tagcos.json makes its folder a root, which holds no rows
        (tmp_path / "_in" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "_in" / name, [chat(0)])
    found = {}
    for pattern in (
        "",
        "/",
        "/*.jsonl",
        "/*/*.jsonl",
        "/**/*.jsonl",
        "/**",
        "/t*/?.jsonl",
        "/.*/*",
        "/t*/**/[gh]*",
        "/_temporary",
        "/a.jsonl",
    ):
        far, near = (
            sorted(f.url.partition("_in/")[2] for f in resolve_sources([f"{root}/_in{pattern}"])) for root in (bucket, tmp_path)
        )
        assert far == near, pattern
        found[pattern] = far
    assert found[""] == ["a.jsonl", "test/c.jsonl", "test/g/h.jsonl", "train/b.jsonl"]
    assert found["/*/*.jsonl"] == ["test/c.jsonl", "train/b.jsonl"]
    for place in ("", "/*/*.jsonl", "/**/*.jsonl"):
        assert [f.url for f in resolve_sources([SourceSpec(f"{bucket}/_in{place}", split="train")])] == [
            f"{bucket}/_in/train/b.jsonl"
        ]


def test_s3__mistakes_are_named(bucket: str) -> None:
    with pytest.raises(UserError, match="0 files there"):
        resolve_sources([f"{bucket}/nothing"])
    with pytest.raises(UserError, match="check the address and credentials"):
        resolve_sources(["s3://no-such-bucket/x"])
