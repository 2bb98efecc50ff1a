"""What a source may be, and what is said where it is wrong."""

from __future__ import annotations

import glob
import json
import shutil
from pathlib import Path

import pytest

from storage import root
from tagcos_stream.data import sources
from tagcos_stream.data.read import SourceSpec, read_file, resolve_sources
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.types import UserError
from tests.data.tools import GOOD, chat, read, write

PAIR = {"prompt": "a", "completion": "b"}


def test_resolve__folder_glob_and_file(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json.gz", "sub/c.parquet.txt", "sub/d.jsonl.zst", ".hidden.jsonl", "_skip/e.jsonl", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [PAIR])
    names = [Path(f.url).name for f in resolve_sources([str(tmp_path)])]
    assert names == ["a.json.gz", "b.jsonl", "d.jsonl.zst"]
    assert [Path(f.url).name for f in resolve_sources([str(tmp_path / "**" / "*.jsonl*")])] == [
        "e.jsonl",
        "b.jsonl",
        "d.jsonl.zst",
    ]
    both = resolve_sources([str(tmp_path / "b.jsonl"), str(tmp_path)])
    assert [Path(f.url).name for f in both] == ["b.jsonl", "a.json.gz", "d.jsonl.zst"]
    assert [f.dataset for f in both] == ["b", "a", "d"]


def test_resolve__a_folder_gives_no_file_of_a_root_in_it_and_each_folder_once(tmp_path: Path) -> None:
    assert sources.MARK_OF_ROOT == root.MARK
    for name in ("pool/a.jsonl", "pool/tagcos-data/tagcos.json", "pool/tagcos-data/snapshots/s.jsonl", "far/b.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, [PAIR])
    (tmp_path / "pool" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "pool" / "again").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "up").symlink_to(tmp_path / "pool")
    found = [Path(f.url) for f in resolve_sources([str(tmp_path / "pool")])]
    assert found == [tmp_path / "pool" / "a.jsonl", tmp_path / "far" / "b.jsonl"]


def test_resolve__digest_is_of_the_content(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [PAIR])
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    write(tmp_path / "c.jsonl", [PAIR, PAIR])
    a, b, c = resolve_sources([str(tmp_path)])
    assert a.digest == b.digest != c.digest
    again = resolve_sources([SourceSpec(str(tmp_path / "a.jsonl"), name="x", weight=3)])[0]
    assert a.version == again.version
    assert len({a.version, b.version, resolve_sources([SourceSpec(a.url, limit=1)])[0].version}) == 3
    assert a.size == (tmp_path / "a.jsonl").stat().st_size


def test_resolve__split_and_dataset(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "test.jsonl", "training_notes.jsonl"):
        write(tmp_path / name, [{**PAIR, "dataset": "own"}, PAIR])
    files = resolve_sources([SourceSpec(str(tmp_path), split="train", dataset="mine", name="s")])
    assert [Path(f.url).name for f in files] == ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    assert next(read_file(files[0])).occurrences["dataset"].to_list() == ["own", "mine"]
    assert {f.source for f in files} == {"s"}


@pytest.mark.parametrize("source", [".", "*/*.jsonl", "**/*.jsonl", "./**/*.jsonl", "../pool[1]", "{}", "{}/*/*.jsonl"])
def test_resolve__split_by_folders_below_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    pool = tmp_path / "test" / "pool[1]"  # folders above the source name no split
    for name in ("train/a.jsonl", "test/b.jsonl"):
        (pool / name).parent.mkdir(parents=True)
        write(pool / name, [PAIR])
    monkeypatch.chdir(pool)
    given = source.format(glob.escape(str(pool)) if "*" in source else pool)
    for split, name in (("train", "a.jsonl"), ("test", "b.jsonl")):
        assert [Path(f.url).name for f in resolve_sources([SourceSpec(given, split=split)])] == [name]


def test_resolve__one_file_in_two_sources(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.jsonl", [PAIR]))
    same: list[str | SourceSpec] = [SourceSpec(str(tmp_path), name="x"), SourceSpec(path, weight=2, format="jsonl"), path]
    assert [f.source for f in resolve_sources(same)] == ["x"]
    for other in (
        SourceSpec(path, key="rows"),
        SourceSpec(path, limit=5),
        SourceSpec(path, dataset="d"),
        SourceSpec(path, format="json"),
        SourceSpec(path, options=RowOptions(columns={"prompt": "completion"})),
        SourceSpec(path, options=RowOptions(preference="chosen")),
    ):
        with pytest.raises(UserError, match=rf"a.jsonl: sources .*{tmp_path.name} \(x\) and .*a.jsonl \(a\) both read this file"):
            resolve_sources([SourceSpec(str(tmp_path), name="x"), other])
    (tmp_path / "link.jsonl").symlink_to(path)
    assert len(resolve_sources([str(tmp_path)])) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nothing.jsonl", "no such file or folder"),
        ("empty-folder", "holds no file ending in"),
        ("*.nope", "no file matches"),
        ("empty.jsonl", "the file is empty"),
        ("notes.md", "unknown ending"),
        ("ftp://x/y.jsonl", "scheme 'ftp' is not read"),
        ("a.toml#b", "no source b; there are a"),
    ],
)
def test_resolve__mistakes_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty-folder").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "a.toml").write_text('[[source]]\nname = "a"\npath = "x.jsonl"\n')
    with pytest.raises(UserError, match=said):
        resolve_sources([given])
    with pytest.raises(UserError, match="shape 'poem' is unknown"):
        resolve_sources([SourceSpec("notes.md", options=RowOptions(shape="poem"))])


def test_read_file__an_empty_file_in_a_folder_is_a_reject(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (file,) = resolve_sources([str(tmp_path)])
    (block,) = read_file(file)
    assert block.rejects["reason"].to_list() == ["empty_file"]
    assert block.last


def test_toml__sources_with_options(tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl", [{"ask": "a", "tell": "b"}, {"ask": "c", "tell": "d"}])
    write(tmp_path / "two.jsonl", [{"talk": [{"who": "x", "says": "a"}, {"who": "y", "says": "b"}]}])
    (tmp_path / "list.toml").write_text(
        """
[[source]]
name = "one"
path = "one.jsonl"
dataset = "first"
limit = 1
weight = 2.5
shape = "prompt_completion"
columns = {prompt = "ask", completion = "tell"}

[[source]]
path = "two.jsonl"
columns = {messages = "talk", role = "who", content = "says"}
roles = {x = "user", y = "assistant"}
train_roles = ["assistant", "user"]
"""
    )
    one, two = resolve_sources([str(tmp_path / "list.toml")])
    assert (one.source, one.spec.weight, one.dataset) == ("one", 2.5, "first")
    (block,) = read_file(one)
    assert [[m["content"] for m in row] for row in block.occurrences["messages"].to_list()] == [["a", "b"]]
    (block,) = read_file(two)
    assert block.occurrences["messages"].to_list()[0][0]["train"] == [{"begin": 0, "end": 1}]
    assert [f.source for f in resolve_sources([str(tmp_path / "list.toml") + "#one"])] == ["one"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = [", "is not TOML"),
        ("x = 1", r"has no \[\[source\]\] tables"),
        ("[[source]]\nname = 'a'", "source a: has no path"),
        ("[[source]]\npath = 'a'\ncolour = 1", "source 1: unknown field colour"),
        ("[[source]]\npath = 'a'\nlimit = 'x'", "limit is 'x', must be int"),
        ("[[source]]\npath = 'a'\nlimit = 0", "limit is 0, must be above 0"),
        ("[[source]]\npath = 'a'\ntrain_roles = ['pirate']", "train_roles has pirate; roles are"),
        ("[[source]]\npath = 'a'\nroles = {x = 'pirate'}", "roles has pirate"),
        ("[[source]]\npath = 'a'\nscores = ['loss']", "scores has loss, which is a signal of every example"),
        ("[[source]]\npath = 'a'\nscores = ['a', 'A']", "scores has a and A: name each column once"),
        ("[[source]]\npath = 'a'\nscores = [1]", "scores has 1, must be names of columns"),
        ("limit = 1\n[[source]]\npath = 'a'\n[[sources]]\npath = 'b'", "unknown limit, sources; all that a list has"),
        ("[[source]]\npath = 'a'\ncolumns = {promt = 'a'}", "columns has promt, which no shape reads"),
        ("[[source]]\npath = 'a'\ncolumns = {prompt = ['a']}", r"columns has prompt = \['a'\], must be the name of"),
        ("[[source]]\npath = 'a'\ncolumns = {prompt = 3}", "columns has prompt = 3, must be the name of"),
        ("[[source]]\npath = 'a'\nweight = nan", "weight is nan, must be above 0"),
    ],
)
def test_toml__mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "list.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        resolve_sources([str(tmp_path / "list.toml")])


def test_llama_factory__columns_and_tags(tmp_path: Path) -> None:
    write(tmp_path / "al.jsonl", [{"q": "a", "more": "b", "a": "c", "past": [["d", "e"]], "sys": "f"}])
    write(tmp_path / "sg.json", [])
    (tmp_path / "sg.json").write_text(
        json.dumps(
            [
                {
                    "talk": [
                        {"who": "ape", "says": "Uh"},
                        {"who": "call", "says": '{"name": "f", "arguments": {}}'},
                        {"who": "obs", "says": "1"},
                        {"who": "bot", "says": "Ah"},
                    ],
                    "t": "[]",
                }
            ]
        )
    )
    info = {
        "al": {
            "file_name": "al.jsonl",
            "columns": {"prompt": "q", "query": "more", "response": "a", "history": "past", "system": "sys"},
        },
        "sg": {
            "file_name": "sg.json",
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "tools": "t"},
            "tags": {
                "role_tag": "who",
                "content_tag": "says",
                "user_tag": "ape",
                "assistant_tag": "bot",
                "observation_tag": "obs",
                "function_tag": "call",
            },
            "num_samples": 5,
        },
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    al, sg = resolve_sources([str(tmp_path / "dataset_info.json")])
    assert (al.dataset, sg.dataset, sg.spec.limit) == ("al", "sg", 5)
    (block,) = read_file(al)
    assert [(m["role"], m["content"]) for m in block.occurrences["messages"].to_list()[0]] == [
        ("system", "f"),
        ("user", "d"),
        ("assistant", "e"),
        ("user", "a\n\nb"),
        ("assistant", "c"),
    ]
    (block,) = read_file(sg)
    assert [m["role"] for m in block.occurrences["messages"].to_list()[0]] == ["user", "assistant", "tool", "assistant"]
    for entry, said in (
        ({"file_name": "x", "ranking": True}, "ranking"),
        ({"script_url": "x"}, "scripts"),
        ({}, "has no file_name"),
        ({"file_name": "x", "formatting": "poem"}, "formatting 'poem'"),
        ({"file_name": "x", "columns": {"images": "i"}}, "column images"),
    ):
        (tmp_path / "dataset_info.json").write_text(json.dumps({"bad": entry} | info))
        with pytest.raises(UserError, match=said):
            resolve_sources([str(tmp_path / "dataset_info.json")])


def test_axolotl__options(tmp_path: Path) -> None:
    row = {
        "talk": [
            {"from": "sys", "value": "s"},
            {"from": "ape", "value": "Uh", "learn": True},
            {"from": "bot", "value": "Ah no", "parts": [{"begin_offset": 0, "end_offset": 1, "train": True}]},
        ]
    }
    write(tmp_path / "a.jsonl", [row])
    config = """
base_model: x
datasets:
  - path: a.jsonl
    type: chat_template
    field_messages: talk
    message_property_mappings: {role: from, content: value}
    roles: {user: [ape], assistant: [bot], system: [sys]}
    roles_to_train: [bot]
    message_field_training: learn
    message_field_training_detail: parts
    drop_system_message: true
    train_on_eos: turn
"""
    (tmp_path / "a.yaml").write_text(config)
    (file,) = resolve_sources([str(tmp_path / "a.yaml")])
    (block,) = read_file(file)
    whole = [{"begin": 0, "end": 2}]
    turns = [(m["role"], m["content"], m["train"]) for m in block.occurrences["messages"].to_list()[0]]
    assert turns == [("user", "Uh", whole), ("assistant", "Ah no", whole)]
    for old, new, said in (
        ("train_on_eos: turn", "train_on_eos: all", "train_on_eos 'all' is not supported"),
        ("type: chat_template", "type: completion", "type 'completion' is not read"),
        ("train_on_eos: turn", "preprocess_shards: 3", "option preprocess_shards"),
        ("path: a.jsonl", "paths: a", "has no path"),
        ("datasets:", "data:", "has no list `datasets`"),
    ):
        (tmp_path / "a.yaml").write_text(config.replace(old, new))
        with pytest.raises(UserError, match=said):
            resolve_sources([str(tmp_path / "a.yaml")])


def test_data__never_names_a_file_to_open(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.jsonl", [PAIR])
    rows = [{"messages": str(secret)}, {"path": str(secret)}, {"prompt": f"file://{secret}", "completion": f"@{secret}"}, GOOD]
    got = read(write(tmp_path / "a.jsonl", rows))
    assert got.reasons == {0: "wrong_type", 1: "unknown_shape"}
    assert got.texts[0] == [("user", f"file://{secret}"), ("assistant", f"@{secret}")]


def test_oasst__a_message_a_row(tmp_path: Path) -> None:
    def message(i: str, parent: str | None, role: str, text: str, tree: str, **more: object) -> dict:
        return {"message_id": i, "parent_id": parent, "role": role, "text": text, "message_tree_id": tree, **more}

    rows = [
        message("1", None, "prompter", "q", "1"),
        message("2", "1", "assistant", "a", "1"),
        message("3", "2", "prompter", "q2", "1"),
        message("4", "3", "assistant", "a2", "1"),
        message("5", "1", "assistant", "b", "1"),
        message("6", "5", "prompter", "never answered", "1"),
        message("7", None, "prompter", "r", "7"),
        message("8", "7", "assistant", "gone", "7", deleted=True),
        message("9", "0", "assistant", "orphan", "7"),
        message("10", None, "prompter", "s", "10"),
        message("11", "10", "assistant", "t", "10"),
    ]
    path = write(tmp_path / "a.jsonl", rows)
    got = read(path)
    assert got.occurrences["row"].to_list() == [3, 4, 10]
    assert got.texts == [
        [("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2")],
        [("user", "q"), ("assistant", "b")],
        [("user", "s"), ("assistant", "t")],
    ]
    assert got.reasons == {5: "no_assistant", 7: "tree_broken", 8: "tree_broken"}
    for start in range(12):
        rest = read(path, start_row=start, block_rows=3)
        assert rest.occurrences["row"].to_list() == [r for r in (3, 4, 10) if r >= start]
        assert sorted(rest.reasons) == [r for r in (5, 7, 8) if r >= start]
    blocks = read(path, block_rows=2).blocks
    assert [b.next_row for b in blocks] == [6, 9, 11]


def test_oasst__a_message_a_row_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "message_id,parent_id,role,text,message_tree_id,deleted\n"
        "1,,prompter,q,1,False\n2,1,assistant,a,1,False\n3,1,assistant,gone,1,True\n"
    )
    message = {"message_id": "1", "parent_id": float("nan"), "role": "prompter", "text": "q", "deleted": float("nan")}
    write(tmp_path / "a.jsonl", [message, {**message, "message_id": "2", "parent_id": "1", "role": "assistant", "text": "a"}])
    for name, reasons in (("a.csv", {2: "tree_broken"}), ("a.jsonl", {})):
        got = read(tmp_path / name)
        assert got.texts == [[("user", "q"), ("assistant", "a")]]
        assert got.reasons == reasons


def test_oasst__nested_tree_gives_a_thread_each(tmp_path: Path) -> None:
    def reply(role: str, text: str, *replies: dict) -> dict:
        return {"role": role, "text": text, "replies": list(replies)}

    a = reply("assistant", "a", reply("prompter", "q2", reply("assistant", "a2"), reply("assistant", "a3")))
    tree = {"message_tree_id": "t", "prompt": reply("prompter", "q", a, reply("assistant", "b"))}
    got = read(write(tmp_path / "a.jsonl", [tree, {"message_tree_id": "u", "prompt": reply("prompter", "q")}, chat(1)]))
    assert got.occurrences["row"].to_list() == [0, 0, 0, 2]
    assert [row[-1][1] for row in got.texts[:3]] == ["a2", "a3", "b"]
    assert got.reasons == {1: "no_assistant"}
