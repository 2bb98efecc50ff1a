"""One contract for both kinds of files: a local folder and an object store."""

from __future__ import annotations

import pickle
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from storage.files.base import Files
from storage.files.local import LocalFiles
from storage.files.object import ObjectFiles
from storage.files.open import open_files
from tagcos_stream.types import UserError


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


def test_files__travel_to_workers(files: Files) -> None:
    files.write("k", b"v")
    assert pickle.loads(pickle.dumps(files)).read("k") == b"v"


def test_open_files__unknown_scheme() -> None:
    with pytest.raises(UserError, match=r"'ftp'.*s3://"):
        open_files("ftp://host/root")


def test_object_files__write_to_a_missing_bucket_names_it(s3_server: str) -> None:
    with pytest.raises(UserError, match=r"cannot write s3://no-such-bucket/root/k.*bucket"):
        open_files("s3://no-such-bucket/root").write("k", b"v")


def test_object_files__link_is_signed_and_readable_without_credentials(bucket: str) -> None:
    files = ObjectFiles(bucket)
    files.write("reports/run.html", b"<p>report</p>")
    link = files.link("reports/run.html")
    assert "Signature=" in link
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(link, timeout=30) as answer:
        assert answer.read() == b"<p>report</p>"
