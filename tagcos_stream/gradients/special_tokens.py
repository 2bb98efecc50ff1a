"""Control tokens, such as <|im_end|>, in the texts of a conversation: counted, or encoded as the plain text that they are there.

For encoding as text they are replaced by single private-use characters before the template is rendered, so that the template's
own control tokens remain what they are; the text is then tokenised piece by piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from tagcos_stream.types import Message

_FIRST = 0xF0000  # where the replacing characters begin: a private-use plane


@lru_cache(maxsize=8)
def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The tokenizer's control tokens, longest first."""
    tokens = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special} | set(
        tokenizer.all_special_tokens
    )
    return tuple(sorted((token for token in tokens if token), key=len, reverse=True))


@lru_cache(maxsize=8)
def pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches any control token."""
    return re.compile("|".join(map(re.escape, special_tokens(tokenizer))) or "(?!)")


@lru_cache(maxsize=8)
def end_mark(tokenizer: Any) -> re.Pattern[str]:
    """What ends a turn: a control token after white space, as the first group; or white space."""
    return re.compile(rf"\s*({pattern(tokenizer).pattern})|\s+")


def in_texts(tokenizer: Any, messages: Sequence[Message], tools: list | str | None) -> list[str]:
    """The control tokens that stand in contents, reasoning, tool calls and tools, in order."""
    texts = [text for m in messages for text in (m["content"], m.get("reasoning"), m.get("tool_calls")) if text]
    if tools:
        texts.append(tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False))
    return [match[0] for text in texts for match in pattern(tokenizer).finditer(text)]


def escaped(tokenizer: Any, messages: Sequence[Message], tools: list | str | None) -> tuple[list[Message], str | None]:
    """The conversation with every control token in its texts replaced by one private-use character; ranges move along."""
    known, find = special_tokens(tokenizer), pattern(tokenizer)

    def replaced(text: str) -> str:
        clean = re.sub(_replacing(tokenizer), "", text)
        return find.sub(lambda match: chr(_FIRST + known.index(match[0])), clean)

    new = []
    for message in messages:
        changed: Any = {**message, "content": replaced(message["content"])}
        for name in ("reasoning", "tool_calls"):
            if message.get(name):
                changed[name] = replaced(str(message[name]))
        if message.get("train"):
            matches = [match.span() for match in find.finditer(message["content"])]
            changed["train"] = [
                {"begin": _moved(span["begin"], matches, 0), "end": _moved(span["end"], matches, 1)}
                for span in message["train"] or []
            ]
        new.append(changed)
    text = tools if isinstance(tools, str) else json.dumps(tools, ensure_ascii=False) if tools else None
    return new, text and replaced(text)


def tokenise(tokenizer: Any, text: str, escaped: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(ids (T,) int32, offsets (T, 2) int64 in `text`); in an `escaped` text, replaced control tokens become plain text."""
    if not escaped:
        return _encoded(tokenizer, text)
    pieces = re.split(f"({_replacing(tokenizer)})", text)
    known, newline = special_tokens(tokenizer), _encoded(tokenizer, "\n")[0].tolist()
    ids, offsets, position = [], [], 0
    for i, piece in enumerate(pieces):
        if not piece:
            continue
        as_text = i % 2 == 1
        shown = known[ord(piece) - _FIRST] if as_text else piece
        found, places = _encoded(tokenizer, "\n" + shown, split_special_tokens=as_text)
        if position and found[: len(newline)].tolist() == newline:
            # tokenised after a line break, which is taken away again: some tokenizers put a space before any text
            found, places = found[len(newline) :], places[len(newline) :] - 1
        else:
            found, places = _encoded(tokenizer, shown, split_special_tokens=as_text)
        if as_text:
            places = np.tile([0, 1], (len(found), 1))
        ids.append(found)
        offsets.append(places + position)
        position += len(piece)
    return np.concatenate(ids), np.concatenate(offsets)


def _encoded(tokenizer: Any, text: str, split_special_tokens: bool = False) -> tuple[np.ndarray, np.ndarray]:
    more = {"split_special_tokens": True} if split_special_tokens else {}
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False, **more)
    places = encoding["offset_mapping"]  # flattened first: numpy takes three times as long over a list of pairs
    offsets = np.fromiter(chain.from_iterable(places), np.int64, 2 * len(places)).reshape(-1, 2)
    return np.asarray(encoding["input_ids"], np.int32), offsets


def _replacing(tokenizer: Any) -> str:
    return f"[{chr(_FIRST)}-{chr(_FIRST + len(special_tokens(tokenizer)))}]"


def _moved(position: int, matches: Sequence[tuple[int, int]], within: int) -> int:
    """A position in a text after every match became one character; `within` 1 moves one inside a match behind it."""
    shift = 0
    for begin, end in matches:
        if position >= end:
            shift += end - begin - 1
        elif position > begin:
            return begin - shift + within
    return position - shift
