"""Examples of a report with their text: selected and narrowly missed ones, and those that entered or left."""

from __future__ import annotations

from typing import Any

import polars as pl

from flows.report.elements import Datasets, Example, Group, isolated, named, snippet, written
from storage.catalog.report_facts import Facts
from storage.report_samples import Samples


def side_by_side(facts: Facts, samples: Samples, known: Datasets, word: str) -> list[Group]:
    """Chosen and just-missed examples of the largest groups."""
    shown: dict[int, dict[str, list[Example]]] = {}
    sizes = {row["group_id"]: row for row in facts.groups.iter_rows(named=True)}
    for row in samples.rows.filter(pl.col("kind").is_in(["chosen", "missed"])).iter_rows(named=True):
        missed = "would be next" if row["place"] == 1 else f"{row['place']} from the cut"
        heading = f"choice {row['place'] + 1}" if row["kind"] == "chosen" else missed
        reason = row["reason"] or ("kept its place (sticky)" if row["kind"] == "chosen" else "no score was recorded")
        shown.setdefault(row["group_id"], {"chosen": [], "missed": []})[row["kind"]].append(
            example(row, samples, known, heading, reason)
        )
    names = dict(facts.group_datasets.select("group_id", "dataset").iter_rows()) if word == "dataset" else {}
    groups = []
    for group_id, kinds in shown.items():
        size = sizes[group_id]
        label = isolated(named(names[group_id])) if group_id in names else str(group_id)
        name = everything(facts) if word == "pool" else f"{word.capitalize()} {label}"
        groups.append(
            Group(group_id, f"{name}: {size['selected']:,} of {size['size']:,} chosen", kinds["chosen"], kinds["missed"])
        )
    return groups


def everything(facts: Facts) -> str:
    """Name the group of a selection that has only one."""
    return "The whole pool" if facts.exclusions.is_empty() else "All that may be chosen"


def example(row: dict[str, Any], samples: Samples, known: Datasets, heading: str, reason: str) -> Example:
    """Make the page's example from a row of the report's samples."""
    facts = [
        f"{written(row[name], 'count')} {words}"
        for name, words in (("tokens", "tokens"), ("target_tokens", "of them targets"))
        if row.get(name) is not None
    ]
    facts += [f"loss {row['loss']:.3g}"] if row.get("loss") is not None else []
    facts += [f"weight {row['weight']:.3g}"] if row.get("weight") is not None else []
    identity = row["example_id"]
    return Example(
        example_id=identity,
        dataset=named(row["dataset"]),
        s=known.place(row["dataset"]),
        group_id=row["group_id"],
        heading=heading,
        reason=reason,
        stands=row.get("stands") or "",
        near=[opening(samples, other) for other in row.get("stands_near") or []],
        facts=", ".join(facts),
        messages=samples.messages[identity],
        turns=samples.turns[identity],
    )


def opening(samples: Samples, identity: str) -> str:
    """The first words of an example: of its first user turn, else of its first turn."""
    messages = samples.messages[identity]
    first = next((message for message in messages if message.role == "user"), messages[0] if messages else None)
    return "(forgotten: its text was erased)" if first is None else snippet(first.content)


def changed(samples: Samples, known: Datasets) -> list[Example]:
    """Examples that entered or left since the run before, a few of each reason."""
    rows = samples.rows.filter(pl.col("kind").is_in(["entered", "left"]))
    return [example(row, samples, known, row["kind"], row["reason"]) for row in rows.iter_rows(named=True)]
