"""Pools of experiments, drawn from real data: `python -m tests.benchmarks.pools FOLDER OUT [--rows 10000] [--bad 0.2]`.

FOLDER holds one Parquet file per dataset with a `messages` column. OUT gets files of the same names with a sample of their rows:
--rows draws from every dataset in proportion to its size, --each draws equally many. --bad makes a share of the rows of every
dataset bad, a third in each way of `WAYS`; the column `made_bad` of OUT names it, null for a row as it was. --held names a second
folder, which gets rows that OUT has not, as they are, to measure on. Draws are seeded by dataset: the same command makes the same
pool, and the same held-out rows whatever is made bad.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

WAYS = ("exchanged", "canned", "shuffled")  # the last answer: of another row, a stock phrase, its words in random order
CANNED = (
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I don't have enough information to answer this question.",
    "Thank you for your question! Please let me know if there is anything else.",
    "Sure! Here is the answer you asked for.",
)
Row = dict[str, Any]


def shares(sizes: dict[str, int], rows: int) -> dict[str, int]:
    """Rows to draw of every dataset, in proportion to its size.

    Parameters
    ----------
    sizes
        Rows that each dataset has.
    rows
        Rows to draw in all; rounding may change it by a few.

    Returns
    -------
    dict
        Rows by dataset.
    """
    total = sum(sizes.values())
    return {name: round(rows * size / total) for name, size in sizes.items()}


def draw(frame: pl.DataFrame, name: str, count: int, seed: int) -> pl.DataFrame:
    """Draw rows of a dataset without replacement, in the order of the file; all of them if it has fewer."""
    picked = random.Random(f"{seed} {name}").sample(range(len(frame)), min(count, len(frame)))
    return frame[sorted(picked)]


def spoil(rows: list[Row], name: str, share: float, seed: int) -> list[Row]:
    """Make a share of a dataset's rows bad.

    Parameters
    ----------
    rows
        With `messages`, whose last one is the answer.
    name
        Of the dataset; seeds the draw.
    share
        Of the rows to make bad, a third in each way of `WAYS`.
    seed
        Of the draw.

    Returns
    -------
    list of dict
        The rows in the same order, each with `made_bad`: the way, or None.
    """
    rng = random.Random(f"bad {seed} {name}")
    bad = rng.sample(range(len(rows)), round(share * len(rows)))
    ways = {row: WAYS[place % len(WAYS)] for place, row in enumerate(bad)}
    exchanged = [row for row in bad if ways[row] == "exchanged"]
    if len(exchanged) == 1:  # nobody to exchange with
        ways[exchanged.pop()] = "canned"
    answers = {row: rows[row]["messages"][-1]["content"] for row in bad}
    donors = dict(zip(exchanged, exchanged[1:] + exchanged[:1], strict=True))
    made = []
    for number, row in enumerate(rows):
        way = ways.get(number)
        if way == "exchanged":
            answer = answers[donors[number]]
        elif way == "canned":
            answer = rng.choice(CANNED)
        elif way == "shuffled":
            words = answers[number].split()
            rng.shuffle(words)
            answer = " ".join(words)
        else:
            made.append({**row, "made_bad": None})
            continue
        messages = [*row["messages"][:-1], {**row["messages"][-1], "content": answer}]
        made.append({**row, "messages": messages, "made_bad": way})
    return made


def single_exchanges(path: Path, count: int, characters: int) -> list[Row]:
    """Read rows of one prompt and one answer from a Parquet file.

    Parameters
    ----------
    path
        With a `messages` column; its name seeds the draw.
    count
        Rows to draw at random, no two with the same prompt.
    characters
        Of prompt and answer together, at most.

    Returns
    -------
    list of dict
        With `messages`; fewer than `count` if the file has no more.
    """
    rows: dict[str, Row] = {}
    for messages in pl.read_parquet(path)["messages"].to_list():
        answered = [m["role"] for m in messages] == ["user", "assistant"] and len(messages[1]["content"].split()) > 2
        if answered and sum(len(m["content"]) for m in messages) <= characters:
            rows.setdefault(messages[0]["content"], {"messages": messages})
    found = list(rows.values())
    random.Random(f"0 {path.stem}").shuffle(found)
    return found[:count]


def write_rows(path: Path, dataset: str, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines with ids DATASET/KIND/NUMBER, where KIND is clean or the way in which the row was made bad. A file
    that exists is left as it is."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"id": f"{dataset}/{row.get('made_bad') or 'clean'}/{n}", "dataset": dataset, "messages": row["messages"]}
        for n, row in enumerate(rows)
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")


def arguments(description: str | None, characters: int) -> argparse.ArgumentParser:
    """Make the parser of a benchmark that draws short rows from FOLDER into WORK and computes their features."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--characters", type=int, default=characters, help="of a row at most")
    return parser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=10_000, help="in all, in natural proportions")
    parser.add_argument("--each", type=int, help="of every dataset, in place of --rows")
    parser.add_argument("--bad", type=float, default=0.0, help="share of bad rows in every dataset")
    parser.add_argument("--held", type=Path, metavar="FOLDER", help="folder for held-out rows")
    parser.add_argument("--held-rows", type=int, default=16, help="of every dataset at most")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    frames = {path.stem: pl.read_parquet(path) for path in sorted(chosen.folder.glob("*.parquet"))}
    counts = shares({name: len(frame) for name, frame in frames.items()}, chosen.rows)
    chosen.out.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        drawn = draw(frame, name, chosen.each or counts[name], chosen.seed)
        schema: dict[str, Any] = {**drawn.schema, "made_bad": pl.String}
        made = pl.DataFrame(spoil(drawn.to_dicts(), name, chosen.bad, chosen.seed), schema=schema)
        made.write_parquet(chosen.out / f"{name}.parquet")
        bad = made["made_bad"].drop_nulls().value_counts(sort=True, name="rows").rows()
        print(f"{name}: {len(made)} of {len(frame)} rows{''.join(f', {rows} {way}' for way, rows in bad)}")
        if chosen.held:
            chosen.held.mkdir(parents=True, exist_ok=True)
            rest = frame.join(drawn, on="messages", how="anti", maintain_order="left")
            draw(rest, name, chosen.held_rows, chosen.seed).write_parquet(chosen.held / f"{name}.parquet")


if __name__ == "__main__":
    main()
