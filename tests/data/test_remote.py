"""Object stores, against a server on this machine that speaks S3."""

from __future__ import annotations

import http.client
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from urllib.parse import urlsplit

import polars as pl
import pytest

from tagcos_stream.data import remote
from tagcos_stream.data.read import SourceFile, SourceSpec, read_file, resolve_sources
from tagcos_stream.store_errors import store_error
from tagcos_stream.types import IngestBlock, TransientError, UserError
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


FAULTS = {"busy": 503, "fault": 500, "often": 429, "denied": 403, "elsewhere": 301, "cut": None}  # by folder; None: broken off
MAY_PASS = ("busy", "fault", "often", "cut")


class FaultyServer(ThreadingHTTPServer):
    """The S3 server, with faults in folders of their names once `spared` requests of a path were answered."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), Forward)
        self.behind, self.answered = behind, Counter[str]()
        self.spared = 1 << 30


class Forward(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        fault = next((name for name in FAULTS if f"{name}/" in self.path or f"{name}%2F" in self.path), None)
        self.server.answered[self.path] += self.command == "GET"
        if fault is None or self.command == "HEAD" or self.server.answered[self.path] <= self.server.spared:
            return self._forward(cut=False)
        status = FAULTS[fault]
        if status is None:
            return self._forward(cut=True)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self._forward(cut=False)

    def _forward(self, cut: bool) -> None:
        connection = http.client.HTTPConnection(self.server.behind)
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection.request(self.command, self.path, sent, {name: self.headers[name] for name in self.headers})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("server", "date", "connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", answer.headers["Content-Length"] if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def faulty(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    with FaultyServer(urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc) as running:
        thread = Thread(target=running.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.server_port}")
        yield running
        running.shutdown()
        thread.join()


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


def test_s3__what_may_pass_is_told_from_what_will_not(bucket: str, faulty: FaultyServer) -> None:
    """Of a listing, too, whose refusals the library does not tell from a lost connection; in one line, with the address."""
    for name in FAULTS:
        _put(f"{bucket}/{name}/a.jsonl", json.dumps(chat(0)).encode())
    files = {name: resolve_sources([f"{bucket}/{name}/a.jsonl"])[0] for name in FAULTS}
    faulty.spared = 0

    def refused(name: str, use: str) -> UserError:
        with pytest.raises(
            UserError, match=rf"^source {bucket}/{name}/\S*: .*; check the address and credentials, then run"
        ) as error:
            list(read_file(files[name])) if use == "read" else resolve_sources([f"{bucket}/{name}/"])
        return error.value

    asked = [(name, use) for name in FAULTS for use in ("list", "read")]
    with ThreadPoolExecutor(len(asked)) as threads:  # each is tried for seconds
        found = dict(zip(asked, threads.map(refused, *zip(*asked, strict=True)), strict=True))
    assert {case: type(error) is TransientError for case, error in found.items()} == {case: case[0] in MAY_PASS for case in asked}
    assert "\n" not in "".join(map(str, found.values()))


@pytest.mark.parametrize(
    ("ending", "spared"), [("jsonl", 1), ("jsonl.gz", 1), ("json", 1), ("csv", 1), ("parquet", 8), ("arrow", 20)]
)
def test_s3__a_read_that_breaks_off_is_no_damage_of_the_file(
    bucket: str, faulty: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, spared: int
) -> None:
    """No row is rejected, and reading goes on where it stopped once the store answers."""
    monkeypatch.setattr(remote, "FETCHED", 1 << 12)
    rows = [{"prompt": f"Why {i}? {os.urandom(1000).hex()}", "response": f"Because {i}."} for i in range(2_000)]
    path = tmp_path / f"a.{ending}"
    match ending:
        case "parquet":
            pl.DataFrame(rows).write_parquet(path, row_group_size=100)
        case "arrow":
            pl.DataFrame(rows).write_ipc(path, record_batch_size=100)
        case "csv":
            pl.DataFrame(rows).write_csv(path)
        case "json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case _:
            write(path, rows)
    whole = pl.concat([block.occurrences for block in read_file(resolve_sources([str(path)])[0])])
    for name in ("busy", "cut"):
        _put(f"{bucket}/{name}/a.{ending}", path.read_bytes())
    files = [resolve_sources([f"{bucket}/{name}/a.{ending}"])[0] for name in ("busy", "cut")]
    faulty.answered.clear()
    faulty.spared = spared

    def read_on(file: SourceFile, found: list[IngestBlock]) -> None:
        for block in read_file(file, start_row=found[-1].next_row if found else 0, block_rows=100):
            found.append(block)

    def broken_off(file: SourceFile) -> list[IngestBlock]:
        found: list[IngestBlock] = []
        with pytest.raises(TransientError, match=f"^source {file.url}: "):
            read_on(file, found)
        return found

    with ThreadPoolExecutor(len(files)) as threads:
        before = list(threads.map(broken_off, files))
    faulty.spared = 1 << 30
    for file, blocks in zip(files, before, strict=True):
        read_on(file, blocks)
        assert sum(len(block.rejects) for block in blocks) == 0
        assert pl.concat([block.occurrences for block in blocks]).equals(whole)


def test_store_error__of_the_hub() -> None:
    """Its errors have the answer; those without one are of the connection."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    def said(error: Exception) -> UserError:
        return store_error("source hf://datasets/a/b", error, "check the address", HTTPError)

    for status, may_pass in ((503, True), (429, True), (403, False), (404, False)):
        answer = SimpleNamespace(status_code=status, headers={}, request=None)
        error = HfHubHTTPError(f"{status} of the server", response=answer)  # type: ignore[arg-type]
        assert type(said(error)) is (TransientError if may_pass else UserError)
    assert type(said(HTTPError("Connection reset by peer"))) is TransientError
    assert type(said(OfflineModeIsEnabled("Cannot reach the hub: offline mode is enabled."))) is UserError
    assert str(said(KeyError())) == "source hf://datasets/a/b: KeyError; check the address"
