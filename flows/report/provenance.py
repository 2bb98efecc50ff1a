"""Report sections on how a selection was made: rejects, changes since the run before, controls, lineage, cost."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from flows.addresses import plain_url
from flows.changes import Changes
from flows.compare.tables import named as trained_name
from flows.report import plots
from flows.report.columns import columns
from flows.report.elements import Column, Section, Table, first_rows, named, snippet
from storage.catalog.report_facts import Facts

# measures of drift (tagcos_stream/clustering/drift.py): short name, and description
DRIFT = {
    "share": ("joined", "share of the pool that came after the clusters were fitted"),
    "distance_shift": ("distance", "how much further from their centroids new rows are (standard deviations)"),
    "movement": ("movement", "how far the means moved (root mean square distances)"),
    "loss_shift": ("loss", "how much higher the loss of rows unseen by the warm-up is (standard deviations)"),
    "unseen": ("unseen", "share of the pool that the warm-up could not see"),
}

SOURCE_COUNTS = ("before", "pool", "new", "returned", "retired", "rejected", "selected")


def rejects(facts: Facts) -> Section:
    """Return the section of rejected rows, by reason and source."""
    if facts.rejects.is_empty():
        return Section("rejects", "Rejects", missing="No row was rejected: every input row is an example with a feature.")
    rows = [
        row | {"source": named(row["source"]) if row["source"] else "", "snippet": snippet(row["snippet"] or "")}
        for row in facts.rejects.to_dicts()
    ]
    totals = facts.rejects.group_by("stage", "reason").agg(pl.col("rows").sum()).sort("rows", "reason", descending=[True, False])
    drawn = [
        {"name": row["reason"], "value": row["rows"], "stage": row["stage"]} for row in totals.head(30).iter_rows(named=True)
    ]
    titles = columns("reason stage rows source detail snippet", stage="found at", source="file or source", detail="for example")
    shown, more = first_rows(rows, 'tagcos sql "FROM rejects_by_reason"')
    plot = plots.bars(
        "rejects", "Rejects by reason", "Bars: rejected rows by reason.", drawn, words="rows", form=",d", colour="stage"
    )
    lead = f"Rows of this run's files, and examples of its pool, that were not used: {facts.rejects['rows'].sum():,}."
    return Section("rejects", "Rejects", lead, plots=(plot,), tables=(Table("rejects", "Rejects", titles, shown, more),))


def exclusions(facts: Facts) -> Section:
    """Rows that might not be chosen, by the condition that they fail."""
    title = "Who may be chosen"
    if facts.exclusions.is_empty():
        return Section("exclusions", title, missing="Every example with a feature could be chosen.")
    config = json.loads(facts.run["config"])
    lead = f"Where {config.get('where') or 'true'}: {facts.exclusions['examples'].sum():,} examples with a feature were left out."
    if config.get("exclude") is not None:
        lead += f" Excluded: {config['exclude']}."
    if config.get("target_where") is not None:
        lead += f" The mean that is matched is of those where {config['target_where']}."
    shown, more = first_rows(facts.exclusions.to_dicts(), 'tagcos sql "FROM exclusions_by_reason"')
    titles = columns("reason examples share_of_pool", reason="condition that fails", examples="examples")
    return Section("exclusions", title, lead, tables=(Table("exclusions", title, titles, shown, more),))


def source_changes(facts: Facts) -> Changes:
    """Changes of the sources since the run that they are compared with."""
    counts = {"new": 0, "returned": 0, "retired": 0} | facts.example_changes
    rejected = int(facts.source_changes["rejected"].sum())
    return Changes(facts.since, facts.source_changes.to_dicts(), facts.file_changes.to_dicts(), **counts, rejected=rejected)


def changes(facts: Facts) -> Section:
    """Drift, and the difference to the run before."""
    drift = facts.drift
    if not drift:
        return Section("changes", "Since the run before", missing="There was no run before this one in its feature space.")
    lines = [f"{drift['pool']:,} examples have a feature."]
    if drift["base_run"]:
        lines.append(
            f"Since {drift['base_run']}: {drift['added']:,} new, {drift['returned']:,} back, {drift['retired']:,} retired."
        )
    if drift["churn"] is not None:
        lines.append(
            f"{drift['left_it']:,} of {drift['earlier']:,} selected before are no longer selected ({drift['churn']:.1%})."
        )
    lines.append("Clusters were fitted again." if drift["refitted"] else f"Advice: {drift['advice']}.")
    if drift["why"]:
        lines.append(f"Because {drift['why']}.")
    limits = json.loads(drift["thresholds"]) if drift["thresholds"] else {}
    measured = [
        {"name": short, "measure": words, "value": drift[name], "limit": limits.get(name)}
        for name, (short, words) in DRIFT.items()
        if drift[name] is not None
    ]
    drawn, tables = [], []
    if measured:
        bars = [{"name": row["name"], "value": row["value"] / row["limit"]} for row in measured if row["limit"]]
        drawn.append(
            plots.bars(
                "drift", "Drift, as a share of its limit", "Bars: drift measures.", bars, words="of the limit", form="%", rule=1
            )
        )
        titles = columns("name measure value limit", name="drift", measure="what it is")
        tables.append(Table("drift", "Drift", titles, measured))
    else:
        lines.append("No drift was measured: there were no earlier clusters to compare with.")
    if facts.since is not None:
        lines.append(f"Sources since {facts.since}: {source_changes(facts).summary}.")
        counted = [Column(name, name, "count") for name in SOURCE_COUNTS]
        rows = [row | {"source": plain_url(row["source"])} for row in facts.source_changes.to_dicts()]
        shown, more = first_rows(rows, "tagcos sql \"FROM source_changes('RUN_A', 'RUN_B')\"")
        caption = "Sources: what came and what went"
        tables.append(Table("source-changes", caption, (Column("source", "source"), *counted), shown, more))
    if not facts.changes.is_empty():
        rows = facts.changes.to_dicts()
        bars = [{"name": row["reason"], "value": row["examples"], "change": row["change"]} for row in rows]
        drawn.append(
            plots.bars(
                "changes",
                "Examples that entered or left, and why",
                "Bars: examples that entered or left.",
                bars,
                words="examples",
                form=",d",
                colour="change",
            )
        )
        tables.append(Table("changes", "Difference to the run before", columns("change reason examples"), rows))
    elif drift["base_run"]:
        lines.append("The selection is the same.")
    return Section("changes", "Since the run before", " ".join(lines), plots=tuple(drawn), tables=tuple(tables))


def controls(facts: Facts) -> Section:
    """Other methods at the same budgets, if they were measured."""
    lead, drawn, tables = [], [], []
    if facts.diagnosed:
        lead.append(
            f"`tagcos diagnose` on the features of {facts.diagnosed}: each method selected by seven eighths of the dimensions "
            "and was measured on the rest; fitted is the error with non-negative weights fitted on the dimensions it saw. This "
            "measures how well a selection represents the pool's gradient, not which one trains best."
        )
        rows = facts.comparison.to_dicts()
        lines = [
            {"fraction": row["fraction"], "error": row["error_fitted"], "who": row["method"], "selected": row["selected"]}
            for row in rows
            if row["error_fitted"] is not None
        ]
        drawn.append(plots.errors("controls", "Error on reserved dimensions, weights fitted", lines))
        titles = columns(
            "method fraction seeds error_plain error_weighted error_fitted sd_fitted datasets_reached clusters_reached jaccard"
        )
        tables.append(Table("controls", "Methods on reserved dimensions", titles, rows))
    if not facts.evaluations.is_empty():
        lead.append(
            "`tagcos evaluate` trained models on selections from this pool and measured them on rows held out: means over seeds, "
            "with standard errors, and the difference from random selection of the same size."
        )
        rows = [row | {"trained": trained_name(row)} for row in facts.evaluations.to_dicts()]
        bars = [
            {
                "name": f"{row['trained']}, {row['fraction']:.1%}, {row['regime']}",
                "value": row["vs_random"],
                "model": row["model"],
            }
            for row in rows
            if row["measure"] == "loss" and row["vs_random"] is not None
        ]
        if bars:
            title = "Held-out loss against random selection"
            label = "Bars: difference in held-out loss from random selection; below zero is better."
            drawn.append(plots.bars("evaluations", title, label, bars, words="nats; below 0 is better", form=".4f"))
        titles = columns(
            "measure trained fraction regime seeds value se vs_random vs_random_se median_vs_random datasets_ahead datasets "
            "model",
            regime="equal",
            value="mean",
            median_vs_random="median dataset against random",
            datasets="of",
        )
        shown, more = first_rows(rows, 'tagcos sql "FROM evaluation_scores"')
        tables.append(Table("evaluations", "Models trained on selections", titles, shown, more))
    if not tables:
        missing = "No controls were measured on this pool: `tagcos diagnose` compares the methods without training."
        return Section("controls", "Controls", missing=missing)
    return Section("controls", "Controls", " ".join(lead), plots=tuple(drawn), tables=tuple(tables))


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float | str) else json.dumps(value, default=str, ensure_ascii=False)


def lineage(facts: Facts) -> Section:
    """Return the section of the run's identities, settings and versions."""
    run, space = facts.run, facts.space
    general = {
        "run": run["run_id"],
        "started (UTC)": f"{run['started_at']:%Y-%m-%d %H:%M:%S}",
        "finished (UTC)": f"{run['finished_at']:%Y-%m-%d %H:%M:%S}" if run["finished_at"] else None,
        "attempts": run["attempts"],
        "selects again from": run["reselects"],
        "configuration hash": run["config_hash"],
        "feature space": run["space_id"],
        "gradient": space.get("variant"),
        "feature dimension": space.get("dim"),
        "clustering": run["clustering_id"],
    }
    config = json.loads(run["config"])
    files = [
        row | {"source": plain_url(row["source"]), "url": plain_url(row["url"]), "bytes": row["size"]}
        for row in facts.files.to_dicts()
    ]
    shown, more = first_rows(files, 'tagcos sql "FROM files"')
    tables = [
        _pairs("lineage", "Run", general),
        _pairs("settings", "Settings", {name: setting(value) for name, value in config.items()}),
        Table("files", "Files", columns("source url format bytes rows digest"), shown, more, folded=True),
        _pairs(
            "versions", "Versions", json.loads(run["versions"]) | {f"seed {k}": v for k, v in json.loads(run["seeds"]).items()}
        ),
    ]
    if space:
        fingerprint = {name: setting(value) for name, value in json.loads(space["fingerprint"]).items()}
        tables.append(_pairs("space", "Feature space: what a feature means", fingerprint))
    return Section("lineage", "Configuration and lineage", "Everything that this selection depends on.", tables=tuple(tables))


def setting(value: Any) -> Any:
    """Return a setting as text, URLs without credentials."""
    if isinstance(value, str):
        return plain_url(value)
    if isinstance(value, list):
        return ", ".join(str(setting(entry)) for entry in value)
    return _cell(value)


def _pairs(id: str, caption: str, values: dict[str, Any]) -> Table:
    rows = [{"name": name, "value": value} for name, value in values.items() if value is not None and value != ""]
    return Table(id, caption, (Column("name", "name"), Column("value", "value")), rows, folded=id != "lineage")


def stages(facts: Facts) -> Section:
    """Return the section of each stage's wall time and peak memory."""
    rows = facts.stages.to_dicts()
    if not rows:
        return Section("stages", "Time and memory", missing="No stage was recorded.")
    seconds = [{"name": row["stage"], "value": row["seconds"]} for row in rows]
    memory = [{"name": row["stage"], "value": row["peak_bytes"] / 2**30} for row in rows if row["peak_bytes"] is not None]
    drawn = [plots.bars("seconds", "Wall time by stage", "Bars: seconds by stage.", seconds, words="seconds", form=",.1f")]
    if memory:
        label = "Bars: peak memory of the process up to the end of each stage."
        drawn.append(plots.bars("memory", "Peak memory of the process by then", label, memory, words="GiB", form=",.2f"))
    table = Table("stages", "Stages", columns("stage seconds peak_bytes"), rows)
    lead = f"{facts.stages['seconds'].sum():,.1f} seconds in all."
    return Section("stages", "Time and memory", lead, plots=tuple(drawn), tables=(table,))
