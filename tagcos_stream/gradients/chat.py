"""A conversation as tokens, and which of them are trained on.

The text is the tokenizer's own chat template (or PLAIN_TEMPLATE), rendered whole and tokenised once, with offsets. Which
characters belong to which message is read off the template itself: the conversation is rendered a second time with a sentinel
for every message's content, and what lies between the sentinels is the template's scaffolding. Where the template rewrites
contents (so that the scaffolding and the contents do not add up to the text), one message at a time is replaced instead.

Dimension letters: T tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jinja2 import TemplateError

from tagcos_stream.types import Message, UserError

# The open-instruct format, which the released codes of LESS and TAGCOS train on: for tokenizers without a template of their own.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# Private-use characters: no template rewrites them, no text worth training on holds them.
_SENTINEL = "\ue0f3{}\ue0f4"
_SENTINEL_PATTERN = re.compile("\ue0f3(\\d+)\ue0f4")


class NoTargets(ValueError):
    """No token is left to train on; the example is rejected with this reason."""


class TemplateRefused(NoTargets):
    """The chat template raises an error on this conversation (roles that do not alternate, for example)."""


@dataclass(frozen=True)
class Encoded:
    """One conversation: input_ids (T,) int32; target (T,) bool, where target[t] means that the prediction of token t from those
    before it counts (so target[0] is never set); truncated when the end was cut off at the maximum length."""

    input_ids: np.ndarray
    target: np.ndarray
    truncated: bool

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_target(self) -> int:
        return int(self.target.sum())


def encode(tokenizer: Any, messages: Sequence[Message], *, max_length: int, tools: list | str | None = None) -> Encoded:
    """The conversation as (T,) ids and target mask, cut to the first `max_length` tokens.

    Trained on: of every assistant turn its content and its end-of-turn mark; or, where a message has `train` ranges, the
    tokens that touch them (the end-of-turn mark too when a range reaches the end of the content). `tools` (a list, or its
    JSON) go to the template. Raises NoTargets where nothing is left to train on.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"tokenizer {type(tokenizer).__name__} gives no character offsets: use a model with a fast tokenizer")
    text, turns = render(tokenizer, messages, tools)
    spans = [span for message, turn in zip(messages, turns, strict=True) for span in _trained_spans(message, *turn)]
    if not spans:
        raise NoTargets("no assistant turn to train on")
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    input_ids = np.asarray(encoding["input_ids"], np.int32)
    offsets = np.asarray(encoding["offset_mapping"], np.int64).reshape(-1, 2)
    truncated = len(input_ids) > max_length
    input_ids, offsets = input_ids[:max_length], offsets[:max_length]
    target = np.zeros(len(input_ids), bool)
    for begin, end in spans:
        target |= (offsets[:, 0] < end) & (offsets[:, 1] > begin)
    target[:1] = False
    if not target.any():
        raise NoTargets(f"no target token within the first {max_length} tokens" if truncated else "no target token")
    return Encoded(input_ids, target, truncated)


def template_fingerprint(tokenizer: Any) -> str:
    """Hash of the chat template in use and of the special tokens that it may print."""
    content = json.dumps([_template(tokenizer), sorted((k, str(v)) for k, v in tokenizer.special_tokens_map.items())])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


Turn = tuple[
    int, int, int, str
]  # content's first and past-the-last character, end of its end-of-turn mark, the content as printed


def render(tokenizer: Any, messages: Sequence[Message], tools: list | str | None = None) -> tuple[str, list[Turn]]:
    """The templated text and, for each message, where in it its content and its end-of-turn mark lie."""
    tool_list = json.loads(tools) if isinstance(tools, str) else tools
    plain = [_template_message(message) for message in messages]

    def apply(contents: Mapping[int, str]) -> str:
        shown = [{**message, "content": contents.get(i, message["content"])} for i, message in enumerate(plain)]
        try:
            return tokenizer.apply_chat_template(
                shown, tools=tool_list or None, tokenize=False, chat_template=_template(tokenizer)
            )
        except TemplateError as error:
            raise TemplateRefused(f"the chat template refuses this conversation: {error}") from error

    text = apply({})
    places = _by_scaffolding(text, plain, apply({i: _SENTINEL.format(i) for i in range(len(plain))}))
    if places is None:
        places = [_by_substitution(text, apply({i: _SENTINEL.format(i)}), _SENTINEL.format(i)) for i in range(len(plain))]
    end_mark = _end_mark(tokenizer)
    turns = []
    for begin, end in places:
        mark = end_mark.match(text, end)
        turns.append((begin, end, mark.end() if mark else end, text[begin:end]))
    return text, turns


def render_prompt(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The templated text of a conversation up to where the assistant's next turn begins."""
    plain = [_template_message(message) for message in messages]
    return str(
        tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True, chat_template=_template(tokenizer))
    )


def _by_scaffolding(text: str, messages: Sequence[dict], skeleton: str) -> list[tuple[int, int]] | None:
    """Content spans from one rendering with every content replaced; None where contents and scaffolding do not add up."""
    pieces = _SENTINEL_PATTERN.split(skeleton)
    if pieces[1::2] != [str(i) for i in range(len(messages))]:
        return None
    places, cursor = [], 0
    for i, message in enumerate(messages):
        begin = cursor + len(pieces[2 * i])
        if text[cursor:begin] != pieces[2 * i]:
            return None
        content, following = message["content"], pieces[2 * i + 2]
        forms = (content, content.strip(), content.rstrip(), content.lstrip())  # many templates trim
        end = next(
            (begin + len(f) for f in forms if text.startswith(f, begin) and text.startswith(following, begin + len(f))), None
        )
        if end is None:
            return None
        places.append((begin, end))
        cursor = end
    return places if text[cursor:] == pieces[-1] else None


def _by_substitution(text: str, changed: str, sentinel: str) -> tuple[int, int]:
    """Content span of one message: what is left of the text between the parts before and after its sentinel."""
    before, found, after = changed.partition(sentinel)
    if not found or not text.startswith(before) or not text.endswith(after) or len(before) + len(after) > len(text):
        return 0, 0  # not printed, or printed in a way that moves other text: nothing of it can be trained on with certainty
    return len(before), len(text) - len(after)


def _trained_spans(message: Message, begin: int, end: int, turn_end: int, printed: str) -> list[tuple[int, int]]:
    ranges = message.get("train")
    if turn_end == 0:
        return []
    if ranges is None:
        return [(begin, turn_end)] if message["role"] == "assistant" else []
    content = message["content"]
    shift = content.find(printed)  # more than 0 where the template trimmed; -1 where it rewrote the content
    if shift < 0:
        return []
    spans = []
    for span in ranges:
        stop = turn_end if span["end"] >= len(content.rstrip()) else min(begin + span["end"] - shift, end)
        spans.append((max(begin, begin + span["begin"] - shift), stop))
    return [(a, b) for a, b in spans if a < b]


def _template_message(message: Message) -> dict:
    plain = {"role": message["role"], "content": message["content"]}
    if message.get("name"):
        plain["name"] = str(message["name"])
    return plain


def _template(tokenizer: Any) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default") or next(iter(template.values()))
    return template or PLAIN_TEMPLATE


@lru_cache(maxsize=8)
def _end_mark(tokenizer: Any) -> re.Pattern[str]:
    """What ends a turn: the special token right after the content; where the template uses none, the white space there."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} | set(
        tokenizer.all_special_tokens
    )
    tokens = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True) if token)
    return re.compile(rf"\s*(?:{tokens})|\s+" if tokens else r"\s+")
