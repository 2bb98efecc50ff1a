"""What a reply is worth: exact scorers of tasks whose answers are short. Each gives a number from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

_NUMBER = re.compile(r"(?:(?<!\d)-)?\d[\d,]*(?:\.\d+)?")  # the - of 16-3 is not a sign
_ANSWER_IS = re.compile(r"answer is:?\s*(.*?)(?:\.(?=\s|$)|\n|$)", re.IGNORECASE)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def last_number(text: str) -> Decimal | None:
    """The last number of a text, thousands separators dropped; None where there is none."""
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def number_match(reply: str, answers: Sequence[str]) -> float:
    """GSM8K: 1 where the last number of the reply equals that of an answer (18 and 18.00 are equal)."""
    given = last_number(reply)
    return float(given is not None and any(given == last_number(answer) for answer in answers))


def stated_answer(reply: str) -> str:
    """What follows the first "answer is" in its line, up to a full stop; where nothing says so, the whole reply."""
    found = _ANSWER_IS.search(reply)
    return found[1] if found else reply


def exact_match(reply: str, answers: Sequence[str]) -> float:
    """BBH: 1 where the stated answer equals one of `answers`, but for case, white space and a full stop at the end."""
    return float(_plain(stated_answer(reply)) in {_plain(answer) for answer in answers})


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".")


def squad_f1(reply: str, answers: Sequence[str]) -> float:
    """TyDiQA: the largest F1 of the words that the reply's first line and an answer share.

    As SQuAD 1.1 counts them (arXiv 1606.05250): lower case, without ASCII punctuation and the articles a, an, the.
    """
    lines = [line for line in reply.splitlines() if line.strip()]
    given = _squad_words(lines[0] if lines else "")
    return max((_f1(given, _squad_words(answer)) for answer in answers), default=0.0)


def _f1(given: list[str], wanted: list[str]) -> float:
    shared = sum((Counter(given) & Counter(wanted)).values())
    if not given or not wanted:
        return float(given == wanted)
    return 2 * shared / (len(given) + len(wanted))


def _squad_words(text: str) -> list[str]:
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return _ARTICLES.sub(" ", bare).split()
