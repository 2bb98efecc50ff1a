"""Tasks asked and scored as by the scripts released with LESS and TAGCOS, which are those of open-instruct: protocol `paper`.

| task | template | shots | questions | reply | score |
|---|---|---|---|---|---|
| mmlu | none | 5 | all | the letter after "Answer:" | mean over questions |
| bbh | none | 3, worked | 40 of a kind | 512 tokens, up to an empty line | equal but for case and punctuation, mean over kinds |
| gsm8k | one turn | 8 | 200 | 512 tokens | last number |
| tydiqa | one turn | as given | 200 of a language, passages of 512 tokens | 50 tokens, one line | F1, mean over languages |

Settings of the scripts: princeton-nlp/LESS `evaluation/eval_*.sh`, 2003pro/TAGCOS `script/eval/*.sh` (which has no gsm8k).
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tagcos_stream.evaluation.questions import Question, Task
from tagcos_stream.evaluation.scorers import number_match, squad_f1
from tagcos_stream.types import UserError

CUT = 512  # tokens of a passage
CONTEXT = 4096  # tokens of the models that the scripts were written for
MOST = {"bbh": 40, "gsm8k": 200, "tydiqa": 200}  # questions of a part
WORDING = "wording.json"  # tydiqa: what else than English the questions are asked in
ENGLISH = ("Answer the following question based on the information in the given passage.", "Passage:", "Question:", "Answer:")
_SO_THE_ANSWER_IS = re.compile(r"So the answer is (.*?)\.")


def at_most(name: str, items: int | None) -> int | None:
    """Questions of each part of a task, where at most `items` are asked for."""
    limits = [limit for limit in (MOST.get(name), items) if limit is not None]
    return min(limits, default=None)


def laid_out(task: Task, folder: Path) -> Task:
    """Return a task as the scripts ask and score it, with the same questions in the same order.

    `task` is as read from its files; `folder`, that of the task, may hold WORDING.

    Raises
    ------
    UserError
        WORDING is not a list of four texts for each language.
    """
    if task.name == "mmlu":
        return replace(task, questions=tuple(map(_mmlu, task.questions)), protocol="paper")
    if task.name == "bbh":
        asked = tuple(replace(question, layout="plain", label="A:") for question in task.questions)
        return replace(
            task, questions=asked, new_tokens=512, score=stated, protocol="paper", stop="\n\n", longest=CONTEXT, by_part=True
        )
    if task.name == "gsm8k":
        asked = tuple(map(_gsm8k, task.questions))
        return replace(task, questions=asked, new_tokens=512, score=number_match, protocol="paper", longest=CONTEXT)
    wording = _wording(folder / WORDING)
    asked = tuple(_tydiqa(question, wording.get(question.part, ENGLISH)) for question in task.questions)
    return replace(
        task, questions=asked, new_tokens=50, score=squad_f1, protocol="paper", stop="\n", longest=CONTEXT, by_part=True
    )


def _mmlu(question: Question) -> Question:
    about = question.part.replace("_", " ")
    return replace(
        question,
        head=f"The following are multiple choice questions (with answers) about  {about}.",  # the scripts print two spaces
        prompt=question.prompt.removesuffix("\nAnswer:"),
        shots=tuple((asked.removesuffix("\nAnswer:"), letter) for asked, letter in question.shots),
        layout="plain",
        label="Answer:",
    )


def _gsm8k(question: Question) -> Question:
    shots = tuple((f"Question: {asked}", answer) for asked, answer in question.shots)
    head = f"Answer the following question{'s' if shots else ''}."
    return replace(
        question, head=head, prompt=f"Question: {question.prompt.strip()}", shots=shots, layout="one turn", label="Answer:"
    )


def _tydiqa(question: Question, wording: Sequence[str]) -> Question:
    instruction, of_passage, of_question, of_answer = wording

    def told(text: str) -> tuple[str, str]:
        """(passage, question) of a text as `tasks.py` makes it."""
        passage, _, asked = text.removesuffix("\nAnswer:").removeprefix("Passage: ").rpartition("\n\nQuestion: ")
        return passage, asked

    def written(text: str) -> str:
        passage, asked = told(text)
        return f"{of_passage} {passage}\n{of_question} {asked}"

    return replace(
        question,
        head=instruction,
        prompt=written(question.prompt),
        shots=tuple((written(asked), answer) for asked, answer in question.shots),
        layout="one turn",
        label=of_answer,
        cut=tuple(told(text)[0] for text in (question.prompt, *(asked for asked, _ in question.shots))),
    )


def _wording(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    for language, texts in found.items() if isinstance(found, dict) else [("", None)]:
        if not isinstance(texts, list) or len(texts) != 4 or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{path}: must map each language to four texts (instruction, and labels of passage, question and answer), "
                f"has {language!r}: {texts!r}"
            )
    return dict(found)


def stated(reply: str, answers: Sequence[str]) -> float:
    """Score a reply of BBH: 1 where the stated answer equals one of `answers` but for case and punctuation.

    It is what follows "So the answer is", up to a full stop; where nothing says so, the first paragraph of the reply.
    """
    found = _SO_THE_ANSWER_IS.search(reply)
    given = found[1].strip() if found else reply.strip().split("\n\n")[0].strip()
    return float(_bare(given) in {_bare(answer) for answer in answers})


def _bare(text: str) -> str:
    return text.lower().translate(str.maketrans("", "", string.punctuation))
