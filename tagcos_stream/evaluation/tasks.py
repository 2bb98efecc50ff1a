"""Questions with known answers, read from files in the shapes in which their authors publish them: docs/evaluation.md.

Shots (questions with their answers, shown before the one that is asked) become turns of the conversation, so that every model
sees them in its own chat template. Under the protocol `paper` they are laid out as in the released scripts (`paper.py`).
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tagcos_stream.evaluation import paper
from tagcos_stream.evaluation.questions import Protocol, Question, Shots, Task
from tagcos_stream.evaluation.scorers import exact_match, number_match, squad_f1
from tagcos_stream.paths import expanded
from tagcos_stream.types import UserError

LETTERS = "ABCD"


def read_tasks(folder: str, names: Sequence[str], items: Mapping[str, int], protocol: Protocol = "chat") -> list[Task]:
    """Read the tasks of a folder: those named, or all that it has data of.

    Of every part at most `items` of its task, those whose text hashes lowest, so that a choice of few is always the same one;
    of a task that `items` lacks, all. The protocol `paper` has limits of its own.

    Raises
    ------
    UserError
        No such folder, no data of a task that is named, or a file that is not what it should be.
    """
    root = expanded(folder)
    if not root.is_dir():
        raise UserError(f"tasks {folder}: no such folder")
    tasks = []
    for name in names or READERS:
        try:
            task = READERS[name](root / name)
        except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"tasks {root / name}: {type(error).__name__} {error}; docs/evaluation.md says what is read"
            ) from error
        if task is not None:
            most = items.get(name) if protocol == "chat" else paper.at_most(name, items.get(name))
            kept = replace(task, questions=tuple(_few(task.questions, most)))
            tasks.append(kept if protocol == "chat" else paper.laid_out(kept, root / name))
        elif names:
            raise UserError(f"tasks {folder}: no data of {name} in {root / name}; docs/evaluation.md says what is read")
    if not tasks:
        raise UserError(f"tasks {folder}: no data of {', '.join(READERS)}; docs/evaluation.md says what is read")
    return tasks


def _few(questions: Sequence[Question], items: int | None) -> Iterator[Question]:
    """At most `items` of every part, in the order given."""
    if items is None:
        yield from questions
        return
    ranked = sorted(questions, key=lambda q: hashlib.blake2b(q.prompt.encode(), digest_size=8).digest())
    taken: dict[str, list[Question]] = {}
    for question in ranked:
        if len(mine := taken.setdefault(question.part, [])) < items:
            mine.append(question)
    kept = {id(question) for mine in taken.values() for question in mine}
    yield from (question for question in questions if id(question) in kept)


def _mmlu(folder: Path) -> Task | None:
    """test/SUBJECT_test.csv, dev/SUBJECT_dev.csv: question, four options, letter; no header."""
    questions = []
    for path in sorted((folder / "test").glob("*_test.csv")):
        subject = path.name.removesuffix("_test.csv")
        head = f"The following are multiple choice questions about {subject.replace('_', ' ')}."
        shown = folder / "dev" / f"{subject}_dev.csv"
        shots = tuple((_choice(row), row[5]) for row in _csv(shown)[:5]) if shown.is_file() else ()
        questions += [Question(subject, _choice(row), (row[5],), shots, head) for row in _csv(path)]
    return Task("mmlu", tuple(questions), options=LETTERS) if questions else None


def _csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    for n, row in enumerate(rows, 1):
        if len(row) != 6 or row[5] not in tuple(LETTERS):
            raise UserError(f"{path} row {n}: must be a question, four options and a letter from {LETTERS}, has {row}")
    return rows


def _choice(row: Sequence[str]) -> str:
    return "\n".join([row[0], *(f"{letter}. {option}" for letter, option in zip(LETTERS, row[1:5], strict=True)), "Answer:"])


def _bbh(folder: Path) -> Task | None:
    r"""Read test/KIND.json: {"examples": [{"input", "target"}]}.

    Shots are of bbh-three-shot.json, or of cot-prompts/KIND.txt after a line of dashes: a description, and shots as
    "Q: ...\nA: ...".
    """
    shown = folder / "bbh-three-shot.json"
    texts: dict[str, str] = json.loads(shown.read_text(encoding="utf-8")) if shown.is_file() else {}
    for path in sorted((folder / "cot-prompts").glob("*.txt")):
        texts.setdefault(path.stem, path.read_text(encoding="utf-8").split("-----\n", 1)[-1])
    questions = []
    for path in sorted((folder / "test").glob("*.json")):
        head, shots = _worked(texts.get(path.stem, ""))
        for example in json.loads(path.read_text(encoding="utf-8"))["examples"]:
            questions.append(Question(path.stem, f"Q: {example['input']}", (str(example["target"]),), shots, head))
    return Task("bbh", tuple(questions), new_tokens=256, score=exact_match) if questions else None


def _worked(text: str) -> tuple[str, Shots]:
    """Description and shots of a prompt in the authors' form."""
    head, *rest = re.split(r"(?:^|\n\n)Q: ", text.strip())
    shots = []
    for part in rest:
        question, found, answer = part.partition("\nA: ")
        if not found:
            raise UserError(f"a shot without an answer (a line that begins with 'A: '): {part[:80]!r}")
        shots.append((f"Q: {question}", answer.strip()))
    return head.strip(), tuple(shots)


def _gsm8k(folder: Path) -> Task | None:
    """test.jsonl: {"question", "answer"}, the answer's last number counts; train.jsonl, where there is one, gives eight shots."""
    if not (folder / "test.jsonl").is_file():
        return None
    shown = folder / "train.jsonl"
    shots = tuple((row["question"], row["answer"]) for row in _jsonl(shown)[:8]) if shown.is_file() else ()
    rows = _jsonl(folder / "test.jsonl")
    head = "Solve the problem step by step, and end with the number."
    questions = tuple(Question("gsm8k", row["question"], (row["answer"],), shots, head) for row in rows)
    return Task("gsm8k", questions, new_tokens=256, score=number_match)


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _tydiqa(folder: Path) -> Task | None:
    """Read dev/*.json in the shape of SQuAD, whose ids begin with the language.

    tydiqa-one-shot.json: {language: [{"context", "question", "answers"}]}. A question that occurs twice counts once, and one
    that is a shot not at all.
    """
    files = sorted((folder / "dev").glob("*.json"))
    shown = [path for path in files if path.stem.endswith("one-shot")]
    given = json.loads(shown[0].read_text(encoding="utf-8")) if shown else {}
    shots = {language: tuple((_passage(one), one["answers"][0]["text"]) for one in ones) for language, ones in given.items()}
    head = "Answer the question with a few words from the passage."
    met = {one["id"] for ones in given.values() for one in ones if "id" in one}
    questions = []
    for path in files:
        for article in json.loads(path.read_text(encoding="utf-8")).get("data", ()):
            for paragraph in article["paragraphs"]:
                for one in paragraph["qas"]:
                    if one["id"] in met:
                        continue
                    met.add(one["id"])
                    language = one["id"].split("-")[0]
                    answers = tuple(dict.fromkeys(answer["text"] for answer in one["answers"]))
                    asked = _passage({**one, "context": paragraph["context"]})
                    questions.append(Question(language, asked, answers, shots.get(language, ()), head))
    return Task("tydiqa", tuple(questions), new_tokens=48, score=squad_f1) if questions else None


def _passage(one: dict[str, Any]) -> str:
    return f"Passage: {one['context'].strip()}\n\nQuestion: {one['question'].strip()}\nAnswer:"


READERS: dict[str, Callable[[Path], Task | None]] = {"mmlu": _mmlu, "bbh": _bbh, "gsm8k": _gsm8k, "tydiqa": _tydiqa}
