"""Folders and lists as the hub, `save_to_disk`, LLaMA-Factory and axolotl have them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tagcos_stream.data.layouts import is_of_split
from tagcos_stream.data.read import SourceSpec, read_file, resolve_sources
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.types import UserError
from tests.data.tools import chat, read, write

PAIR = {"prompt": "a", "completion": "b"}


def files_of(source: str | SourceSpec) -> list[tuple[str, str]]:
    return [(Path(f.url).name, f.dataset) for f in resolve_sources([source])]


@pytest.mark.parametrize(
    ("below", "split", "taken"),
    [
        ("train-00000-of-00002", "train", True),
        ("data/test-00000-of-00001", "train", False),
        ("train/test-00000-of-00001", "train", False),
        ("data/train_sft-00000-of-00001", "train", False),
        ("data/train_sft-00000-of-00001", "train_sft", True),
        ("data/train_gen-00000-of-00001", "train", False),
        ("train-00000-of-00001-3f2a1b4c5d6e7f80", "train", True),
        ("train/0000", "train", True),
        ("train/data-00000-of-00001", "train", True),
        ("test/data-00000-of-00001", "train", False),
        ("train", "train", True),
        ("gsm8k_train", "train", True),
        ("pool.train", "train", True),
        ("train-v2", "train", True),
        ("training_notes", "train", False),
        ("train_sft", "train", False),
        ("train_sft", "train_sft", True),
        *((name, "train", True) for name in (
          "train_data", "training", "train_1", "train1", "alpaca_train_52k", "alpaca-train-52k", "TRAIN", "my Train data",
          "training/a", "TRAIN/a", "train_v2/a", "train_data-00000-of-00002",
        )),
        *((name, "train", False) for name in ("train_prefs", "train_test", "val_data", "test/train_x/a")),
        *((name, "validation", True) for name in ("validation_1", "valid", "val-00000-of-00001", "dev.en", "DEV/a")),
        *((name, "test", True) for name in ("testing", "eval", "evaluation", "test_set", "Eval/0000")),
        ("val", "dev", False), ("dev_data", "dev", True), ("latest", "test", False), ("evaluations", "test", False),
        ("train.json", "tra.n", False), ("TRAIN_SFT", "train_sft", True),
    ],
)  # fmt: skip
def test_split__by_name_or_folder_below_the_source(tmp_path: Path, below: str, split: str, taken: bool) -> None:
    folder = tmp_path / "train-runs" / "test" / "train"  # what stands above says nothing
    path = folder / f"{below}.jsonl"
    path.parent.mkdir(parents=True)
    write(path, [PAIR])
    write(folder / "other.jsonl", [PAIR])
    assert is_of_split(Path(below).parts, Path(below).name, split) is taken
    if taken:
        assert [name for name, _ in files_of(SourceSpec(str(folder), split=split))] == [path.name]
    else:
        with pytest.raises(UserError, match=f"no file of split '{split}' among its 2 files"):
            resolve_sources([SourceSpec(str(folder), split=split)])


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["pool"], ["pool"]),
        (["pool", "more"], ["more", "pool"]),
        (["data-00000-of-00001"], ["data-00000-of-00001"]),
        (["part-00000-of-00002", "part-00001-of-00002"], ["part-00000-of-00002", "part-00001-of-00002"]),
        (["train", "pool"], ["train"]),  # some file says it: those that do not are of no split
        (["test"], []),
        (["pool", "Test"], []),
        (["pool", "dev/part"], []),
        (["data/en-00000-of-00001"], []),
        (["latest", "contest", "developers"], ["contest", "developers", "latest"]),
    ],
)
def test_split__where_no_file_names_one_all_are_train(tmp_path: Path, names: list[str], taken: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / f"{name}.jsonl", [PAIR])
    single = [str(tmp_path / f"{names[0]}.jsonl")] if len(names) == 1 and "/" not in names[0] else []
    for source in (str(tmp_path), str(tmp_path / "**" / "*.jsonl"), *single):
        if taken:
            found = sorted(name.removesuffix(".jsonl") for name, _ in files_of(SourceSpec(source, split="train")))
            assert found == taken
        else:
            with pytest.raises(UserError, match="no file of split 'train'"):
                resolve_sources([SourceSpec(source, split="train")])
        if not {"train", "test", "dev/part"} & set(names):
            with pytest.raises(UserError, match="no file of split 'validation'"):
                resolve_sources([SourceSpec(source, split="validation")])


def test_dataset__of_a_hub_layout_is_the_folder_above(tmp_path: Path) -> None:
    for place in (
        "poems/data/train-00000-of-00002", "poems/data/train-00001-of-00002", "sums/main/train-00000-of-00001", "plain/part",
        "songs/en/train-00000-of-00001",
    ):  # fmt: skip
        path = tmp_path / f"{place}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, [PAIR])
    named = [dataset for _, dataset in files_of(str(tmp_path))]
    assert named == ["part", "poems", "poems", "en", "sums"]
    assert {dataset for _, dataset in files_of(SourceSpec(str(tmp_path), dataset="mine"))} == {"mine"}
    # the row's own name goes before all
    write(tmp_path / "poems/data/train-00000-of-00002.jsonl", [{**PAIR, "dataset": "own"}])
    (file,) = resolve_sources([str(tmp_path / "poems/data/train-00000-of-00002.jsonl")])
    assert next(read_file(file)).occurrences["dataset"].to_list() == ["own"]


def test_dataset__of_the_hubs_cache_is_that_of_the_hub(tmp_path: Path) -> None:
    blob = tmp_path / "datasets--somebody--poems" / "blobs" / "3f2a1b"
    blob.parent.mkdir(parents=True)
    write(blob, [PAIR])
    snapshot = tmp_path / "datasets--somebody--poems" / "snapshots" / "9c8d7e"
    for place in ("data/train-00000-of-00001.jsonl", "extra.jsonl"):
        (snapshot / place).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / place).symlink_to(blob)
    assert [f.dataset for f in resolve_sources([SourceSpec(str(snapshot), split="train")])] == ["poems"]
    assert [f.dataset for f in resolve_sources([str(snapshot / "extra.jsonl")])] == ["extra"]


def test_toml__asks_for_the_chosen_answer(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": "Odd?", "chosen": "7", "rejected": "6"}])
    pq.write_table(pa.table({"prompt": ["Odd?"], "chosen": ["7"], "rejected": ["6"]}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        (tmp_path / "list.toml").write_text(f'[[source]]\npath = "{name}"\npreference = "chosen"\n')
        (file,) = resolve_sources([str(tmp_path / "list.toml")])
        assert [m["content"] for m in next(read_file(file)).occurrences["messages"].to_list()[0]] == ["Odd?", "7"]
        assert read(tmp_path / name).reasons == {0: "preference"}
    (tmp_path / "list.toml").write_text('[[source]]\npath = "a.jsonl"\npreference = "rejected"\n')
    with pytest.raises(UserError, match="preference is 'rejected', must be chosen"):
        resolve_sources([str(tmp_path / "list.toml")])


def test_tables__labels_and_repeated_prompts(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion,label\na,b,True\na,b,False\n")
    assert read(tmp_path / "a.csv").reasons == {1: "marked_bad"}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for prompt, reasons in ((["a", "z"], {1: "unread_field"}), ([turns[:1], []], {})):
        pq.write_table(pa.table({"messages": [turns, turns], "prompt": prompt}), tmp_path / "a.parquet")
        assert read(tmp_path / "a.parquet").reasons == reasons


EXACT = RowOptions(max_chars=1 << 40)  # an option that is read row by row


@pytest.mark.parametrize(
    "columns",
    [
        {"label": [["a"], [], None]},
        {"label": [{"kind": "a"}, None, {"kind": None}]},
        {"label": [True, False, None]},
        {"label": [1, 0, None]},
        {"label": [0.5, 0.0, float("nan")]},
        {"label": ["good", "FALSE", "0"]},
        {"id": [True, False, None]},
        {"input": [float("nan")] * 3},
        {"system": [float("nan"), 1.0, None]},
    ],
)
def test_tables__columns_of_any_type_give_what_their_rows_give(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    turns = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 3
    for content in ({"prompt": ["a"] * 3, "completion": ["b"] * 3}, {"messages": turns}):
        pq.write_table(pa.table({**content, **columns}), tmp_path / "a.parquet")
        got, exact = read(tmp_path / "a.parquet"), read(tmp_path / "a.parquet", options=EXACT)
        assert got.occurrences.equals(exact.occurrences)
        assert got.rejects.equals(exact.rejects)
        if not isinstance(columns.get("label", [0])[0], bool | int | float | str):
            assert got.rejects.is_empty()


def test_turns__content_beside_another_is_read_alike_in_columns_and_rows(tmp_path: Path) -> None:
    answer, other = {"role": "assistant", "content": "Ho"}, {"from": "gpt", "value": "Ho"}
    rows = [[{"role": "user", "content": "Hi", "value": value}, answer] for value in ("Hi", "Hi2", "", None)] + [
        [{"role": "user", "value": "Hi"}, other],
        [{"from": "human", "role": "user", "value": "Hi"}, answer],
    ]
    write(tmp_path / "a.jsonl", [{"messages": turns} for turns in rows])
    pq.write_table(pa.Table.from_pylist([{"messages": turns} for turns in rows]), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        for options in (RowOptions(), EXACT):
            got = read(tmp_path / name, options=options)
            assert got.reasons == {1: "unread_field"}
            assert got.texts == [[("user", "Hi"), ("assistant", "Ho")]] * 5


def test_saved__folders_of_datasets_are_read_without_their_metadata(tmp_path: Path) -> None:
    hub_datasets = pytest.importorskip("datasets")
    rows = [{"messages": chat(i)["messages"]} for i in range(4)]
    data = hub_datasets.Dataset.from_list(rows)
    data.save_to_disk(str(tmp_path / "poems"))
    hub_datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "songs"))
    (tmp_path / "poems" / "cache-1234.arrow").write_bytes(b"no rows")
    assert files_of(str(tmp_path / "poems")) == [("data-00000-of-00001.arrow", "poems")]
    assert files_of(SourceSpec(str(tmp_path / "songs"), split="train")) == [("data-00000-of-00001.arrow", "songs")]
    got = read(tmp_path / "poems")
    assert len(got.occurrences) == 4
    assert got.rejects.is_empty()


def test_arrow_json__nested_columns_are_what_they_mean(tmp_path: Path) -> None:
    turns: list[list[dict[str, Any]]] = [
        [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": [{"type": "text", "text": "No."}]}],
        [{"role": "user", "content": "Sum?"}, {"role": "assistant", "content": "3"}],
    ]
    tools: list[Any] = [[{"name": "f", "parameters": {"x": {"type": "string"}}}], None]
    rows = [{"messages": m} | ({"tools": t} if t else {}) for m, t in zip(turns, tools, strict=True)]
    plain = read(write(tmp_path / "a.jsonl", rows)).occurrences
    turn = pa.struct([("role", pa.string()), ("content", pa.json_())])
    tool = pa.struct([("name", pa.string()), ("parameters", pa.json_())])
    schema = pa.schema([("messages", pa.list_(turn)), ("tools", pa.list_(tool)), ("meta", pa.json_())])
    coded = [
        {
            "messages": [{"role": t["role"], "content": json.dumps(t["content"])} for t in m],
            "tools": t and [{"name": x["name"], "parameters": json.dumps(x["parameters"])} for x in t],
            "meta": json.dumps({"a": 1}),
        }
        for m, t in zip(turns, tools, strict=True)
    ]
    storage = pa.Table.from_pylist(coded, pa.schema([(f.name, _plain(f.type)) for f in schema]))
    columns = [_as(c.combine_chunks(), f.type) for c, f in zip(storage.columns, schema, strict=True)]
    pq.write_table(pa.table(columns, schema=schema), tmp_path / "a.parquet")
    assert pq.read_schema(tmp_path / "a.parquet").field("messages").type.value_type.field(1).type == pa.json_()
    got = read(tmp_path / "a.parquet")
    assert got.rejects.is_empty()
    assert got.occurrences.drop("dataset").equals(plain.drop("dataset"))


def _plain(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return pa.struct([(f.name, _plain(f.type)) for f in kind]) if pa.types.is_struct(kind) else kind


def _as(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, array)
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(array.offsets, _as(array.values, kind.value_type), mask=array.is_null())
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays(
            [_as(array.field(i), kind.field(i).type) for i in range(kind.num_fields)], fields=list(kind)
        )
    return array


def test_arrow__keys_of_other_rows_are_no_part_of_a_row(tmp_path: Path) -> None:
    def row(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        call = [{"function": {"name": name, "arguments": arguments}}]
        tools = [{"name": name, "parameters": {k: {"type": "string"} for k, v in arguments.items() if v}}]
        turns = [{"role": "user", "content": name}, {"role": "assistant", "content": "", "tool_calls": call}]
        return {"messages": turns, "tools": tools}

    rows = [row("f", {"x": "1"}), row("g", {"y": 2, "z": None}), row("h", {})]
    wanted = read(write(tmp_path / "a.jsonl", [rows[0], row("g", {"y": 2}), rows[2]])).occurrences
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").occurrences.equals(wanted)
    # in JSON a null was written by who made the row
    assert '"z":null' in read(write(tmp_path / "b.jsonl", rows)).occurrences["messages"].to_list()[1][1]["tool_calls"]


def test_llama_factory__one_entry_of_a_file_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "capitals.json").write_text(json.dumps([{"instruction": "Capital?", "input": "of France", "output": "Paris"}]))
    stock: dict[str, Any] = {
        "capitals": {"file_name": "capitals.json"},
        "capitals_short": {"file_name": "capitals.json", "columns": {"prompt": "instruction", "response": "output"}},
        "hub_only": {"hf_hub_url": "somebody/something", "formatting": "sharegpt"},
        "with_script": {"script_url": "loader"},
        "pairs_dpo": {"file_name": "pairs.json", "ranking": True, "columns": {"prompt": "q", "chosen": "c", "rejected": "r"}},
        "marked_kto": {
            "file_name": "k.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "kto_tag": "label"},
        },
        "pictures": {"file_name": "mllm.json", "formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"}},
        "plain_text": {"file_name": "text.json", "columns": {"prompt": "text"}},
        "broken": 7,
    }
    stock |= {f"more_{i}": {"hf_hub_url": f"somebody/more-{i}", "ranking": i % 2 == 0} for i in range(100)}
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps(stock))
    for name, prompt in (("capitals", "Capital?\n\nof France"), ("capitals_short", "Capital?")):
        (file,) = resolve_sources([f"{path}#{name}"])
        assert file.dataset == name
        assert next(read_file(file)).occurrences["messages"].to_list()[0][0]["content"] == prompt
    (tmp_path / "k.json").write_text(
        json.dumps([{"messages": chat(1)["messages"], "label": True}, {"messages": chat(2)["messages"], "label": False}])
    )
    (file,) = resolve_sources([f"{path}#marked_kto"])
    block = next(read_file(file))
    assert (len(block.occurrences), block.rejects["reason"].to_list()) == (1, ["marked_bad"])
    for name, says in (("pairs_dpo", "ranking"), ("pictures", "column images"), ("with_script", "scripts"), ("broken", "object")):
        with pytest.raises(UserError, match=says):
            resolve_sources([f"{path}#{name}"])
    with pytest.raises(UserError, match=r"no source nothing; there are capitals, .*\.\.\."):
        resolve_sources([f"{path}#nothing"])


CHOICES: dict[str, tuple[Any, ...]] = {
    "type": (None, "chat_template", "sharegpt"),
    "field_messages": (None, "conversations", "messages"),
    "roles_to_train": (None, ["assistant"], ["gpt"], ["human", "gpt"]),
    "message_field_training": (None, "learn"),
    "drop_system_message": (None, True),
    "top": (None, True),
}
CONFIGS = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]


def test_axolotl__configurations_train_what_they_say(tmp_path: Path) -> None:
    """The trained turns of a row under every combination of options, by the rules of axolotl's documentation."""
    assert len(CONFIGS) >= 252
    for field in ("conversations", "messages"):
        turns = [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "q", "learn": True, "train": True},
            {"from": "gpt", "value": "a", "learn": False, "train": False},
            {"from": "human", "value": "r"},
            {"from": "gpt", "value": "b"},
        ]
        write(tmp_path / f"{field}.jsonl", [{field: turns}])
    for config in CONFIGS:
        entry = {k: v for k, v in config.items() if v is not None and k != "top"}
        field = config["field_messages"] or "messages"
        entry["path"] = f"{field}.jsonl"
        whole = {"datasets": [entry]} | ({"train_on_inputs": True} if config["top"] else {})
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(whole))
        (file,) = resolve_sources([str(tmp_path / "c.yaml")])
        (messages,) = next(read_file(file)).occurrences["messages"].to_list()
        trained = [m["content"] for m in messages if m["role"] == "assistant" if m["train"] is None or m["train"]]
        trained += [m["content"] for m in messages if m["role"] != "assistant" and m["train"]]
        wanted = {"s", "q", "a", "r", "b"} if config["top"] else {"a", "b"}
        if not config["top"] and config["roles_to_train"] == ["human", "gpt"]:
            wanted |= {"q", "r"}
        if config["message_field_training"]:
            wanted = wanted - {"a"} | {"q"}
        if config["drop_system_message"]:
            wanted -= {"s"}
        assert set(trained) == wanted, config


def test_axolotl__files_of_an_entry(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.jsonl", [PAIR])
    for files, found in ((["a.jsonl"], ["a.jsonl"]), (["a.jsonl", "b.jsonl"], ["a.jsonl", "b.jsonl"]), ("b.jsonl", ["b.jsonl"])):
        entry = {"path": "json", "data_files": files, "type": "alpaca"}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"datasets": [entry]}))
        assert [name for name, _ in files_of(str(tmp_path / "c.yaml"))] == found
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"datasets": [{"path": "a.jsonl", "type": {"field_instruction": "x"}}]}))
    with pytest.raises(UserError, match=r"type .* is not read"):
        resolve_sources([str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("text", ["[{0}, {1}]", "[\n{0},\n{1}\n]", "[{0},\n{1}]\n"])
def test_jsonl__that_holds_a_list_is_read_as_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text.format(json.dumps(chat(0)), json.dumps(chat(1))))
    for rows in (8192, 1):
        got = read(path, block_rows=rows)
        assert (got.occurrences["row"].to_list(), got.rejects.height) == ([0, 1], 0)
    assert read(path, start_row=1).occurrences["row"].to_list() == [1]


def test_jsonl__objects_over_several_lines_and_python_literals_are_one_message(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(chat(0), indent=2))
    assert read(path).occurrences.height == 1
    path.write_text(json.dumps(chat(0), indent=2) + "\n" + json.dumps(chat(1), indent=2))
    assert read(path).reasons == {0: "broken_json"}
    path.write_text(str(chat(0)) + "\n")
    assert "Python literals" in read(path).rejects["detail"][0]
