"""The same pipeline as a Prefect flow, on a real (temporary) server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import runs, selections
from storage.root import open_root

CODE = """
import asyncio, json, sys
from flows.prefect_flow import tagcos_refresh
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness

async def seen():
    async with get_client() as client:
        for _ in range(60):  # task states reach the server by events, a little later
            tasks = sorted((t.name, str(t.state_name)) for t in await client.read_task_runs())
            if tasks and all(state == "Completed" for _, state in tasks):
                break
            await asyncio.sleep(0.5)
        return {"tasks": tasks, "artifacts": sorted(a.key for a in await client.read_artifacts() if a.key)}

with prefect_test_harness(server_startup_timeout=120):
    run_id = tagcos_refresh(**json.loads(sys.argv[1]))
    try:
        tagcos_refresh(sources=["pool"], model="m", dim="many")
    except Exception as error:
        refused = type(error).__name__
    print("RESULT " + json.dumps({"run_id": run_id, "refused": refused} | asyncio.run(seen())))
"""


def test_flow__same_selection_as_the_plain_run(small_settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:

    from flows import pipeline
    from flows.progress import SilentReporter
    from tagcos_stream.config import load_settings

    values = small_settings(root=str(tmp_path / "flow"))
    environment = os.environ | {"PREFECT_HOME": str(tmp_path / "prefect")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(values)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        timeout=400,
        check=False,
    )
    results = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(results) == 1, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads(results[0])
    assert result["tasks"] == sorted([name, "Completed"] for name in pipeline.STAGES)
    assert result["artifacts"] == ["tagcos-gradients", "tagcos-report", "tagcos-selection-by-source", "tagcos-summary"]
    assert result["refused"] == "ParameterTypeError"

    plain = small_settings(root=str(tmp_path / "plain"))
    outcome = pipeline.run(load_settings(plain), SilentReporter())
    catalogs = [open_root(root, create=False).catalog for root in (values["root"], plain["root"])]
    assert runs.list_runs(catalogs[0])["status"].to_list() == ["complete"]
    chosen = [
        selections.selection(c, run).drop("run_id") for c, run in zip(catalogs, (result["run_id"], outcome.run_id), strict=True)
    ]
    assert chosen[0].equals(chosen[1])


def test_run__waits_for_no_server(monkeypatch: pytest.MonkeyPatch, small_settings: Callable[..., dict[str, Any]]) -> None:
    from flows import pipeline
    from flows.progress import SilentReporter
    from tagcos_stream.config import load_settings

    monkeypatch.setitem(sys.modules, "prefect", None)  # importing it would fail
    assert pipeline.run(load_settings(small_settings()), SilentReporter()).stages["select"]["selected"] == 12
