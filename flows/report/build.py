"""Write the report of a run: count and sample from the store, lay out, render, put in its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from flows.addresses import plain_url
from flows.group_words import PLURALS, group_word
from flows.report import examples, provenance, selection, target
from flows.report.elements import MAX_ROWS, Datasets, Report, Section, isolated, named, written
from flows.report.page import render
from storage import report_samples
from storage.catalog import report_facts
from storage.catalog.report_facts import Facts
from storage.exports.files import replacing
from storage.report_samples import MapSample, Samples
from storage.root import Root
from tagcos_stream.clustering.pca import Plane, principal_plane
from tagcos_stream.config import DEFAULT_FRACTION, VECTORS, Settings
from tagcos_stream.types import UserError

UNREMARKABLE = {"root", "sources", "model", "method", "wait"}  # named elsewhere, or of no effect
MAX_NOTED = 12  # datasets


def report_key(run_id: str) -> str:
    """Return where a run's report is stored.

    Parameters
    ----------
    run_id
        Id of any run; it need not have a report yet.

    Returns
    -------
    str
        Key under the root.
    """
    return f"reports/{run_id}.html"


def write_report(root: Root, run_id: str, out: Path | None = None) -> tuple[str, int]:
    """Write the report of a run, atomically.

    Parameters
    ----------
    root
        The root that holds the run.
    run_id
        A complete run.
    out
        File to write; by default the report's place under the root.

    Returns
    -------
    tuple of (str, int)
        Path or URL of the page, and its size in bytes.

    Raises
    ------
    UserError
        There is no such complete run, or `out` cannot be written.
    DamagedStore
        An example that the report shows, or a centroid, is not what was written.
    """
    if out is not None and out.suffix not in (".html", ".htm"):
        raise UserError(f"cannot write a report to {out}: it is a page, its name must end in .html")
    body = make_report(root, run_id).encode()
    if out is None:
        root.files.write(report_key(run_id), body)
        return root.files.place(report_key(run_id)), len(body)
    with replacing(out) as partial:
        partial.write_bytes(body)
    return str(out), len(body)


def make_report(root: Root, run_id: str) -> str:
    """Make the report page of a run. Its size, and the memory used beyond the catalog's limit, do not grow with the pool.

    Parameters
    ----------
    root
        The root that holds the run.
    run_id
        Id of a complete run, in full.

    Returns
    -------
    str
        HTML.

    Raises
    ------
    UserError
        There is no such complete run.
    """
    facts = report_facts.gather(root.catalog, run_id)
    shown = report_samples.collect(root, run_id, clustering_id=facts.clustering_id, base=facts.drift.get("base_run"))
    drawn = report_samples.map_sample(root, run_id, facts.run["space_id"], facts.clustering_id)
    plane = principal_plane(drawn.features, drawn.rows["weight"].to_numpy())
    return render(lay_out(facts, shown, drawn, plane))


def lay_out(facts: Facts, shown: Samples, drawn: MapSample, plane: Plane) -> Report:
    """Lay out the report; reads nothing.

    Parameters
    ----------
    facts
        Counts from the catalog.
    shown
        Examples with their text.
    drawn
        Examples on the map.
    plane
        Directions of the map.

    Returns
    -------
    Report
        Sections, tables and plots.
    """
    method, config = facts.run["method"], json.loads(facts.run["config"])
    word = group_word(method, facts.groups["group_id"].to_list(), facts.clusters["cluster"].unique().to_list())
    known = Datasets(facts.datasets["dataset"])
    groups = examples.side_by_side(facts, shown, known, word)
    chosen = int(facts.groups["selected"].sum())
    usable = int(facts.groups["size"].sum()) + int(facts.exclusions["examples"].sum())
    largest = facts.groups.sort("size", "group_id", descending=[True, False]).head(MAX_ROWS)["group_id"].to_list()
    return Report(
        run_id=facts.run["run_id"],
        subtitle=(
            f"{chosen:,} of {usable:,} examples ({chosen / usable:.2%}) selected by {method} from {_datasets(facts)}, "
            f"by {_features(config)}."
        ),
        notes=_notes(facts, config),
        figures=_figures(facts, usable, chosen),
        datasets=known,
        sections=[
            selection.datasets(facts, known),
            selection.example_map(facts, shown, known, drawn, plane, word),
            selection.budgets(facts, known, word),
            selection.residuals(facts, word),
            *([] if facts.target.is_empty() else [target.coverage(facts, shown)]),
            selection.lengths(facts, known),
            _examples(facts, groups, word, chosen),
            provenance.rejects(facts),
            provenance.exclusions(facts),
            provenance.changes(facts),
            provenance.controls(facts),
            provenance.lineage(facts),
            provenance.stages(facts),
        ],
        groups=groups,
        changed=examples.changed(shown, known),
        word=word,
        clusters=sorted(largest) if len(largest) > 1 and word != "dataset" else [],  # which has a filter
    )


def _datasets(facts: Facts) -> str:
    return "one dataset" if len(facts.datasets) == 1 else f"{len(facts.datasets):,} datasets"


def _notes(facts: Facts, config: dict[str, Any]) -> list[str]:
    """What sets this run apart, at the top: settings that differ from the default, and changes since the run before."""
    differ = [
        f"{name} {provenance.setting(value)}"
        for name, value in config.items()
        if name in Settings.model_fields and name not in UNREMARKABLE and value not in _defaults(name)
    ]
    notes = [f"Settings that differ from the default: {', '.join(differ)}." if differ else "All settings are the default."]
    if facts.since is not None:
        notes.append(f"Sources since {facts.since}: {provenance.source_changes(facts).summary}.")
    if not facts.moved.is_empty():
        moved = [
            f"{isolated(named(row['dataset']))} {row['pool_before']:,} → {row['pool']:,}, "
            f"chosen {row['selected_before']:,} → {row['selected']:,}"
            for row in facts.moved.iter_rows(named=True)
        ]
        more = f" and {len(moved) - MAX_NOTED} more" if len(moved) > MAX_NOTED else ""
        notes.append(f"Since {facts.drift['base_run']}, by dataset (pool, chosen): {'; '.join(moved[:MAX_NOTED])}{more}.")
    elif facts.drift.get("base_run"):
        notes.append(f"No dataset's pool or selection changed in size since {facts.drift['base_run']}.")
    return notes


def _defaults(name: str) -> list[Any]:
    """Return the default of a setting as a recorded configuration has it, and what a run puts in its place."""
    default = Settings.model_fields[name].get_default(call_default_factory=True)
    return [list(default) if isinstance(default, tuple) else default] + [DEFAULT_FRACTION] * (name == "fraction")


def _features(config: dict[str, Any]) -> str:
    """What the run selected by."""
    if config.get("gradient") == VECTORS:
        return "vectors of your own"
    kind = "hidden states" if config.get("gradient") == "hidden" else "gradients"
    return f"the {kind} of {plain_url(str(config.get('model') or 'an unnamed model'))}"


def _figures(facts: Facts, usable: int, chosen: int) -> list[tuple[str, str, str, object]]:
    whole = facts.match.filter(pl.col("cluster").is_null()).to_dicts()
    error = whole[0] if whole else {"error_plain": None, "error_weighted": None}
    tokens = facts.sizes.filter(pl.col("measure") == "target tokens", pl.col("chosen").eq_missing(True))["total"].to_list()
    control, excluded = _control(facts), facts.exclusions["examples"].sum()
    note = "; 1 explains nothing" if control is None else f"; random: {written(control, 'number')}"
    figures = [
        ("found", "examples in the pool", facts.found, "count"),
        ("usable", "with a feature", usable, "count"),
        ("eligible", "that may be chosen", usable - int(excluded) if excluded else None, "count"),
        ("selected", "selected", chosen, "count"),
        ("share", "share selected", chosen / usable, "share"),
        ("tokens", "target tokens selected", tokens[0] if tokens else None, "count"),
        ("rejected", "rejected", int(facts.rejects["rows"].sum()), "count"),
        ("groups", "clusters", facts.clusters["cluster"].n_unique(), "count"),
        ("error_plain", f"error of the pool's mean feature, equal weights{note}", error["error_plain"], "number"),
        ("error_weighted", "the same with the method's weights", error["error_weighted"], "number"),
        ("seconds", "seconds", float(facts.stages["seconds"].sum()), "seconds"),
    ]
    return [(id, words, written(value, kind), value) for id, words, value, kind in figures if value is not None]  # type: ignore[arg-type]


def _control(facts: Facts) -> float | None:
    """The same error of a random selection of about this size from this pool, where a run or `tagcos diagnose` measured one."""
    usable = int(facts.groups["size"].sum()) + int(facts.exclusions["examples"].sum())
    share = int(facts.groups["selected"].sum()) / max(usable, 1)
    measured = [
        (abs(row["fraction"] - share), row["error_plain"])
        for frame in (facts.budgets, facts.comparison)
        if not frame.is_empty()
        for row in frame.filter(pl.col("method") == "random").iter_rows(named=True)
        if row["error_plain"] is not None and abs(row["fraction"] - share) <= 0.1 * share
    ]
    return min(measured)[1] if measured else None


def _examples(facts: Facts, groups: list[examples.Group], word: str, chosen: int) -> Section:
    title = "Chosen and just missed"
    if not groups:
        return Section("examples", title, missing="Nothing was chosen.")
    shown = sum(len(group.chosen) for group in groups)
    lead = f"{shown:,} of the {chosen:,} selected, in order of choice, next to those that would have followed, with the reason."
    if len(groups) < len(facts.groups):
        lead += f" Of the {len(groups)} largest of {len(facts.groups):,} {PLURALS[word]}."
    lead += " `tagcos sql \"FROM why('ID')\"` explains any example; `tagcos export` writes the whole selection."
    return Section("examples", title, lead)
