"""Write the report of a run: count and sample from the store, lay out, render, put in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from flows.report import examples, provenance, selection
from flows.report.elements import MOST_ROWS, Report, Section, Sources, written
from flows.report.page import render
from storage import report_samples
from storage.arrays import grouped_reader
from storage.catalog import report_facts
from storage.catalog.report_facts import Facts
from storage.exports.files import beside
from storage.report_samples import CLUSTERS, Samples
from storage.root import Root
from tagcos_stream.clustering.pca import plane
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.types import UserError


def report_key(run_id: str) -> str:
    """Where a run's report lies under its root."""
    return f"reports/{run_id}.html"


def write_report(root: Root, run_id: str, out: Path | None = None) -> tuple[str, int]:
    """Write it under the root, or to `out`; whole or not at all. Returns its place and bytes.

    Raises:
        UserError: no such complete run, or a place that cannot be written.
        DamagedStore: an example that it shows, or a centroid, is not what was written.
    """
    if out is not None and out.suffix not in (".html", ".htm"):
        raise UserError(f"cannot write a report to {out}: it is a page, its name must end in .html")
    body = make_report(root, run_id).encode()
    if out is None:
        root.files.write(report_key(run_id), body)
        return root.files.place(report_key(run_id)), len(body)
    with beside(out) as partial:
        partial.write_bytes(body)
    return str(out), len(body)


def make_report(root: Root, run_id: str) -> str:
    """The page of a complete run. Its size, and memory beside the catalog's own limit, do not grow with the pool."""
    facts = report_facts.gather(root.catalog, run_id)
    shown = report_samples.collect(root, run_id, clustering_id=facts.clustering_id, base=facts.drift.get("base_run"))
    return render(lay_out(facts, shown, *places(root, facts)))


def places(root: Root, facts: Facts) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """(coordinates (2,) by cluster, shares of the spread (2,)) of the largest clusters in a plane."""
    sizes = facts.clusters.group_by("cluster").agg(pl.col("size").sum()).sort("size", "cluster", descending=[True, False])
    sizes = sizes.head(CLUSTERS)
    if facts.clustering_id is None or sizes.is_empty():
        return {}, np.zeros(2)
    clusters = sizes["cluster"].to_numpy().astype(np.int64)
    centroids = grouped_reader.some_centroids(root.files, facts.clustering_id, clusters)
    coordinates, shares = plane(centroids, sizes["size"].to_numpy())
    return dict(zip(clusters.tolist(), coordinates, strict=True)), shares


def lay_out(facts: Facts, shown: Samples, at: dict[int, np.ndarray], shares: np.ndarray) -> Report:
    """The report's content; reads nothing."""
    method = facts.run["method"]
    word = selection.WORDS[METHODS[method].within]
    known = Sources(facts.sources["dataset"])
    groups = examples.side_by_side(facts, shown, known, word)
    usable, chosen = int(facts.groups["size"].sum()), int(facts.groups["selected"].sum())
    largest = facts.groups.sort("size", "cluster", descending=[True, False]).head(MOST_ROWS)["cluster"].to_list()
    return Report(
        run_id=facts.run["run_id"],
        subtitle=f"{chosen:,} of {usable:,} examples ({chosen / usable:.2%}) selected by {method} from {_sources(facts)}.",
        figures=_figures(facts, usable, chosen),
        sources=known,
        sections=[
            selection.sources(facts, known),
            selection.cluster_map(facts, shown, known, at, shares.tolist()),
            selection.budgets(facts, known, word),
            selection.residuals(facts, word),
            selection.lengths(facts, known),
            _examples(facts, groups, word, chosen),
            provenance.rejects(facts),
            provenance.changes(facts),
            provenance.controls(facts),
            provenance.lineage(facts),
            provenance.stages(facts),
        ],
        groups=groups,
        changed=examples.changed(shown, known),
        word=word,
        clusters=sorted(largest) if len(largest) > 1 else [],
    )


def _sources(facts: Facts) -> str:
    return "one source" if len(facts.sources) == 1 else f"{len(facts.sources):,} sources"


def _figures(facts: Facts, usable: int, chosen: int) -> list[tuple[str, str, str, object]]:
    whole = facts.match.filter(pl.col("cluster").is_null()).to_dicts()
    error = whole[0] if whole else {"error_plain": None, "error_weighted": None}
    tokens = facts.sizes.filter(pl.col("measure") == "target tokens", pl.col("chosen").eq_missing(True))["total"].to_list()
    told = [
        ("found", "examples in the pool", facts.found, "count"),
        ("usable", "with a feature", usable, "count"),
        ("selected", "selected", chosen, "count"),
        ("share", "share selected", chosen / usable, "share"),
        ("tokens", "target tokens selected", tokens[0] if tokens else None, "count"),
        ("rejected", "rejected", int(facts.rejects["rows"].sum()), "count"),
        ("groups", "clusters", facts.clusters["cluster"].n_unique(), "count"),
        ("error_plain", "error, counted alike", error["error_plain"], "number"),
        ("error_weighted", "error, weighted", error["error_weighted"], "number"),
        ("seconds", "seconds", float(facts.stages["seconds"].sum()), "seconds"),
    ]
    return [(id, words, written(value, kind), value) for id, words, value, kind in told if value is not None]  # type: ignore[arg-type]


def _examples(facts: Facts, groups: list[examples.Group], word: str, chosen: int) -> Section:
    title = "Chosen and just missed"
    if not groups:
        return Section("examples", title, missing="Nothing was chosen.")
    shown = sum(len(group.chosen) for group in groups)
    lead = f"{shown:,} of the {chosen:,} chosen, in order of choice, beside those that would have been next, with what decided."
    if len(groups) < len(facts.groups):
        lead += f" Of the {len(groups)} largest of {len(facts.groups):,} {selection.PLURALS[word]}."
    lead += " `tagcos sql \"FROM why('ID')\"` tells it of any example; `tagcos export` writes all that were chosen."
    return Section("examples", title, lead)
