"""Tasks: files read as they are published, scorers against known answers, and a model asked in whichever way costs least."""

from __future__ import annotations

import copy
import csv
import json
import re
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from tagcos_stream.evaluation import answering, paper, scorers
from tagcos_stream.evaluation.config import load_evaluation
from tagcos_stream.evaluation.questions import Question, Task
from tagcos_stream.evaluation.tasks import read_tasks
from tagcos_stream.gradients.adapter import attach_adapter
from tagcos_stream.types import UserError
from tests.models import CHATML, tiny_model, tiny_tokenizer


def write_tasks(folder: Path) -> Path:
    """A small folder of every task, in the shapes that docs/evaluation.md describes."""

    def table(path: Path, rows: list[list[str]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)

    def text(path: Path, content: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    for subject in ("high_school_maths", "law"):
        table(folder / f"mmlu/dev/{subject}_dev.csv", [[f"Shot {n}, {subject}?", "w", "x", "y", "z", "C"] for n in range(2)])
        rows = [[f'Question {n}, "{subject}"?', "one", "two, three", "four", "five", "ABCD"[n % 4]] for n in range(6)]
        table(folder / f"mmlu/test/{subject}_test.csv", rows)
    text(
        folder / "bbh/bbh-three-shot.json",
        {"sums": "Add.\n\nQ: 1 + 1\nA: It is 2. So the answer is 2.\n\nQ: 2 + 1\nA: The answer is 3."},
    )
    text(folder / "bbh/cot-prompts/words.txt", "canary\n-----\nSort.\n\nQ: b a\nA: Let's see.\nSo the answer is a b.")
    text(folder / "bbh/test/sums.json", {"examples": [{"input": f"{n} + 1", "target": str(n + 1)} for n in range(4)]})
    text(folder / "bbh/test/words.json", {"examples": [{"input": "d c", "target": "c d"}]})
    text(folder / "gsm8k/test.jsonl", json.dumps({"question": "How many?", "answer": "9 * 2 = <<9*2=18>>18\n#### 1,018"}) + "\n")
    shot = {
        "id": "finnish-1",
        "context": "Kigali on iso.",
        "question": "Mikä?",
        "answers": [{"text": "Kigali", "answer_start": 0}],
    }
    text(folder / "tydiqa/dev/tydiqa-one-shot.json", {"finnish": [shot]})
    asked = [
        {"id": f"finnish-{n}", "question": f"Missä {n}?", "answers": [{"text": "Oslo"}, {"text": "Oslo"}, {"text": "in Oslo"}]}
        for n in (1, 2)
    ]
    asked.append({"id": "english-7", "question": "Where?", "answers": [{"text": "Oslo"}]})
    squad = {"data": [{"title": "t", "paragraphs": [{"context": "Oslo.", "qas": asked}]}]}
    text(folder / "tydiqa/dev/dev.json", squad)
    text(folder / "tydiqa/dev/again.json", squad)
    return folder


def test_tasks__read_what_is_published(tmp_path: Path) -> None:
    tasks = {task.name: task for task in read_tasks(str(write_tasks(tmp_path)), (), {})}
    assert list(tasks) == ["mmlu", "bbh", "gsm8k", "tydiqa"]
    mmlu = tasks["mmlu"].questions
    assert [q.part for q in mmlu] == ["high_school_maths"] * 6 + ["law"] * 6
    assert mmlu[1].prompt == 'Question 1, "high_school_maths"?\nA. one\nB. two, three\nC. four\nD. five\nAnswer:'
    assert (mmlu[1].answers, mmlu[1].head) == (("B",), "The following are multiple choice questions about high school maths.")
    assert mmlu[7].shots[1] == ("Shot 1, law?\nA. w\nB. x\nC. y\nD. z\nAnswer:", "C")
    sums, words = tasks["bbh"].questions[1], tasks["bbh"].questions[-1]
    assert (sums.head, sums.prompt, sums.answers) == ("Add.", "Q: 1 + 1", ("2",))
    assert sums.shots == (("Q: 1 + 1", "It is 2. So the answer is 2."), ("Q: 2 + 1", "The answer is 3."))
    assert (words.part, words.head, words.shots) == ("words", "Sort.", (("Q: b a", "Let's see.\nSo the answer is a b."),))
    (gsm8k,) = tasks["gsm8k"].questions
    assert scorers.number_match("So it is 1018.00 dollars", gsm8k.answers) == 1
    tydiqa = tasks["tydiqa"].questions
    assert [(q.part, q.answers) for q in tydiqa] == [("finnish", ("Oslo", "in Oslo")), ("english", ("Oslo",))], (
        "no shot, none twice"
    )
    assert tydiqa[0].shots == (("Passage: Kigali on iso.\n\nQuestion: Mikä?\nAnswer:", "Kigali"),)
    assert tydiqa[1].shots == ()


def test_tasks__a_few_of_every_part_the_same_always(tmp_path: Path) -> None:
    folder = str(write_tasks(tmp_path))
    (few,) = read_tasks(folder, ("mmlu",), {"mmlu": 2})
    assert [q.part for q in few.questions] == ["high_school_maths"] * 2 + ["law"] * 2
    assert few == read_tasks(folder, ("mmlu",), {"mmlu": 2})[0]
    (more,) = read_tasks(folder, ("mmlu",), {"mmlu": 4})
    assert {q.prompt for q in few.questions} < {q.prompt for q in more.questions}
    assert few.digest != more.digest
    one, other = read_tasks(folder, ("mmlu", "bbh"), {"mmlu": 1})
    assert len(one.questions) == 2
    assert [other] == read_tasks(folder, ("bbh",), {}), "it has no limit"


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ((), {}),
        (None, {}),
        (5, {"mmlu": 5, "bbh": 5, "gsm8k": 5, "tydiqa": 5}),
        (5.0, {"mmlu": 5, "bbh": 5, "gsm8k": 5, "tydiqa": 5}),
        ([5.0, "gsm8k=50"], {"mmlu": 5, "bbh": 5, "gsm8k": 50, "tydiqa": 5}),
        (["5", "gsm8k=50"], {"mmlu": 5, "bbh": 5, "gsm8k": 50, "tydiqa": 5}),
        ("gsm8k=50", {"gsm8k": 50}),
    ],
)
def test_tasks__a_limit_for_all_or_for_one(given: Any, limits: dict[str, int]) -> None:
    assert load_evaluation({"task_items": given}).items_of_task() == limits


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0, "'0' is neither a number of at least 1 nor TASK=NUMBER with a task among mmlu, bbh, gsm8k, tydiqa"),
        (5.5, "'5.5' is neither a number of at least 1"),
        (float("inf"), "'inf' is neither"),
        (float("nan"), "'nan' is neither"),
        (True, "'True' is neither"),
        ("gsm=5", "'gsm=5' is neither"),
        ("=5", "'=5' is neither"),
        ("gsm8k=", "'gsm8k=' is neither"),
        (["5", "6"], "5, 6 limit the same twice"),
        (["mmlu=5", "mmlu=6"], "mmlu=5, mmlu=6 limit the same twice"),
    ],
)
def test_tasks__a_limit_that_is_none_is_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        load_evaluation({"task_items": given})


def test_tasks__digests_of_the_chat_protocol_are_those_of_earlier_evaluations(tmp_path: Path) -> None:
    """A digest is part of an evaluation's identity: another value would measure everything again."""
    folder = str(write_tasks(tmp_path))
    chat, paper = ({t.name: t.digest for t in read_tasks(folder, (), {}, protocol)} for protocol in ("chat", "paper"))
    assert chat == {
        "mmlu": "fca1bc2d626d0c80", "bbh": "2147866c8839dbee", "gsm8k": "e96cdf387938b494", "tydiqa": "d7b406f67693b0a8",
    }  # fmt: skip
    assert not set(paper.values()) & set(chat.values())


MMLU_PLAIN = """The following are multiple choice questions (with answers) about  law.

Shot 0, law?
A. w
B. x
C. y
D. z
Answer: C

Shot 1, law?
A. w
B. x
C. y
D. z
Answer: C

Question 0, "law"?
A. one
B. two, three
C. four
D. five
Answer:"""
BBH_PLAIN = """Add.

Q: 1 + 1
A: It is 2. So the answer is 2.

Q: 2 + 1
A: The answer is 3.

Q: 0 + 1
A:"""
TYDIQA_TURN = """Answer the following question based on the information in the given passage.

Passage: Kigali on iso.
Question: Mikä?
Answer: Kigali

Passage: Oslo.
Question: Missä 2?
"""


def test_paper__texts_are_those_of_the_released_scripts(tmp_path: Path) -> None:
    """Plain text for MMLU and BBH; one turn of the user and the beginning of the answer for TyDiQA and GSM8K."""
    tokenizer, folder = tiny_tokenizer(), write_tasks(tmp_path)
    (folder / "gsm8k/train.jsonl").write_text('{"question": "And now?", "answer": "Two. #### 2"}\n')
    tasks = {task.name: task for task in read_tasks(str(folder), (), {}, "paper")}

    def text(name: str, number: int, longest: int = 10_000) -> str:
        return answering.prompt_text(tokenizer, tasks[name].questions[number], longest)

    def turn(content: str) -> str:
        return f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"

    assert text("mmlu", 6) == MMLU_PLAIN
    fewer = text("mmlu", 6, len(MMLU_PLAIN) - 1)
    assert "Shot 0" in fewer, "the last shot is left out first"
    assert "Shot 1" not in fewer
    assert text("bbh", 0) == BBH_PLAIN
    assert text("tydiqa", 0) == turn(TYDIQA_TURN) + "Answer:"
    shot = "Answer the following questions.\n\nQuestion: And now?\nAnswer: Two. #### 2\n\n"
    assert text("gsm8k", 0) == turn(f"{shot}Question: How many?\n") + "Answer:"
    assert {name: (task.new_tokens, task.stop, task.by_part) for name, task in tasks.items()} == {
        "mmlu": (0, "", False), "bbh": (512, "\n\n", True), "gsm8k": (512, "", False), "tydiqa": (50, "\n", True),
    }  # fmt: skip


def test_paper__passages_are_cut_and_may_be_asked_in_their_language(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path)
    squad = json.loads((folder / "tydiqa/dev/dev.json").read_text())
    squad["data"][0]["paragraphs"][0]["context"] = "Oslo " * 200
    (folder / "tydiqa/dev/again.json").write_text(json.dumps(squad))  # read first
    (folder / "tydiqa/wording.json").write_text(json.dumps({"finnish": ["Vastaa.", "Kappale:", "Kysymys:", "Vastaus:"]}))
    (task,) = read_tasks(str(folder), ("tydiqa",), {}, "paper")
    finnish, english = (answering.prompt_text(tiny_tokenizer(), question, 10_000) for question in task.questions)
    assert "Vastaa.\n\nKappale: Kigali on iso.\nKysymys: Mikä?\nVastaus: Kigali\n\nKappale: " in finnish
    assert finnish.endswith("Vastaus:")
    cut = english.split("Passage: ")[1].split("\nQuestion: Where?")[0]
    assert cut == ("Oslo " * 200)[: paper.CUT]  # a byte is a token here
    (folder / "tydiqa/wording.json").write_text('{"finnish": "Vastaa."}')
    with pytest.raises(UserError, match="must map each language to four texts"):
        read_tasks(str(folder), ("tydiqa",), {}, "paper")


def test_paper__limits_of_a_part() -> None:
    assert [paper.at_most(name, None) for name in ("mmlu", "bbh", "gsm8k", "tydiqa")] == [None, 40, 200, 200]
    assert [paper.at_most(name, 100) for name in ("mmlu", "bbh", "tydiqa")] == [100, 40, 100]


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("mmlu/test/law_test.csv", "Who?,a,b,c,d,E\n", r"law_test\.csv row 1: must be a question, four options and a letter"),
        ("bbh/test/sums.json", "{", r"bbh: JSONDecodeError"),
        ("bbh/cot-prompts/words.txt", "Q: what", "a shot without an answer"),
        ("gsm8k/test.jsonl", '{"question": "x"}', r"gsm8k: KeyError 'answer'; docs/evaluation\.md says"),
        ("tydiqa/dev/dev.json", '{"data": [{}]}', r"tydiqa: KeyError 'paragraphs'"),
    ],
)  # fmt: skip
def test_tasks__a_broken_file_is_named(tmp_path: Path, path: str, content: str, message: str) -> None:
    write_tasks(tmp_path)
    (tmp_path / path).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_tasks(str(tmp_path), (), {})


def test_tasks__what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_tasks(str(tmp_path / "nowhere"), (), {})
    with pytest.raises(UserError, match="no data of mmlu, bbh, gsm8k, tydiqa"):
        read_tasks(str(tmp_path), (), {})
    with pytest.raises(UserError, match="no data of bbh in"):
        read_tasks(str(tmp_path), ("bbh",), {})


@pytest.mark.parametrize(
    ("reply", "answers", "worth"),
    [
        ("She has 16 - 3 = 13 eggs, so $18.", ["#### 18"], 1),
        ("The total is 1,018", ["#### 1018"], 1),
        ("It is 18.50", ["#### 18.5"], 1),
        ("-3", ["#### -3"], 1),
        ("3", ["#### -3"], 0),
        ("18 eggs of 20", ["#### 18"], 0),
        ("none", ["#### 0"], 0),
    ],
)
def test_scorers__number(reply: str, answers: list[str], worth: float) -> None:
    assert scorers.number_match(reply, answers) == worth


def test_scorers__last_number() -> None:
    assert scorers.last_number("a 1,234,567.80 b") == Decimal("1234567.80")
    assert scorers.last_number("16-3") == Decimal(3)
    assert scorers.last_number("no number") is None


@pytest.mark.parametrize(
    ("reply", "answer", "worth"),
    [
        ("Let's think. So the answer is (B).", "(B)", 1),
        ("So the answer is (B). Q: next? The answer is (C).", "(B)", 1),
        ("the answer is: True", "True", 1),
        ("So the answer is } ] >.", "} ] >", 1),
        ("So the answer is } ].", "} ] >", 0),
        ("So the answer is 3.5.", "3.5", 1),
        ("no", "No", 1),
        ("  (A)\n", "(A)", 1),
        ("(A) because", "(A)", 0),
        ("", "(A)", 0),
        ("The Answer is syndrome  therefrom\nQ:", "syndrome therefrom", 1),
    ],
)
def test_scorers__exact(reply: str, answer: str, worth: float) -> None:
    assert scorers.exact_match(reply, [answer]) == worth


@pytest.mark.parametrize(
    ("reply", "answer", "worth"),
    [
        ("Let's think. So the answer is (B).", "(B)", 1),
        ("So the answer is b.", "(B)", 1),  # neither case nor punctuation counts
        ("So the answer is (B). So the answer is (C).", "(C)", 0),
        ("so the answer is (B).", "(B)", 0),  # but the sentence is looked for as it is written
        ("the answer is: True", "True", 0),
        ("True\n\nQ: next?", "True", 1),
        ("So the answer is 3.5.", "3.5", 0),  # cut at the first full stop
    ],
)
def test_paper__stated(reply: str, answer: str, worth: float) -> None:
    assert paper.stated(reply, [answer]) == worth


@pytest.mark.parametrize(
    ("reply", "answers", "worth"),
    [
        ("The Wound-care!", ["wound care", "woundcare"], 1),  # punctuation goes without leaving a space, as in SQuAD
        ("Amos and Wilfrid Ayre", ["Amos and Wilfrid Ayre"], 1),
        ("Amos Ayre", ["Amos and Wilfrid Ayre"], 2 * 2 / 6),
        ("in Oslo, in Norway", ["Oslo", "Oslo Norway"], 2 * 2 / 6),
        ("Oslo Oslo", ["Oslo"], 2 / 3),
        ("\nKigali\nQuestion: and then?", ["Kigali"], 1),
        ("الإسكندر الثالث", ["الإسكندر"], 2 / 3),
        ("", ["Oslo"], 0),
        ("the", ["a"], 1),
    ],
)
def test_scorers__squad_f1(reply: str, answers: list[str], worth: float) -> None:
    assert scorers.squad_f1(reply, answers) == pytest.approx(worth)


@pytest.fixture(scope="module")
def model() -> Any:
    return attach_adapter(tiny_model("llama"), rank=2, alpha=4, dropout=0.0, seed=0)


QUESTIONS = tuple(
    Question("p", f"Which of {n}?", ("B",), (("Which?", "A"), ("What then?", "B")), "Choose.") for n in (1, 22, 333, 4)
)


def naive_likelihood(model: Any, tokenizer: Any, text: str, option: str) -> float:
    """Log-likelihood of the option's tokens after the text, token by token from the model's own logits."""
    ids, whole = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (text, text + option))
    with torch.no_grad():
        table = torch.log_softmax(model(input_ids=torch.tensor([whole])).logits[0].double(), dim=-1)
    return float(sum(table[t - 1, whole[t]] for t in range(len(ids), len(whole))))


@pytest.mark.parametrize("options", ["ABCD", "AÄÖÜ"])  # one token each, and some of two bytes: spelled out
@pytest.mark.parametrize("budget", [1, 1000])
def test_choice__is_the_likeliest_option(model: Any, options: str, budget: int) -> None:
    tokenizer = tiny_tokenizer()
    wanted = []
    for question in QUESTIONS:
        text = answering.prompt_text(tokenizer, question, 400)
        likelihoods = [naive_likelihood(model, tokenizer, text, option) for option in options]
        wanted.append(options[int(np.argmax(likelihoods))])
    told: list[int] = []
    right = Task(
        "mmlu", tuple(Question("p", q.prompt, (w,), q.shots, q.head) for q, w in zip(QUESTIONS, wanted, strict=True)), options
    )
    got = answering.answer(model, tokenizer, right, max_positions=512, token_budget=budget, progress=told.append)
    assert got.tolist() == [1.0] * 4
    assert told == sorted(told)
    wrong = Task("mmlu", tuple(Question("p", q.prompt, ("-",), q.shots, q.head) for q in QUESTIONS), options)
    assert answering.answer(model, tokenizer, wrong, max_positions=512, token_budget=budget).tolist() == [0.0] * 4


def test_choice__after_a_label_options_follow_a_space(model: Any) -> None:
    tokenizer, plain = tiny_tokenizer(), [replace(q, layout="plain", label="Answer:") for q in QUESTIONS]
    likeliest = []
    for question in plain:
        text = answering.prompt_text(tokenizer, question, 400) + " "
        assert text.endswith(f"{question.prompt}\nAnswer: ")
        likeliest.append("ABCD"[int(np.argmax([naive_likelihood(model, tokenizer, text, option) for option in "ABCD"]))])
    task = Task("mmlu", tuple(replace(q, answers=(w,)) for q, w in zip(plain, likeliest, strict=True)), "ABCD", protocol="paper")
    assert answering.answer(model, tokenizer, task, max_positions=512, token_budget=1000).tolist() == [1.0] * 4


def test_prompt__shots_are_turns_and_give_way_to_the_question() -> None:
    tokenizer = tiny_tokenizer()
    whole = answering.prompt_text(tokenizer, QUESTIONS[0], 10_000)
    assert whole == (
        "<|im_start|>user\nChoose.\n\nWhich?<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
        "<|im_start|>user\nWhat then?<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
        "<|im_start|>user\nWhich of 1?<|im_end|>\n<|im_start|>assistant\n"
    )
    fewer = answering.prompt_text(tokenizer, QUESTIONS[0], len(answering.prompt_ids(tokenizer, QUESTIONS[0], 10_000)) - 1)
    assert fewer.startswith("<|im_start|>user\nChoose.\n\nWhat then?<|im_end|>")
    assert answering.prompt_text(tokenizer, QUESTIONS[0], 5).startswith("<|im_start|>user\nChoose.\n\nWhich of 1?")
    assert len(answering.prompt_ids(tokenizer, QUESTIONS[0], 5)) == 5


def test_write__is_greedy_and_does_not_depend_on_the_batch(model: Any) -> None:
    tokenizer = tiny_tokenizer()
    prompts = [answering.prompt_ids(tokenizer, question, 400) for question in QUESTIONS]
    ends = answering.end_tokens(tokenizer)
    assert ends == [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
    wanted = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(9):
            with torch.no_grad():
                following = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if following in ends:
                break
            ids.append(following)
        wanted.append(str(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)).strip())
    for budget in (1, 10_000):
        assert answering.write(model, tokenizer, prompts, new_tokens=9, token_budget=budget) == wanted
    stop = next(character for character in wanted[0][1:-1] if character.isascii())
    stopped = answering.write(model, tokenizer, prompts, new_tokens=9, token_budget=10_000, stop=stop)
    assert stopped == [reply.split(stop)[0].strip() for reply in wanted]
    assert stopped != wanted
    task = Task("gsm8k", QUESTIONS, new_tokens=9, score=lambda reply, answers: float(reply == wanted[2]))
    assert answering.answer(model, tokenizer, task, max_positions=512, token_budget=64)[2] == 1


@pytest.mark.parametrize("task", [Task("mmlu", QUESTIONS, "ABCD"), Task("gsm8k", QUESTIONS, new_tokens=9)])
def test_answer__passes_are_halved_where_device_memory_runs_out(model: Any, task: Task) -> None:
    tokenizer, refused = tiny_tokenizer(), list[int]()
    expected = answering.answer(model, tokenizer, task, max_positions=512, token_budget=2000)

    def full(module: Any, given: Any, named: dict[str, Any]) -> None:
        if (size := named["input_ids"].numel()) > limit:
            refused.append(size)
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.get_base_model().model.register_forward_pre_hook(full, with_kwargs=True)
    try:
        limit = 2 * max(len(answering.prompt_ids(tokenizer, question, 500)) for question in QUESTIONS)
        assert answering.answer(model, tokenizer, task, max_positions=512, token_budget=2000).tolist() == expected.tolist()
        assert refused
        limit = 20
        with pytest.raises(UserError, match="leave the task out"):
            answering.answer(model, tokenizer, task, max_positions=512, token_budget=2000)
    finally:
        handle.remove()


def test_answer__a_model_without_room_for_a_question_is_refused(model: Any) -> None:
    task = Task("gsm8k", QUESTIONS, new_tokens=512, longest=4096)
    for ask in (answering.cost, partial(answering.answer, model, token_budget=64)):
        with pytest.raises(UserError, match=r"task gsm8k takes replies of 512 tokens, and the model no more than 512 with the"):
            ask(tiny_tokenizer(), task, max_positions=512)


def test_write__is_greedy_whatever_the_model_brings_along(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repetition penalty in generation_config.json would fill what our configuration leaves open."""
    tokenizer = tiny_tokenizer()
    prompts = [answering.prompt_ids(tokenizer, question, 400) for question in QUESTIONS]
    wanted = answering.write(model, tokenizer, prompts, new_tokens=9, token_budget=10_000)
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    changed = copy.deepcopy(plain.generation_config)
    changed.repetition_penalty, changed.no_repeat_ngram_size = 5.0, 1
    monkeypatch.setattr(plain, "generation_config", changed)
    assert answering.write(model, tokenizer, prompts, new_tokens=9, token_budget=10_000) == wanted
    assert plain.generation_config is changed


def test_end_tokens__closes_a_turn_by_a_token_that_no_attribute_names() -> None:
    named = tiny_tokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=named.backend_tokenizer, eos_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    closing = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert closing not in tokenizer.all_special_ids
    assert answering.end_tokens(tokenizer) == [closing, tokenizer.eos_token_id]


def test_paper__plain_prompts_begin_with_the_tokenizers_bos(tmp_path: Path) -> None:
    folder, plain, begins = write_tasks(tmp_path), tiny_tokenizer(), tiny_tokenizer()
    begin = begins.bos_token_id
    begins.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begins.bos_token} $A", special_tokens=[("<s>", begin)])
    mmlu, tydiqa = (task.questions[0] for task in read_tasks(str(folder), ("mmlu", "tydiqa"), {}, "paper"))
    asked = answering.prompt_ids(plain, mmlu, 400).tolist()
    assert answering.prompt_ids(begins, mmlu, 401).tolist() == [begin, *asked]
    assert answering.prompt_ids(begins, mmlu, 5).tolist() == [begin, *asked[-4:]]
    assert answering.prompt_ids(begins, tydiqa, 400).tolist() == answering.prompt_ids(plain, tydiqa, 400).tolist(), "a template"


def test_tasks__the_published_files(shared_data: Path) -> None:
    counted = {
        t.name: (len(t.questions), len({q.part for q in t.questions})) for t in read_tasks(str(shared_data / "eval"), (), {})
    }
    assert counted == {"mmlu": (14042, 57), "bbh": (6511, 27), "gsm8k": (1319, 1), "tydiqa": (5077, 9)}
