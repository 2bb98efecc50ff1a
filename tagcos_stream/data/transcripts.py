"""Conversations written out as one text with marks between the turns: ChatML, Llama 2 and 3, Gemma, Zephyr, Vicuna, HH-RLHF.

A text is taken apart at the marks of one form alone, all of it: what precedes the first mark must be white space or the token
that begins every text, and no turn may hold a further mark, so that no text is lost and no mark is trained on.
"""

from __future__ import annotations

import re
from collections.abc import Set
from dataclasses import dataclass, replace
from itertools import pairwise

from tagcos_stream.data.reasons import RowError


@dataclass(frozen=True)
class Form:
    """How a kind of transcript marks its turns.

    mark: a pattern with the group `role`, at a turn's begin. ends: its tokens that close a turn. strikes: whether <s> and </s>
    are HTML within a turn, not tokens. left: what no turn may hold, besides the tokens of all forms: a mark at a place where it
    does not count. words: whether the marks are words, which people write in ordinary text, too. plain: whether they are so
    common that the form is read only where the shape is asked for, or in a prompt that ends where its answer begins.
    """

    mark: re.Pattern[str]
    ends: tuple[str, ...] = ()
    strikes: bool = True
    left: re.Pattern[str] | None = None
    words: bool = False
    plain: bool = False


FORMS: dict[str, Form] = {
    "chatml": Form(re.compile(r"<\|im_start\|>(?P<role>\w+)\n"), ("<|im_end|>",)),
    "llama3": Form(
        re.compile(r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n\n"), ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
    ),
    "gemma": Form(re.compile(r"<start_of_turn>(?P<role>\w+)\n"), ("<end_of_turn>", "<eos>")),
    "zephyr": Form(
        re.compile(r"(?:^|\n)<\|(?P<role>system|user|assistant)\|>\n"), ("</s>", "<|end|>", "<|endoftext|>"), strikes=False
    ),
    # in OpenAssistant's guanaco the marks follow the text without a line break; one in quotes is spoken of
    "vicuna": Form(
        re.compile(r"(?<![#`'\"])### ?(?P<role>System|Human|User|Assistant): ?"),
        left=re.compile(r"(?<!#)### ?(?:System|Human|User|Assistant):"),
        words=True,
    ),
    "hh": Form(
        re.compile(r"(?:\A\s*|\n\n)(?P<role>Human|Assistant):"),
        left=re.compile(r"(?m)^[ \t]*(?:Human|Assistant):"),
        words=True,
    ),
    "glaive": Form(
        re.compile(r"(?:^|\s)(?P<role>SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE): "), ("<|endoftext|>",), words=True, plain=True
    ),
    # BELLE's prompts of several turns
    "lines": Form(re.compile(r"(?:\A\s*|\n)(?P<role>Human|Assistant):"), words=True, plain=True),
}
_ANSWERS = ("assistant", "model")  # words of roles in marks
# of HelpSteer: between the turns only, so that the prompt begins with the text of the user
BETWEEN = "\n<extra_id_1>"
_BETWEEN = re.compile(rf"{BETWEEN}(?P<role>User|Assistant)\n")
# how a text begins that may be a transcript, for regular expressions of Python and of Polars alike
BEGINS = (
    r"^[ \t\r\n]*(?:<s>|<bos>|<\|(?:begin_of_text|im_start|start_header_id|system|user|assistant)\|>|<start_of_turn>"
    r"|\[INST\]|Human:|### ?(?:System|Human|User|Assistant):)"
)
_BEGINS = re.compile(BEGINS)
_HEAD = re.compile(r"(?:\s|<s>|<bos>|<\|begin_of_text\|>)*")
# close a turn, or a text: tokenizers add that of the text, whatever closes a turn in the form
_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "<end_of_turn>",
)  # fmt: skip
_STRIKES = frozenset({"<s>", "</s>"})
_TOKEN = re.compile(
    r"<\|\w+\|>|<｜[^｜<>]{1,40}｜>|</?s>|<eos>|<(?:start|end)_of_turn>|<</?SYS>>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
)
_LLAMA2 = re.compile(r"\A\s*(?:<s>)?\s*\[INST\]")
_LLAMA2_HEAD = re.compile(r"\s*(?:<s>)?\s*")
_LLAMA2_SYSTEM = re.compile(r"\A<<SYS>>(?P<system>.*?)<</SYS>>", re.DOTALL)


def looks_like_transcript(value: object) -> bool:
    """Whether a value is text with unmistakable marks of a form, those of an assistant among them."""
    if not isinstance(value, str):
        return False
    if _LLAMA2.match(value):
        return "[/INST]" in value
    form = _form_of(value)
    return form is not None and not form.plain


def has_plain_marks(text: str) -> bool:
    """Whether a text begins with the mark of a form that is read only where the shape is asked for, and has an assistant's."""
    form = _form_of(text)
    return form is not None and form.plain and _begins(form, text)


def begins_as_transcript(text: str) -> bool:
    """Whether a text has a transcript's mark at its begin, and looks like one."""
    return _BEGINS.match(text) is not None and looks_like_transcript(text)


def transcript_turns(text: str, what: str) -> list[dict[str, str]]:
    """The turns of a transcript, each {role, content}.

    Parameters
    ----------
    text
        All of it.
    what
        Names the text in messages.

    Raises
    ------
    RowError
        The text has no marks that are known, text outside its turns, or marks within them.
    """
    if _LLAMA2.match(text):
        return _llama2(text, what)
    form = _form_of(text)
    if form is None:
        raise RowError("unknown_shape", f"{what} has no marks of turns that are known: {', '.join(FORMS)}, llama2")
    return _without_open(_marked(text, what, _with_ends_of(form, text)))


def continued(prompt: str, answer: str, names: tuple[str, str]) -> tuple[list[dict[str, str]], str] | None:
    """A prompt that is written out as a transcript, up to the mark of the answer.

    Parameters
    ----------
    prompt
        May end in the mark of the answer.
    answer
        May begin with it.
    names
        Of both, for messages.

    Returns
    -------
    tuple or None
        The turns of the prompt, and the answer without marks at its ends; None for a prompt that is plain text.

    Raises
    ------
    RowError
        The prompt begins with the tokens of a form, and does not end as a prompt of that form.
    """
    if marks := list(_BETWEEN.finditer(prompt)):
        return _turns_between(prompt, marks, names[0]), answer
    if not _BEGINS.match(prompt):
        return None
    if _LLAMA2.match(prompt):
        if not prompt.rstrip().endswith("[/INST]"):
            raise _no_prompt(names[0])
        return _llama2(prompt, names[0]), _closed(answer, names[1], None)
    form = next((form for form in FORMS.values() if not form.plain and _begins(form, prompt)), None)
    if form is None:
        return None
    if (mark := form.mark.match(answer)) and mark["role"].lower() in _ANSWERS:
        prompt, answer = prompt + answer[: mark.end()], answer[mark.end() :]
    if not _ends_in_mark(form, prompt):
        lines = FORMS["lines"]
        if form.words and _begins(lines, prompt) and _ends_in_mark(lines, prompt) and _alternates(lines, prompt):
            return _without_open(_marked(prompt, names[0], lines)), _closed(answer, names[1], lines)
        if form.words:
            return None
        raise _no_prompt(names[0])
    form = _with_ends_of(form, prompt)
    return _without_open(_marked(prompt, names[0], form)), _closed(answer, names[1], form)


def _ends_in_mark(form: Form, prompt: str) -> bool:
    """Whether nothing follows the last mark of the prompt, and it is an assistant's."""
    *_, last = form.mark.finditer(prompt)
    return last["role"].lower() in _ANSWERS and not prompt[last.end() :].strip()


def _alternates(form: Form, prompt: str) -> bool:
    return all(i % 2 == (mark["role"].lower() in _ANSWERS) for i, mark in enumerate(form.mark.finditer(prompt)))


def _turns_between(prompt: str, marks: list[re.Match[str]], what: str) -> list[dict[str, str]]:
    """The turns of a prompt that begins with the user's text and has marks between its turns."""
    turns, role, begin = [], "user", 0
    for mark in marks:
        turns.append({"role": role, "content": prompt[begin : mark.start()]})
        role, begin = mark["role"].lower(), mark.end()
    if rest := prompt[begin:]:
        turns.append({"role": role, "content": rest})
    if turns[-1]["role"] != "user":
        raise _no_prompt(what)
    return turns


def _no_prompt(what: str) -> RowError:
    return RowError(
        "unsupported_content",
        f"{what} has the marks of a transcript and does not end where the answer begins: write the turns as `messages`",
    )


def _form_of(text: str) -> Form | None:
    """The form with an assistant's mark in the text; of several, the one whose marks the text begins with."""
    first = None
    for form in FORMS.values():
        if any(mark["role"].lower() in _ANSWERS for mark in form.mark.finditer(text)):
            if _begins(form, text):
                return form
            first = first or form
    return first


def _begins(form: Form, text: str) -> bool:
    first = form.mark.search(text)
    return first is not None and _HEAD.fullmatch(text, 0, first.start()) is not None


def _with_ends_of(form: Form, text: str) -> Form:
    """The form with those of its ends that close turns of the text, so that other ones may be spoken of in it."""
    marks, used = list(form.mark.finditer(text)), set()
    for mark, following in pairwise(marks):
        used |= {token for _, token in _last_tokens(text[mark.end() : following.start()])[-1:]}
    last = [token for _, token in _last_tokens(text[marks[-1].end() :]) if token in form.ends]
    if used.isdisjoint(last):  # else what is behind them may be of the whole text
        used |= set(last[:1])
    return replace(form, ends=tuple(end for end in form.ends if end in used) or form.ends)


def _marked(text: str, what: str, form: Form) -> list[dict[str, str]]:
    marks = list(form.mark.finditer(text))
    before = text[: marks[0].start()]
    if not _HEAD.fullmatch(before):
        raise RowError("unread_field", f"{what} has text before the first turn: {before.strip()[:60]!r}")
    turns = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        content = text[mark.end() : following.start() if following else len(text)]
        turns.append({"role": _word(mark["role"]), "content": _closed(content, what, form)})
    return turns


def _without_open(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The turns without the last ones that are only a mark, which asks for the next answer."""
    end = len(turns)
    while end > 1 and not turns[end - 1]["content"]:
        end -= 1
    return turns[:end]


def _word(role: str) -> str:
    return {"function response": "tool"}.get(role.lower(), role.lower())


def _closed(content: str, what: str, form: Form | None) -> str:
    """The content without the tokens that close it, and without white space at its ends, which belongs to the form."""
    ends, strikes = (form.ends, form.strikes) if form is not None else (("</s>",), False)
    tokens = _last_tokens(content)
    closing = next((found for found in tokens if found[1] in ends), None)
    text = content[: closing[0] if closing else _foreign_end(content, tokens, strikes)]
    allowed = set(_STRIKES if strikes else ())
    for own in ends:
        if (at := text.find(own)) >= 0:
            behind = content[at + len(own) :].strip()
            raise RowError("unread_field", f"{what} has text behind the end of a turn: {behind[:60]!r}")
    if closing:  # its turn is whole: other ends within are spoken of
        allowed |= set(_ENDS) - _STRIKES
    return _without_marks(text.strip(), what, form, allowed)


def _last_tokens(content: str) -> list[tuple[int, str]]:
    """The tokens that nothing but white space follows, each with its begin."""
    found: list[tuple[int, str]] = []
    if not content.rstrip().endswith(">"):  # as every token does
        return found
    end = len(content)
    while True:
        while end and content[end - 1].isspace():
            end -= 1
        token = next((token for token in (*_ENDS, "<s>") if content.endswith(token, 0, end)), None)
        if token is None:
            return found[::-1]
        end -= len(token)
        found.append((end, token))


def _foreign_end(content: str, tokens: list[tuple[int, str]], strikes: bool) -> int:
    """Where the first of the last tokens is that closes the content, else its end; a </s> of HTML belongs to its <s>."""
    if not tokens:
        return len(content)
    before = content[: tokens[0][0]]
    opened = before.count("<s>") - before.count("</s>") if strikes else 0
    for begin, token in tokens:
        if token == "<s>":
            opened += strikes
        elif token == "</s>" and opened > 0:
            opened -= 1
        else:
            return begin
    return len(content)


def _without_marks(content: str, what: str, form: Form | None = None, allowed: Set[str] = frozenset()) -> str:
    """The content itself. RowError where it holds a mark, other than the tokens that are allowed."""
    found = next((token for token in _TOKEN.finditer(content) if token[0] not in allowed), None)
    if found is None and form is not None and form.left is not None:
        found = form.left.search(content)
    if found:
        raise RowError(
            "unsupported_content", f"{what} has a mark within a turn, {found[0].strip()!r}: write the turns as `messages`"
        )
    return content


def _llama2(text: str, what: str) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    position, end, close = 0, len(text.rstrip()), -1
    while position < end:
        head = _LLAMA2_HEAD.match(text, position)
        begin = head.end() if head else position
        middle = text.find("[/INST]", begin) if text.startswith("[INST]", begin) else -1
        if middle < 0:
            raise RowError("unread_field", f"{what} has text between or behind its turns: {text[position:].strip()[:60]!r}")
        user, answer = text[begin + len("[INST]") : middle].strip(), middle + len("[/INST]")
        if not turns and (system := _LLAMA2_SYSTEM.match(user)):
            turns.append({"role": "system", "content": system["system"].strip()})
            user = user[system.end() :].strip()
        turns.append({"role": "user", "content": user})
        # an answer ends at its mark, at the next turn, or with the text
        if close < answer:
            close = _found(text, "</s>", answer)
        following = _found(text, "[INST]", answer)
        reply = text[answer : min(close, following)].strip()
        if close < following:
            position = close + len("</s>")
        else:
            position, reply = following, reply.removesuffix("<s>").strip()
        if reply:
            turns.append({"role": "assistant", "content": reply})
    for turn in turns:
        _without_marks(turn["content"], what)
    return turns


def _found(text: str, mark: str, begin: int) -> int:
    """Position of the mark from `begin` on, or the text's length."""
    found = text.find(mark, begin)
    return len(text) if found < 0 else found
