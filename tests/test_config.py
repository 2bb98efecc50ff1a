from __future__ import annotations

from pathlib import Path

import duckdb
import polars as pl
import pytest

from tagcos_stream.config import MACHINE_FIELDS, PRESETS, SPACE_FIELDS, Settings, load_settings
from tagcos_stream.types import UserError


def test_settings__every_field_is_described_and_ends_a_sentence() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_settings__field_groups_name_real_fields() -> None:
    assert set(Settings.model_fields) >= MACHINE_FIELDS
    assert set(Settings.model_fields) >= set(SPACE_FIELDS)
    assert not MACHINE_FIELDS & set(SPACE_FIELDS)
    for preset in PRESETS:
        load_settings({}, preset=preset)


def test_load_settings__flags_win_over_file_over_preset(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text('preset = "published"\nsources = "a.jsonl"\nlora_rank = 16\ndim = 1024\n', encoding="utf-8")
    settings = load_settings({"dim": 512}, toml=path)
    assert (settings.dim, settings.lora_rank, settings.lora_alpha, settings.sources) == (512, 16, 512, ("a.jsonl",))
    assert load_settings({"count": 7}, preset="published").budget(100) == 7
    given = load_settings({}, toml=path, preset="recommended")
    assert (given.dim, given.lora_rank, given.lora_alpha, given.gradient) == (1024, 16, 32, "sgd")


def test_load_settings__an_amount_replaces_that_of_less_precedence(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text('\ufeffpreset = "published"\ncount = 7\n', encoding="utf-8")  # with the mark of an editor on Windows
    for given, expected in (
        ({}, (None, 7, None)),
        ({"fraction": 0.2}, (0.2, None, None)),
        ({"tokens": "5k"}, (None, None, "5000")),
        ({"tokens": None}, (None, 7, None)),
    ):
        settings = load_settings(given, toml=path)
        assert (settings.fraction, settings.count, settings.tokens) == expected
    path.write_text("count = 7\nfraction = 0.1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"give one of fraction, count and tokens; .*pool\.toml"):
        load_settings({}, toml=path)
    assert load_settings({"count": 3}, toml=path).count == 3


def test_load_settings__files_of_one_name_may_lie_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    settings = load_settings({"adapter": "~/checkpoint-3", "exclude": "~/bad.txt", "include": "loss < 1"})
    assert (settings.adapter, settings.exclude, settings.include) == ("/home/me/checkpoint-3", "/home/me/bad.txt", "loss < 1")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("bad.txt", "/here/bad.txt"),
        ("../lists/bad.parquet", "/here/../lists/bad.parquet"),
        ("/lists/bad.csv", "/lists/bad.csv"),
        ("s3://bucket/bad.parquet", "s3://bucket/bad.parquet"),
        ("dataset = 'bad.txt'", "dataset = 'bad.txt'"),
        (None, None),
    ],
)
def test_load_settings__lists_of_examples_are_found_from_any_folder(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str | None
) -> None:
    monkeypatch.setattr("os.getcwd", lambda: "/here")
    settings = load_settings({"exclude": given, "include": given})
    assert (settings.exclude, settings.include) == (expected, expected)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"dim": 2}, "dim: .*greater than or equal to 8.*2"),
        ({"dimension": 8192}, "dimension: Extra inputs"),
        ({"fraction": 0.1, "count": 3}, "give one of fraction, count and tokens"),
        ({"gradient": "adamw"}, "gradient: .*'adamw'"),
        ({"min_cluster_rows": 90, "max_cluster_rows": 100}, "at least twice"),
        ({"root": ""}, "root: an empty text is no path"),
        ({"sources": ("a.jsonl", "")}, "sources: an empty text is no path"),
        ({"decontaminate": " "}, "decontaminate: an empty text is no path"),
        ({"seed": 2**63}, "seed: .*less than or equal to 9223372036854775807"),
        ({"feature_seed": 2**32}, "feature_seed 4294967296 seeds a training, so it must be at most 4294967295"),
        ({"memory_limit": float("inf")}, "memory_limit: .*finite"),
        ({"share": {"code": "0.1:0.3"}}, "share: dataset code is '0.1:0.3', must be a table such as {minimum = 0.1"),
    ],
)
def test_load_settings__names_field_and_value(values: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_settings(values)


def test_load_settings__bad_files(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("dim = = 3", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.toml is not valid TOML"):
        load_settings({}, toml=tmp_path / "bad.toml")
    with pytest.raises(UserError, match="No such file"):
        load_settings({}, toml=tmp_path / "absent.toml")
    with pytest.raises(UserError, match="recommended, published"):
        load_settings({}, preset="best")
    (tmp_path / "list.toml").write_text('preset = ["clean"]', encoding="utf-8")
    with pytest.raises(UserError, match=r"preset \['clean'\] is unknown"):
        load_settings({}, toml=tmp_path / "list.toml")


@pytest.mark.parametrize(("n", "expected"), [(400, 20), (3550, 178), (10, 1), (1, 1)])
def test_budget__is_exact(n: int, expected: int) -> None:
    assert Settings().budget(n) == expected


def test_warmup_size__is_a_share_within_bounds() -> None:
    assert Settings().warmup_size(400) == 64
    assert Settings().warmup_size(40) == 40
    assert Settings().warmup_size(10_000) == 500
    assert Settings().warmup_size(10_000_000) == 3840


def test_preset_clean__excludes_canned_replies_and_no_labels() -> None:
    rows = pl.DataFrame(
        {
            "name": ["good", "label", "canned", "prompt does not help", "unknown"],
            "ifd": [0.6, 0.3, 0.97, 1.02, None],
            "repeated": [1, 67, 9, 1, None],
            "target_tokens": [40, 2, 12, 30, None],
        }
    )
    with duckdb.connect() as connection:
        connection.register("rows", rows.to_arrow())
        passed = connection.execute(f"SELECT name FROM rows WHERE {PRESETS['clean']['where']}").fetchall()
    assert [name for (name,) in passed] == ["good", "label", "unknown"]
