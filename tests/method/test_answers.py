"""Instruction-following difficulty: losses with the prompt and behind an empty one, against plain passes of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from tagcos_stream.data.canonical import MESSAGES
from tagcos_stream.data.same_words import word_keys
from tagcos_stream.gradients.adapter import attach_adapter
from tagcos_stream.gradients.answers import answer_losses, without_prompt
from tagcos_stream.gradients.chat import encode
from tagcos_stream.gradients.extract import GradientExtractor, block_features
from tagcos_stream.gradients.projection.projections import make_projection
from tagcos_stream.types import UserError
from tests.models import random_checkpoint, random_encoded, tiny_model, tiny_tokenizer
from tests.naive import naive_ifd

PAIRS = [("What is 3 + 4?", "3 + 4 = 7"), ("Name a colour.", "deep blue is a colour."), ("Why?", "It lies by a river.")]


def conversation(*pairs: tuple[str, str]) -> list[Any]:
    roles = ("user", "assistant")
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def test_ifd__equals_plain_passes_of_the_model() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    model = attach_adapter(tiny_model("llama"), rank=4, alpha=8, seed=1).to(torch.float64)
    extractor = GradientExtractor(model, variants=("sgd",), projection=make_projection(dim=64, seed=0))
    checkpoint = random_checkpoint(model)
    rows: list[dict[str, Any]] = [{"messages": conversation(pair), "template_kwargs": None} for pair in PAIRS]
    whole = [encode(tokenizer, row["messages"], max_length=128) for row in rows]
    alone = [without_prompt(tokenizer, row, one, max_length=128) for row, one in zip(rows, whole, strict=True)]
    found = [one for one in alone if one is not None]
    assert len(found) == len(PAIRS)
    behind = answer_losses(extractor, [checkpoint], found, token_budget=64)
    given = block_features(extractor, [checkpoint], whole, token_budget=64).loss
    ref = [naive_ifd(model, tokenizer, *pair) for pair in PAIRS]
    np.testing.assert_allclose(given / behind, ref, rtol=1e-5)


def test_answer_losses__halves_the_budget_when_out_of_memory() -> None:
    class SmallDevice(GradientExtractor):
        def losses(self, batch: Any) -> Any:
            if len(batch) * max(len(e) for e in batch) > 60:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().losses(batch)

    model = attach_adapter(tiny_model("llama"), rank=4, alpha=8, seed=1)
    projection, checkpoint = make_projection(dim=64, seed=0), random_checkpoint(model)
    plenty, small = (kind(model, variants=("sgd",), projection=projection) for kind in (GradientExtractor, SmallDevice))
    encoded = random_encoded([13] * 7)
    ref = answer_losses(plenty, [checkpoint], encoded, token_budget=200)
    np.testing.assert_allclose(answer_losses(small, [checkpoint], encoded, token_budget=200), ref, rtol=1e-5)
    with pytest.raises(UserError, match=r"one example a batch .*: lower the maximum length"):
        answer_losses(small, [checkpoint], random_encoded([61]), token_budget=200)


def test_without_prompt__has_the_targets_of_the_whole_and_nothing_after_them() -> None:
    tokenizer = tiny_tokenizer()
    row: dict[str, Any] = {"messages": conversation(*PAIRS), "template_kwargs": None}
    entire = encode(tokenizer, row["messages"], max_length=1000)
    first = int(np.flatnonzero(entire.target)[0])
    for longest in (first + 3, len(entire) - 3, 1000):  # cut within the first answer, within the last, and not at all
        whole = encode(tokenizer, row["messages"], max_length=longest)
        alone = without_prompt(tokenizer, row, whole, max_length=longest)
        assert alone is not None
        assert alone.input_ids[alone.target].tolist() == whole.input_ids[whole.target].tolist()
        assert alone.target[-1]
        assert len(alone) < len(whole)


def test_without_prompt__is_none_where_the_template_takes_no_empty_turn() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if not m['content'] %}{{ raise_exception('empty') }}{% endif %}"
        "{{ '<|' + m['role'] + '|>' + m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    row: dict[str, Any] = {"messages": conversation(PAIRS[0]), "template_kwargs": None}
    whole = encode(tokenizer, row["messages"], max_length=128)
    assert without_prompt(tokenizer, row, whole, max_length=128) is None


def test_answer_keys__equal_words_of_answers_are_equal_keys() -> None:
    answers = [("a?", "I cannot, help!"), ("another", "i  cannot help"), ("a?", "I can help"), ("b", "?!")]
    turns = [[{**turn, "name": None, "train": None} for turn in conversation(pair)] for pair in answers]
    keys = word_keys(pl.Series(turns, dtype=MESSAGES), answers_only=True)
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == 0


@pytest.mark.parametrize("decoder", [True, False])
def test_losses__are_those_of_the_gradient_pass(decoder: bool) -> None:
    model = attach_adapter(tiny_model("llama"), rank=4, alpha=8, seed=1)
    extractor = GradientExtractor(model, variants=("sgd",), projection=make_projection(dim=64, seed=0))
    if not decoder:
        extractor._decoder = None
    extractor.use(random_checkpoint(model))
    batch = [encode(tiny_tokenizer(), conversation(pair), max_length=64) for pair in PAIRS]
    np.testing.assert_allclose(extractor.losses(batch).numpy(), extractor.features(batch).loss.numpy(), rtol=1e-5)
