"""Template and loss mask: which tokens are trained on, shown by decoding them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tagcos_stream.gradients.chat import PLAIN_TEMPLATE, NoTargets, TemplateRefused, encode, render, template_fingerprint
from tests.models import CHATML, tiny_tokenizer

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How are you?\n"},
    {"role": "assistant", "content": "Fine.  "},
    {"role": "user", "content": "assistant Fine."},
    {"role": "assistant", "content": "\nGrüße, 你好!"},
]
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}{% else %}{{ '<<' + m['content'] + '>>' }}{% endif %}{% endfor %}"  # noqa: E501
)
TRIMMING = CHATML.replace("m['content']", "m['content'] | trim")
GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n"  # noqa: E501
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
# As Qwen 3 does: thoughts of earlier turns disappear, so a prefix rendered alone differs from the same prefix of the whole.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"  # noqa: E501
    "{{ m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)


def target_runs(tokenizer: Any, messages: Any, **options: Any) -> list[str]:
    """Decoded text of every unbroken run of target tokens."""
    encoded = encode(tokenizer, messages, **{"max_length": 4096} | options)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], encoded.target.astype(int), [0]])))
    return [tokenizer.decode(encoded.input_ids[a:b]) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["Fine.  <|im_end|>", "\nGrüße, 你好!<|im_end|>"]),
        (GENERATION, ["Fine.  <|im_end|>", "\nGrüße, 你好!<|im_end|>"]),
        (TRIMMING, ["Fine.<|im_end|>", "Grüße, 你好!<|im_end|>"]),
        (LLAMA2, ["Fine.   <|endoftext|>", "\nGrüße, 你好! <|endoftext|>"]),
        (THINKING, ["Fine.  <|im_end|>", "\nGrüße, 你好!<|im_end|>"]),
        (None, ["Fine.  <|endoftext|>", "\nGrüße, 你好!<|endoftext|>"]),
    ],
    ids=["chatml", "generation", "trimming", "llama2", "thinking", "plain"],
)
def test_encode__targets_are_every_assistant_turn_with_its_end(template: str | None, expected: list[str]) -> None:
    assert target_runs(tiny_tokenizer(template), CONVERSATION) == expected


def test_encode__template_that_rewrites_contents() -> None:
    """A thought in the middle of a conversation is not printed, and so not trained on; the rest of its turn is."""
    messages = [*CONVERSATION[:2], {"role": "assistant", "content": "<think>hm</think>Well."}, *CONVERSATION[3:]]
    assert target_runs(tiny_tokenizer(THINKING), messages) == ["Well.<|im_end|>", "\nGrüße, 你好!<|im_end|>"]


def test_encode__ids_are_those_of_the_template() -> None:
    tokenizer = tiny_tokenizer()
    ref = tokenizer.apply_chat_template(CONVERSATION, tokenize=True, return_dict=True)["input_ids"]
    comp = encode(tokenizer, CONVERSATION, max_length=4096)
    assert comp.input_ids.tolist() == list(ref)
    assert comp.input_ids.dtype == np.int32
    assert not comp.truncated


def test_encode__plain_template_is_documented_format() -> None:
    text, _ = render(tiny_tokenizer(None), CONVERSATION[1:3])
    assert text == "<s><|user|>\nHow are you?\n\n<|assistant|>\nFine.  <|endoftext|>\n"
    assert "<|' + message['role'] + '|>" in PLAIN_TEMPLATE


def test_encode__train_ranges() -> None:
    tokenizer = tiny_tokenizer()

    def runs(train: Any, role: str = "assistant", template: str = CHATML) -> list[str]:
        tokenizer.chat_template = template
        return target_runs(
            tokenizer, [{"role": "user", "content": "q"}, {"role": role, "content": "  0123456789", "train": train}]
        )

    assert runs([{"begin": 2, "end": 5}]) == ["012"]
    assert runs([{"begin": 2, "end": 5}], role="user") == ["012"]
    assert runs([{"begin": 2, "end": 4}, {"begin": 6, "end": 12}]) == ["01", "456789<|im_end|>"]
    assert runs([{"begin": 2, "end": 5}], template=TRIMMING) == ["012"]
    assert runs([{"begin": 0, "end": 3}], template=TRIMMING) == ["0"]
    with pytest.raises(NoTargets, match="no assistant turn"):
        runs([])


def test_encode__default_trains_no_other_role() -> None:
    with pytest.raises(NoTargets):
        encode(tiny_tokenizer(), [{"role": "user", "content": "q"}, {"role": "tool", "content": "r"}], max_length=100)


def test_encode__truncates_and_rejects_when_nothing_is_left() -> None:
    tokenizer = tiny_tokenizer()
    whole = encode(tokenizer, CONVERSATION, max_length=4096)
    cut = encode(tokenizer, CONVERSATION, max_length=len(whole) - 3)
    assert cut.truncated
    assert len(cut) == len(whole) - 3
    np.testing.assert_array_equal(cut.target, whole.target[:-3])
    with pytest.raises(NoTargets, match="within the first 10 tokens"):
        encode(tokenizer, CONVERSATION, max_length=10)


def test_encode__first_token_is_never_a_target() -> None:
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert encode(tokenizer, [{"role": "assistant", "content": "abc"}], max_length=9).target.tolist() == [False, True, True]


def test_encode__empty_answer_trains_its_end() -> None:
    assert target_runs(tiny_tokenizer(), [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]) == [
        "<|im_end|>"
    ]


def test_encode__contents_that_look_like_the_template() -> None:
    messages = [
        {"role": "user", "content": "say: <|im_start|>assistant\nno<|im_end|>\n"},
        {"role": "assistant", "content": "yes<|im_start|>user\nmore"},
    ]
    assert target_runs(tiny_tokenizer(), messages) == ["yes<|im_start|>user\nmore<|im_end|>"]


def test_encode__tools_reach_the_template() -> None:
    tokenizer = tiny_tokenizer("{% if tools %}{{ tools[0]['function']['name'] }}\n{% endif %}" + CHATML)
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    messages = CONVERSATION[1:3]
    as_list, as_json = (encode(tokenizer, messages, max_length=999, tools=given) for given in (tools, json.dumps(tools)))
    np.testing.assert_array_equal(as_list.input_ids, as_json.input_ids)
    assert tokenizer.decode(as_list.input_ids).startswith("search\n")
    assert len(encode(tokenizer, messages, max_length=999)) == len(as_list) - len("search\n")


def test_encode__template_that_refuses_is_a_reject() -> None:
    tokenizer = tiny_tokenizer(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    with pytest.raises(TemplateRefused, match="System role not supported"):
        encode(tokenizer, CONVERSATION, max_length=99)


def test_template_fingerprint__follows_the_template() -> None:
    assert template_fingerprint(tiny_tokenizer()) == template_fingerprint(tiny_tokenizer())
    assert template_fingerprint(tiny_tokenizer()) != template_fingerprint(tiny_tokenizer(LLAMA2))
    assert len(template_fingerprint(tiny_tokenizer(None))) == 32
