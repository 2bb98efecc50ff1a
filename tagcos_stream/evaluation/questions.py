"""A task: questions with known answers, how they are laid out for a model, and how its replies are scored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tagcos_stream.evaluation.scorers import exact_match

LONGEST = 2048  # tokens of a question with its shots and reply, where the model takes as many
Shots = tuple[tuple[str, str], ...]  # (question, answer)
Layout = Literal["turns", "one turn", "plain"]  # shots as turns; all in one turn of the user; no chat template
Protocol = Literal["chat", "paper"]


@dataclass(frozen=True)
class Question:
    """A question and its right answers."""

    part: str  # subject, kind or language
    prompt: str
    answers: tuple[str, ...]  # any of them is right
    shots: Shots = ()
    head: str = ""  # printed once, before the first shot or the question
    layout: Layout = "turns"
    label: str = ""  # begins every answer in the layouts without turns; the reply follows that of the question
    cut: tuple[str, ...] = ()  # parts of prompt and shots that are cut to CUT tokens


@dataclass(frozen=True)
class Task:
    """Questions of one kind.

    options: what is chosen from by log-likelihood; empty where a reply is written, of at most `new_tokens` tokens up to the text
    `stop`, and scored by score(reply, answers) from 0 to 1.
    """

    name: str
    questions: tuple[Question, ...]
    options: str = ""
    new_tokens: int = 0
    score: Callable[[str, Sequence[str]], float] = exact_match
    protocol: Protocol = "chat"
    stop: str = ""
    longest: int = LONGEST
    by_part: bool = False  # the overall score is the mean over parts, not over questions

    @property
    def digest(self) -> str:
        """Hash of all that is asked, in order, and of how it is asked and scored."""
        whole = [[q.part, q.head, q.prompt, q.answers, q.shots] for q in self.questions]
        content: list[Any] = [whole, self.options, self.new_tokens]
        if self.protocol != "chat":  # digests of the others are those of evaluations made before there were protocols
            laid_out = [[q.layout, q.label, q.cut] for q in self.questions]
            content += [self.protocol, laid_out, self.stop, self.longest, self.by_part, "with <bos>"]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()
