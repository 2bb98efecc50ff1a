"""Report sections on what was selected: datasets, clusters, budgets, residuals, lengths."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np
import polars as pl

from flows.group_words import PLURALS
from flows.report import plots
from flows.report.columns import columns
from flows.report.elements import Datasets, Section, Table, first_rows, isolated, named
from flows.report.examples import everything, opening
from flows.report.plot_parts import DATASETS
from storage.catalog.report_facts import STEPS, Facts
from storage.report_samples import MapSample, Samples
from tagcos_stream.clustering.pca import Plane

SHOWN_SOURCES = 30  # in the plot
SHOWN_BARS = 100
OUTLINES = 40  # clusters outlined on the map: the largest
OUTLINE_POINTS = 25


def datasets(facts: Facts, known: Datasets) -> Section:
    """Return the section of each dataset's share of pool and selection."""
    rows = [
        row | {"name": named(row["dataset"]), "s": known.place(row["dataset"]), "taken": row["selected"] / row["pool"]}
        for row in facts.datasets.to_dicts()
    ]
    drawn = [
        {"name": row["name"], "s": row["s"], "who": who, "examples": row[count], "share": row[share] or 0}
        for row in rows[:SHOWN_SOURCES]
        for who, count, share in (("pool", "pool", "share_of_pool"), ("selection", "selected", "share_of_selection"))
    ]
    shown, more = first_rows(rows, "tagcos sql \"FROM by_dataset('RUN')\"")
    titles = columns("name pool selected share_of_pool share_of_selection taken target_tokens", name="dataset")
    lead = "Each dataset's share of the pool (before) and of the selection (after)."
    if len(rows) > SHOWN_SOURCES:
        lead += f" The plot shows the {SHOWN_SOURCES} largest of {len(rows):,}."
    table = Table("datasets", "Datasets", titles, shown, more)
    return Section("datasets", "By dataset", lead, plots=(plots.by_dataset(drawn),), tables=(table,))


def parts(counts: pl.DataFrame, known: Datasets, by: str) -> dict[int, list[list[int]]]:
    """By the column `by`: [s, size, selected] of its datasets, largest first; datasets without a filter of their own are one."""
    found: dict[int, dict[int, list[int]]] = defaultdict(dict)
    for row in counts.iter_rows(named=True):
        s = known.place(row["dataset"])
        entry = found[row[by]].setdefault(s, [s, 0, 0])
        entry[1] += row["size"]
        entry[2] += row["selected"]
    return {key: sorted(entries.values(), key=lambda entry: (-entry[1], entry[0])) for key, entries in found.items()}


def example_map(facts: Facts, samples: Samples, known: Datasets, shown: MapSample, plane: Plane, word: str) -> Section:
    """The pool in a plane: a sample of its examples, by dataset, the chosen marked, clusters as outlines; and the clusters."""
    own = word == "cluster"  # what shared the budget
    at = plane.place(shown.features)
    # what the filter of groups goes by; datasets have a filter of their own, and a single pool needs none
    group = {"cluster": "cluster", "group": "group_id", "stratum": "group_id"}.get(word)
    drawn: list[dict[str, Any]] = []
    for row, (x, y) in zip(shown.rows.iter_rows(named=True), at.tolist(), strict=True):
        s = known.place(row["dataset"])
        drawn.append(
            {
                "kind": "example",
                "x": x,
                "y": y,
                "s": s,
                "dataset": known.name(s),
                "main": known.name(s) if s < len(DATASETS) else "other datasets",
                "chosen": "yes" if row["chosen"] else "no",
                "example": row["example_id"][:12],
                "tokens": row["tokens"],
                "loss": row["loss"],
            }
            | ({"c": row[group]} if group is not None and row[group] is not None else {})
        )
    drawn += _outlines(shown, at, own=own)
    counts = shown.rows["chosen"].sum()
    lead = (
        f"{counts:,} chosen examples (diamonds) and {len(shown.rows) - counts:,} of the others, drawn at random by their ids, "
        "in the plane in which the features spread most. Near in the plane is not always near in all dimensions."
    )
    plot = plots.example_map(drawn, known.names, plane.shares.tolist(), word)
    if facts.clustering_id is None:
        lead += " No clustering covers this pool: its method makes none."
        return Section("map", "Map", lead, plots=(plot,))
    lead += " Outlines are clusters: three quarters of a cluster's examples, were it normal in the plane, lie inside its own."
    if facts.run["clustering_id"] is None:
        lead += " The method chose without clusters; these are of the newest clustering that covers the pool."
    elif not own:
        lead += " Datasets were chosen from separately: the groups that shared the budget are parts of clusters."
    return Section("map", "Map", lead, plots=(plot,), tables=(_clusters(facts, samples, known, own=own),))


def _outlines(shown: MapSample, at: np.ndarray, *, own: bool) -> list[dict[str, Any]]:
    """An ellipse for each of the largest clusters drawn, from its examples' mean and covariance."""
    rows: list[dict[str, Any]] = []
    sizes = shown.rows.filter(pl.col("cluster").is_not_null()).group_by("cluster").agg(pl.col("weight").sum(), pl.len())
    circle = np.linspace(0, 2 * np.pi, OUTLINE_POINTS)
    ring = np.sqrt(2 * np.log(4)) * np.stack([np.cos(circle), np.sin(circle)])  # 1 - 1/4 of a normal distribution
    largest = sizes.filter(pl.col("len") > 2).sort("weight", "cluster", descending=[True, False]).head(OUTLINES)
    for cluster in largest["cluster"].to_list():
        mine = shown.rows["cluster"].eq_missing(cluster).to_numpy()
        points, weights = at[mine], shown.rows["weight"].to_numpy()[mine]
        values, vectors = np.linalg.eigh(np.cov(points.T, aweights=weights))
        outline = np.average(points, axis=0, weights=weights)[:, None] + vectors @ (
            np.sqrt(np.maximum(values, 0))[:, None] * ring
        )
        rows += [
            {"kind": "outline", "x": float(x), "y": float(y), "order": n, "cluster": cluster} | ({"c": cluster} if own else {})
            for n, (x, y) in enumerate(outline.T)
        ]
    return rows


def _clusters(facts: Facts, samples: Samples, known: Datasets, *, own: bool) -> Table:
    by_cluster = parts(facts.clusters, known, "cluster")
    residuals = dict(zip(facts.groups["group_id"], facts.groups["residual"], strict=True)) if own else {}
    nearest: dict[int, list[str]] = defaultdict(list)
    for row in samples.rows.filter(pl.col("kind") == "nearest").iter_rows(named=True):
        nearest[row["cluster"]].append(opening(samples, row["example_id"]))
    rows: list[dict[str, Any]] = []
    for cluster, entries in sorted(by_cluster.items(), key=lambda item: (-sum(entry[1] for entry in item[1]), item[0])):
        size, selected = sum(entry[1] for entry in entries), sum(entry[2] for entry in entries)
        row = ({"c": cluster} if own else {}) | {
            "cluster": cluster,
            "size": size,
            "selected": selected,
            "share": selected / size,
            "makeup": makeup(entries, known),
            "example": (nearest[cluster] or [""])[0],
            "parts": entries,
        }
        rows.append(row | {"residual": residuals.get(cluster)})
    keys = f"cluster size selected share {'residual ' * bool(residuals)}makeup example"
    titles = columns(keys, example="nearest to the centre")
    shown, more = first_rows(rows, "tagcos sql \"FROM coverage_of('RUN')\"")
    return Table("clusters", "Clusters", titles, shown, more)


def makeup(entries: list[list[int]], known: Datasets) -> str:
    """Say of which datasets a group is, from its entries of `parts`."""
    return ", ".join(f"{isolated(known.name(s))} {n:,}" for s, n, _ in entries[:5]) + " …" * (len(entries) > 5)


def budgets(facts: Facts, known: Datasets, word: str) -> Section:
    """Return the section of how many examples each group was given."""
    title, by_group = "Budget", parts(facts.group_datasets, known, "group_id")
    rows = [
        row | {"c": row["group_id"], "parts": by_group.get(row["group_id"], [])}
        for row in facts.groups.sort("size", "group_id", descending=[True, False]).to_dicts()
    ]
    if len(rows) == 1:
        only = rows[0]
        text = f"{everything(facts)} shared one budget: {only['selected']:,} of {only['size']:,} examples."
        return Section("budget", title, missing=text)
    unit = "examples" if json.loads(facts.run["config"]).get("tokens") is None else "tokens"
    lead = f"How the {sum(row['budget'] for row in rows):,} {unit} were shared over {len(rows):,} {PLURALS[word]}."
    if len(rows) > SHOWN_BARS:
        lead += f" The plot shows the {SHOWN_BARS} largest."
    keys = "c size budget selected share residual mean_squared_distance seconds"
    if word != "cluster":  # whose datasets are in the table of clusters
        rows = [row | {"makeup": makeup(row["parts"], known)} for row in rows]
        keys = keys.replace("c ", "c makeup ", 1)
    keys += " kept" * bool(facts.groups["kept"].sum()) + " copied_from" * bool(facts.groups["copied_from"].drop_nulls().len())
    titles = columns(keys, c=word)
    shown, more = first_rows(rows, "tagcos sql \"FROM coverage_of('RUN')\"")
    drawn = [{name: row[name] for name in ("c", "size", "selected", "share", "residual", "parts")} for row in rows[:SHOWN_BARS]]
    table = Table("budget", "Budget", titles, shown, more, folded=True)
    return Section("budget", title, lead, plots=(plots.budget(drawn, word),), tables=(table,))


def residuals(facts: Facts, word: str) -> Section:
    """Of the pursuit, as it chose and at its end; and the error of the whole against what other runs on this pool took."""
    sizes = {row["group_id"]: row for row in facts.groups.iter_rows(named=True)}
    curve = [
        {
            "c": row["group_id"],
            "chosen": row["chosen"],
            "part": row["chosen"] / sizes[row["group_id"]]["selected"],
            "residual": row["residual"],
        }
        for row in facts.curves.iter_rows(named=True)
    ]
    overall = [
        {"part": row["step"] / STEPS, "residual": row["median"], "low": row["p10"], "high": row["p90"]}
        for row in facts.curve.iter_rows(named=True)
    ]
    ends = [
        {"c": row["group_id"], "size": row["size"], "selected": row["selected"], "residual": row["residual"]}
        for row in facts.groups.iter_rows(named=True)
        if row["residual"] is not None
    ]
    runs = [
        {
            "fraction": row["fraction"],
            "selected": row["selected"],
            "error": row[f"error_{kind}"],
            "who": f"{row['method']}, {words}",
        }
        for row in facts.budgets.iter_rows(named=True)
        for kind, words in (("plain", "equal weights"), ("weighted", "fitted weights"))
        if row[f"error_{kind}"] is not None
    ]
    drawn = []
    if curve:
        drawn += [plots.curves(curve, overall, word), plots.residual_by_budget(ends, word)]
    if runs:
        drawn.append(plots.errors("errors", "Error against budget, of the runs on this pool", runs))
    lead = (
        "The residual is the part of the target mean that the selection does not explain: 1 is all of it, 0 none. Every round of "
        "the pursuit starts at 1 again."
    )
    if not curve:
        lead = "This method has no residual."
    if runs:
        lead += " The error of the whole is measured on the dimensions it was selected by, which flatters methods that fit them."
    titles = columns(
        "run_id method fraction selected error_plain error_weighted",
        error_plain="error, equal weights",
        error_weighted="error, fitted weights",
    )
    tables = (Table("errors", "Runs on this pool", titles, facts.budgets.to_dicts(), folded=True),) if runs else ()
    if not drawn:
        return Section("residuals", "Residual and error", missing="Neither a residual nor an error was recorded for this run.")
    return Section("residuals", "Residual and error", lead, plots=tuple(drawn), tables=tables)


def lengths(facts: Facts, known: Datasets) -> Section:
    """Return the section of tokens, characters, turns and loss, before and after."""
    drawn, rows = [], []
    for measure, unit in (
        ("tokens", "tokens"),
        ("target tokens", "tokens"),
        ("characters", "characters"),
        ("turns", "turns"),
        ("loss", "nats"),
    ):
        mine = facts.sizes.filter(pl.col("measure") == measure)
        if not mine["n"].sum():
            continue
        for who, chosen in (("pool", None), ("selection", True)):
            rows += [row | {"who": who} for row in mine.filter(pl.col("chosen").eq_missing(chosen)).iter_rows(named=True)]
        if mine["smallest"].min() == mine["largest"].max():
            continue  # a single bar adds nothing to the table
        summed: dict[tuple[int, int], dict[str, Any]] = {}
        for row in facts.histograms.filter(pl.col("measure") == measure).iter_rows(named=True):
            s = known.place(row["dataset"])
            entry = summed.setdefault((row["bin"], s), {"low": row["low"], "high": row["high"], "s": s, "pool": 0, "selected": 0})
            entry["pool"] += row["pool"]
            entry["selected"] += row["selected"]
        drawn.append(plots.histogram(measure, unit, list(summed.values())))
    lead = "Of the examples that have a feature. Tokens are counted as cut to max_length; loss is the mean over target tokens."
    if not rows:
        return Section("lengths", "Lengths and loss", missing="No lengths were recorded.")
    table = Table("lengths", "Lengths and loss", columns("measure who n total mean median p90 largest"), rows)
    return Section("lengths", "Lengths and loss", lead, plots=tuple(drawn), tables=(table,))
