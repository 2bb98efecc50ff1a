"""The same pipeline as a Prefect flow, on a real (temporary) server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from storage.catalog import evaluations, runs, selections
from storage.files.object import ObjectFiles
from storage.root import open_root
from tagcos_stream.types import UserError
from tests.flows.server import free_port
from tests.flows.test_credentials import SECRET
from tests.stages import RESELECT_STAGES, STAGES

CODE = """
import asyncio, json, sys
from flows import pipeline, prefect_flow
from flows.prefect_flow import tagcos_evaluate, tagcos_refresh, tagcos_select
from flows.progress import SilentReporter
from prefect import flow
from tagcos_stream.config import load_settings
from tagcos_stream.types import TransientError, UserError
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness

prefect_flow.RETRY_AFTER = [0.1]

@flow
def tries(values):
    # how often each stage is begun where clustering meets a busy catalog once, and selecting a mistake
    begun = []

    def do_stage(name, stage, run, *given):
        def work(run, *given):
            begun.append(name)
            if name == "cluster" and begun.count(name) == 1:
                raise TransientError("the catalog is busy")
            if name == "select":
                raise UserError("nothing that passes")
            return stage(run, *given)

        return prefect_flow._do_stage(name, work, run, *given)

    try:
        pipeline.run(load_settings(values | {"fraction": 0.3}), SilentReporter(), do_stage)
    except UserError:
        return {name: begun.count(name) for name in begun}

@flow
def slots():
    # taken slots of an object-store root's limit while a run that would not wait has its turn, and afterwards
    def taken():
        with get_client(sync_client=True) as client:
            name = prefect_flow._limit_name("s3://bucket/pool")
            return client.read_global_concurrency_limit_by_name(name).active_slots

    with prefect_flow._turn("s3://bucket/pool", 0):
        during = taken()
        prefect_flow.ANSWER_SECONDS = 1.0
        try:
            with prefect_flow._turn("s3://bucket/pool/", 1):
                refused = "not refused"
        except UserError as error:
            refused = str(error)
    return [during, taken(), refused]

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
    root = json.loads(sys.argv[1])["root"]
    # a form's empty fields
    again = tagcos_select(root=root, run="latest", fraction=0.3, where="", exclude="", name="", share=[], checks="", out="")
    few = {"seeds": 1, "regime": ["steps"], "epochs": 1, "threads": 1, "model": "", "heldout_files": []}
    evaluated = tagcos_evaluate(root=root, method=["random"], **few)
    try:
        tagcos_refresh(sources=["pool"], model="m", dim="many")
    except Exception as error:
        refused = type(error).__name__
    try:
        tagcos_refresh(**json.loads(sys.argv[1]) | {"model": "./nothing", "root": root + "-other"})
    except Exception as error:
        refused = [refused, type(error).__name__, str(error)]
    found = {"run_id": run_id, "refused": refused, "evaluated": evaluated, "again": again} | asyncio.run(seen())
    found |= {"tries": tries(json.loads(sys.argv[1])), "slots": slots()}
    print("RESULT " + json.dumps(found))
"""


def test_flow__same_selection_as_the_plain_run(small_settings: Callable[..., dict[str, Any]], tmp_path: Path) -> None:

    from flows import pipeline
    from flows.progress import SilentReporter
    from tagcos_stream.config import load_settings

    own = {"heldout": 0.2, "where": "target_tokens > 1", "share": ["sums=0.1:0.9"]}
    values = small_settings(root=str(tmp_path / "flow"), **own)
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
    begun = (*STAGES, *RESELECT_STAGES, "evaluate", "report", "report")
    assert result["tasks"] == sorted([name, "Completed"] for name in begun)
    shown = ["evaluate", "evaluation", "gradients", "report", "selection-by-dataset", "selection-by-source", "summary"]
    assert sorted(set(result["artifacts"])) == [f"tagcos-{name}" for name in shown]
    assert result["refused"][:2] == ["ParameterTypeError", "UserError"]
    assert result["refused"][2].startswith("model ./nothing: no such folder or file")
    assert f"Failed('{result['refused'][2]}')" in done.stderr
    assert "Traceback" not in done.stderr
    assert result["tries"] == {"ingest": 1, "warm-up": 1, "gradients": 1, "cluster": 2, "select": 1}
    assert result["slots"][:2] == [1, 0]
    assert result["slots"][2] == "another flow run has held s3://bucket/pool/ for 1 s: try again later, or give a longer wait"

    plain = small_settings(root=str(tmp_path / "plain"), **own)
    outcome = pipeline.run(load_settings(plain), SilentReporter())
    catalogs = [open_root(root, create=False).catalog for root in (values["root"], plain["root"])]
    # the newest met the mistake, the one before it was selected for the evaluation
    assert runs.list_runs(catalogs[0])["status"].to_list() == ["failed", "complete", "complete", "complete"]
    again = runs.run_status(catalogs[0], result["again"])
    kept = json.loads(again.run["config"])
    assert (kept["where"], kept["share"], kept["exclude"], kept["name"]) == (own["where"], own["share"], None, None)
    assert again.selected == 29  # of 96
    units = evaluations.units(catalogs[0], result["evaluated"])
    assert sorted(key.method for key in units) == ["base", "random"]
    chosen = [
        selections.selection(c, run).drop("run_id") for c, run in zip(catalogs, (result["run_id"], outcome.run_id), strict=True)
    ]
    assert chosen[0].equals(chosen[1])


def test_limit__each_root_has_its_own() -> None:
    from flows.prefect_flow import _limit_name

    names = [_limit_name(root) for root in ("s3://team/a-b", "s3://team-a/b", "s3://team/a-b/")]
    assert names[0] == names[2] != names[1]
    assert all(name.startswith("tagcos-root-s3-team-a-b-") for name in names)


@pytest.mark.filterwarnings("ignore:Artifact creation outside of a flow:FutureWarning")
def test_artifacts__a_server_that_is_away_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from flows import prefect_artifacts

    monkeypatch.setattr(prefect_artifacts, "EVERY", 0.0)
    said: list[str] = []
    away = {PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(away), prefect_artifacts.FlowReporter(said.append).stage("gradients", "examples") as progress:
        for done in range(3):
            progress(done, 3)
    about = [text for text in said if "artifact" in text]
    assert len(about) == 1, said
    assert "took no artifact: ConnectError" in about[0]


def test_artifacts__a_fault_of_theirs_fails_nothing(complete_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import prefect_artifacts
    from flows.pipeline import Outcome

    def broken(*given: Any) -> bytes:
        raise RuntimeError("no font")

    monkeypatch.setattr(prefect_artifacts, "datasets_png", broken)
    root, said = open_root(str(complete_root), create=False), list[str]()
    run_id = runs.list_runs(root.catalog)["run_id"][0]
    prefect_artifacts.publish_artifacts(root, Outcome(run_id, {}, "12 of 120 selected"), None, said.append)
    prefect_artifacts.publish_evaluation(root, "none", said.append)
    assert said[0] == "the Prefect server took no artifact: RuntimeError: no font"


def test_artifacts__neither_the_message_of_a_fault_nor_the_place_of_the_report_holds_a_key(
    complete_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import prefect_artifacts
    from flows.pipeline import Outcome

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    root, said = open_root(str(complete_root), create=False), list[str]()
    run_id = runs.list_runs(root.catalog)["run_id"][0]
    with prefect_artifacts.for_show(said.append):
        raise RuntimeError(f"refused: Bearer {SECRET}\nX-Key: {SECRET}")
    assert said == ["the Prefect server took no artifact: RuntimeError: refused: Bearer ***"]

    made: list[dict[str, Any]] = []
    for name in [name for name in vars(prefect_artifacts) if name.startswith("create_")]:
        monkeypatch.setattr(prefect_artifacts, name, lambda *given, **named: made.append({"given": given} | named))
    stored = replace(root, files=ObjectFiles("s3://bucket/pool"))
    place = f"s3://bucket/pool/reports/{run_id}.html"
    prefect_artifacts.publish_artifacts(stored, Outcome(run_id, {}, "12 of 120 selected"), place, said.append)
    assert SECRET not in str(made)
    (report,) = [artifact for artifact in made if artifact["key"] == "tagcos-report"]
    assert f"    {place}\n" in report["markdown"]
    assert f"    tagcos report {run_id} --root s3://bucket/pool --serve" in report["markdown"]
    assert len(said) == 1, said


def schema(name: str) -> dict[str, Any]:
    """Of the parameters of a flow: what a server checks them by."""
    from flows import prefect_flow

    found: dict[str, Any] = getattr(prefect_flow, name).parameters.model_dump()
    return found


def refused(schema: dict[str, Any], **parameters: Any) -> bool:
    """Whether a server refuses parameters, checked as it does."""
    from prefect.utilities.schema_tools.validation import validate

    return bool(validate(parameters, schema, ignore_required=True))


def test_parameters__those_that_settings_refuse_for_a_key_are_refused_by_the_server(
    small_settings: Callable[..., dict[str, Any]],
) -> None:
    from tagcos_stream.config import Settings, load_settings

    address = f"https://user:{SECRET}@host/x.jsonl"
    keyed = set()
    for name, field in Settings.model_fields.items():
        try:
            load_settings(small_settings(**{name: (address,) if "tuple" in str(field.annotation) else address}))
        except UserError as error:
            if "the address holds credentials" in str(error):
                keyed.add(name)
    asked = schema("tagcos_refresh")
    assert keyed == {name for name, shown in asked["properties"].items() if "not" in shown}
    assert {"sources", "root", "model"} < keyed
    for name in keyed:
        listed = asked["properties"][name].get("type") == "array"
        assert refused(asked, **{name: ["pool", address] if listed else address}), name
        assert not refused(asked, **{name: ["pool", "s3://bucket/x"] if listed else "s3://bucket/x"}), name
    assert {name for name, shown in schema("tagcos_select")["properties"].items() if "not" in shown} == {
        name for name in schema("tagcos_select")["properties"] if name in keyed
    }
    evaluation = schema("tagcos_evaluate")
    for name, value in {"root": address, "model": address, "tasks": address, "heldout_files": [address]}.items():
        assert refused(evaluation, **{name: value}), name
    assert not refused(evaluation, root="s3://bucket/pool", tasks=None, heldout_files=["hf://datasets/owner/name@main/x.jsonl"])


def test_parameters__no_address_without_a_key_is_refused() -> None:
    """By the same rule as elsewhere, for whatever an address may be put together from."""
    from tagcos_stream.credentials import refuse_credentials

    schemes = ("s3", "HTTPS", "hf", "Hf", "abfs", "abfss", "abfssx", "git+ssh")
    users = ("", "@", "user@", "user:@", "user:p@ss@", ":@", "a?b@", "a/b:c@")
    rests = (
        "host",
        "host:80/a@b",
        "host/a:b@c",
        "host/x?y=z",
        "host/a?b*.jsonl",
        "host/a&b-c.d=",
        "host/x#a?b=c",
        "host/\n?a=b",
        "",
    )
    texts = [
        f"{before}{scheme}://{user}{rest}" for before in ("", " ", "x") for scheme in schemes for user in users for rest in rests
    ]
    texts += ["", "pool", "a@b?c=d", "u:p@host", r"C:\x?y=z", "shared/*.jsonl", "x?y=z://", "x = 's3://u:p@h'", "1s3://u:p@h"]
    asked, kept = schema("tagcos_refresh"), 0
    for text in texts:
        try:
            refuse_credentials(text)
            kept += 1
        except UserError:
            assert refused(asked, root=text), text
        else:
            assert not refused(asked, root=text), text
            assert not refused(asked, sources=["pool", text]), text
    assert 0 < kept < len(texts)


def test_run__says_in_one_line_that_the_server_is_away(small_settings: Callable[..., dict[str, Any]]) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.prefect_flow import run_flow
    from tagcos_stream.config import load_settings

    away = f"127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: f"http://user:secret@{away}"}), pytest.raises(UserError) as error:
        run_flow(load_settings(small_settings()))
    assert re.fullmatch(
        rf"the Prefect server at http://{away} does not answer \(.*refused\): start it \(`prefect server start`\), or unset.*",
        str(error.value),
    )


@pytest.mark.parametrize(("status", "said"), [(401, None), (403, None), (404, "Not Found")])
def test_unreachable__a_server_that_asks_for_a_login_answers(status: int, said: str | None) -> None:
    from flows.prefect_flow import _unreachable

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert _unreachable(f"http://127.0.0.1:{server.server_port}/api") == said


def test_run__waits_for_no_server(monkeypatch: pytest.MonkeyPatch, small_settings: Callable[..., dict[str, Any]]) -> None:
    from flows import pipeline
    from flows.progress import SilentReporter
    from tagcos_stream.config import load_settings

    monkeypatch.setitem(sys.modules, "prefect", None)  # importing it would fail
    assert pipeline.run(load_settings(small_settings()), SilentReporter()).stages["select"]["selected"] == 12
