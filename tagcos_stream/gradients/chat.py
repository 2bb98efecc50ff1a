"""A conversation as tokens, and which of them are trained on.

The text is the tokenizer's own chat template (or PLAIN_TEMPLATE), rendered whole and tokenised once, with offsets. Which
characters are trained on is read off the template itself (`mask.py`).

Dimension letters: T tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from tagcos_stream.gradients import mask
from tagcos_stream.gradients import special_tokens as special
from tagcos_stream.gradients.mask import REASONING, Layout, MaskUnproved
from tagcos_stream.gradients.template import ChatTemplate, TemplateFailed, TemplateRefused, chat_template
from tagcos_stream.gradients.template_tracker import CLOCK, TODAY
from tagcos_stream.types import Message, UserError

# The open-instruct format, which the released codes of LESS and TAGCOS train on: for tokenizers without a template of their own.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# Arguments of apply_chat_template that a row's chat_template_kwargs cannot set.
_RESERVED = frozenset({"messages", "conversation", "tools", "chat_template", "tokenize", "add_generation_prompt", "return_dict"})

SpecialTokens = Literal["keep", "escape", "reject"]


class NoTargets(ValueError):
    """The example is rejected with this message; `reason` is the short form under which rejects are counted."""

    reason = "no target tokens"


class TemplateRejects(NoTargets):
    """The chat template raises an error of its own on this conversation (roles that do not alternate, for example)."""

    reason = "refused by chat template"


class TemplateBreaks(NoTargets):
    """The chat template has a fault that shows on this conversation."""

    reason = "chat template failed"


class Unproved(NoTargets):
    """It cannot be proved which of the text belongs to the assistant."""

    reason = "loss mask not proved"


class SpecialTokenInText(NoTargets):
    """A text holds what the tokenizer reads as a control token, and `special_tokens` is reject."""

    reason = "special token in text"


class CallsUnprinted(NoTargets):
    """All that there is to train on are tool calls, which the chat template does not print.

    Training on the end of such a turn alone would teach the model to answer nothing.
    """

    reason = "tool calls not printed by chat template"


@dataclass(frozen=True)
class Encoded:
    """One conversation of T tokens.

    Parameters
    ----------
    input_ids
        (T,) int32.
    target
        (T,) bool: target[t] means that the prediction of token t from those before it counts, so target[0] is never set.
    truncated
        Whether the end was cut off at the maximum length.
    special_tokens
        Number of control tokens in texts of the conversation.
    unprinted
        Whether the template leaves out tool calls of turns that are trained on, or the reasoning of the last answer.
    """

    input_ids: np.ndarray
    target: np.ndarray
    truncated: bool
    special_tokens: int = 0
    unprinted: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_target(self) -> int:
        """Number of target tokens."""
        return int(self.target.sum())


def encode(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    max_length: int,
    tools: list | str | None = None,
    template_kwargs: Mapping[str, Any] | str | None = None,
    special_tokens: SpecialTokens = "keep",
) -> Encoded:
    """Encode a conversation as ids and target mask, cut to the first `max_length` tokens.

    Trained on: of every assistant turn all that follows the generation prompt (reasoning, content and tool calls, as the
    template prints them) and its end-of-turn mark; or, where a message has `train` ranges, the tokens that touch them (the
    end-of-turn mark too when a range reaches the end of the content).

    Parameters
    ----------
    tokenizer : transformers tokenizer
        A fast one, since character offsets are needed.
    messages : sequence of Message
    max_length : int
        Tokens.
    tools : list of dict or str, optional
        Tool schemas, or their JSON, for the template.
    template_kwargs : mapping or str, optional
        Further variables of the template (`chat_template_kwargs` of a row), or their JSON.
    special_tokens : {"keep", "escape", "reject"}
        What to do with control tokens in the texts of the conversation, such as <|im_end|>: encode them as the tokenizer does
        and count them, encode them as plain text, or reject the example.

    Returns
    -------
    Encoded
        With at least one target token.

    Raises
    ------
    NoTargets
        Nothing is left to train on, or one of its subclasses: the template refuses or fails, or the mask cannot be proved.
    UserError
        The tokenizer or its template cannot be used for any conversation.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"tokenizer {type(tokenizer).__name__} gives no character offsets: use a model with a fast tokenizer")
    inside = special.in_texts(tokenizer, messages, tools)
    if inside and special_tokens == "reject":
        raise SpecialTokenInText(f"{len(inside)} special tokens in its texts, such as {inside[0]}")
    escaping = bool(inside) and special_tokens == "escape"
    if escaping:
        messages, tools = special.escaped(tokenizer, messages, tools)
    layout, spans, unprinted = render(tokenizer, messages, tools, template_kwargs)
    if not spans:
        if any(message.get("tool_calls") for message in messages):
            raise CallsUnprinted("no assistant turn to train on: the chat template prints none of its tool calls")
        raise NoTargets("no assistant turn to train on")
    input_ids, offsets = special.tokenise(tokenizer, layout.text, escaped=escaping)
    truncated = len(input_ids) > max_length
    input_ids, offsets = input_ids[:max_length], offsets[:max_length]
    target = np.zeros(len(input_ids), bool)
    for begin, end in spans:
        target |= (offsets[:, 0] < end) & (offsets[:, 1] > begin)
    target[:1] = False
    if not target.any():
        raise NoTargets(f"no target token within the first {max_length} tokens" if truncated else "no target token")
    return Encoded(input_ids, target, truncated, len(inside), unprinted)


def template_fingerprint(tokenizer: Any) -> str:
    """Hash the chat template in use, the special tokens that it may print, and the date if it may print one.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer.

    Returns
    -------
    str
        32 hex digits.
    """
    plain, with_tools = _source(tokenizer, None), _source(tokenizer, [{}])
    used = [plain] if plain == with_tools else [plain, with_tools]
    date = [str(TODAY)] if any(CLOCK in source for source in used if source) else []
    content = json.dumps([*used, sorted((k, str(v)) for k, v in tokenizer.special_tokens_map.items()), *date])
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: list | str | None = None,
    template_kwargs: Mapping[str, Any] | str | None = None,
) -> tuple[Layout, list[mask.Span], bool]:
    """Render a conversation and find the characters that are trained on.

    Parameters
    ----------
    tokenizer, messages, tools, template_kwargs
        As for `encode`.

    Returns
    -------
    tuple
        The templated text with the places of its messages, the [begin, end) characters of it that are trained on, and whether
        the template leaves out what would be (`Encoded.unprinted`).

    Raises
    ------
    NoTargets
        As `encode`.
    """
    template, variables = _prepared(tokenizer, tools, template_kwargs)
    size = sum(len(m["content"]) + len(m.get("reasoning") or "") + len(m.get("tool_calls") or "") for m in messages)
    parts, openers = _reading(template, json.dumps({k: v for k, v in variables.items() if k != "tools"}, sort_keys=True))
    try:
        try:
            layout = mask.locate(template, _shown(template, messages, parts), variables, size)
        except TemplateFailed:
            if not any(message.get("tool_calls") for message in messages):
                raise
            # some templates concatenate arguments as they come from an API: as JSON text
            layout = mask.locate(template, _shown(template, messages, parts, arguments_as_text=True), variables, size)
        given = (layout, messages, openers, special.end_mark(tokenizer))
        return layout, mask.spans(*given), mask.unprinted(*given)
    except TemplateRefused as error:
        raise TemplateRejects(str(error)) from error
    except TemplateFailed as error:
        raise TemplateBreaks(str(error)) from error
    except MaskUnproved as error:
        raise Unproved(f"{template.label}: {error}") from error


def render_prompt(tokenizer: Any, messages: Sequence[Message], tools: list | str | None = None) -> str:
    """Render a conversation up to where the assistant's next turn begins.

    Parameters
    ----------
    tokenizer, messages, tools
        As for `encode`.

    Returns
    -------
    str
        The templated text.

    Raises
    ------
    UserError
        The template cannot print this conversation.
    """
    template, variables = _prepared(tokenizer, tools, None)
    parts, _ = _reading(template, json.dumps({k: v for k, v in variables.items() if k != "tools"}, sort_keys=True))
    try:
        return template.render(_shown(template, messages, parts), {**variables, "add_generation_prompt": True})
    except (TemplateRefused, TemplateFailed) as error:
        raise UserError(f"{error}: it cannot print this conversation as a prompt") from error


def _prepared(
    tokenizer: Any, tools: list | str | None, template_kwargs: Mapping[str, Any] | str | None
) -> tuple[ChatTemplate, dict[str, Any]]:
    """The template for a conversation and its variables besides the messages, as apply_chat_template passes them."""
    tool_list = (json.loads(tools) if isinstance(tools, str) else tools) or None
    given = (json.loads(template_kwargs) if isinstance(template_kwargs, str) else template_kwargs) or {}
    reserved = sorted(_RESERVED & given.keys())
    if reserved:
        raise TemplateRejects(f"chat_template_kwargs sets {', '.join(reserved)}, which a row cannot set")
    template = chat_template(_source(tokenizer, tool_list), str(getattr(tokenizer, "name_or_path", "")) or "this tokenizer")
    fixed = {"documents": None, "add_generation_prompt": False}
    return template, {**fixed, **tokenizer.special_tokens_map, **given, "tools": tool_list}


@lru_cache(maxsize=64)
def _reading(template: ChatTemplate, variables: str) -> tuple[bool, tuple[str, ...]]:
    """(whether the template takes contents as lists of parts only, the openers of an assistant's turn)."""
    given = {**json.loads(variables), "tools": None}
    probe: list[Message] = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]

    def prints(parts: bool) -> bool:
        try:
            text = template.render(_shown(template, probe, parts), given, probe=True)
        except (TemplateRefused, TemplateFailed):
            return False
        return all(message["content"] in text for message in probe)

    plain = prints(False)
    parts = not plain and prints(True)
    if not plain and not parts:
        return False, ()
    return parts, tuple(mask.openers(template, lambda messages: _shown(template, messages, parts), given))


def _shown(
    template: ChatTemplate, messages: Sequence[Message], parts: bool, arguments_as_text: bool = False
) -> list[dict[str, Any]]:
    """Messages as a template reads them."""
    shown = []
    for message in messages:
        content = message["content"]
        plain: dict[str, Any] = {
            "role": message["role"],
            "content": [{"type": "text", "text": content}] if parts else content,
        }
        if message.get("name"):
            plain["name"] = str(message["name"])
        if message.get("tool_call_id"):
            plain["tool_call_id"] = message["tool_call_id"]
        if message.get("reasoning"):
            # the names that transformers fills, and the third where a template reads no other
            known = [name for name in REASONING[:2] if name in template.source]
            plain |= dict.fromkeys(REASONING[:2] if known else REASONING, message["reasoning"])
        if message.get("tool_calls"):
            plain["tool_calls"] = [_call(call, arguments_as_text) for call in json.loads(str(message["tool_calls"]))]
        shown.append(plain)
    return shown


def _call(call: dict[str, Any], arguments_as_text: bool) -> dict[str, Any]:
    """A tool call with its arguments as an object (or as JSON text)."""
    if isinstance(call.get("function"), dict):
        return {**call, "function": _call(call["function"], arguments_as_text)}
    arguments = call.get("arguments")
    if arguments_as_text and arguments is not None and not isinstance(arguments, str):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    if not arguments_as_text and isinstance(arguments, str):
        try:
            return {**call, "arguments": json.loads(arguments)}
        except ValueError:
            return call
    return call


def _source(tokenizer: Any, tools: list | None) -> str:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        named = template.get("tool_use") if tools is not None else None
        template = named or template.get("default") or next(iter(template.values()))
    return template or PLAIN_TEMPLATE
