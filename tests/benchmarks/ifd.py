"""Cost of instruction-following difficulty, and how well it and the loss tell bad rows from good ones.

python -m tests.benchmarks.ifd SOURCES... --model MODEL [--rows 20] [--threads 1]

Of every source that many exchanges of one question and one answer are taken, each under 1,500 characters. Three in ten are made
bad: answers exchanged within the source, a canned reply, or words in random order. The adapter is as it is initialised, so that
the losses are those of the base model. Prints seconds of the gradients and of the pass without prompts, over every tenth row, and
for each signal the area under the ROC curve (0.5 is chance) by kind of bad row.
"""

from __future__ import annotations

import argparse
import random
import time

import numpy as np

from flows.models import load_adapted
from tagcos_stream.config import load_settings
from tagcos_stream.data.read import read_file
from tagcos_stream.data.sources import resolve_sources
from tagcos_stream.gradients.adapter import adapter_parameters
from tagcos_stream.gradients.answers import answer_losses, without_prompt
from tagcos_stream.gradients.chat import encode
from tagcos_stream.gradients.extract import GradientExtractor, block_features
from tagcos_stream.gradients.projection.projections import make_projection
from tagcos_stream.types import Checkpoint

LENGTH, TOKENS = 512, 1024  # of an example, of a pass
CANNED = ("I'm sorry, but I cannot help with that.", "Sure! Let me know if you have any other questions.")
KINDS = ("exchanged", "canned", "words in random order")


def exchanges(source: str, rows: int) -> list[tuple[str, str]]:
    """Question and answer of the first rows that are single, short exchanges."""
    found: list[tuple[str, str]] = []
    for file in resolve_sources([source]):
        for block in read_file(file, block_rows=512):
            for turns in block.occurrences["messages"]:
                if [turn["role"] for turn in turns] == ["user", "assistant"] and sum(len(t["content"]) for t in turns) < 1500:
                    found.append((turns[0]["content"], turns[1]["content"]))
            if len(found) >= rows:
                return found[:rows]
    return found


def spoiled(pairs: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str, str]]:
    """(question, answer, kind): three in ten made bad, a tenth of each kind."""
    made = [(question, answer, "good") for question, answer in pairs]
    for place, (question, answer) in enumerate(pairs):
        kind = place % 10
        if kind == 0:
            made[place] = (question, pairs[(place + 5) % len(pairs)][1], KINDS[0])
        elif kind == 1:
            made[place] = (question, rng.choice(CANNED), KINDS[1])
        elif kind == 2:
            words = answer.split()
            made[place] = (question, " ".join(rng.sample(words, len(words))), KINDS[2])
    return made


def area(bad: np.ndarray, good: np.ndarray) -> float:
    """Probability that a bad row's value is above a good one's."""
    return float(np.mean((bad[:, None] > good[None]) + 0.5 * (bad[:, None] == good[None])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(asked.threads)
    rng = random.Random(0)
    loaded = load_adapted(load_settings({"model": asked.model, "max_length": LENGTH}), "cpu")
    weights = {name: part.detach().numpy().astype(np.float32) for name, part in adapter_parameters(loaded.model).items()}
    first, second = ({name: np.full_like(part, value) for name, part in weights.items()} for value in (1e-4, 1e-6))
    checkpoint = Checkpoint(1, 1e-4, 1.0, 10, weights, first, second)
    extractor = GradientExtractor(loaded.model, variants=("adam-delta",), projection=make_projection(dim=8192, seed=0))
    whole, alone, found = [], [], []
    for source in asked.sources:
        for question, answer, kind in spoiled(exchanges(source, asked.rows), rng):
            messages: list = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            given = encode(loaded.tokenizer, messages, max_length=LENGTH)
            bare = without_prompt(loaded.tokenizer, {"messages": messages}, given, max_length=LENGTH)
            if bare is not None:
                whole.append(given)
                alone.append(bare)
                found.append(kind)
    print(f"{len(whole)} rows of {sum(map(len, whole))} tokens, {sum(map(len, alone))} without prompts")
    extractor.use(checkpoint)
    extractor.features(whole[:2])  # compiles
    some = list(range(3, len(whole), 10))
    started = time.perf_counter()
    block_features(extractor, [checkpoint], [whole[i] for i in some], token_budget=TOKENS)
    between = time.perf_counter()
    answer_losses(extractor, [checkpoint], [alone[i] for i in some], token_budget=TOKENS)
    gradients, extra = between - started, time.perf_counter() - between
    print(f"{len(some)} rows: gradients {gradients:.1f} s, without prompts {extra:.1f} s: {extra / gradients:.1%}")
    loss = answer_losses(extractor, [checkpoint], whole, token_budget=TOKENS)
    ifd = loss / answer_losses(extractor, [checkpoint], alone, token_budget=TOKENS)
    kinds = np.array(found)
    for name, values in (("ifd", ifd), ("loss", loss)):
        areas = {kind: area(values[kinds == kind], values[kinds == "good"]) for kind in KINDS}
        areas["all"] = area(values[kinds != "good"], values[kinds == "good"])
        print(f"{name}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in areas.items()))
    for limit in (0.9, 1.0):
        good, bad = (np.mean(ifd[chosen] < limit) for chosen in (kinds == "good", kinds != "good"))
        print(f"ifd < {limit}: {good:.1%} of good, {bad:.1%} of bad")


if __name__ == "__main__":
    main()
