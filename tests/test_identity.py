"""What a setting declares to decide is what changes with it: every field is changed, and every identity looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import Field

from tagcos_stream import config, identity
from tagcos_stream.config import Settings, load_settings
from tagcos_stream.data.source_spec import SourceSpec
from tagcos_stream.data.sources import SourceFile
from tagcos_stream.declare import PANELS, check_declared, decided_by, panel_of
from tagcos_stream.evaluation.config import TRAINING_FIELDS, Evaluation, load_evaluation
from tagcos_stream.selection.methods import METHODS

ROWS = pl.DataFrame({"example_id": ["a", "b", "c"], "segment": ["seg-1", "seg-1", "seg-2"], "row": [0, 4, 1]})
BASE: dict[str, Any] = {
    "sources": ("/pool/a.jsonl",),
    "model": "org/name",
    "fraction": 0.1,
    "sticky": 0.05,
    "run_on": "ray",
    "workers": 2,
}
OTHER: dict[str, Any] = {
    "sources": ("/pool/b.jsonl",), "root": "elsewhere", "max_rejects": 0.9, "near_duplicates": 0.8, "heldout": 0.1,
    "decontaminate": ("eval.jsonl",), "max_retired": 0.5, "max_recompute": 0.5, "checks": "checks",
    "model": "org/other", "revision": "v2", "trust_remote_code": True, "device": "cpu", "dtype": "bfloat16", "quantize": "4bit",
    "max_length": 2048, "too_long": "reject", "special_tokens": "escape",
    "adapter": "adapter", "warmup_examples": 100, "warmup_batch_size": 16, "learning_rate": 1e-3, "rise_steps": 3,
    "schedule_steps": 50, "lora_rank": 16, "lora_alpha": 64, "lora_dropout": 0.1, "rslora": True, "lora_targets": ("q_proj",),
    "lora_ranks": ("q_proj=4",), "checkpoints": 2,
    "gradient": "adam", "also_gradients": ("sign",), "projection": "rademacher", "dim": 4096, "feature_seed": 1, "block_rows": 64,
    "ifd": True, "vectors": ("vectors.parquet",),
    "batch_tokens": 512,
    "clusters": 7, "min_cluster_rows": 9, "max_cluster_rows": 10_000, "refit": "never",
    "method": "herding", "fraction": 0.2, "count": 5, "where": "loss < 4", "target_where": "true", "exclude": "loss > 9",
    "include": "loss < 1",
    "ridge": 0.5, "tol": 1e-3, "sticky": 0.1,
    "match_lengths": "run-1", "tokens": "500k", "tokens_all": True, "gain_per": "token",
    "share": ("code=0.1:0.3",), "seed": 1, "target": ("clean.jsonl",),
    "balance": "equal",
    "memory_limit": 2.0, "run_on": "processes", "workers": 3, "gpus_per_worker": 0.5, "threads": 2, "wait": 5.0,
    "name": "nightly",
}  # fmt: skip
# what another value changes; a clustering follows from its space, a choice from the space or clustering that it is made in
EVERYTHING = {"run", "space", "clustering", "choice"}
CHANGES: dict[str, set[str]] = {
    "pool": {"run"},  # its examples name the clustering and the choice
    "weights": EVERYTHING,
    "warmup": EVERYTHING,
    "feature": EVERYTHING,
    "run": {"run"},
    "clusters": {"run", "clustering"},
    "choice": {"run", "choice"},
    "budget": {"run", "choice"},
    "machine": set(),
}


def identities(values: dict[str, Any], *, in_clusters: bool) -> dict[str, str]:
    settings = load_settings(values)
    space = identity.space_recipe(settings, settings.gradient)
    clustering = identity.clustering_id(settings, space, ["a", "b", "c"])
    place = clustering if in_clusters else space
    return {
        "run": identity.config_hash(settings),
        "space": space,
        "clustering": clustering,
        "choice": identity.choice_id(
            settings, place, 1, ROWS, settings.budget(10**9), earlier=["b"], first_rows=None if settings.tokens is None else 7
        ),
    }


@pytest.mark.parametrize("method", ["tagcos", "omp", "length-matched"])
def test_identity__every_setting_changes_what_it_declares(method: str) -> None:
    assert set(OTHER) == set(Settings.model_fields)
    for name, value in OTHER.items():
        base = BASE | {"method": method}
        if name in ("tokens", "tokens_all", "gain_per"):
            base = {k: v for k, v in base.items() if k not in ("fraction", "sticky")} | {"tokens": "300k"}
        before = identities(base, in_clusters=method == "tagcos")
        changed = base | {name: value} | ({"fraction": None} if name == "count" else {})
        after = identities({k: v for k, v in changed.items() if v is not None}, in_clusters=method == "tagcos")
        found = {key for key in before if before[key] != after[key]}
        expected = {key for kind in CHANGES if name in decided_by(Settings, kind) for key in CHANGES[kind]}  # type: ignore[arg-type]
        if name in decided_by(Settings, "choice") and name not in {"method", "seed", "sticky", *METHODS[method].settings}:
            expected -= {"choice"}
        if method == "tagcos" and "clustering" in expected:
            expected |= {"choice"}
        assert found == expected, f"{name} changes {sorted(found)}, declares {sorted(expected)}"


def test_identity__an_imported_adapter_is_named_by_its_content_and_brings_its_training(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    recipes = set()
    for name in decided_by(Settings, "warmup"):
        values = BASE | {"adapter": str(folder), name: OTHER[name]}
        recipes.add(identity.space_recipe(load_settings(values), "adam"))
    assert len(recipes) == 1
    (folder / "adapter_config.json").write_text('{"r": 4}')
    assert identity.space_recipe(load_settings(BASE | {"adapter": str(folder)}), "adam") not in recipes


def test_identity__sources_in_the_home_folder_are_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load_settings({"sources": ("~/pool", "s3://bucket/~/a")})
    found = []
    for place in (tmp_path, Path("/")):
        monkeypatch.chdir(place)
        found.append((identity.config_hash(settings), identity.reading(settings)["sources"]))
    assert found[0] == found[1]
    assert found[0][1] == [f"{tmp_path}/pool", "s3://bucket/~/a"]


def test_identity__selecting_again_changes_no_space_but_by_the_variant() -> None:
    shared = set(config.SELECT_FIELDS) & set(decided_by(Settings, "pool", "weights", "warmup", "feature"))
    assert shared == {"gradient"}


def test_identity__names_are_those_that_stores_have() -> None:
    """Digests of the stores that there are: another one would compute again what a root holds."""
    first = load_settings({"sources": ("/pool/a.jsonl",), "model": "org/name", "revision": "main"})
    changes = {"method": "omp", "seed": 3, "sticky": 0.05, "clusters": 7, "count": 12, "lora_ranks": ("q_proj=4",)}
    second = load_settings({"model": "org/name", **changes}, preset="published")
    ids = ROWS["example_id"].to_list()
    found = [
        (
            identity.space_recipe(settings, "adam"),
            identity.clustering_recipe(settings, "space"),
            identity.clustering_id(settings, "space", ids),
            identity.choice_id(settings, "place", 2, ROWS.with_columns(segment=SEGMENTS), 1),
            identity.choice_id(settings, "place", 2, ROWS.with_columns(segment=SEGMENTS), 1, earlier=["a", "c"]),
        )
        for settings in (first, second)
    ]
    assert found == [
        (
            "06be6c36d7411ecf",
            "3cf3872ee553beae",
            "4a48a1154b1bc621",
            "cc8444dd95d635fdef0fd9d95ef78512",
            "3a1c347500793ecbfb06aaa821a63ea1",
        ),
        (
            "0123fc0d8c8df114",
            "1cdbe284d9c4af69",
            "9450b39bb19e4aca",
            "8ecb77c923f9c36b71545a22a05371d1",
            "e3e85a217df53262e533805b26c4eea7",
        ),
    ]
    assert identity.space_id({"settings": {"dim": 8}, "model": "é"}) == "2089ef9de4b5224a"
    file = SourceFile("a", "/pool/a.jsonl", 10, "xxh3:00", "jsonl", SourceSpec("/pool/a.jsonl", dataset="d", limit=5))
    assert file.version == "f44732bcee3ffd8477a08bedc7d58ea0"  # of the fifth reader


SEGMENTS = pl.Series(["seg-00001", "seg-00001", "seg-00002"])


def test_declare__a_setting_that_does_not_say_what_it_decides_fails_at_import() -> None:
    source = Path(config.__file__).read_text(encoding="utf-8")
    line = "    # features\n"
    assert source.count(line) == 1
    forgotten = source.replace(line, line + '    temperature: float = Field(1.0, description="Forgotten.")\n')
    forgotten = forgotten.replace("from pydantic import ", "from pydantic import Field, ")
    with pytest.raises(TypeError, match="setting temperature does not declare what it decides"):
        exec(compile(forgotten, "config.py", "exec"), {"__name__": "forgotten_config"})

    class Undeclared(Evaluation):
        extra: int = Field(0, description="Forgotten, too.")

    with pytest.raises(TypeError, match="setting extra"):
        check_declared(Undeclared)


def test_declare__every_setting_stands_in_a_panel_of_the_help() -> None:
    for model in (Settings, Evaluation):
        for name in model.model_fields:
            assert panel_of(model, name) in PANELS.values(), name


EVALUATION_OTHER: dict[str, Any] = {
    "root": "elsewhere", "run": "run-1", "method": ("random",), "fraction": (0.1,), "seeds": 1, "gradient": ("sgd",),
    "vary": ("ridge=0.1",), "weights": True, "regime": ("steps",), "against": "tagcos",
    "model": "other", "revision": "v2", "trust_remote_code": True, "dtype": "float32", "quantize": "8bit", "max_length": 64,
    "equal": "tokens",
    "epochs": 2.0, "steps": 5, "batch_size": 4, "learning_rate": 1e-3, "schedule": "linear", "rise": 0.1, "lora_rank": 4,
    "lora_alpha": 8, "lora_dropout": 0.1, "lora_targets": ("q_proj",),
    "heldout_rows": 3, "heldout_files": ("x.jsonl",), "tasks": "folder", "task": ("mmlu",), "task_items": ("4",),
    "protocol": "paper",    "device": "cpu", "batch_tokens": 64, "memory_limit": 1.0, "threads": 1, "wait": 5.0,
    "run_on": "ray", "workers": 2, "gpus_per_worker": 0.5,
}  # fmt: skip


def test_identity__settings_of_training_tell_evaluations_apart() -> None:
    assert set(EVALUATION_OTHER) == set(Evaluation.model_fields)

    def name_of(values: dict[str, Any]) -> str:
        given = load_evaluation(values).model_dump(mode="json")
        return identity.evaluation_id("run", "model", {name: given[name] for name in TRAINING_FIELDS}, "rows")

    before = name_of({})
    needs = {"task": {"tasks": "folder"}, "gpus_per_worker": {"run_on": "ray"}}
    for name, value in EVALUATION_OTHER.items():
        after = name_of({name: value} | needs.get(name, {}))
        assert (after != before) == (name in decided_by(Evaluation, "training")), name
