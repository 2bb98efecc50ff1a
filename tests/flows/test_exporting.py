"""Exports hold what was chosen: read back they are the same examples, trained on at the same tokens, or they are counted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml

from flows import export, pipeline
from flows.cli.store import FormatName
from flows.progress import SilentReporter
from storage.catalog import runs, spaces
from storage.catalog.selections import selection
from storage.exports import shapes
from storage.exports import write as exports
from storage.exports.files import DATA, MARK, _host, may_replace, replacing, without_examples
from storage.root import Root, open_root
from tagcos_stream.config import load_settings
from tagcos_stream.data.read import read_file, resolve_sources
from tagcos_stream.gradients.chat import CallsUnprinted, encode
from tagcos_stream.gradients.model import load_tokenizer
from tagcos_stream.types import UserError
from tests.models import tiny_model, tiny_tokenizer

U, A, S, T = "user", "assistant", "system", "tool"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "adds", "parameters": {"type": "object", "x": [1, 2.5]}},
}

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{{"x": [1, 2.5], "y": null}}'}}


def turns(*given: Any) -> list[dict[str, Any]]:
    """(role, content[, more keys]) each."""
    return [{"role": role, "content": content, **(more[0] if more else {})} for role, content, *more in given]


# what a conversation may hold; the key says what some format cannot
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"messages": turns((U, "Hé {n}?\n"), (A, "Oui.\t𝄞"))},
    "system, several turns": {"messages": turns((S, "Be kind."), (U, "Hi {n}"), (A, "Ho"), (U, "Well?"), (A, "So."))},
    "tool calls": {
        "messages": turns((U, "Sum {n}"), (A, '<tool_call>\n{{"name": "f"}}\n</tool_call>'), (T, "3"), (A, "It is 3.")),
        "tools": [TOOL],
    },
    "other tools": {"messages": turns((U, "Tool {n}"), (A, "No.")), "tools": [{"name": "g"}]},
    "first answer untrained": {"messages": turns((U, "One {n}"), (A, "uno", {"weight": 0}), (U, "Two"), (A, "dos"))},
    "parts of a turn": {
        "messages": turns((U, "Say {n}"), (A, "Yes. No. Yes.", {"train": [{"begin": 0, "end": 4}, {"begin": 9, "end": 13}]}))
    },
    "part before the end": {"messages": turns((U, "Half {n}"), (A, "All of it", {"train": [{"begin": 0, "end": 3}]}))},
    "trained question": {"messages": turns((U, "Ask {n}", {"train": True}), (A, "Told."))},
    "names": {"messages": turns((U, "I am {n}", {"name": "Ann"}), (A, "Hello Ann."))},
    "question at the end": {"messages": turns((U, "Hi {n}"), (A, "Ho"), (U, "And?"))},
    "a call": {
        "messages": turns(
            (U, "Sum of {n}"), (A, "", {"tool_calls": [CALL]}), (T, "3", {"name": "f", "tool_call_id": "c1"}), (A, "It is 3.")
        ),
        "tools": [TOOL],
    },
    "text beside a call": {"messages": turns((U, "Look {n}"), (A, "Wait.", {"tool_calls": [CALL]}), (T, "3"), (A, "3."))},
    "reasoning": {"messages": turns((U, "Why {n}?"), (A, "So.", {"reasoning_content": "Because."}))},
    "template arguments": {"messages": turns((U, "How {n}?"), (A, "Thus.")), "chat_template_kwargs": {"enable_thinking": False}},
    "two tools' turns": {"messages": turns((U, "Both {n}"), (A, "f g"), (T, "1"), (T, "2"), (A, "1 and 2"))},
}


def fill(value: Any, n: int) -> Any:
    if isinstance(value, str):
        return value.format(n=n)
    if isinstance(value, list):
        return [fill(v, n) for v in value]
    return (
        {k: v if k in ("tools", "chat_template_kwargs") else fill(v, n) for k, v in value.items()}
        if isinstance(value, dict)
        else value
    )


@pytest.fixture(scope="module")
def exported(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Root, str]:
    """A root whose selection is its whole pool: five conversations of each kind."""
    folder = tmp_path_factory.mktemp("exports")
    lines = [json.dumps({"id": kind, **fill(row, n)}) for n in range(5) for kind, row in KINDS.items()]
    (folder / "all.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = {
        "sources": (str(folder / "all.jsonl"),),
        "root": str(folder / "root"),
        "model": str(model_folder),
        "fraction": 1.0,
    }
    settings |= {"max_length": 96, "warmup_examples": 8, "dim": 64, "clusters": 3, "min_cluster_rows": 2, "batch_tokens": 512}
    outcome = pipeline.run(pipeline.load_settings(settings), SilentReporter())
    root = open_root(str(folder / "root"), create=False)
    assert len(selection(root.catalog, outcome.run_id)) == 5 * len(KINDS)
    assert outcome.stages["gradients"]["unprinted"] == 5 * len(("a call", "text beside a call", "reasoning"))
    assert "tool calls or reasoning that the model's chat template does not print" in str(outcome.stages["gradients"]["warnings"])
    return root, outcome.run_id


def kinds_of(root: Root) -> dict[str, str]:
    found = root.catalog.read("SELECT example_id, source_id FROM occurrences")
    return dict(found.iter_rows())


def read_back(source: str) -> pl.DataFrame:
    (file,) = resolve_sources([source])
    blocks = list(read_file(file))
    assert pl.concat([block.rejects for block in blocks]).to_dicts() == []
    return pl.concat([block.occurrences for block in blocks])


def canonical(message: dict[str, Any], train: list[Any] | None) -> Any:
    """A message of an export with the keys that the tokeniser knows."""
    calls = json.dumps(message["tool_calls"]) if message["tool_calls"] else None
    beside = {"reasoning": message["reasoning_content"], "tool_calls": calls, "tool_call_id": message["tool_call_id"]}
    return {"role": message["role"], "content": message["content"], "name": message["name"], "train": train, **beside}


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize(
    ("format", "name"),
    [("messages", "m.jsonl"), ("messages", "m.parquet"), ("sharegpt", "s.jsonl"), ("sharegpt", "s.parquet"), ("datasets", "d")],
)
def test_export__holds_everything(exported: tuple[Root, str], tmp_path: Path, format: str, name: str) -> None:
    root, run_id = exported
    done = exports.export(root, run_id, tmp_path / name, format=format)
    assert (done.rows, done.examples, done.left_out) == (75, 75, {})
    data = tmp_path / name / "tagcos.parquet" if format == "datasets" else tmp_path / name
    assert sorted(read_back(str(data))["example_id"]) == sorted(kinds_of(root))
    rows = rows_of(data)
    assert np.mean([row["weight"] for row in rows]) == pytest.approx(1)
    chosen = selection(root.catalog, run_id)
    told = {row["example_id"]: (row["group_id"], row["rank"]) for row in rows}
    assert told == {row["example_id"]: (row["group_id"], row["rank"]) for row in chosen.iter_rows(named=True)}
    # every row says where it was read, and which run selected it from how much
    occurs = root.catalog.read("SELECT example_id, url, row FROM occurrences JOIN files USING (file_id) ORDER BY url, row")
    first = {row[0]: row[1:] for row in occurs.reverse().iter_rows()}
    assert all((row["source_file"], row["source_row"]) == first[row["example_id"]] for row in rows)
    run = root.catalog.read("SELECT method, sum(selected) / sum(size) FROM runs JOIN run_groups USING (run_id) GROUP BY ALL").row(
        0
    )
    assert {(row["run_id"], row["method"], row["fraction"]) for row in rows} == {(run_id, *run)}
    if format == "datasets":
        mark = json.loads((tmp_path / name / "tagcos-export.json").read_text(encoding="utf-8"))
        assert (mark["run_id"], mark["method"], mark["fraction"]) == (run_id, *run)


UNFIT = {
    "alpaca": [
        "tool calls", "other tools", "first answer untrained", "parts of a turn", "part before the end", "trained question",
        "names", "question at the end", "two tools' turns", "a call", "text beside a call", "reasoning", "template arguments",
    ],
    "llama-factory": [
        "first answer untrained", "parts of a turn", "part before the end", "trained question", "names", "question at the end",
        "two tools' turns", "text beside a call", "template arguments",
    ],
    "axolotl": ["other tools", "template arguments"],
    "prompt-completion": ["parts of a turn", "part before the end", "trained question", "template arguments"],
}  # fmt: skip


@pytest.mark.parametrize("format", list(UNFIT))
def test_export__what_does_not_fit_is_refused_or_counted(exported: tuple[Root, str], tmp_path: Path, format: str) -> None:
    root, run_id = exported
    out = tmp_path / ("x.jsonl" if not exports.FORMATS[format].folder else "x")
    with pytest.raises(UserError, match=rf"^{5 * len(UNFIT[format])} of 75 examples do not fit {format}: \d+ with .*--leave-out"):
        exports.export(root, run_id, out, format=format)
    assert list(tmp_path.iterdir()) == []

    done = exports.export(root, run_id, out, format=format, leave_out=True)
    assert sum(done.left_out.values()) == 5 * len(UNFIT[format])
    data = out / "tagcos.parquet" if out.is_dir() else out
    rows = rows_of(data)
    kind = kinds_of(root)
    assert {kind[row["example_id"]] for row in rows} == set(KINDS) - set(UNFIT[format])
    assert len(rows) == done.rows


def test_export__alpaca_and_llama_factory_and_axolotl_read_back(exported: tuple[Root, str], tmp_path: Path) -> None:
    """Our readers know the three forms; dataset_info.json and axolotl.yaml are read as their trainers read them."""
    root, run_id = exported
    kind = kinds_of(root)
    for format, source in (
        ("alpaca", "a.jsonl"), ("llama-factory", "lf/dataset_info.json"), ("axolotl", "ax/axolotl.yaml"),
    ):  # fmt: skip
        out = tmp_path / source.split("/")[0]
        done = exports.export(root, run_id, out, format=format, leave_out=True)
        found = read_back(str(tmp_path / source))
        mine = {identity for identity in kind if kind[identity] not in UNFIT[format]}
        if format == "llama-factory":  # what it has no place for is counted, and those examples have other ids
            for name, note in (
                ("a call", "calls have no id"),
                ("a call", "tools' turns name"),
                ("reasoning", "reasoning stands"),
            ):
                assert [n for text, n in done.notes.items() if text.startswith(note)] == [5], note
                mine -= {identity for identity in mine if kind[identity] == name}
            assert len(found) == len(mine) + 10
            assert set(found["example_id"]) > mine
            continue
        assert set(found["example_id"]) == mine


def test_export__a_row_for_each_trained_turn_trains_the_same_tokens(
    exported: tuple[Root, str], model_folder: Path, tmp_path: Path
) -> None:
    root, run_id = exported
    out = tmp_path / "pc.parquet"
    done = exports.export(root, run_id, out, format="prompt-completion", leave_out=True)
    assert done.notes == {
        "conversations became a row for each of their trained turns": 25,
        "arguments of calls are JSON text, which many chat templates print in quotes: use --format trl": 10,
        "turns after the last trained one, on which nothing depends, are not in the rows": 5,
    }
    exports.export(root, run_id, tmp_path / "m.parquet")
    whole = {row["example_id"]: row for row in pq.read_table(tmp_path / "m.parquet").to_pylist()}
    tokenizer = load_tokenizer(str(model_folder))
    got: dict[str, set[int]] = {}
    weights: dict[str, float] = {}
    for row in pq.read_table(out).to_pylist():
        told = [canonical(m, []) for m in row["prompt"]] + [canonical(m, None) for m in row["completion"]]
        with suppress(CallsUnprinted):  # a row of the call alone
            found = encode(tokenizer, told, max_length=10_000, tools=row["tools"])
            got.setdefault(row["example_id"], set()).update(np.flatnonzero(found.target).tolist())
        weights[row["example_id"]] = weights.get(row["example_id"], 0) + row["weight"]
    for identity, positions in got.items():
        turns_of = [canonical(m, m["train"]) for m in whole[identity]["messages"]]
        found = encode(tokenizer, turns_of, max_length=10_000, tools=whole[identity]["tools"])
        assert positions == set(np.flatnonzero(found.target).tolist())
        assert weights[identity] == pytest.approx(whole[identity]["weight"])


@pytest.mark.parametrize(("format", "name"), [("prompt-completion", "pc.parquet"), ("messages", "m.parquet"), ("datasets", "d")])
def test_export__trl_takes_conversations(
    small_settings: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, name: str
) -> None:
    """Nulls for what no example has would be values to TRL and to chat templates such as Llama 3.1's."""
    pytest.importorskip("trl")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    import datasets
    from trl import SFTConfig, SFTTrainer

    settings = small_settings(method="random")
    pipeline.run(load_settings(settings), SilentReporter())
    done = export.export(open_root(settings["root"], create=False), None, tmp_path / name, format=format)
    data = str(tmp_path / name / "tagcos.parquet" if format == "datasets" else tmp_path / name)
    rows = datasets.load_dataset("parquet", data_files=data, split="train", cache_dir=str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer(
        "{% for m in messages %}{{ m.content }}{% if 'tool_calls' in m and m.tool_calls | length != 1 %}"
        "{{ raise_exception('one call') }}{% endif %}<|im_end|>{% endfor %}"
    )
    trainer: Any = SFTTrainer(
        tiny_model("llama"), train_dataset=rows, processing_class=tokenizer,
        args=SFTConfig(str(tmp_path / "out"), report_to=[], use_cpu=True, bf16=False, activation_checkpointing=False),
    )  # fmt: skip
    assert len(trainer.train_dataset) == done.rows


def test_export__datasets_opens_it(exported: tuple[Root, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    root, run_id = exported
    opened, notes = {}, {}
    for format in ("datasets", "llama-factory", "axolotl"):
        notes[format] = exports.export(root, run_id, tmp_path / format, format=format, leave_out=True).notes
        options = {"split": "train", "cache_dir": str(tmp_path / "cache")}
        if format == "datasets":
            opened[format] = datasets.load_dataset(str(tmp_path / format), **options)
        else:
            opened[format] = datasets.load_dataset("parquet", data_files=str(tmp_path / format / "tagcos.parquet"), **options)
    assert len(opened["datasets"]) == 75
    kind = kinds_of(root)
    first = {kind[row["example_id"]]: row for row in opened["datasets"]}
    assert first["first answer untrained"]["messages"][1]["train"] == []
    assert len([note for note in notes["datasets"] if "arguments for the chat template" in note]) == 1
    (call,) = first["a call"]["messages"][1]["tool_calls"]
    assert (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) == (
        "c1",
        "f",
        {"x": [1, 2.5], "y": None},
    )
    assert first["reasoning"]["messages"][1]["reasoning_content"] == "Because."
    assert json.loads(first["template arguments"]["chat_template_kwargs"]) == {"enable_thinking": False}
    assert first["plain"]["messages"][1]["train"] is None
    assert first["parts of a turn"]["messages"][1]["train"] == [{"begin": 0, "end": 4}, {"begin": 9, "end": 13}]
    flags = {kind[row["example_id"]]: [m["train"] for m in row["messages"]] for row in opened["axolotl"]}
    assert flags["first answer untrained"] == [None, False, None, None]
    assert flags["trained question"] == [True, None]
    assert set(opened["llama-factory"].column_names) >= {"conversations", "tools", "weight"}


def test_export__llama_factory_and_axolotl_keep_to_what_they_document(exported: tuple[Root, str], tmp_path: Path) -> None:
    """The keys are those of LLaMA-Factory's data/README.md and of axolotl's configuration reference."""
    root, run_id = exported
    exports.export(root, run_id, tmp_path / "lf", format="llama-factory", leave_out=True)
    ((name, entry),) = json.loads((tmp_path / "lf" / "dataset_info.json").read_text()).items()
    assert name == "tagcos"
    assert (tmp_path / "lf" / entry["file_name"]).is_file()
    assert entry["formatting"] == "sharegpt"
    rows = pq.read_table(tmp_path / "lf" / entry["file_name"]).to_pylist()
    for row in rows:
        told = [turn[entry["tags"]["role_tag"]] for turn in row[entry["columns"]["messages"]]]
        told = told[1:] if told[0] == entry["tags"]["system_tag"] else told
        assert len(told) % 2 == 0
        assert set(told[::2]) <= {entry["tags"]["user_tag"], entry["tags"]["observation_tag"]}
        assert set(told[1::2]) <= {entry["tags"]["assistant_tag"], entry["tags"]["function_tag"]}
        assert isinstance(row[entry["columns"]["tools"]], str)

    exports.export(root, run_id, tmp_path / "ax", format="axolotl", leave_out=True)
    (stanza,) = yaml.safe_load((tmp_path / "ax" / "axolotl.yaml").read_text())["datasets"]
    assert Path(stanza["path"]) == tmp_path / "ax" / "tagcos.parquet"
    assert stanza["ds_type"] == "parquet"
    assert (stanza["message_field_training"], stanza["message_field_training_detail"]) == ("train", "train_detail")
    for row in pq.read_table(stanza["path"]).to_pylist():
        for tool in row[stanza["field_tools"]] or []:
            assert json.loads(tool["function"]["parameters"]) == TOOL["function"]["parameters"]


def test_export__trl_has_the_labels_of_reasoning_and_calls(
    small_settings: Callable[..., dict[str, Any]], model_folder: Path, tmp_path: Path
) -> None:
    """With a template like Qwen3's, which prints thoughts of the last turn only and takes them out of contents."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
        "{% if m.role == 'assistant' and loop.last and mood != 'fast' %}"
        "{{ '<think>' + (m.reasoning_content or m.content.split('</think>')[0].split('<think>')[-1]) + '</think>' }}{% endif %}"
        "{{ m.content.split('</think>')[-1] }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    folder = tmp_path / "thinker"
    shutil.copytree(model_folder, folder)
    for file in folder.glob("chat_template*"):
        file.unlink()
    tiny_tokenizer(template).save_pretrained(folder)
    ask = {"role": "user", "content": "Is <|im_end|> it?"}
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    rows: list[dict[str, Any]] = [
        {"messages": [ask, {"role": "assistant", "content": "<think>hm</think>Yes."}]},
        {"messages": [ask, {"role": "assistant", "content": "Yes.", "reasoning_content": "so"}]},
        {"messages": [ask, {"role": "assistant", "content": "Look.", "tool_calls": [call]}]},
        {"messages": [ask, {"role": "assistant", "content": "No."}], "chat_template_kwargs": {"mood": "fast"}},
    ]
    said = [
        "<think>hm</think>Yes.<|im_end|>",
        "<think>so</think>Yes.<|im_end|>",
        '<think>Look.</think>Look.{"name": "f", "arguments": {"x": 1}}<|im_end|>',
        "No.<|im_end|>",
    ]
    pool = tmp_path / "thoughts.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = {"fraction": 1.0, "method": "random", "max_length": 256, "special_tokens": "escape"}
    settings = small_settings(model=str(folder), sources=(str(pool),), **asked)
    outcome = pipeline.run(load_settings(settings), SilentReporter())
    assert outcome.stages["gradients"]["special_tokens"] == 4
    export.export(open_root(settings["root"], create=False), "latest", tmp_path / "trl", format="trl")
    tokenizer = load_tokenizer(str(folder))
    found = []
    for row in pq.read_table(next((tmp_path / "trl").glob("*.parquet"))).to_pylist():
        found.append(tokenizer.decode([i for i in row["labels"] if i != -100]))
        assert row["input_ids"].count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert sorted(found) == sorted(said)


def test_export__trl_trains_on_it_by_weight(
    exported: tuple[Root, str], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    import datasets
    import torch
    from trl import SFTConfig, SFTTrainer

    from tagcos_stream.weighted_sft import weighted_sft_trainer

    root, run_id = exported
    done = export.export(root, "latest", tmp_path / "trl", format="trl")
    assert (done.rows, done.left_out) == (75, {})
    data = datasets.load_dataset(str(tmp_path / "trl"), split="train", cache_dir=str(tmp_path / "cache"))
    tokenizer = load_tokenizer(str(model_folder))
    exports.export(root, run_id, tmp_path / "m.parquet")
    whole = {row["example_id"]: row for row in pq.read_table(tmp_path / "m.parquet").to_pylist()}
    for row in data:
        example = whole[row["example_id"]]
        turns_of = [canonical(m, m["train"]) for m in example["messages"]]
        found = encode(tokenizer, turns_of, max_length=96, tools=example["tools"])
        assert row["input_ids"] == found.input_ids.tolist()
        assert [label != -100 for label in row["labels"]] == found.target.tolist()

    def settings(batch: int, accumulate: int) -> Any:
        return SFTConfig(
            output_dir=str(tmp_path / "out"), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate,
            max_steps=1, learning_rate=1.0, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0, report_to=[],
            use_cpu=True, bf16=False, activation_checkpointing=False, max_length=None, train_sampling_strategy="sequential",
            disable_tqdm=True, save_strategy="no",
        )  # fmt: skip

    plain: Any = SFTTrainer(tiny_model("llama"), args=settings(2, 1), train_dataset=data, processing_class=tokenizer)
    assert plain.train_dataset["labels"] == data["labels"]  # taken as they are, without weights

    def step(batch: int, accumulate: int) -> Any:
        """The model after one step of plain descent over the first four examples."""
        model = tiny_model("llama")
        trainer = weighted_sft_trainer(model, data.select(range(4)), settings(batch, accumulate), processing_class=tokenizer)
        trainer.train()
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    model = tiny_model("llama")
    total = torch.zeros(())
    for row in data.select(range(4)):
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        total = total + row["weight"] / 4 * torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:]))
    total.backward()
    for batch, accumulate in ((4, 1), (2, 2)):
        after = step(batch, accumulate)
        for name, parameter in model.named_parameters():
            expected = parameter.detach() - parameter.grad
            assert torch.allclose(after[name], expected, atol=2e-5), (name, batch)


def test_export__alpaca_counts_texts_that_are_read_as_turns(
    filled: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainers take them for text; our own readers do not."""
    texts = ['[{"role": "user", "content": "Hi"}]', "### Human: Hi\n### Assistant:", "Hi"]
    beside = dict.fromkeys(("name", "reasoning", "tool_calls", "tool_call_id", "train"))
    asked = [[{"role": U, "content": text, **beside}, {"role": A, "content": texts[0], **beside}] for text in texts]
    common = dict.fromkeys(shapes.COMMON)
    examples = [{"messages": messages, "tools": None, "template_kwargs": None, **common} for messages in asked]
    monkeypatch.setattr(exports, "_examples", lambda *given: iter([examples]))
    done = export.export(filled, None, tmp_path / "a.jsonl", format="alpaca")
    assert list(done.notes.values()) == [2]
    assert "look like turns" in str(done.notes)
    (file,) = resolve_sources([str(tmp_path / "a.jsonl")])
    (block,) = read_file(file)
    found = [[(m["role"], m["content"]) for m in messages] for messages in block.occurrences["messages"]]
    wanted = [[(U, text), (A, texts[0])] for text in texts]
    assert [turns in found for turns in wanted] == [False, False, True]


@pytest.mark.parametrize("too_long", ["truncate", "reject"])
def test_export__trl_keeps_to_the_model_s_own_maximum_length(
    small_settings: Callable[..., dict[str, Any]], model_folder: Path, tmp_path: Path, too_long: str
) -> None:
    """No row is longer than the features saw; a model of few positions allows less than max_length."""
    short = tmp_path / "short"
    shutil.copytree(model_folder, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 72}))
    settings = small_settings(model=str(short), max_length=512, fraction=1.0, too_long=too_long)
    outcome = pipeline.run(pipeline.load_settings(settings), SilentReporter())
    root = open_root(settings["root"], create=False)
    export.export(root, outcome.run_id, tmp_path / "trl", format="trl")
    written = {row["example_id"]: len(row["input_ids"]) for row in rows_of(tmp_path / "trl" / "tagcos.parquet")}
    space_id = runs.run_status(root.catalog, outcome.run_id).run["space_id"]
    pool = spaces.features_pool(root.catalog, outcome.run_id, space_id)
    assert written == dict(pool.select("example_id", "tokens").iter_rows())
    assert max(written.values()) <= 72
    assert (max(written.values()) == 72) == (too_long == "truncate")

    # a tokenizer that needs more tokens: the same rule, by the maximum length of the model that it belongs to
    other = tmp_path / "other"
    shutil.copytree(short, other)
    tiny_tokenizer("{% for m in messages %}{{ '<|im_start|>' + m['role'] + ', once again: ' + m['content'] }}{% endfor %}"
                   ).save_pretrained(other)  # fmt: skip
    if too_long == "truncate":
        export.export(root, outcome.run_id, tmp_path / "longer", format="trl", tokenizer=str(other), leave_out=True)
        lengths = [len(row["input_ids"]) for row in rows_of(tmp_path / "longer" / "tagcos.parquet")]
        assert max(lengths) == 72
    else:
        with pytest.raises(UserError, match=r"do not fit trl: \d+ with more than 72 tokens"):
            export.export(root, outcome.run_id, tmp_path / "longer", format="trl", tokenizer=str(other))


def test_export__a_folder_that_is_not_ours_stays(exported: tuple[Root, str], tmp_path: Path) -> None:
    root, run_id = exported
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not an earlier export"):
        exports.export(root, run_id, tmp_path / "mine", format="datasets")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    for _ in range(2):  # its own earlier one is replaced
        exports.export(root, run_id, tmp_path / "new", format="datasets")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "new"]
    assert json.loads((tmp_path / "new" / MARK).read_text())["rows"] == 75


@pytest.mark.parametrize("name", ["source.jsonl", "source.parquet"])
def test_export__a_file_that_is_not_ours_stays(exported: tuple[Root, str], tmp_path: Path, name: str) -> None:
    root, run_id = exported
    source = pl.DataFrame({"messages": [[{"role": "user", "content": "Hi"}]]})
    path = tmp_path / name
    source.write_parquet(path) if path.suffix == ".parquet" else source.write_ndjson(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"{name} exists and is not an earlier export: choose another --out, or remove it"):
        exports.export(root, run_id, path)
    assert path.read_bytes() == before
    path.write_bytes(b"")
    for _ in range(2):  # an empty file, and its own earlier one, are replaced
        assert exports.export(root, run_id, path).rows == 75


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_export__a_file_that_cannot_be_read_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"of another account")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(pq, "read_schema", refuse)
    assert not may_replace(path)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("x.csv", {}, r"\.jsonl or \.parquet"),
        ("x.jsonl", {"format": "datasets"}, "is a folder"),
        ("x.jsonl", {"format": "best"}, "prompt-completion"),
        ("x.jsonl", {"tokenizer": "a/b"}, "--tokenizer is for format trl"),
        ("..", {"format": "datasets"}, "give --out a new name in it"),
        ("x" * 300, {"format": "datasets"}, "File name too long; choose another --out"),
        ("x" * 300 + ".jsonl", {}, "File name too long; choose another --out"),
    ],
)
def test_export__mistakes(exported: tuple[Root, str], tmp_path: Path, name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        export.export(exported[0], None, tmp_path / name, **options)


def test_export__not_onto_the_current_folder(exported: tuple[Root, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="give --out a new name in it"):
        export.export(exported[0], None, Path("."), format="datasets")


def test_export__trl_of_a_run_without_a_model_asks_for_one(filled: Root, model_folder: Path, tmp_path: Path) -> None:
    with filled.catalog.transaction() as connection:  # as of a run on vectors
        connection.execute("UPDATE runs SET config = '{}'")
    with pytest.raises(UserError, match="has no model: name one whose tokens to write with --tokenizer"):
        export.export(filled, None, tmp_path / "trl", format="trl")
    assert export.export(filled, None, tmp_path / "trl", format="trl", tokenizer=str(model_folder)).rows > 0


def test_export__a_place_that_cannot_be_written(exported: tuple[Root, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, format in (("x.jsonl", "messages"), ("folder", "datasets")):
        with pytest.raises(UserError, match=r"cannot write .*choose another --out"):
            exports.export(*exported, tmp_path / "file" / name, format=format)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_replacing__says_which_file_cannot_be_read(tmp_path: Path) -> None:
    source, out = tmp_path / "source.jsonl", tmp_path / "out"
    with pytest.raises(UserError, match=rf"cannot read {source}: No such file"), replacing(out):
        source.read_bytes()
    with pytest.raises(UserError, match=rf"cannot write {out}: .*choose another --out"), replacing(out, folder=True) as partial:
        (partial / "no" / "README.md").write_text("")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "format"), [("out.jsonl", "messages"), ("out.parquet", "messages"), ("out", "datasets")])
def test_export__every_file_is_durable(
    exported: tuple[Root, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, format: str
) -> None:
    synced, fsync = set(), os.fsync

    def seen(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    exports.export(*exported, tmp_path / name, format=format)
    assert {path.stat().st_ino for path in tmp_path.rglob("*")} <= synced
    if format == "datasets":
        rows = pl.read_parquet(tmp_path / name / DATA)
        assert without_examples(tmp_path / name / DATA, rows["example_id"].head(1).to_list()) == 1
        assert json.loads((tmp_path / name / MARK).read_text())["rows"] == len(rows) - 1
        assert {path.stat().st_ino for path in tmp_path.rglob("*")} <= synced


def test_export__removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """An earlier export that a kill had left moved aside is put back before anything else."""
    process = subprocess.Popen(["true"])
    process.wait()
    for name, kind in (("out", "partial"), ("out", "old"), ("other", "partial")):
        (tmp_path / f".{name}.{process.pid}-{_host()}.{kind}").mkdir()
    (tmp_path / f".out.{process.pid}-{_host()}.old" / MARK).write_text("{}")
    elsewhere = tmp_path / f".out.{process.pid}-00000000.partial"  # of another machine: perhaps at work
    elsewhere.mkdir()
    with pytest.raises(UserError, match="full"), replacing(tmp_path / "out", folder=True):
        raise OSError(28, "the disk is full")
    assert {path.name for path in tmp_path.iterdir()} == {"out", elsewhere.name, f".other.{process.pid}-{_host()}.partial"}
    assert (tmp_path / "out" / MARK).is_file()


def test_export__format_names_are_those_of_the_command() -> None:
    assert list(get_args(FormatName)) == list(exports.FORMATS)
