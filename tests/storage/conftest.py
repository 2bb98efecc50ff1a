"""Roots for the tests of the store: a local one, and one on an S3 server of our own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storage.root import Root, open_root
from tests.storage import tiny


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root without a run; making its catalog takes 0.4 s, which tests of other things need not pay."""
    folder = tmp_path_factory.mktemp("empty") / "root"
    with open_root(str(folder)).catalog.transaction():
        pass
    return folder


@pytest.fixture
def root(empty: Path, tmp_path: Path) -> Root:
    shutil.copytree(empty, tmp_path / "root")
    return open_root(str(tmp_path / "root"), wait_seconds=20)


@pytest.fixture(scope="session")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one complete run; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("pattern") / "root"
    tiny.run(open_root(str(folder)))
    return folder


@pytest.fixture
def filled(pattern: Path, tmp_path: Path) -> Root:
    """A root with one complete run."""
    shutil.copytree(pattern, tmp_path / "root")
    return open_root(str(tmp_path / "root"), wait_seconds=20)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """moto's S3 server on loopback, in its own process; the environment points at it as a user's would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = dict(os.environ)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                if time.monotonic() > deadline or server.poll() is not None:
                    raise
                time.sleep(0.1)
        os.environ.update(
            AWS_ENDPOINT_URL=endpoint,
            AWS_ALLOW_HTTP="true",
            AWS_ACCESS_KEY_ID="test",
            AWS_SECRET_ACCESS_KEY="test",
            AWS_REGION="us-east-1",
        )
        yield endpoint
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.terminate()
        server.wait(10)


@pytest.fixture
def bucket(s3_server: str, request: pytest.FixtureRequest) -> str:
    """URL of an empty prefix of its own."""
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/tagcos", method="PUT"), timeout=10).close()
    return f"s3://tagcos/{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[[str], Root]:
    """Several roots in one test."""
    return lambda name: open_root(str(tmp_path / name), wait_seconds=20)


def _mount(folder: Path, options: str) -> None:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip() or done.stdout.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A tmpfs of our own, of a given size; skips where mounting is not allowed."""
    folder = tmp_path / "disk"

    def make(options: str) -> Path:
        _mount(folder, options)
        return folder

    yield make
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)
