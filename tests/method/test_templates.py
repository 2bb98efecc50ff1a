"""Text and loss mask with every chat template that TRL ships: text as transformers renders it, targets as TRL masks them."""

from __future__ import annotations

import json
import re
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from transformers.utils import chat_template_utils

from tagcos_stream.gradients.chat import NoTargets, encode, render
from tagcos_stream.gradients.template_tracker import TODAY
from tests.models import tiny_tokenizer

trl_templates = pytest.importorskip("trl.chat_template_utils")
TEMPLATES = {path.stem: path for path in sorted(Path(trl_templates.__file__).with_name("chat_templates").glob("*.jinja"))}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "where"},
                    "days": {"type": "integer", "description": "how many"},
                },
                "required": ["city"],
            },
        },
    }
]
CALL = json.dumps(
    [{"id": "call12345", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}}]
)
QUESTION, MORE = {"role": "user", "content": "What is it?"}, {"role": "user", "content": "And assistant Fine?"}
RESULT = {"role": "tool", "name": "get_weather", "content": "22 degrees", "tool_call_id": "call12345"}


def answer(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


CONVERSATIONS: dict[str, tuple[list[Any], list | None]] = {
    "plain": ([QUESTION, answer("It is fine.")], None),
    "turns": (
        [{"role": "system", "content": "Be brief."}, QUESTION, answer("Fine."), MORE, answer("  Two\n\nlines \n")],
        None,
    ),
    "thinking in the text": (
        [QUESTION, answer("<think>\nhm hm\n</think>\n\nWell, yes."), MORE, answer("<think>\noh\n</think>\n\nNo.")],
        None,
    ),
    "reasoning": ([QUESTION, answer("Well, yes.", reasoning="hm hm"), MORE, answer("No.", reasoning="oh")], None),
    "tool": ([QUESTION, answer("", tool_calls=CALL), RESULT, answer("It is warm.")], TOOLS),
    "text beside tool": ([QUESTION, answer("Let me look.", tool_calls=CALL), RESULT, answer("It is warm.")], TOOLS),
    "tool last": ([QUESTION, answer("Let me look.", reasoning="hm", tool_calls=CALL)], TOOLS),
}
SPECIAL = re.compile(
    r"<[|｜][^<>{}' ]*[|｜]>|<(?:start|end)_of_(?:turn|utterance)>|</s>|\[gMASK\]|<sop>"
    r"|<(?:\|turn|turn\||\|tool_call|tool_call\||\|tool_response|tool_response\||\|channel|channel\|)>"
)

STOPS = r"(?:<\|(?:user|observation)\|>|<\|tool_response>)"


def tokenizer_of(template: str) -> Any:
    """A tokenizer whose control tokens are those of the template."""
    tokenizer = tiny_tokenizer(template)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": sorted({"<|im_start|>", "<|im_end|>", *SPECIAL.findall(template)})}
    )
    return tokenizer


def runs(tokenizer: Any, input_ids: Any, target: Any) -> list[str]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(target, int), [0]])))
    return [tokenizer.decode(input_ids[a:b]) for a, b in edges.reshape(-1, 2)]


def api_messages(messages: list[dict[str, Any]], *, parts: bool, arguments_as_text: bool) -> list[dict[str, Any]]:
    """The conversation as a user of apply_chat_template writes it."""
    written = []
    for message in messages:
        new = dict(message)
        if "reasoning" in new:
            new["reasoning_content"] = new.pop("reasoning")
        if "tool_calls" in new:
            new["tool_calls"] = json.loads(new["tool_calls"])
            for call in new["tool_calls"]:
                if arguments_as_text:
                    call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
        if parts:
            new["content"] = [{"type": "text", "text": new["content"]}]
        written.append(new)
    return written


def rendered_by_transformers(tokenizer: Any, messages: list[dict[str, Any]], tools: Any, **options: Any) -> Any:
    """apply_chat_template's text, from the form of the messages that the template takes; None where it takes none."""
    for parts in (False, True):
        for arguments_as_text in (False, True):
            written = api_messages(messages, parts=parts, arguments_as_text=arguments_as_text)
            try:
                text = tokenizer.apply_chat_template(written, tools=tools, tokenize=False)
                if all(message["content"] in text for message in messages if message["role"] == "user"):
                    return tokenizer.apply_chat_template(written, tools=tools, **options) if options else text
            except Exception:
                continue
    return None


class OnOneDay(datetime):
    """transformers prints the day's date in templates that ask for it, and ours always the same."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return cls(TODAY.year, TODAY.month, TODAY.day)


@pytest.mark.parametrize("name", TEMPLATES)
def test_encode__every_template_of_trl(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stated differences to TRL's masks.

    Not trained on: what follows the end of a turn (white space, and the <|endoftext|> that Phi-3 prints after the last one), what
    the generation prompt prints before an answer (a header that TRL's patch puts inside, or an opening <think>), and a turn that
    is nothing but calls which the template does not print. Trained on in addition: a control token that ends a turn by beginning
    the next (of GLM, and of Gemma's tools).
    """
    monkeypatch.setattr(chat_template_utils, "datetime", OnOneDay)
    template = TEMPLATES[name].read_text(encoding="utf-8")
    tokenizer = tokenizer_of(template)
    marked = trl_templates.has_generation_markers(template)
    refused = 0
    for kind, (messages, tools) in CONVERSATIONS.items():
        text = rendered_by_transformers(tokenizer, messages, tools)
        if text is None:
            refused += 1
            with pytest.raises(NoTargets):
                encode(tokenizer, messages, max_length=9999, tools=tools)
            continue
        assert render(tokenizer, messages, tools)[0].text == text, kind
        encoded = encode(tokenizer, messages, max_length=9999, tools=tools)
        trained = runs(tokenizer, encoded.input_ids, encoded.target)
        for message in messages:
            if message["role"] != "assistant":
                assert not any(message["content"] in run for run in trained), kind
            elif (said := message["content"].split("</think>")[-1].strip()) in text:
                assert any(said in run for run in trained), kind
            if message.get("reasoning") and message["reasoning"] + "\n" in text:
                assert any(message["reasoning"] in run for run in trained), kind
            if message.get("tool_calls") and text.count("Paris"):
                assert any("Paris" in run for run in trained), kind
        if marked:
            mask = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
            theirs = rendered_by_transformers(tokenizer, messages, tools, **mask)
            prompt = tokenizer.apply_chat_template(
                api_messages([QUESTION], parts=text != "" and "[0]['t" in template, arguments_as_text=False),
                tokenize=False,
                add_generation_prompt=True,
            )
            masked = runs(tokenizer, theirs["input_ids"], theirs["assistant_masks"])
            for ours, of_trl in zip(trained, (run for run in masked if SPECIAL.sub("", run).strip()), strict=True):
                header, found, rest = of_trl.partition(ours if ours in of_trl else re.sub(STOPS + "$", "", ours))
                assert found, (kind, ours, of_trl)
                assert rest.strip() in ("", "<|endoftext|>"), (kind, ours, of_trl)
                assert not header or header in prompt, (kind, ours, of_trl)
    assert refused <= 3
