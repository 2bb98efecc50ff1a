"""One contract for both kinds of files: a local folder and an object store."""

from __future__ import annotations

import errno
import os
import pickle
import re
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import duckdb
import numpy as np
import pytest

from storage.connections import copy_to, naming_refused_writes
from storage.files.base import TEMPORARY, CannotWrite, Files, write_error
from storage.files.local import LocalFiles
from storage.files.object import ObjectFiles
from storage.files.open import local_folder, open_files
from tagcos_stream.types import TransientError, UserError
from tests.flows.test_permissions import bound_by_permissions


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.process)])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> LocalFiles | ObjectFiles:
    return open_files(str(tmp_path / "files") if request.param == "local" else request.getfixturevalue("bucket"))


def test_files__write_then_read(files: Files) -> None:
    files.write("a/b.bin", b"12", np.arange(3, dtype=np.uint8))
    assert files.read("a/b.bin") == b"12\x00\x01\x02"
    assert files.size("a/b.bin") == 5
    files.write("a/b.bin", b"new")
    assert files.read("a/b.bin") == b"new"


def test_files__absent_is_said(files: Files) -> None:
    assert files.size("none") is None
    with pytest.raises(FileNotFoundError):
        files.read("none")
    with pytest.raises(FileNotFoundError):
        files.read_into("none", np.empty(1, np.uint8))
    assert files.read_pieces("none", [(np.empty(1, np.uint8), 0)]) is False
    files.delete("none")


@pytest.mark.parametrize("size", [0, 10, 3 << 20])
def test_files__read_into_sees_every_byte_once(files: Files, size: int) -> None:
    data = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    files.write("x", data)
    out, seen = np.zeros(size + 1, np.uint8), []
    assert files.read_into("x", out, seen=lambda piece: seen.append(piece.tobytes())) == size
    assert b"".join(seen) == data.tobytes() == out[:size].tobytes()


def test_files__read_pieces(files: Files) -> None:
    files.write("x", np.arange(100, dtype=np.uint8))
    first, second = np.zeros(3, np.uint8), np.zeros(2, np.uint8)
    assert files.read_pieces("x", [(first, 90), (second, 5)])
    assert (first.tolist(), second.tolist()) == ([90, 91, 92], [5, 6])
    assert not files.read_pieces("x", [(first, 98)])


def test_files__list_is_by_folder(files: Files) -> None:
    for key in ("a/1", "a/b/2", "ab/3"):
        files.write(key, b"x" * len(key))
    assert sorted(files.list("a")) == [("a/1", 3), ("a/b/2", 5)]
    assert {key for key, _ in files.list("")} == {"a/1", "a/b/2", "ab/3"}
    files.delete("a/b/2")
    assert [key for key, _ in files.list("a")] == ["a/1"]


def test_files__adopt_moves_a_local_file_in(files: Files, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    files.adopt("in/side", source)
    assert files.read("in/side") == b"content"
    assert not source.exists()


@pytest.mark.parametrize("full", [False, True])
def test_local_files__adopt_copies_to_another_disk(full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, source, rename = open_files(str(tmp_path / "files")), tmp_path / "source", os.replace
    source.write_bytes(b"content" * 1_000_000)
    files.write("in/side", b"earlier")
    renamed = []

    def replace(old: Any, new: Any) -> None:
        if Path(old) == source:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        renamed.append(Path(old))
        rename(old, new)

    monkeypatch.setattr(os, "replace", replace)
    if full:
        with pytest.raises(UserError, match=r"cannot write .*side: .*: this file needs 7\.0 MB, .* are free; "):
            files.adopt("in/side", source)
        assert (files.read("in/side"), source.exists()) == (b"earlier", True)
    else:
        files.adopt("in/side", source)
        assert (files.read("in/side"), source.exists()) == (b"content" * 1_000_000, False)
        (temporary,) = renamed
        assert (temporary.parent, TEMPORARY in temporary.name) == (tmp_path / "files" / "in", True)
    assert [key for key, _ in files.list("")] == ["in/side"]


@pytest.mark.process
def test_local_files__on_a_full_disk_say_what_is_needed_and_free(small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    disk, source = small_disk("size=1m,nr_inodes=12"), tmp_path / "source"
    files = open_files(str(disk))
    source.write_bytes(b"x" * 2_500_000)
    message = rf"cannot write {disk}/{{}}: No space left on device: this file needs {{}}, 1\.0 MB are free; .*quota is full"
    with pytest.raises(UserError, match=message.format("in/side", r"3\.2 MB")):
        files.write("in/side", b"x" * 3_000_000, np.zeros(50_000, np.float32))
    with pytest.raises(UserError, match=message.format("moved", r"2\.5 MB")):
        files.adopt("moved", source)
    while os.statvfs(disk).f_favail:
        (disk / str(os.statvfs(disk).f_favail)).touch()
    with pytest.raises(
        UserError, match=rf"cannot write {disk}/k: No space left on device: this file needs an inode, none is free; "
    ):
        files.write("k", b"x")


@pytest.mark.parametrize(("number", "words"), [(errno.EDQUOT, "7 bytes, more than the quota leaves"), (errno.EIO, None)])
def test_local_files__of_a_quota_say_what_is_needed(
    number: int, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    files = open_files(str(tmp_path))
    monkeypatch.setattr(os, "fsync", refuses)
    reason = os.strerror(number) + (f": this file needs {words}" if words else "")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/k: {reason}; "):
        files.write("k", b"content")


def test_write_error__of_something_without_a_path() -> None:
    """Of the current folder's disk nothing is said."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(write_error("a temporary file", full)).startswith("cannot write a temporary file: No space left on device; ")
    assert "No space left on device: this file needs 1.2 GB; " in str(write_error("standard output", full, 1_234_567_890))


@pytest.mark.process
def test_duckdb__of_a_full_disk_the_catalogs_size_and_what_is_free(small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    """A copy, which does not fit, and a query that writes to its temporary folder."""
    disk, source = small_disk("size=2m"), tmp_path / "source.duckdb"
    rows = "SELECT md5(i::VARCHAR) AS text FROM range(200_000) r(i)"
    message = r": No space left on device: this file needs more than the 2\.1 MB that are free; .*quota is full"
    with duckdb.connect(str(source)) as connection:
        connection.execute(f"CREATE TABLE texts AS {rows}")
        size = sum(Path(f"{source}{suffix}").stat().st_size for suffix in ("", ".wal")) / 1e6
        with pytest.raises(CannotWrite, match=rf"{disk}/copy \(from a catalog of {size:.1f} MB\){message}"):
            copy_to(connection, disk / "copy")
    (disk / "copy").unlink()
    with (
        duckdb.connect(str(disk / "catalog"), config={"memory_limit": "4MB"}) as connection,
        pytest.raises(CannotWrite, match=rf"{disk}/catalog \(12\.3 kB with its log\){message}"),
        naming_refused_writes(disk / "catalog"),
    ):
        connection.execute(f"CREATE TEMP TABLE texts AS {rows}")


@pytest.mark.parametrize("number", [errno.EBUSY, errno.ENOTEMPTY, errno.ENOENT])
def test_local_files__delete_leaves_a_folder_that_is_mounted_or_used_meanwhile(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = open_files(str(tmp_path))
    files.write("mount/a/b", b"x")
    rmdir = Path.rmdir

    def remove(folder: Path) -> None:
        if folder.name == "mount":
            raise OSError(number, os.strerror(number))
        rmdir(folder)

    monkeypatch.setattr(Path, "rmdir", remove)
    files.delete("mount/a/b")
    files.delete("mount/a/b")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mount"]


@pytest.mark.process
def test_local_files__folders_that_are_mounts(small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    disk = small_disk("size=4m")
    files, source = open_files(str(tmp_path)), tmp_path / "source"
    (tmp_path / "snapshots").mkdir()
    subprocess.run(["mount", "--bind", str(disk), str(tmp_path / "snapshots")], check=True)
    try:
        source.write_bytes(b"content")
        files.adopt("snapshots/run/table", source)
        assert (files.read("snapshots/run/table"), source.exists()) == (b"content", False)
        files.delete("snapshots/run/table")
        assert list((tmp_path / "snapshots").iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path / "snapshots")], check=True)


def test_files__travel_to_workers(files: Files) -> None:
    files.write("k", b"v")
    assert pickle.loads(pickle.dumps(files)).read("k") == b"v"


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:///data/my%20pool", "/data/my pool"),
        ("/data/my%20pool", "/data/my%20pool"),
        ("~/pool", str(Path("~/pool").expanduser())),
        ("s3://bucket/pool", None),
    ],
)
def test_local_folder__is_the_one_that_is_opened(url: str, folder: str | None) -> None:
    assert local_folder(url) == (None if folder is None else Path(folder))
    assert folder is None or open_files(url).url == folder


def test_open_files__unknown_scheme() -> None:
    with pytest.raises(UserError, match=r"'ftp'.*s3://"):
        open_files("ftp://host/root")


def test_object_files__write_to_a_missing_bucket_names_it(s3_server: str) -> None:
    with pytest.raises(UserError, match=r"cannot write s3://no-such-bucket/root/k.*bucket"):
        open_files("s3://no-such-bucket/root").write("k", b"v")


USES: dict[str, Callable[[Files], Any]] = {
    "size": lambda files: files.size("a/k"),
    "read": lambda files: files.read("a/k"),
    "read_into": lambda files: files.read_into("a/k", np.empty(1, np.uint8)),
    "list": lambda files: list(files.list("a")),
    "write": lambda files: files.write("a/k", b"v"),
    "delete": lambda files: files.delete("a/k"),
}


def _message(use: str, files: Files) -> tuple[type[BaseException], str]:
    with pytest.raises(UserError) as refused:
        USES[use](files)
    return refused.type, str(refused.value)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ObjectFiles]:
    """A root in an object store at an address of this machine."""

    def connect(url: str) -> ObjectFiles:
        known = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "REGION": "us-east-1"}
        for name, value in {**known, "ALLOW_HTTP": "true"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        return ObjectFiles("s3://bucket/root")

    return connect


@pytest.mark.process
def test_object_files__a_store_that_does_not_answer_may_answer_later(endpoint: Callable[[str], ObjectFiles]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but not listening
        files = endpoint(f"http://127.0.0.1:{closed.getsockname()[1]}")
        with ThreadPoolExecutor(len(USES)) as threads:  # each is tried for seconds
            found = list(threads.map(_message, USES, [files] * len(USES)))
    for kind, message in found:
        assert kind is TransientError
        assert re.fullmatch(
            r"cannot (read|list|write|delete) s3://bucket/root/a(/k)?: .*error sending request; "
            "check bucket, credentials and endpoint, then run again",
            message,
        )


def test_object_files__a_store_that_refuses_says_so_in_one_line(endpoint: Callable[[str], ObjectFiles]) -> None:
    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_PUT = do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            files = endpoint(f"http://127.0.0.1:{server.server_port}")
            for use in USES:
                kind, message = _message(use, files)
                assert kind is UserError, message
                assert re.match(r"cannot (read|list|write|delete) s3://bucket/root/a(/k)?: .*403", message), message
        finally:
            server.shutdown()


def test_local_files__what_may_not_be_read_is_a_mistake_with_a_remedy(tmp_path: Path) -> None:
    files = open_files(str(tmp_path))
    files.write("a/k", b"v")
    for path, modes in (((tmp_path / "a" / "k"), ("read", "read_into")), ((tmp_path / "a"), ("size", "list", "delete"))):
        kept = path.stat().st_mode
        path.chmod(0)
        try:
            with bound_by_permissions():
                for use in modes:
                    assert re.match(rf"cannot (read|write) {tmp_path}/a(/k)?: Permission denied; .*mend", _message(use, files)[1])
        finally:
            path.chmod(kept)
    assert files.read("a/k") == b"v"
