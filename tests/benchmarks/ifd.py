"""Cost of instruction-following difficulty, and how well it and the loss tell bad rows from good ones.

python -m tests.benchmarks.ifd SOURCES... --model MODEL [--rows 20]

Of every source that many exchanges of one question and one answer are taken, each under 1,500 characters. Three in ten are made
bad: answers exchanged within the source, a canned reply, or words in random order. Prints seconds of both passes and, for each
signal, the area under the ROC curve (0.5 is chance) by kind of bad row.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

import numpy as np

from flows import pipeline
from flows.progress import SilentReporter
from storage.root import open_root
from tagcos_stream.config import load_settings
from tagcos_stream.data.read import read_file
from tagcos_stream.data.sources import resolve_sources

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
    asked = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder, "pool")
        pool.mkdir()
        for number, source in enumerate(asked.sources):
            rows = spoiled(exchanges(source, asked.rows), rng)
            lines = [
                json.dumps({"prompt": question, "completion": answer, "dataset": f"{number}/{kind}"})
                for question, answer, kind in rows
            ]
            Path(pool, f"{number}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        values = {"sources": (str(pool),), "root": f"{folder}/root", "model": asked.model, "max_length": 512, "ifd": True}
        outcome = pipeline.run(load_settings(values), SilentReporter())
        catalog = open_root(f"{folder}/root", create=False).catalog
        stage = catalog.read("SELECT seconds, detail FROM stages WHERE stage = 'gradients'").row(0, named=True)
        extra = json.loads(stage["detail"])["ifd_seconds"]
        found = catalog.read("FROM signals_of(?)", [outcome.run_id])
    rest = stage["seconds"] - extra
    print(f"{len(found)} rows; gradients {rest:.1f} s, ifd {extra:.1f} s: {extra / rest:.1%}")
    kinds = np.array([name.split("/")[1] for name in found["dataset"]])
    for signal in ("ifd", "loss", "repeated"):
        values_of = found[signal].to_numpy().astype(float)
        good = values_of[kinds == "good"]
        told = {kind: area(values_of[kinds == kind], good) for kind in KINDS}
        told["all"] = area(values_of[kinds != "good"], good)
        print(f"{signal}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in told.items()))
    ratio = found["ifd"].to_numpy()
    for limit in (0.9, 1.0):
        good, bad = (np.mean(ratio[chosen] < limit) for chosen in (kinds == "good", kinds != "good"))
        print(f"ifd < {limit}: {good:.1%} of good, {bad:.1%} of bad")


if __name__ == "__main__":
    main()
