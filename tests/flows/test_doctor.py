"""`tagcos doctor`: finds what is wrong, and contacts nothing that was not configured."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows import doctor
from flows.pipeline import load_settings
from storage.root import open_root
from tagcos_stream.machine import available_cpus
from tests.flows.conftest import Call


@pytest.fixture(autouse=True)
def _nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def contacted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that anything in this process connects to, or asks the name of."""
    seen: list[Any] = []
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def noted(self: socket.socket, address: Any) -> None:
        seen.append(address)
        connect(self, address)

    def asked(host: Any, *more: Any, **options: Any) -> Any:
        assert host in ("127.0.0.1", "localhost"), f"asked for {host}"
        return lookup(host, *more, **options)

    monkeypatch.setattr(socket.socket, "connect", noted)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    return seen


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that knows one model and its own health; its URL and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path in ("/api/models/owner/name", "/api/health") else 404)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", asked
    running.shutdown()
    thread.join()
    running.server_close()


def states(found: list[doctor.Finding]) -> dict[str, str]:
    return {finding.what: finding.state for finding in found}


def test_doctor__a_machine_that_is_ready(tmp_path: Path, contacted: list[Any]) -> None:
    found = doctor.examine(load_settings({"root": str(tmp_path / "new"), "memory_limit": 0.1}))
    assert not [finding for finding in found if finding.state == "problem"]
    assert {"python", "packages", "memory", "root", "disk"} <= set(states(found))
    assert not contacted
    assert list(tmp_path.iterdir()) == []


def test_doctor__says_what_the_processor_may_do(tmp_path: Path) -> None:
    def processor(**settings: Any) -> doctor.Finding:
        found = doctor.examine(load_settings({"root": str(tmp_path), **settings}))
        return next(finding for finding in found if finding.what == "processor")

    assert processor().state == "ok"
    for part in ("cores", "affinity", "quota", f"{available_cpus()} threads", "GFLOP/s"):
        assert part in processor().found
    more = processor(threads=available_cpus() + 1)
    assert (more.state, more.remedy[:10]) == ("note", "--threads ")


def test_doctor__a_root_that_is_there(tmp_path: Path) -> None:
    root = open_root(str(tmp_path / "root"))
    (tmp_path / "file").write_text("")
    assert states(doctor.examine(load_settings({"root": str(tmp_path / "root")})))["catalog"] == "note"  # no run ever
    root.files.write("examples/seg-00001/part-00000.parquet", b"rows")
    (lost,) = [found for found in doctor.examine(load_settings({"root": str(tmp_path / "root")})) if found.what == "catalog"]
    assert (lost.state, lost.found) == ("problem", f"{root.url} has data, but {root.catalog_path} is missing")
    root.catalog_path.write_text("no catalog")
    assert states(doctor.examine(load_settings({"root": str(tmp_path / "root")})))["catalog"] == "problem"
    assert states(doctor.examine(load_settings({"root": str(tmp_path / "file" / "root")})))["root"] == "problem"


def test_doctor__a_model_folder_is_looked_into(tmp_path: Path, model_folder: Path, contacted: list[Any]) -> None:
    def finding(model: str) -> doctor.Finding:
        found = doctor.examine(load_settings({"root": str(tmp_path / "root"), "model": model}))
        (model_finding,) = (one for one in found if one.what in ("model", "hub"))
        return model_finding

    assert finding(str(model_folder)).state == "ok"
    (tmp_path / "empty").mkdir()
    assert finding(str(tmp_path / "empty")).found.endswith(
        "empty has no config.json and no weights (*.safetensors or *.bin) and no tokenizer"
    )
    bare = shutil.copytree(model_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    lacking = finding(str(bare))
    assert (lacking.state, lacking.found) == ("problem", f"{bare} has no tokenizer")
    assert finding("./nowhere").found == "./nowhere: no such file or folder"  # not the id of a hub model
    assert finding("~nouser/model").state == "problem"
    assert contacted == []


def test_doctor__asks_only_what_is_configured(
    tmp_path: Path, server: tuple[str, list[str]], contacted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = server
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
    settings = {"root": str(tmp_path), "model": "owner/name"}
    found = states(doctor.examine(load_settings(settings)))
    assert (found["hub"], found["prefect"]) == ("ok", "ok")
    assert asked == ["/api/models/owner/name", "/api/health"]
    assert {address[1] for address in contacted} == {int(url.rsplit(":", 1)[1])}

    (hub,) = (f for f in doctor.examine(load_settings(settings | {"model": "owner/other"})) if f.what == "hub")
    assert (hub.state, hub.remedy) == ("problem", "check the model's name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert states(doctor.examine(load_settings(settings)))["hub"] == "note"
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    (prefect,) = (f for f in doctor.examine(load_settings(settings)) if f.what == "prefect")
    assert prefect.state == "problem"
    assert "unset PREFECT_API_URL" in prefect.remedy


def test_doctor__a_server_that_speaks_no_http_and_a_device_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greet(listening: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listening.accept()
            with connection:
                connection.sendall(b"SSH-2.0-server\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=greet, args=(listening,), daemon=True).start()
        place = f"127.0.0.1:{listening.getsockname()[1]}/api"
        for url, shown in (
            (f"http://{place}", f"http://{place}/health does not answer"),
            (f"http://user:secret@{place}", f"http://{place}/health does not answer"),
            ("http://127.0.0.1:one/api", "nonnumeric port"),
        ):
            monkeypatch.setenv("PREFECT_API_URL", url)
            (prefect,) = doctor._prefect()
            assert prefect.state == "problem"
            assert shown in prefect.found
            assert "secret" not in prefect.found

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (2**30, 2**30))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "a card")
    for device, problems in (("cuda:0", []), ("cuda", []), ("auto", []), ("cuda:1", ["gpu"])):
        found = doctor._devices(load_settings({"root": str(tmp_path), "device": device}))
        assert [finding.what for finding in found if finding.state == "problem"] == problems


def test_doctor__the_option_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tagcos: Call) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TAGCOS_ROOT", raising=False)
    (tmp_path / "pool.toml").write_text('root = "of-the-file"', encoding="utf-8")
    for arguments, root in (((), "of-the-file"), (("--root", "tagcos-data"), "tagcos-data")):
        rows = json.loads(tagcos("doctor", "--config", "pool.toml", *arguments, "--json")[1])
        assert next(row["found"] for row in rows if row["what"] == "root") == f"{root} can be made"


def test_doctor__versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A range in the constraints is a limit with a reason, `==` is what was tested, and a lower bound of ours is a limit."""
    version = importlib.metadata.version
    wrong = {"fastapi": "0.155.0", "rich": "15.1.0", "polars": "1.0.0"}

    def changed(name: str) -> str:
        if name == "xxhash":
            raise importlib.metadata.PackageNotFoundError(name)
        return wrong.get(name) or version(name)

    monkeypatch.setattr(importlib.metadata, "version", changed)
    problem, note = (finding for finding in doctor.examine(load_settings({"root": str(tmp_path)})) if finding.what == "packages")
    assert (problem.state, note.state) == ("problem", "note")
    assert "polars 1.0.0 (needs <3,>=2.1)" in problem.found
    assert "fastapi 0.155.0 (needs <0.151,>=0.139: from 0.155 no Prefect 3.8 flow runs" in problem.found
    assert "xxhash is not installed" in problem.found
    assert "rich 15.1.0 (tested: 15.0.0)" in note.found
    assert "constraints.txt" in problem.remedy
