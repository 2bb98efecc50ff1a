"""Entries of other tools' lists that ask for more than plain rows: preference pairs, options that change the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tagcos_stream.data.read import SourceSpec, read_file, resolve_sources
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.source_lists import read_list
from tagcos_stream.types import UserError
from tests.data.tools import chat, write

PAIRS = [
    {"who": "Who flies?", "good": "Owls.", "bad": "Cows."},
    {"who": "Who swims?", "good": "Otters.", "bad": "Owls."},
]
TALKS = [
    {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}, {"from": "human", "value": "So?"}],
        "chosen": {"from": "gpt", "value": "Yes."},
        "rejected": {"from": "gpt", "value": "No."},
    }
]
INFO: dict[str, Any] = {
    "pairs": {
        "file_name": "pairs.json",
        "ranking": True,
        "columns": {"prompt": "who", "chosen": "good", "rejected": "bad"},
    },
    "talks": {
        "file_name": "talks.json",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
    "plain": {"file_name": "plain.json"},
}


@pytest.fixture
def info(tmp_path: Path) -> Path:
    (tmp_path / "pairs.json").write_text(json.dumps(PAIRS))
    (tmp_path / "talks.json").write_text(json.dumps(TALKS))
    (tmp_path / "plain.json").write_text(json.dumps([{"instruction": "a", "input": "", "output": "b"}]))
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps(INFO))
    return path


def turns_of(source: str | SourceSpec) -> dict[str, list[list[tuple[str, str, Any]]]]:
    """Of each dataset the turns of its rows; no row is a reject."""
    found = {}
    for file in resolve_sources([source]):
        (block,) = read_file(file)
        assert block.rejects.height == 0, block.rejects
        found[file.dataset] = [
            [(m["role"], m["content"], m["train"]) for m in row] for row in block.occurrences["messages"].to_list()
        ]
    return found


def test_llama_factory__ranking_entries_are_refused_with_the_remedy_that_reads_them(info: Path, tmp_path: Path) -> None:
    for given in (str(info), f"{info}#pairs", SourceSpec(f"{info}#talks")):
        with pytest.raises(UserError, match="ranking: the rows are preference pairs") as refused:
            resolve_sources([given])
    path, remedy = str(refused.value).split(" with ")[1].split(" and ")
    toml = tmp_path / "pool.toml"
    toml.write_text(f"[[source]]\n{path}\n{remedy}\n")
    pairs = [
        [("user", "Who flies?", None), ("assistant", "Owls.", None)],
        [("user", "Who swims?", None), ("assistant", "Otters.", None)],
    ]
    talks: list[Any] = [[("user", "Hi", None), ("assistant", "Ho", []), ("user", "So?", None), ("assistant", "Yes.", None)]]
    assert turns_of(str(toml)) == {"talks": talks}
    assert turns_of(SourceSpec(f"{info}#pairs", options=RowOptions(preference="chosen"))) == {"pairs": pairs}
    every = turns_of(SourceSpec(str(info), options=RowOptions(preference="chosen")))
    assert every == {"pairs": pairs, "talks": talks, "plain": [[("user", "a", None), ("assistant", "b", None)]]}


def test_lists__what_a_source_says_of_a_list_holds_for_its_entries(info: Path, tmp_path: Path) -> None:
    toml = tmp_path / "pool.toml"
    toml.write_text('[[source]]\npath = "dataset_info.json#pairs"\npreference = "chosen"\ndataset = "birds"\nlimit = 1\n')
    assert [len(rows) for rows in turns_of(f"{toml}").values()] == [1]
    (file,) = resolve_sources([str(toml)])
    assert (file.dataset, file.spec.limit, file.spec.options.columns["chosen"]) == ("birds", 1, "good")
    (tmp_path / "outer.toml").write_text('[[source]]\npath = "pool.toml"\n')
    with pytest.raises(UserError, match=r"a list cannot name another \.toml list"):
        resolve_sources([str(tmp_path / "outer.toml")])


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"columns": {"prompt": "p", "prefix": "q"}}, "columns has prefix; there are prompt, query"),
        ({"tags": {"user": "u"}}, "tags has user; there are user_tag"),
        ({"columns": ["p"]}, "columns must be an object"),
        ({"columns": {"prompt": "p", "chosen": "c"}}, "column chosen is of a preference pair, but the entry has no ranking"),
    ],
)
def test_llama_factory__names_that_would_leave_text_out_are_refused(tmp_path: Path, entry: Any, says: str) -> None:
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps({"a": {"file_name": "a.json"} | entry}))
    with pytest.raises(UserError, match=says):
        resolve_sources([str(path)])


def config(tmp_path: Path, top: dict[str, Any], entry: dict[str, Any]) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"datasets": [{"path": "a.jsonl", "type": "chat_template"} | entry]} | top))
    return str(path)


@pytest.mark.parametrize(
    ("top", "entry", "says"),
    [
        ({"default_system_message": "Be kind."}, {}, "default_system_message is not read: give the rows a system turn"),
        ({"rl": "dpo"}, {}, "rl is not read: only supervised datasets"),
        ({}, {"message_property_mappings": {"role": "role", "reasoning_content": "why"}}, "reasoning_content: why, which is not"),
        ({}, {"field_thinking": "why"}, "field_thinking 'why' is not read; there are reasoning_content"),
        ({}, {"split_thinking": True}, "option split_thinking is not read"),
        ({}, {"shards": 4}, "option shards is not read"),
        ({}, {"revision": "abc"}, "option revision is not read"),
        ({}, {"data_files": [1]}, "data_files must be paths"),
    ],
)
def test_axolotl__options_that_change_the_rows_are_refused(tmp_path: Path, top: Any, entry: Any, says: str) -> None:
    write(tmp_path / "a.jsonl", [chat(0)])
    with pytest.raises(UserError, match=says):
        resolve_sources([config(tmp_path, top, entry)])


def test_axolotl__the_trainer_s_tokenizer_is_noted(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [chat(0)])
    (file,) = resolve_sources([config(tmp_path, {"chat_template": "llama3", "eot_tokens": ["<|eot_id|>"]}, {})])
    (note,) = file.spec.notes
    assert note.startswith(
        "chat_template, eot_tokens of the axolotl configuration not used: rows are rendered by the model's own"
    )
    (file,) = resolve_sources([config(tmp_path, {"chat_template": "tokenizer_default"}, {"eot_tokens": []})])
    assert file.spec.notes == ()


def test_axolotl__no_role_to_train_leaves_the_marked_turns(tmp_path: Path) -> None:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    turns += [{"role": "user", "content": "r"}, {"role": "assistant", "content": "b", "learn": True}]
    write(tmp_path / "a.jsonl", [{"messages": turns}])
    asked = {"roles_to_train": [], "message_field_training": "learn"}
    assert turns_of(config(tmp_path, {}, asked)) == {
        "a": [[("user", "q", None), ("assistant", "a", []), ("user", "r", None), ("assistant", "b", None)]]
    }


def test_axolotl__files_stand_in_the_folder_that_the_entry_names(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    write(tmp_path / "birds" / "a.jsonl", [chat(0)])
    write(tmp_path / "a.jsonl", [chat(1)])
    for entry, dataset_row in (({"path": "birds", "data_files": "a.jsonl"}, 0), ({"path": "json", "data_files": "a.jsonl"}, 1)):
        (rows,) = turns_of(config(tmp_path, {}, entry)).values()
        assert rows[0][0][1] == f"Question {dataset_row}?"


@pytest.mark.parametrize(
    ("entry", "places"),
    [
        ({"path": "owner/birds"}, ["hf://datasets/owner/birds"]),
        ({"path": "owner/birds", "name": "default"}, ["hf://datasets/owner/birds"]),
        ({"path": "owner/birds", "name": "owls"}, ["hf://datasets/owner/birds/owls"]),
        ({"path": "owner/birds", "data_files": ["a.jsonl", "b.jsonl"]}, [f"hf://datasets/owner/birds/{n}.jsonl" for n in "ab"]),
    ],
)
def test_axolotl__hub_datasets(tmp_path: Path, entry: dict[str, Any], places: list[str]) -> None:
    assert [spec.path for spec in read_list(Path(config(tmp_path, {}, entry)))] == places
