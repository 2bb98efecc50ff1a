"""Keys and tokens of the environment reach nothing that is stored, shown or sent to readers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import export as exports
from flows.pipeline import run
from flows.progress import LineReporter
from flows.report.build import write_report
from storage.root import open_root
from tagcos_stream.config import load_settings
from tagcos_stream.credentials import redact, refuse_credentials
from tagcos_stream.types import UserError

Maker = Callable[..., dict[str, Any]]
SECRET = "wJalrXUtnFEMIplantedbPxRfiCYkey"


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{SECRET}@bucket/pool",
        f"s3://{SECRET}@bucket/pool",
        f"az://container/pool?sig={SECRET}&se=2030",
        f"abfss://name:{SECRET}@account.dfs.core.windows.net/x",
        f"https://user:{SECRET}@host/rows.jsonl",
        f"https://host/rows.jsonl?X-Amz-Signature={SECRET}",
    ],
)
def test_addresses__that_hold_a_key_are_refused_without_repeating_it(small_settings: Maker, url: str) -> None:
    for changes in ({"root": url}, {"sources": (url,)}):
        with pytest.raises(UserError, match="the address holds credentials") as raised:
            run(load_settings(small_settings(**changes)))
        assert SECRET not in str(raised.value)


@pytest.mark.parametrize("name", ["model", "adapter", "checks", "target", "vectors", "decontaminate", "exclude", "include"])
def test_settings__with_an_address_that_holds_a_key_are_refused_before_they_are_recorded(
    small_settings: Maker, name: str
) -> None:
    for url in (f"https://user:{SECRET}@host/x.jsonl", f"s3://bucket/x.jsonl?sig={SECRET}"):
        with pytest.raises(UserError, match=f"{name}: .*the address holds credentials") as raised:
            load_settings(small_settings(**{name: url}))
        assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/a?b*.jsonl", "hf://datasets/owner/name@main/x.jsonl", "abfss://c@account.dfs.core.windows.net/x", "a@b?c=d"],
)
def test_addresses__without_a_key_pass(url: str) -> None:
    refuse_credentials(url)


def test_redact__values_of_secret_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("HF_TOKEN", "hf_" + SECRET)
    monkeypatch.setenv("MY_PASSWORD", "short")
    monkeypatch.setenv("EDITOR", "an-editor-of-some-length")
    text = f"denied: {SECRET}, hf_{SECRET}, short, an-editor-of-some-length"
    assert redact(text) == "denied: ***, ***, short, an-editor-of-some-length"
    assert redact("no answer from http://user:p@ss@host:9/x?y=a@b") == "no answer from http://***@host:9/x?y=a@b"


def test_run__with_planted_keys_leaves_no_trace_of_them(
    small_settings: Maker, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Everything below the folders that a run of a bucket writes, all objects of the bucket, and all that is printed."""
    import obstore

    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))  # the catalog of such a root
    outcome = run(load_settings(small_settings(root=bucket, threads=1)), LineReporter())
    root = open_root(bucket, create=False)
    exports.export(root, outcome.run_id, tmp_path / "out.jsonl")
    write_report(root, outcome.run_id)
    with pytest.raises(UserError) as raised:
        run(load_settings(small_settings(root="s3://no-such-bucket/x", threads=1)), LineReporter())
    store = obstore.store.from_url(bucket.rpartition("/")[0])
    objects = [entry["path"] for page in obstore.list(store) for entry in page]
    assert any("features" in path for path in objects)
    written = [bytes(obstore.get(store, path).bytes()) for path in objects]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"out.jsonl", "catalog.duckdb"} <= {path.name for path in files}
    printed = capfd.readouterr()
    written += [path.read_bytes() for path in files] + [text.encode() for text in (*printed, str(raised.value))]
    assert not any(SECRET.encode() in content for content in written)


def test_run__an_error_of_the_store_that_repeats_a_key(
    small_settings: Maker, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the middle of the gradients: it is shown, recorded in the catalog and shown by `status`, each time without the key."""
    import obstore

    monkeypatch.setenv("MY_STORE_TOKEN", SECRET)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    put = obstore.put

    def refuses(store: Any, path: str, *given: Any, **more: Any) -> Any:
        if "features" in path:
            raise obstore.exceptions.PermissionDeniedError(f"denied: Authorization: Bearer {SECRET}\n{SECRET}")
        return put(store, path, *given, **more)

    monkeypatch.setattr(obstore, "put", refuses)
    with pytest.raises(UserError, match=r"denied: Authorization: Bearer \*\*\*; check bucket") as raised:
        run(load_settings(small_settings(root=bucket, threads=1)), LineReporter())
    catalog = open_root(bucket, create=False).catalog
    (recorded,) = catalog.read("SELECT error FROM runs").rows()
    assert "Bearer ***" in recorded[0]
    printed = capfd.readouterr()
    shown = [str(raised.value), *printed, *map(str, catalog.read("FROM runs").rows())]
    assert not any(SECRET in text for text in shown)
    files = [path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert files
    assert not any(SECRET.encode() in content for content in files)
