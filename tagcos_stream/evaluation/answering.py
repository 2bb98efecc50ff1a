"""Asking a model: which option it holds for likeliest, or what it writes. Greedy, so that one model gives one answer.

Dimension letters: n questions, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tagcos_stream.evaluation.losses import losses_of
from tagcos_stream.evaluation.paper import CUT
from tagcos_stream.evaluation.questions import Question, Shots, Task
from tagcos_stream.gradients.batching import halving, plan_batches
from tagcos_stream.gradients.chat import Encoded, encode, render_prompt
from tagcos_stream.gradients.lm_head import find_decoder
from tagcos_stream.gradients.special_tokens import special_tokens
from tagcos_stream.types import Message, UserError

# keys and values of a token are 2 H a layer, what a training pass keeps 14 H + 5 I: this many times as many fit in its memory
CACHED = 4
REMEDY = "leave the task out"  # where device memory does not hold one question

Progress = Callable[[int], None]


def answer(
    model: Any, tokenizer: Any, task: Task, *, max_positions: int, token_budget: int, progress: Progress = lambda tokens: None
) -> np.ndarray:
    """(n,) float64 from 0 to 1: what the model's answers are worth. `progress` gets the tokens done, as cost() counts them.

    Passes are halved where device memory runs out. UserError where it does not hold one question, or the model no question with
    a reply.
    """
    model.eval()
    longest = _longest_prompt(task, max_positions)
    if task.options:
        chosen = _choose(model, tokenizer, task, longest, token_budget, progress)
        return np.array([float(task.options[i] in q.answers) for i, q in zip(chosen, task.questions, strict=True)])
    prompts = [prompt_ids(tokenizer, question, longest) for question in task.questions]
    options: dict[str, Any] = {"new_tokens": task.new_tokens, "stop": task.stop, "token_budget": token_budget}
    replies = write(model, tokenizer, prompts, **options, progress=progress)
    return np.array([task.score(reply, q.answers) for reply, q in zip(replies, task.questions, strict=True)])


def cost(tokenizer: Any, task: Task, max_positions: int) -> int:
    """Tokens that answering takes: those read, and those that may be written."""
    longest = _longest_prompt(task, max_positions)
    return sum(len(prompt_ids(tokenizer, question, longest)) + task.new_tokens for question in task.questions)


def _longest_prompt(task: Task, max_positions: int) -> int:
    """Tokens that are left for a question; UserError where there is none beside <bos>."""
    longest = min(task.longest, max_positions) - task.new_tokens
    if longest < 2:
        raise UserError(
            f"task {task.name} takes replies of {task.new_tokens} tokens, and the model no more than {max_positions} with the "
            "question: leave it out, or evaluate another model"
        )
    return longest


def prompt_text(tokenizer: Any, question: Question, longest: int) -> str:
    """Return the question in its layout, up to where the reply begins.

    Shots are left out until no more than `longest` tokens are left, or no shots: as turns the first ones first, otherwise the
    last ones first.
    """
    question = _cut(tokenizer, question)
    for skip in range(len(question.shots) + 1):
        if question.layout == "turns":
            text = render_prompt(tokenizer, _turns(question, question.shots[skip:]))
        else:
            text = _in_one(tokenizer, question, question.shots[: len(question.shots) - skip])
        if len(_ids(tokenizer, text)) <= longest:
            break
    return text


def _turns(question: Question, shots: Shots) -> list[Message]:
    turns: list[Message] = []
    for asked, answered in shots:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    turns.append({"role": "user", "content": question.prompt})
    if question.head:
        turns[0]["content"] = f"{question.head}\n\n{turns[0]['content']}"
    return turns


def _in_one(tokenizer: Any, question: Question, shots: Shots) -> str:
    """Shots and question as one text, plain or as one turn of the user, and the label that the reply follows."""
    parts = [question.head] * bool(question.head) + [f"{asked}\n{question.label} {answered}" for asked, answered in shots]
    text = "\n\n".join([*parts, question.prompt]) + "\n"
    if question.layout == "one turn":
        text = render_prompt(tokenizer, [{"role": "user", "content": text}])
        text += "" if text.endswith(("\n", " ")) else " "
    return text + question.label


def _cut(tokenizer: Any, question: Question) -> Question:
    """The question with long passages cut."""
    for passage in question.cut:
        ids = _ids(tokenizer, passage)
        if len(ids) > CUT:
            short = tokenizer.decode(ids[:CUT])
            shots = tuple((asked.replace(passage, short), answered) for asked, answered in question.shots)
            question = replace(question, prompt=question.prompt.replace(passage, short), shots=shots)
    return question


def prompt_ids(tokenizer: Any, question: Question, longest: int) -> np.ndarray:
    """(T,) int32, at most `longest`: the end of prompt_text."""
    begin = _begin(tokenizer, question)
    rest = longest - len(begin)
    return np.append(begin, _ids(tokenizer, prompt_text(tokenizer, question, rest))[-rest:])


def _begin(tokenizer: Any, question: Question) -> np.ndarray:
    """(0 or 1,) int32: the token that the tokenizer puts before a text, such as <bos>, where no chat template does."""
    ids = tokenizer("", verbose=False)["input_ids"] if question.layout == "plain" else []
    return np.array([i for i in ids[:1] if i == tokenizer.bos_token_id], np.int32)


def _ids(tokenizer: Any, text: str) -> np.ndarray:
    return np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], np.int32)


def _choose(model: Any, tokenizer: Any, task: Task, longest: int, token_budget: int, progress: Progress) -> np.ndarray:
    """(n,) int64: the option with the largest log-likelihood, the first of equal ones."""
    found = np.full((len(task.questions), len(task.options)), -np.inf)
    prompts, following, at = [], [], []  # questions whose options are one token each: one pass scores all of them
    spelled: list[Encoded] = []
    place: list[tuple[int, int]] = []
    for i, question in enumerate(task.questions):
        begin = _begin(tokenizer, question)
        rest = longest - len(begin)
        text = prompt_text(tokenizer, question, rest - 1)
        whole = [_ids(tokenizer, text + " " * bool(question.label) + option) for option in task.options]
        shared = next(t for t in range(min(map(len, whole)) + 1) if len({tuple(ids[: t + 1]) for ids in whole}) > 1)
        if {len(ids) - shared for ids in whole} == {1}:
            prompts.append(np.append(begin, whole[0][:shared][-rest:]))
            following.append([int(ids[-1]) for ids in whole])
            at.append(i)
            continue
        for option, ids in enumerate(whole):
            target = np.append(begin < 0, (np.arange(len(ids)) >= shared)[-rest:])
            spelled.append(Encoded(np.append(begin, ids[-rest:]), target, False))
            place.append((i, option))
    if prompts:
        found[at] = next_logits(model, prompts, np.array(following), token_budget=token_budget, progress=progress)
    if spelled:
        before = sum(map(len, prompts))
        means = losses_of(model, spelled, token_budget=token_budget, progress=lambda done: progress(before + done))
        for (i, option), mean, one in zip(place, means, spelled, strict=True):
            found[i, option] = -mean * one.n_target
    return found.argmax(axis=1)


def next_logits(
    model: Any, prompts: Sequence[np.ndarray], following: np.ndarray, *, token_budget: int, progress: Progress
) -> np.ndarray:
    """(n, O) float32: the logits of the tokens following (n, O) right after each prompt; their order is that of likelihoods."""
    device, parts = next(model.parameters()).device, find_decoder(model)

    def once(budget: int) -> np.ndarray:
        found, done = np.empty(following.shape, np.float32), 0
        for batch in plan_batches([len(prompt) for prompt in prompts], budget):
            ids = np.zeros((len(batch), max(len(prompts[i]) for i in batch)), np.int64)
            for row, i in enumerate(batch):
                ids[row, : len(prompts[i])] = prompts[i]  # padded on the right: under causal attention it reaches nothing
            rows = torch.arange(len(batch), device=device)
            last = torch.tensor([len(prompts[i]) - 1 for i in batch], device=device)
            with torch.no_grad():
                given = torch.from_numpy(ids).to(device)
                if parts is None:
                    logits = model(input_ids=given, use_cache=False).logits[rows, last]
                else:
                    decoder, head = parts
                    logits = head(decoder(input_ids=given, use_cache=False).last_hidden_state[rows, last])
            wanted = torch.from_numpy(following[batch]).to(device)
            found[batch] = logits.gather(1, wanted).float().cpu().numpy()
            done += sum(len(prompts[i]) for i in batch)
            progress(done)
        return found

    return halving(once, token_budget, max(map(len, prompts)), REMEDY)[0]


def write(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[np.ndarray],
    *,
    new_tokens: int,
    token_budget: int,
    stop: str = "",
    progress: Progress = lambda tokens: None,
) -> list[str]:
    """The model's replies, greedy, each up to its end of turn, the text `stop` or new_tokens."""
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    own = model.generation_config
    more = own.eos_token_id or []
    ends = list(dict.fromkeys([*end_tokens(tokenizer), *(more if isinstance(more, list) else [more])]))
    config = GenerationConfig(
        max_new_tokens=new_tokens, do_sample=False, num_beams=1, use_cache=True, eos_token_id=ends, pad_token_id=ends[0]
    )

    def once(budget: int) -> list[str]:
        replies, done = [""] * len(prompts), 0
        for batch in plan_batches([len(prompt) + new_tokens for prompt in prompts], CACHED * budget):
            width = max(len(prompts[i]) for i in batch)
            ids, mask = np.full((len(batch), width), ends[0], np.int64), np.zeros((len(batch), width), np.int64)
            for row, i in enumerate(batch):
                ids[row, width - len(prompts[i]) :] = prompts[i]  # padded on the left: replies begin side by side
                mask[row, width - len(prompts[i]) :] = 1
            with torch.no_grad(), _plain_generation(model):
                written = model.generate(
                    input_ids=torch.from_numpy(ids).to(device),
                    attention_mask=torch.from_numpy(mask).to(device),
                    generation_config=config,
                    stopping_criteria=[_Stopped(tokenizer, stop)] if stop else None,
                )
            for row, i in enumerate(batch):
                reply = tokenizer.decode(written[row, width:], skip_special_tokens=True)
                replies[i] = (reply.split(stop)[0] if stop else reply).strip()
            done += sum(len(prompts[i]) + new_tokens for i in batch)
            progress(done)
        return replies

    longest = max(map(len, prompts), default=0) + new_tokens
    return halving(once, token_budget, longest // CACHED, REMEDY)[0]


@contextmanager
def _plain_generation(model: Any) -> Iterator[None]:
    """Without the model's own settings of generation: a repetition penalty, say, fills what a configuration leaves open."""
    from transformers import GenerationConfig

    plain = getattr(model, "get_base_model", lambda: model)()
    own, plain.generation_config = plain.generation_config, GenerationConfig()
    try:
        yield
    finally:
        plain.generation_config = own


class _Stopped:
    """Tells `generate` which rows have written a text of one or two characters, looking at their last tokens."""

    def __init__(self, tokenizer: Any, stop: str) -> None:
        self.tokenizer, self.stop, self.begin = tokenizer, stop, 0

    def __call__(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.begin = self.begin or ids.shape[1] - 1  # the first call comes after the first token
        last = ids[:, max(self.begin, ids.shape[1] - 4) :]
        return torch.tensor([self.stop in self.tokenizer.decode(row) for row in last], device=ids.device)


def end_tokens(tokenizer: Any) -> list[int]:
    """Ids that end a reply: the tokenizer's end of sequence, and the special token that its template closes a turn with."""
    turn = encode(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], max_length=1 << 20)
    special = set(tokenizer.convert_tokens_to_ids(list(special_tokens(tokenizer))))
    closing = [int(i) for i in turn.input_ids[turn.target] if int(i) in special]
    found = [*closing[-1:], *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])]
    if not found:
        raise UserError(
            f"tokenizer {type(tokenizer).__name__} has no token that ends a reply: tasks with written replies need one"
        )
    return list(dict.fromkeys(found))
