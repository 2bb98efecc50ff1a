"""The small pool that docs/cookbook.md asks its questions of, and the runs over it.

`python -m tests.flows.cookbook_pool FOLDER` makes it there, to try the queries by hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flows import pipeline
from flows.pipeline import load_settings
from flows.progress import SilentReporter
from tests.models import tiny_model, tiny_tokenizer

CAPITALS = {
    "France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Norway": "Oslo", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima",
    "Cuba": "Havana", "Egypt": "Cairo", "Greece": "Athens", "Chile": "Santiago", "Ghana": "Accra", "Nepal": "Kathmandu",
    "Qatar": "Doha", "Ireland": "Dublin", "Latvia": "Riga",
}  # fmt: skip
FUNCTIONS = {
    "adds two numbers": "a + b", "subtracts b from a": "a - b", "multiplies two numbers": "a * b", "divides a by b": "a / b",
    "takes the larger": "max(a, b)", "takes the smaller": "min(a, b)", "raises a to the power of b": "a ** b",
    "joins two lists": "[*a, *b]", "takes the remainder": "a % b", "compares two values": "a == b",
    "pairs two lists": "zip(a, b)",
    "shifts a left by b": "a << b", "formats a with b digits": 'f"{a:.{b}f}"', "finds b in a": "a.index(b)",
}  # fmt: skip
GERMAN = {
    "Wie heißt die Hauptstadt von Österreich?": "Sie heißt Wien.", "Wie viele Beine hat eine Spinne?": "Sie hat acht Beine.",
    "Was ist schwerer, Gold oder Öl?": "Gold ist viel schwerer.", "Welche Farbe hat der Schnee?": "Er ist weiß.",
    "Wann ist Neujahr?": "Am ersten Januar.", "Wohin fließt der Rhein?": "Er fließt in die Nordsee.",
    "Was frisst ein Igel?": "Er frisst Käfer und Würmer.", "Wie grüßt man abends?": "Man sagt: Guten Abend.",
    "Was ist ein Würfel?": "Ein Körper mit sechs gleichen Flächen.", "Wer schrieb den Faust?": "Goethe schrieb ihn.",
}  # fmt: skip
WORLD = {
    "Какого цвета трава?": "Трава зелёная.", "Сколько дней в неделе?": "В неделе семь дней.",
    "Где живёт кит?": "Кит живёт в море.", "Что пьёт корова?": "Корова пьёт воду.",
    "Τι χρώμα έχει η θάλασσα;": "Η θάλασσα είναι μπλε.", "Πού είναι η Αθήνα;": "Στην Ελλάδα.",
    "Τι τρώει η γάτα;": "Η γάτα τρώει ψάρι.", "Πόσα πόδια έχει ο σκύλος;": "Έχει τέσσερα πόδια.",
    "空は何色ですか。": "空は青いです。", "一週間は何日ですか。": "七日あります。",
    "猫は何を食べますか。": "魚を食べます。", "東京はどこですか。": "日本にあります。",
}  # fmt: skip
PROBLEMS = ("login", "invoice", "delivery", "password", "refund", "address", "charger", "manual")
FIRST = ("code", "deutsch", "faq", "support")  # what RUN_A reads; RUN_B reads all


def talk(*texts: str, system: str | None = None) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns}


def write_pool(folder: Path) -> Path:
    faq = [talk(f"What is the capital of {country}?", f"It is {city}.") for country, city in CAPITALS.items()]
    code = [talk(f"Write a Python function that {what}.", f"def f(a, b):\n    return {how}") for what, how in FUNCTIONS.items()]
    support = [
        talk(
            f"I have a problem with my {thing}.",
            "Since when?",
            "Since today.",
            f"I will look at your {thing}.",
            system="Be kind.",
        )
        for thing in PROBLEMS
    ]
    crawl: list[Any] = [*faq[:4], *code[:2], {"messages": [{"role": "user", "content": "Hello?"}]}, {"text": "no shape"}]
    crawl += [
        talk("What is a river?", ""),
        *[talk(f"Count from 1 to {n}.", " ".join(map(str, range(1, n + 1)))) for n in (9, 19, 29)],
    ]
    files = {"faq": faq, "code": code, "support": support, "crawl": crawl}
    files |= {"deutsch": [talk(*pair) for pair in GERMAN.items()], "world": [talk(*pair) for pair in WORLD.items()]}
    folder.mkdir(parents=True)
    for name, rows in files.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows] + (['{"messages": ['] if name == "crawl" else [])
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def make(folder: Path, root: str | None = None, *, first_only: bool = False) -> dict[str, str]:
    """Pool, model and five runs (or the first) under `folder`, the root elsewhere where given: the runs by the page's names."""
    pool = write_pool(folder / "pool")
    tiny_model("llama").save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    settings: dict[str, Any] = {"root": root or str(folder / "my-pool"), "model": str(folder / "model"), "threads": 1}
    settings["gradient"] = "adam-delta"  # by which the page has its answers
    settings |= {"fraction": 0.2, "max_length": 160, "warmup_examples": 16, "dim": 256, "clusters": 5, "min_cluster_rows": 3}
    settings |= {"block_rows": 32, "batch_tokens": 512, "max_rejects": 0.9, "wait": 5}

    def run(**changes: Any) -> str:
        return pipeline.run(load_settings(settings | changes), SilentReporter()).run_id

    names = {"RUN_A": run(sources=tuple(str(pool / f"{name}.jsonl") for name in FIRST))}
    if first_only:
        return names
    names["RUN_B"] = run(sources=tuple(str(path) for path in sorted(pool.iterdir())))
    for method in ("random", "longest", "herding"):
        changed = pipeline.reselect(settings["root"], names["RUN_B"], SilentReporter(), method=method)
        names[method.upper()] = changed.run_id
    return names


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
