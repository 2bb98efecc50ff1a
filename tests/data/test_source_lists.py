"""Entries of other tools' lists that ask for more than plain rows: preference pairs, options that change the text."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.exports.shapes import COMMON, Unfit, llama_factory
from tagcos_stream.data.read import SourceSpec, read_file, resolve_sources
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.source_lists import read_list
from tagcos_stream.types import UserError
from tests.data.tools import chat, read, write

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


@pytest.mark.parametrize("word", ["call", "function", "function_call"])
def test_llama_factory__turns_of_the_function_tag_are_calls(tmp_path: Path, word: str) -> None:
    call = '<think>\nhm\n</think>\n\n{"name": "f", "arguments": {"x": 1}}'
    turns = [("user", "Rain?"), (word, call), ("seen", "dry"), ("assistant", "No.")]
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    tags |= {"observation_tag": "seen", "function_tag": word}
    entry = {"file_name": "a.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    write(tmp_path / "a.jsonl", [{"messages": [{"role": role, "content": text} for role, text in turns]}])
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps({"a": entry}))
    (tmp_path / "list.toml").write_text(f'[[source]]\npath = "a.jsonl"\nroles = {{{word} = "function_call", seen = "tool"}}\n')
    for source in (str(path), str(tmp_path / "list.toml")):
        (file,) = resolve_sources([source])
        (block,) = read_file(file)
        (messages,) = block.occurrences["messages"].to_list()
        assert [(m["role"], m["content"], m["reasoning"]) for m in messages] == [
            ("user", "Rain?", None), ("assistant", "", "hm"), ("tool", "dry", None), ("assistant", "No.", None),
        ]  # fmt: skip
        assert messages[1]["tool_calls"] == '[{"type":"function","function":{"name":"f","arguments":{"x":1}}}]'


@pytest.mark.parametrize("reasoning", ["hm", "\nhm \n\n", " ", "<think>", '{"name": "g"}'])
@pytest.mark.parametrize("calls", [1, 2])
def test_llama_factory__our_export_of_reasoning_before_a_call_comes_back(tmp_path: Path, reasoning: str, calls: int) -> None:
    call = {"function": {"name": "f", "arguments": {"x": "</think>", "y": None}}}
    turns: list[dict[str, Any]] = [{"role": "user", "content": "Rain?"}]
    turns += [{"role": "assistant", "content": "", "reasoning": reasoning, "tool_calls": [call] * calls}]
    turns += [{"role": "tool", "content": "dry"}, {"role": "assistant", "content": "No."}]
    (example,) = read(write(tmp_path / "a.jsonl", [{"messages": turns}])).occurrences.to_dicts()
    (row,) = llama_factory({**dict.fromkeys(COMMON), **example, "weight": 1.0}, Counter())
    assert row["conversations"][1]["from"] == "function_call"
    (again,) = read(write(tmp_path / "b.jsonl", [row])).occurrences.to_dicts()
    assert again["example_id"] == example["example_id"]


def test_toml__a_name_picks_all_tables_that_have_it(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.jsonl", [chat(0)])
    tables = "".join(
        f"[[source]]\npath = '{path}.jsonl'\nname = '{name}'\n" for path, name in (("a", "x"), ("b", "y"), ("c", "x"))
    )
    (tmp_path / "list.toml").write_text(tables)
    assert [Path(f.url).stem for f in resolve_sources([f"{tmp_path / 'list.toml'}#x"])] == ["a", "c"]
    assert [Path(f.url).stem for f in resolve_sources([f"{tmp_path / 'list.toml'}#y,x"])] == ["b", "a", "c"]


def test_toml__patterns_in_a_folder_whose_name_looks_like_one(tmp_path: Path) -> None:
    (folder := tmp_path / "run[1]").mkdir()
    write(folder / "a.jsonl", [chat(0)])
    write(folder / "b[2].jsonl", [chat(1)])
    (folder / "list.toml").write_text('[[source]]\npath = "*.jsonl"\n')
    assert len(resolve_sources([str(folder / "list.toml")])) == 2
    (folder / "list.toml").write_text('[[source]]\npath = "b[2].jsonl"\n')
    assert len(resolve_sources([str(folder / "list.toml")])) == 1


def test_llama_factory__reasoning_that_would_end_early_is_not_exported() -> None:
    empty = {"name": None, "train": None, "tool_calls": None, "tool_call_id": None, "reasoning": None}
    messages = [
        {"role": "user", "content": "a", **empty},
        {"role": "assistant", "content": "b", **empty, "reasoning": "</think>"},
    ]
    example = dict.fromkeys((*COMMON, "tools", "template_kwargs")) | {"messages": messages, "weight": 1.0}
    with pytest.raises(Unfit, match="</think>"):
        llama_factory(example, Counter())


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
    specs = read_list(Path(config(tmp_path, {}, entry)))
    assert [spec.path for spec in specs] == places
    assert {spec.split for spec in specs} == {None if "data_files" in entry else "train"}


def test_lists__what_may_have_several_splits_is_read_as_train(tmp_path: Path) -> None:
    """Both tools take `train` where an entry says nothing: test rows must not enter the pool."""
    (tmp_path / "birds").mkdir()
    for name in ("train", "test"):
        write(tmp_path / "birds" / f"{name}.jsonl", [chat(0)])
    write(tmp_path / "a.jsonl", [chat(1)])
    (tmp_path / "dataset_info.json").write_text(
        json.dumps(
            {
                "hub": {"hf_hub_url": "owner/birds"},
                "hub_test": {"hf_hub_url": "owner/birds", "split": "test"},
                "file": {"file_name": "a.jsonl"},
                "split_of_file": {"file_name": "a.jsonl", "split": "train", "formatting": "openai"},
            }
        )
    )
    specs = read_list(tmp_path / "dataset_info.json")
    assert [spec.split for spec in specs] == ["train", "test", None, "train"]
    assert len(turns_of(f"{tmp_path / 'dataset_info.json'}#split_of_file")["split_of_file"]) == 1
    for entry, split in (({"path": "birds"}, "train"), ({"path": "birds", "split": "test"}, "test")):
        (file,) = resolve_sources([config(tmp_path, {}, entry)])
        assert Path(file.url).name == f"{split}.jsonl"
    (file,) = resolve_sources([config(tmp_path, {}, {"split": "train"})])
    assert Path(file.url).name == "a.jsonl"


@pytest.mark.parametrize("name", ["train_data", "training", "train_1", "alpaca_train_52k", "TRAIN", "training/a"])
def test_axolotl__folders_of_training_data_by_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "birds" / f"{name}.jsonl"
    path.parent.mkdir(parents=True)
    write(path, [chat(0)])
    write(tmp_path / "birds" / "test.jsonl", [chat(1)])
    (file,) = resolve_sources([config(tmp_path, {}, {"path": "birds"})])
    assert Path(file.url) == path


@pytest.mark.parametrize("split", ["train[:10%]", "train[10:20]", "train+test"])
def test_lists__parts_and_sums_of_splits_are_refused(tmp_path: Path, split: str) -> None:
    write(tmp_path / "a.jsonl", [chat(0)])
    info, toml = tmp_path / "dataset_info.json", tmp_path / "a.toml"
    info.write_text(json.dumps({"a": {"file_name": "a.jsonl", "split": split}}))
    toml.write_text(f'[[source]]\npath = "a.jsonl"\nsplit = "{split}"\n')
    for source in (str(info), str(toml), config(tmp_path, {}, {"split": split})):
        with pytest.raises(
            UserError, match=r"is a slice or a sum, which is not read: name one whole split, such as 'train'"
        ) as e:
            resolve_sources([source])
        assert repr(split) in str(e.value)
