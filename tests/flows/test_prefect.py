"""A real Prefect server and worker: every command of docs/nightly.md, and what the page promises of runs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import HTTPServer
from itertools import groupby
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from storage.catalog import runs
from storage.database import Catalog
from storage.root import open_root
from tagcos_stream.config import SELECT_FIELDS, Settings, load_settings
from tagcos_stream.declare import panel_of
from tagcos_stream.types import UserError
from tests.flows.conftest import SMALL, TOPICS, conversation
from tests.flows.server import CHECKOUT, Denying, Prefect, Refused, documented
from tests.flows.test_audit import allowed, touched, within
from tests.flows.test_credentials import SECRET

SERVER, EXPORT, WORKER, DEPLOY, RUN, SELECT, RUNS, ARTIFACTS, STATUS, REPORT, LIST, PAUSE, RESUME, NIGHTLY, *_ = documented()
PROMOTE, PUBLISH, ACCEPT, COMPUTE_AGAIN = documented()[-4:]


def write_pool(folder: Path, per_topic: int) -> None:
    folder.mkdir(exist_ok=True)
    for topic in TOPICS:
        lines = [json.dumps({"messages": conversation(topic, n)}) for n in range(per_topic)]
        (folder / f"{topic}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def add_rows(folder: Path, count: int) -> None:
    rows = [{"messages": conversation("sums", 1000 + n)} for n in range(count)]
    with (folder / "sums.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Prefect]:
    """Server, pool, deployments and worker, by the page's own commands; `pool` holds 120 conversations."""
    here = Prefect(tmp_path_factory.mktemp("prefect"), model_folder)
    write_pool(here.folder / "pool", 40)
    here.start(SERVER)
    try:
        here.await_answer("/health")
        assert here.adapted(EXPORT) == f"export PREFECT_API_URL={here.environment['PREFECT_API_URL']}"
        here.start(WORKER)
        here.await_answer("/work_pools/process")
        here.run(DEPLOY)
        yield here
    finally:
        for command in reversed(list(here.running)):
            here.stop(command)


def catalog(prefect: Prefect, root: str = "tagcos-data") -> Catalog:
    return open_root(str(prefect.folder / root), create=False).catalog


def stages(prefect: Prefect, run_id: str, root: str = "tagcos-data") -> dict[str, dict[str, Any]]:
    found = runs.run_status(catalog(prefect, root), run_id).stages
    return {row["stage"]: json.loads(row["detail"]) for row in found.iter_rows(named=True)}


def statuses(prefect: Prefect, root: str) -> list[str]:
    try:
        return runs.list_runs(catalog(prefect, root))["status"].to_list()
    except UserError:  # not begun
        return []


def blocks(prefect: Prefect, root: str) -> set[tuple[Any, ...]]:
    if not statuses(prefect, root):
        return set()
    return set(catalog(prefect, root).read("SELECT segment, block, committed_at, checksum FROM blocks").rows())


def deployment(prefect: Prefect, name: str) -> dict[str, Any]:
    return dict(prefect.read(f"/deployments/name/{name}"))


def begin(prefect: Prefect, name: str, **parameters: Any) -> str:
    """Ask for a run; its id."""
    return str(prefect.ask(f"/deployments/{deployment(prefect, name)['id']}/create_flow_run", parameters=parameters)["id"])


def slow_settings(prefect: Prefect, root: str) -> dict[str, Any]:
    """A run long enough to be stopped in the middle of its gradients."""
    write_pool(prefect.folder / "longer", 150)
    own = {"sources": ["longer"], "root": root, "model": str(prefect.model), "block_rows": 8, "dim": 256, "warmup_examples": 16}
    return own | {"max_length": 96, "batch_tokens": 256, "wait": 60}


def await_blocks(prefect: Prefect, root: str) -> set[tuple[Any, ...]]:
    deadline = time.monotonic() + 120
    while not (found := blocks(prefect, root)):
        assert time.monotonic() < deadline, prefect.log()[-4000:]
        time.sleep(0.2)
    return found


def test_page__each_command_as_it_stands(prefect: Prefect) -> None:
    prefect.run(RUN)
    (first,) = prefect.runs()
    assert first["state_type"] == "COMPLETED"
    assert first["state"]["message"] == "12 of 120 selected; first run of these sources"
    assert re.fullmatch(r"refresh-tagcos-data-\d{4}-\d\d-\d\d-model\d*-0\.1", first["name"])
    assert sorted(first["tags"]) == ["name:main", "refresh", "root:tagcos-data", "tagcos"]
    made = runs.list_runs(catalog(prefect))
    assert made["selected"].to_list() == [12]
    assert stages(prefect, made["run_id"][0])["gradients"]["computed"] == 120

    # three new rows: only they are computed; the night is exported
    add_rows(prefect.folder / "pool", 3)
    prefect.run(NIGHTLY)
    again = runs.list_runs(catalog(prefect))["run_id"][0]
    found = stages(prefect, again)
    assert (found["ingest"]["new"], found["gradients"]["computed"], found["select"]["pool"]) == (3, 3, 123)
    night = prefect.runs()[-1]
    assert night["state"]["message"].startswith("6 of 123 selected; +3 new, churn ")
    assert "nightly" in night["tags"]
    assert len((prefect.folder / "exports" / "nightly.jsonl").read_text(encoding="utf-8").splitlines()) == 6

    # another share: none
    prefect.run(SELECT)
    chosen = runs.list_runs(catalog(prefect))
    assert chosen["selected"].to_list()[0] == 25
    assert stages(prefect, chosen["run_id"][0]).get("gradients", {"computed": 0})["computed"] == 0
    assert re.fullmatch(r"select-tagcos-data-\d{4}-\d\d-\d\d-0\.2", prefect.runs()[-1]["name"])

    listed = prefect.run(RUNS)
    assert all(run["name"][:20] in listed for run in prefect.runs())
    assert "tagcos-summary" in prefect.run(ARTIFACTS)
    assert again in prefect.run(STATUS)
    assert f"{again}.html" in prefect.run(REPORT)
    assert again in prefect.run(PROMOTE)
    prefect.run(PUBLISH)
    exported = [(prefect.folder / "exports" / f"{name}.jsonl").read_bytes() for name in ("nightly", "prod")]
    assert exported[0] == exported[1]


def test_guard__stops_the_night_and_leaves_the_day_before(prefect: Prefect) -> None:
    """After the runs above."""
    exported = (prefect.folder / "exports" / "nightly.jsonl").read_bytes()
    (prefect.folder / "pool" / "cities.jsonl").rename(prefect.folder / "cities.jsonl")
    prefect.run(NIGHTLY, fails=True)
    stopped = prefect.runs()[-1]
    said = stopped["state"]["message"]
    assert stopped["state_type"] == "FAILED"
    assert re.search(
        r"source pool: 40 of 123 examples are gone since run-\S+ \(33%: cities.jsonl gone\), max_retired is 0.1", said
    )
    assert "accept the loss in one run with --max-retired 40" in said
    logs = prefect.ask("/logs/filter", logs={"flow_run_id": {"any_": [stopped["id"]]}}, limit=200)
    assert not [line["message"] for line in logs if "Traceback" in line["message"]]
    assert statuses(prefect, "tagcos-data")[0] == "failed"
    assert (prefect.folder / "exports" / "nightly.jsonl").read_bytes() == exported
    shown = prefect.ask("/artifacts/filter", artifacts={"flow_run_id": {"any_": [stopped["id"]]}})
    (summary,) = [artifact["data"] for artifact in shown if artifact["key"] == "tagcos-summary"]
    assert "| pool | 123 | 83 | 0 | 0 | 40 | 0 | 0 |" in summary

    prefect.run(ACCEPT)
    assert "-40 retired (cities.jsonl gone)" in prefect.runs()[-1]["state"]["message"]
    prefect.run(COMPUTE_AGAIN)
    assert prefect.runs()[-1]["state_type"] == "COMPLETED"
    assert prefect.runs()[-1]["parameters"]["max_recompute"] == 24
    (prefect.folder / "cities.jsonl").rename(prefect.folder / "pool" / "cities.jsonl")


def test_artifacts__tell_what_was_selected(prefect: Prefect) -> None:
    """Of the night above."""
    (night,) = [run for run in prefect.runs() if (run["state"]["message"] or "").startswith("6 of 123 selected")]
    found: dict[str, dict[str, Any]] = {}
    for artifact in prefect.ask("/artifacts/filter", artifacts={"flow_run_id": {"any_": [night["id"]]}}):
        found[artifact["key"]] = artifact
    run_id = found["tagcos-summary"]["description"]
    by_dataset = json.loads(found["tagcos-selection-by-dataset"]["data"])
    assert {row["dataset"]: row["pool"] for row in by_dataset} == {"sums": 43, "colours": 40, "cities": 40}
    assert sum(row["selected"] for row in by_dataset) == 6
    (pool,) = json.loads(found["tagcos-selection-by-source"]["data"])
    assert (pool["source"], pool["before"], pool["pool"], pool["new"], pool["selected"]) == ("pool", 120, 123, 3, 6)
    text = found["tagcos-summary"]["data"]
    assert "**6 of 123 selected; +3 new, churn " in text
    assert "| pool | 120 | 123 | 3 | 0 | 0 | 0 | 6 |" in text
    assert "](data:image/png;base64," in text
    assert "| rejected\\_rows | ingest | stop | passed |" in text
    assert all(re.search(rf"\| {stage} \| \d", text) for stage in ("ingest", "gradients", "select", r"\*\*all\*\*"))
    assert float(found["tagcos-gradients"]["data"]) == 100.0
    assert f"/reports/{run_id}.html" in found["tagcos-report"]["data"]
    assert f"tagcos report {run_id}" in found["tagcos-report"]["data"]
    assert "file://" not in found["tagcos-report"]["data"]
    assert run_id in (prefect.folder / "tagcos-data" / "reports" / f"{run_id}.html").read_text(encoding="utf-8")


def test_schedule__keeps_its_state_when_deployed_again(prefect: Prefect) -> None:
    name = "tagcos-refresh/nightly"
    (schedule,) = deployment(prefect, name)["schedules"]
    assert schedule["schedule"]["cron"] == "0 2 * * *"
    listed = prefect.run(LIST)
    assert "nightly" in listed or "0 2 * * *" in listed
    prefect.run(PAUSE.removesuffix("ID") + schedule["id"])
    assert deployment(prefect, name)["schedules"][0]["active"] is False
    prefect.run(DEPLOY.replace("--all", "--name nightly"))
    assert deployment(prefect, name)["schedules"][0]["active"] is False
    prefect.run(RESUME.removesuffix("ID") + schedule["id"])
    assert deployment(prefect, name)["schedules"][0]["active"] is True
    assert deployment(prefect, name)["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_parameters__are_readable_and_checked(prefect: Prefect) -> None:
    schema = deployment(prefect, "tagcos-refresh/on-demand")["parameter_openapi_schema"]
    assert set(schema["properties"]) == {*Settings.model_fields, "out", "format"}
    assert schema["required"] == ["sources"]  # vectors of the user's own need no model
    panels = [
        shown["title"].split(":")[0] for shown in sorted(schema["properties"].values(), key=lambda shown: shown["position"])
    ]
    assert [panel for panel, _ in groupby(panels)] == [
        *dict.fromkeys(panel_of(Settings, f) for f in Settings.model_fields),
        "Export",
    ]
    for name in Settings.model_fields:
        shown, field = schema["properties"][name], Settings.model_fields[name]
        assert shown["description"] == field.description
        assert "_" not in shown["title"], "a title for people"
        if name not in schema["required"]:
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            assert shown["default"] == default
    changes = deployment(prefect, "tagcos-select/reselect")["parameter_openapi_schema"]
    assert set(changes["properties"]) == {"root", "run", "out", "format", *SELECT_FIELDS}

    before = len(prefect.runs())
    good: dict[str, Any] = {"sources": ["pool"], "model": "m"}
    faults: list[dict[str, Any]] = [
        {"dim": "many"}, {"dim": 3}, {"fraction": 2}, {"gradient": "steepest"}, {"sources": []}, {"run_on": "moon"},
    ]  # fmt: skip
    for wrong in faults:
        with pytest.raises(Refused) as refused:
            begin(prefect, "tagcos-refresh/on-demand", **(good | wrong))
        assert 400 <= refused.value.status < 500, wrong
    with pytest.raises(Refused):
        begin(prefect, "tagcos-refresh/on-demand", model="m")
    assert "dim" in prefect.run(RUN.replace("fraction=0.1", "dim=many"), fails=True)
    assert len(prefect.runs()) == before, "nothing was started"


def test_root__two_deployments_wait_for_their_turn(prefect: Prefect) -> None:
    values = {"sources": ["pool"], "model": str(prefect.model), "root": "turns", "dim": 256, "warmup_examples": 16}
    asked = [
        begin(prefect, f"tagcos-refresh/{name}", **values, fraction=fraction)
        for name, fraction in (("on-demand", 0.1), ("nightly", 0.2))
    ]
    assert [prefect.await_run(flow_run)["state_type"] for flow_run in asked] == ["COMPLETED"] * 2, prefect.log()[-8000:]
    assert statuses(prefect, "turns") == ["complete"] * 2


def test_cancel__keeps_what_was_committed(prefect: Prefect) -> None:
    values = slow_settings(prefect, "cancelled")
    asked = begin(prefect, "tagcos-refresh/on-demand", **values)
    before = await_blocks(prefect, "cancelled")
    prefect.ask(f"/flow_runs/{asked}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})  # as the page does
    assert prefect.await_run(asked)["state_type"] == "CANCELLED"
    stopped = runs.list_runs(catalog(prefect, "cancelled"))
    assert stopped["status"].to_list() == ["interrupted"], stopped["error"].to_list()
    assert len(blocks(prefect, "cancelled")) < 57, "it was to be stopped in the middle"

    assert prefect.await_run(begin(prefect, "tagcos-refresh/on-demand", **values))["state_type"] == "COMPLETED"
    assert statuses(prefect, "cancelled") == ["complete"]
    assert before <= blocks(prefect, "cancelled"), "a committed block was computed again"


def test_worker__killed_in_the_middle__the_next_run_finishes_the_work(prefect: Prefect) -> None:
    values = slow_settings(prefect, "killed")
    begin(prefect, "tagcos-refresh/on-demand", **values)
    before = await_blocks(prefect, "killed")
    prefect.stop(WORKER, signal.SIGKILL)
    assert statuses(prefect, "killed") == ["running"]  # nobody was left to say otherwise
    prefect.start(WORKER)
    assert prefect.await_run(begin(prefect, "tagcos-refresh/on-demand", **values))["state_type"] == "COMPLETED"
    assert statuses(prefect, "killed") == ["complete"]
    assert before <= blocks(prefect, "killed"), "a committed block was computed again"


def test_flow__writes_and_calls_nothing_but_its_root_home_and_server(prefect: Prefect) -> None:
    """By Python's audit hook, as test_audit.py does for commands without a server."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    file = prefect.folder / "audited.json"
    file.write_text(json.dumps([["run", "pool", "--root", "audited", "--model", str(prefect.model), *flags]]), encoding="utf-8")
    environment = prefect.environment | {"PYTHONPATH": str(CHECKOUT), "TMPDIR": str(prefect.folder / "tmp")}
    (prefect.folder / "tmp").mkdir()
    command = [sys.executable, "-m", "tests.flows.audited", str(file)]
    done = subprocess.run(command, cwd=prefect.folder, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "audited" in [tag.partition(":")[2] for tag in prefect.runs()[-1]["tags"]], "it was no flow of this server"
    events = [json.loads(line) for line in Path(f"{file}.report").read_text(encoding="utf-8").splitlines()]
    own = [str(prefect.folder / name) for name in ("audited", "home", "tmp")]
    others = {path for path in touched(events) if not within(path, *own, "audited", "home")}
    assert sorted(path for path in others if not allowed(path)) == []
    called = {event[2] for event in events if event[0] == "socket.connect"}
    assert [address for address in called if "127.0.0.1" not in address and "::1" not in address] == []


def test_secrets__are_in_nothing_that_server_root_and_exports_keep(prefect: Prefect) -> None:
    """Of the environment of everything above, of a store that repeats one as it denies a source, and of addresses."""
    with HTTPServer(("127.0.0.1", 0), Denying) as store:
        Thread(target=store.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{store.server_port}"
        at = {"AWS_ENDPOINT_URL": address, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
        printed = prefect.run(f"tagcos run s3://bucket/pool/ --root denied --model {prefect.model}", fails=True, **at)
        store.shutdown()
    denied = prefect.runs()[-1]
    (summary,) = [artifact for artifact in prefect.kept("artifacts") if artifact["flow_run_id"] == denied["id"]]
    assert "Forbidden: denied: ***" in denied["state"]["message"]
    assert "Forbidden: denied: " in summary["data"]
    printed += prefect.run(f"tagcos run https://user:{SECRET}@host/rows.jsonl --root denied", fails=True)
    assert "the address holds credentials" in printed
    # asked of the server, that is of its page, too: refused before it stores them
    before, key = len(prefect.kept("flow_runs")), f"s3://{SECRET}@bucket/pool"
    for name, parameters in (
        ("tagcos-refresh/on-demand", {"sources": ["pool", f"https://user:{SECRET}@host/rows.jsonl"]}),
        ("tagcos-refresh/on-demand", {"sources": ["pool"], "model": f"https://host/model.gguf?sig={SECRET}"}),
        ("tagcos-select/reselect", {"root": key}),
        ("tagcos-evaluate/compare", {"root": key}),
    ):
        with pytest.raises(Refused, match="an address that holds a key") as refused:
            begin(prefect, name, **parameters)
        assert 400 <= refused.value.status < 500
    assert len(prefect.kept("flow_runs")) == before
    kinds = ("artifacts", "logs", "flow_runs", "task_runs", "deployments")
    kept = {kind: json.dumps(prefect.kept(kind)).encode() for kind in kinds}
    for path in prefect.folder.rglob("*"):
        if path.is_file() and CHECKOUT not in path.resolve().parents:
            kept[str(path)] = path.read_bytes()
    names = {Path(place).name for place in kept}
    assert {"prefect.db", "log", "catalog.duckdb", "catalog-snapshot.duckdb", "prod.jsonl"} <= names
    assert b"tagcos-selection-by-dataset" in kept["artifacts"]
    assert SECRET not in printed
    assert [place for place, content in kept.items() if SECRET.encode() in content] == []


def test_telemetry__nobody_else_was_asked(prefect: Prefect) -> None:
    """Last: of everything above, with neither DO_NOT_TRACK nor CI set."""
    assert prefect.outside.asked == []


def test_yaml__deploys_what_the_page_says() -> None:
    page = (CHECKOUT / "docs" / "nightly.md").read_text(encoding="utf-8")
    flows = {"tagcos_refresh": "tagcos-refresh", "tagcos_select": "tagcos-select", "tagcos_evaluate": "tagcos-evaluate"}
    for made in yaml.safe_load((CHECKOUT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]:
        assert f"`{flows[made['entrypoint'].split(':')[1]]}/{made['name']}`" in page
    # the second root is a deployment like those of the file
    (second,) = yaml.safe_load(
        "deployments:\n" + re.findall(r"```yaml\n(.*?)```", page.replace("*pool", "{name: process}"), re.S)[0]
    )["deployments"]
    assert set(second["parameters"]) <= {*Settings.model_fields, "out", "format"}
    load_settings({name: value for name, value in second["parameters"].items() if name in Settings.model_fields})
    assert (CHECKOUT / "checks" / "unselected_datasets.sql").read_text(encoding="utf-8") in page
