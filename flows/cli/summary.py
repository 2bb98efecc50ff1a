"""The summary of a run, as plain data and as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flows.cli.output import print_frame

if TYPE_CHECKING:
    import polars as pl

    from storage.database import Catalog


def summary(catalog: Catalog, run_id: str) -> dict[str, Any]:
    """What a run selected, as plain data: counts, by dataset, cluster (or other group) and source, its match, what changed."""
    from flows.changes import sentence
    from storage.catalog import run_summary

    return {"run_id": run_id, "sentence": sentence(catalog, run_id), **run_summary.summary(catalog, run_id)}


def print_summary(catalog: Catalog, run_id: str) -> None:
    """What was selected, by dataset and by cluster (or other group), how near it comes to the pool's mean, what changed."""
    import polars as pl

    from storage.catalog import runs
    from tagcos_stream.selection.methods import METHODS

    found = summary(catalog, run_id)
    method = runs.run_row(catalog, run_id)["method"]
    chosen, usable, lacking = found["selected"], found["usable"], found["without_gradient"]
    print(f"\nrun {run_id}: {found['sentence'].replace(' selected', f' selected ({chosen / usable:.1%})', 1)}")
    if excluded := sum(found["excluded"].values()):
        print(f"  {excluded:,} of the {usable:,} were excluded; why: tagcos sql \"FROM exclusions_by_reason_of('{run_id}')\"")
    if lacking:
        print(f"  {lacking:,} more have no feature; why: tagcos sql \"FROM rejects_by_reason_of('{run_id}')\"")
    if found["heldout"]:
        print(f"  {found['heldout']:,} more are held out")
    print()
    print_frame(pl.DataFrame(found["by_dataset"]))
    print()
    print_frame(_by_group(catalog, run_id, method, pl.DataFrame(found["by_cluster"])))
    for match in found["match"]:
        if match["error_plain"] is None:
            continue  # the mean is zero, and no error relative to it
        errors = f"{match['error_plain']:.3f} with equal weights"
        if METHODS[method].weights:
            errors += f", {match['error_weighted']:.3f} with the fitted weights"
        print(f"\nerror of the pool's mean feature, on dimensions seen: {errors}")
    for row in found["changes"]:
        _tell_changes(row)
        if row["base_run"] is not None:
            print_frame(pl.DataFrame(found["by_source"]))


def _by_group(catalog: Catalog, run_id: str, method: str, groups: pl.DataFrame) -> pl.DataFrame:
    """The groups under the name of what they are, such as cluster."""
    from flows.group_words import group_word
    from storage.catalog import run_summary

    clusters = run_summary.clusters(catalog, run_id)
    return groups.drop("cluster").rename({"group_id": group_word(method, groups["group_id"].to_list(), clusters)})


def _tell_changes(row: dict[str, Any]) -> None:
    """What changed since the run before, where there was one, and the drift."""
    clusters = "clusters fitted again" if row["refitted"] else "clusters kept" if row["clustering_id"] else ""
    if row["base_run"] is None:  # the first run of its name, of a pool with clusters
        print(f"\n{clusters}" if clusters else "")
    else:
        gone = f"{row['added']} new, {row['returned']} back, {row['retired']} retired"
        print(f"\nsince {row['base_run']}: {gone}{'; ' + clusters if clusters else ''}")
    if row["churn"] is not None:
        sticky = f" ({row['churn_without_sticky']:.1%} without sticky)" if row["kept_by_sticky"] else ""
        print(f"{row['left_it']} of the {row['earlier']} chosen before left, {row['churn']:.1%}{sticky}")
    measures = {
        name: row[name] for name in ("share", "distance_shift", "movement", "loss_shift", "unseen") if row[name] is not None
    }
    if measures:
        print("drift: " + ", ".join(f"{name} {value:.2f}" for name, value in measures.items()) + f": {row['advice']}")
    if row["why"]:
        print(f"  {row['why']}" + ("" if "warm-up" not in row["advice"] else "; for another warm-up, change --feature-seed"))
