"""LLaMA-Factory's and axolotl's own code on our exports. Both pin other versions of what we use, so they are installed apart:

pip install --no-deps --target PEERS llamafactory==0.9.5 axolotl==0.19.0 addict
TAGCOS_PEERS=PEERS python -m pytest -m slow tests/flows/test_trainers.py
"""

from __future__ import annotations

import json
import os
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from storage.exports import write as exports
from storage.root import Root
from tagcos_stream.gradients.chat import encode
from tagcos_stream.gradients.model import load_tokenizer
from tests.flows.test_exporting import canonical, exported, kinds_of  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("TAGCOS_PEERS")
    if not folder:
        pytest.skip("needs LLaMA-Factory and axolotl in the folder TAGCOS_PEERS")
    monkeypatch.syspath_prepend(folder)
    sys.path.append(sys.path.pop(0))  # behind our own packages
    monkeypatch.setitem(sys.modules, "torchaudio", types.ModuleType("torchaudio"))  # for audio only; none fits this torch


def test_axolotl__trains_the_tokens_that_we_do(
    peers: None, exported: tuple[Root, str], model_folder: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from axolotl.prompt_strategies.chat_template import ChatTemplatePrompter, ChatTemplateStrategy
    root, run_id = exported
    exports.export(root, run_id, tmp_path / "ax", format="axolotl", leave_out=True)
    exports.export(root, run_id, tmp_path / "m.parquet")
    (stanza,) = yaml.safe_load((tmp_path / "ax" / "axolotl.yaml").read_text())["datasets"]
    tokenizer = load_tokenizer(str(model_folder))
    tokenizer.eos_token = "<|im_end|>"  # what its template ends a turn with
    options = {name: value for name, value in stanza.items() if name.startswith(("field_", "message_"))}
    prompter = ChatTemplatePrompter(tokenizer, tokenizer.chat_template, **options)
    strategy = ChatTemplateStrategy(
        prompter, tokenizer, False, 512, roles_to_train=stanza["roles_to_train"], train_on_eos=stanza["train_on_eos"]
    )
    whole = {row["example_id"]: row for row in pq.read_table(tmp_path / "m.parquet").to_pylist()}
    kind, compared = kinds_of(root), set()
    for row in pq.read_table(stanza["path"]).to_pylist():
        found = strategy.tokenize_prompt({k: row[k] for k in ("messages", "tools") if row[k] is not None})
        mine = whole[row["example_id"]]
        messages = [canonical(message, message["train"]) for message in mine["messages"]]
        ours = encode(tokenizer, messages, max_length=512, tools=mine["tools"])
        assert found["input_ids"] == ours.input_ids.tolist()
        theirs = {i for i, label in enumerate(found["labels"]) if label != -100}
        mine = set(np.flatnonzero(ours.target).tolist())
        # axolotl trains the end-of-turn token of a turn that is trained in part; the white space after a mark is nobody's
        extra = {i for i in theirs ^ mine if found["input_ids"][i] not in tokenizer.convert_tokens_to_ids(["<|im_end|>", "Ċ"])}
        assert not extra, (kind[row["example_id"]], tokenizer.decode([found["input_ids"][i] for i in sorted(extra)]))
        if kind[row["example_id"]] != "part before the end":
            assert theirs == mine, kind[row["example_id"]]
        compared.add(kind[row["example_id"]])
    assert len(compared) == 13


def test_llama_factory__takes_every_row(peers: None, exported: tuple[Root, str], tmp_path: Path) -> None:  # noqa: F811
    from llamafactory.data.converter import SharegptDatasetConverter
    from llamafactory.data.parser import get_dataset_list

    root, run_id = exported
    done = exports.export(root, run_id, tmp_path / "lf", format="llama-factory", leave_out=True)
    (attributes,) = get_dataset_list(["tagcos"], str(tmp_path / "lf"))
    assert attributes.formatting == "sharegpt"
    data: Any = types.SimpleNamespace(media_dir=None)
    convert = SharegptDatasetConverter(attributes, data)
    rows = pq.read_table(tmp_path / "lf" / attributes.dataset_name).to_pylist()
    assert len(rows) == done.rows
    for row in rows:
        found = convert(row)
        told = [turn["value"] for turn in row["conversations"] if turn["from"] != "system"]
        assert [m["content"] for m in found["_prompt"] + found["_response"]] == told
        assert (found["_system"] or "") == "".join(turn["value"] for turn in row["conversations"] if turn["from"] == "system")
        assert bool(found["_tools"]) == (bool(row["tools"]) and json.loads(row["tools"]) != [])
