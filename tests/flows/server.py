"""A real Prefect server and process worker on loopback, started with the commands of docs/nightly.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.flows.test_credentials import SECRET

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "nightly.md"
MODEL = "HuggingFaceTB/SmolLM2-360M-Instruct"


def documented() -> list[str]:
    """Every command of the page, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Outside:
    """A proxy that serves nobody and notes who was asked for: what would have left the machine."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._note, daemon=True).start()

    def _note(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(200).decode(errors="replace").split("\r\n")[0])


class Denying(BaseHTTPRequestHandler):
    """An object store that lists one file, denies it, and repeats a key as it does."""

    LISTED = (
        "<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>pool/rows.jsonl</Key><ETag>a</ETag><Size>9</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"
    )

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "9")
        self.send_header("ETag", "a")
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()

    def do_GET(self) -> None:
        listing = "list-type" in self.path
        body = (self.LISTED if listing else f"denied: {SECRET}").encode()
        self.send_response(200 if listing else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Refused(Exception):
    """The API's answer to a request that it did not carry out."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status


@dataclass
class Prefect:
    """A folder like a checkout, with its own PREFECT_HOME, server and worker."""

    folder: Path
    model: Path
    port: int = field(default_factory=free_port)
    outside: Outside = field(default_factory=Outside)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("flows", "storage", "tagcos_stream", "checks", "prefect.toml"):
            (self.folder / name).symlink_to(CHECKOUT / name)
        deployments = (CHECKOUT / "prefect.yaml").read_text(encoding="utf-8")
        (self.folder / "prefect.yaml").write_text(deployments.replace(MODEL, str(self.model)), encoding="utf-8")

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def environment(self) -> dict[str, str]:
        # CI and DO_NOT_TRACK would hide what prefect.toml is to prevent
        kept = {k: v for k, v in os.environ.items() if k not in ("CI", "DO_NOT_TRACK") and not k.startswith("PREFECT_")}
        proxies = {name: self.outside.url for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")}
        own = {
            "PWD": str(self.folder),  # a shell keeps it so
            "PREFECT_HOME": str(self.folder / "home"),
            "PREFECT_API_URL": self.api,
            "NO_PROXY": "127.0.0.1,localhost",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "HF_TOKEN": SECRET,
            "AWS_ACCESS_KEY_ID": "name",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            # by default 10 s: the time from a request to its start or cancellation
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        }
        return kept | proxies | {name.lower(): url for name, url in proxies.items()} | {"no_proxy": own["NO_PROXY"]} | own

    def adapted(self, command: str) -> str:
        """The page's command for this port and a model that is here."""
        return command.replace("4200", str(self.port)).replace(MODEL, str(self.model))

    def start(self, command: str) -> None:
        """What the page says to leave running."""
        with (self.folder / "log").open("ab") as log:
            self.running[command] = subprocess.Popen(
                shlex.split(self.adapted(command)),
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, command: str, sign: int = signal.SIGTERM) -> None:
        """The process and, with SIGKILL, whatever it started: as where a machine dies."""
        process = self.running.pop(command)
        for group in {process.pid, *(_groups(process.pid) if sign == signal.SIGKILL else ())}:
            os.killpg(group, sign)
        process.wait(60)

    def run(self, command: str, *, fails: bool = False, **variables: str) -> str:
        done = subprocess.run(
            shlex.split(self.adapted(command)),
            cwd=self.folder,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        printed = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, f"{command}: exit code {done.returncode}\n{printed}\n{self.log()[-6000:]}"
        return printed

    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def ask(self, path: str, **body: Any) -> Any:
        """POST to the API."""
        return self._send(
            urllib.request.Request(
                f"{self.api}{path}", data=json.dumps(body).encode(), headers={"content-type": "application/json"}
            )
        )

    def read(self, path: str) -> Any:
        return self._send(urllib.request.Request(f"{self.api}{path}"))

    def _send(self, request: urllib.request.Request, seconds: float = 60) -> Any:
        """What the API answers, or Refused. A server whose database is busy says 503: asked again, as Prefect's client does."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + seconds
        while True:
            try:
                with opener.open(request, timeout=30) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 503 or time.monotonic() > deadline:
                        raise Refused(error.code, error.read().decode(errors="replace")) from None
            time.sleep(0.5)

    def await_answer(self, path: str, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.read(path)
                return
            except (OSError, Refused):
                assert time.monotonic() < deadline, self.log()[-3000:]
                time.sleep(0.2)

    def runs(self) -> list[dict[str, Any]]:
        """Flow runs, oldest first, without those that a schedule holds for the nights to come."""
        found = self.ask("/flow_runs/filter", sort="EXPECTED_START_TIME_ASC", limit=200)
        assert isinstance(found, list)
        return [run for run in found if run["state_type"] != "SCHEDULED" or not run["auto_scheduled"]]

    def kept(self, kind: str) -> list[dict[str, Any]]:
        """All of a kind: artifacts, logs, flow_runs."""
        found: list[dict[str, Any]] = []
        while page := self.ask(f"/{kind}/filter", limit=200, offset=len(found)):
            found += page
        return found

    def await_run(self, flow_run_id: str, seconds: float = 400) -> dict[str, Any]:
        """Until it is in a final state."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.read(f"/flow_runs/{flow_run_id}")
            if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return dict(found)
            assert time.monotonic() < deadline, (found["state_name"], self.log()[-6000:])
            time.sleep(0.3)


def _groups(pid: int) -> set[int]:
    """Process groups of everything that descends from a process."""
    import psutil

    return {os.getpgid(child.pid) for child in psutil.Process(pid).children(recursive=True)}
