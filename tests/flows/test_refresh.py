"""A pool that grows, shrinks and comes back: what is computed, what is equal to a run from scratch, what is recorded."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows import pipeline
from flows.progress import SilentReporter
from storage import check
from storage.arrays import grouped, grouped_reader
from storage.catalog import clusterings, runs, selections
from storage.root import Root, open_root
from tagcos_stream import identity
from tagcos_stream.clustering import drift
from tagcos_stream.config import load_settings
from tests import naive
from tests.benchmarks import bench_refresh
from tests.flows.conftest import TOPICS, First, features_of
from tests.flows.test_kill import write

Maker = Callable[..., dict[str, Any]]
CHOICE = ["example_id", "rank", "round", "score", "residual_after", "weight", "group_id"]


def run(values: dict[str, Any]) -> pipeline.Outcome:
    return pipeline.run(load_settings(values), SilentReporter())


def opened(values: dict[str, Any]) -> Root:
    return open_root(values["root"], create=False)


def chosen(values: dict[str, Any], run_id: str) -> pl.DataFrame:
    return selections.selection(opened(values).catalog, run_id)[CHOICE].sort("example_id")


def record(values: dict[str, Any], run_id: str) -> dict[str, Any]:
    return opened(values).catalog.read("FROM refreshes WHERE run_id = ?", [run_id]).to_dicts()[0]


def blocks_of(values: dict[str, Any]) -> set[tuple[Any, ...]]:
    return set(opened(values).catalog.read("SELECT segment, block, committed_at FROM blocks").rows())


def begin_clustering(root: Root, values: dict[str, Any], centroids_of: str) -> str:
    """A clustering with another's centroids and no rows, which a run with these settings finds: a run from scratch."""
    catalog = root.catalog
    space, first = catalog.read("SELECT space_id, run_id FROM clusterings WHERE clustering_id = ?", [centroids_of]).row(0)
    reader = grouped_reader.ClusteringReader(root.files, centroids_of, [0])
    name = f"scratch-{values.get('seed', 0)}"
    grouped.write_centroids(root.files, name, reader.centroids)
    noted = runs.run_status(catalog, first).run["clustering_id"]
    clusterings.add_clustering(
        catalog,
        first,
        name,
        space,
        clusters=pl.DataFrame(schema={"cluster": pl.Int32, "size": pl.Int64, "inertia": pl.Float64}),
        rows=pl.DataFrame(),
        part=None,
        config={},
        recipe=identity.clustering_recipe(load_settings(values), space),
    )
    runs.set_run(catalog, first, clustering_id=noted)
    return name


def test_refresh__equals_a_run_from_scratch_whatever_came_before(
    small_settings: Maker, first_run: First, pool_folder: Path
) -> None:
    """Growth, a part that left, growth again, and its return: bit for bit what the same centroids give at once."""
    first = first_run(small_settings(fraction=0.2))
    values = small_settings(refit="never", fraction=0.2, max_retired=0.5)
    clustering = first.stages["cluster"]["clustering_id"]
    write(pool_folder / "more.jsonl", "sums", range(100, 117))
    run(values)
    (pool_folder / "cities.jsonl").rename(pool_folder.parent / "cities.jsonl")
    write(pool_folder / "again.jsonl", "colours", range(200, 219))
    less = run(values)
    (pool_folder.parent / "cities.jsonl").rename(pool_folder / "cities.jsonl")
    full = run(values)
    assert [outcome.stages["cluster"]["clustering_id"] for outcome in (less, full)] == [clustering] * 2
    assert [full.stages["cluster"][name] for name in ("joined", "rows")] == [0, 156]
    root = opened(values)
    for seed, outcome, sources in (
        (1, full, values["sources"]),
        (2, less, tuple(str(path) for path in sorted(pool_folder.iterdir()) if path.name != "cities.jsonl")),
    ):
        scratch = values | {"seed": seed, "sources": sources}
        name = begin_clustering(root, scratch, clustering)
        fresh = run(scratch)
        assert fresh.stages["cluster"]["clustering_id"] == name
        assert fresh.stages["cluster"]["joined"] == outcome.stages["select"]["pool"]
        assert fresh.stages["select"]["copied"] == 0
        assert chosen(values, fresh.run_id).equals(chosen(values, outcome.run_id))
        columns = "SELECT group_id, size, budget, residual, inertia FROM run_groups WHERE run_id = ? ORDER BY group_id"
        assert root.catalog.read(columns, [fresh.run_id]).equals(root.catalog.read(columns, [outcome.run_id]))
        margins = "SELECT cluster, segment, row, margin FROM candidates_of(?) ORDER BY segment, row"
        assert root.catalog.read(margins, [fresh.run_id]).equals(root.catalog.read(margins, [outcome.run_id]))
    # what earlier runs said of themselves is still true
    sizes = root.catalog.read("SELECT sum(size) AS n FROM coverage_of(?)", [first.run_id]).item()
    assert sizes == 120


def test_refresh__equals_a_fresh_root_with_the_same_adapter_and_centroids(
    small_settings: Maker, pool_folder: Path, tmp_path: Path
) -> None:
    """Gradients, too: new rows in whole blocks are computed in the same batches there."""
    values = small_settings(refit="never")
    write(pool_folder / "cities.jsonl", "cities", range(16))  # 96 examples: three blocks of 32
    first = run(values)
    root = opened(values)
    other = Root(
        *[
            getattr(open_root(str(tmp_path / "fresh")), name)
            for name in ("files", "catalog_path", "store_id", "wait_seconds", "on_wait")
        ]
    )
    # the adapter and the centroids, and nothing else
    for table in ("feature_spaces", "checkpoints"):
        rows = root.catalog.read(f"FROM {table}")
        with other.catalog.transaction() as connection:
            connection.register("incoming", rows.to_arrow())
            connection.execute(f"INSERT INTO {table} BY NAME FROM incoming")
    space = first.stages["warm-up"]["space_id"]
    shutil.copytree(tmp_path / "root" / "spaces", tmp_path / "fresh" / "spaces", ignore=shutil.ignore_patterns("segments"))
    name = first.stages["cluster"]["clustering_id"]
    centroids = grouped_reader.ClusteringReader(root.files, name, [0]).centroids
    grouped.write_centroids(other.files, name, centroids)
    nothing = pl.DataFrame(schema={"cluster": pl.Int32, "size": pl.Int64, "inertia": pl.Float64})
    clusterings.add_clustering(
        other.catalog, "none", name, space, clusters=nothing, rows=pl.DataFrame(), part=None, config={},
        recipe=identity.clustering_recipe(load_settings(values), space),
    )  # fmt: skip
    write(pool_folder / "zebra.jsonl", "colours", range(100, 132))
    refreshed = run(values)
    assert refreshed.stages["gradients"]["computed"] == 32
    scratch = values | {"root": str(tmp_path / "fresh")}
    fresh = run(scratch)
    assert fresh.stages["gradients"]["computed"] == 128
    assert chosen(scratch, fresh.run_id).equals(chosen(values, refreshed.run_id))


def test_refresh__moved_renamed_reordered_and_duplicated_rows_cost_nothing(
    small_settings: Maker, first_run: First, pool_folder: Path
) -> None:
    values = small_settings()
    first = first_run(values)
    before = blocks_of(values)
    sums = (pool_folder / "sums.jsonl").read_text(encoding="utf-8").splitlines()
    (pool_folder / "sums.jsonl").unlink()
    (pool_folder / "inside").mkdir()
    (pool_folder / "inside" / "renamed.jsonl").write_text("\n".join([*reversed(sums), *sums[:7]]), encoding="utf-8")
    (pool_folder / "cities.jsonl").rename(pool_folder / "places.jsonl")
    second = run(values)
    assert blocks_of(values) == before
    assert second.stages["ingest"]["new"] == 0
    assert second.stages["gradients"]["computed"] == 0
    assert second.stages["select"]["copied"] == second.stages["select"]["clusters"]
    assert chosen(values, second.run_id).equals(chosen(values, first.run_id))
    told = record(values, second.run_id)
    assert [told[name] for name in ("base_run", "added", "returned", "retired", "advice", "refitted")] == [
        first.run_id, 0, 0, 0, "keep", False,
    ]  # fmt: skip
    assert opened(values).catalog.read("FROM selection_diff(?, ?)", [first.run_id, second.run_id]).is_empty()


def test_refresh__computes_new_examples_only_and_copies_unchanged_clusters(
    small_settings: Maker, first_run: First, pool_folder: Path
) -> None:
    values = small_settings(fraction=0.2)
    first = first_run(values)
    before = blocks_of(values)
    write(pool_folder / "more.jsonl", "sums", range(100, 103))
    second = run(values)
    assert second.stages["gradients"]["computed"] == 3
    assert before < blocks_of(values)
    assert second.stages["cluster"]["joined"] == 3
    assert 0 < second.stages["select"]["copied"] < second.stages["select"]["clusters"]
    catalog = opened(values).catalog
    parts = catalog.read("SELECT part, rows FROM cluster_parts ORDER BY part").rows()
    assert parts == [(0, 120), (1, 3)]
    # a copied cluster answers like one that was computed
    copied = catalog.read(
        "SELECT group_id, size FROM run_groups WHERE run_id = ? AND copied_from = ?", [second.run_id, first.run_id]
    )
    assert len(copied) == second.stages["select"]["copied"]
    mine = catalog.read("SELECT group_id, count(*) AS size FROM candidates_of(?) GROUP BY group_id", [second.run_id])
    assert set(copied.rows()) < set(mine.rows())
    assert mine["size"].sum() == 123
    left = catalog.read(
        "SELECT e.example_id FROM examples e ANTI JOIN latest_selection USING (example_id) "
        "JOIN candidates_of(?) c USING (segment, row) "
        "WHERE c.group_id = ? LIMIT 1",
        [second.run_id, copied["group_id"][0]],
    ).item()
    assert catalog.read("FROM why(?)", [left]).row(0, named=True)["places_to_cut"] >= 1
    told = catalog.read("FROM drift WHERE run_id = ?", [second.run_id]).row(0, named=True)
    assert (told["added"], told["retired"], told["pool"]) == (3, 0, 123)
    assert told["share"] == pytest.approx(3 / 123)
    reasons = set(catalog.read("FROM selection_diff(?, ?)", [first.run_id, second.run_id])["reason"])
    assert reasons <= {
        "new example", "budget of its group grew", "budget of its group shrank", "displaced by a new example",
        "displaced: its cluster changed", "its cluster changed",
    }  # fmt: skip


def test_refresh__examples_retire_and_come_back(small_settings: Maker, first_run: First, pool_folder: Path) -> None:
    first = first_run(small_settings(fraction=0.3))
    values = small_settings(refit="never", fraction=0.3, max_retired=0.5)
    (pool_folder / "cities.jsonl").rename(pool_folder.parent / "away.jsonl")
    second = run(values)
    catalog = opened(values).catalog
    told = record(values, second.run_id)
    assert (told["added"], told["returned"], told["retired"], told["pool"]) == (0, 0, 40, 80)
    retired = catalog.read("SELECT dataset, first_run, last_run, count(*) AS n FROM retired GROUP BY ALL")
    assert retired.rows() == [("cities", first.run_id, first.run_id, 40)]
    gone = catalog.read("SELECT reason FROM selection_diff(?, ?) WHERE dataset = 'cities'", [first.run_id, second.run_id])
    assert set(gone["reason"]) == {"retired: gone from the sources"}
    page = (Path(__file__).parents[2] / "docs" / "refresh.md").read_text(encoding="utf-8")
    for query in re.findall(r"```sql\n(.*?)```", page, flags=re.DOTALL):
        assert len(catalog.read(query.replace("RUN_A", first.run_id).replace("RUN_B", second.run_id))) > 0, query
    for name, limit in drift.THRESHOLDS.items():
        assert re.search(rf"\| `{name}` \|.*\| {limit:g} \|", page)
    assert catalog.read("SELECT sum(size) AS n FROM coverage").item() == 80
    assert catalog.read("FROM latest_selection WHERE dataset = 'cities'").is_empty()
    (pool_folder.parent / "away.jsonl").rename(pool_folder / "cities.jsonl")
    third = run(values)
    assert third.stages["gradients"]["computed"] == 0
    told = record(values, third.run_id)
    assert (told["added"], told["returned"], told["retired"]) == (0, 40, 0)
    assert chosen(values, third.run_id).equals(chosen(values, first.run_id))
    assert catalog.read("FROM retired").is_empty()
    back = catalog.read(
        "SELECT DISTINCT reason FROM selection_diff(?, ?) WHERE dataset = 'cities'", [second.run_id, third.run_id]
    )
    assert back["reason"].to_list() == ["back in the sources"]


@pytest.mark.parametrize("method", ["centroid", "herding-clusters", "random", "stratified"])
def test_refresh__controls_choose_from_the_pool_not_from_all_that_was_clustered(
    small_settings: Maker, first_run: First, pool_folder: Path, method: str
) -> None:
    first = first_run(small_settings(fraction=0.3))
    values = small_settings(refit="never", fraction=0.3, method=method, max_retired=0.5)
    whole = run(values)
    (pool_folder / "cities.jsonl").rename(pool_folder.parent / "away.jsonl")
    less = run(values)
    catalog = opened(values).catalog
    taken = chosen(values, less.run_id)
    assert len(taken) == less.stages["select"]["selected"] == 24
    assert catalog.read("SELECT sum(size) AS n FROM coverage_of(?)", [less.run_id]).item() == 80
    # what is chosen follows from the features, labels and centroids of the rows that are left
    pool, rows = features_of(opened(values), less.run_id)
    assert set(taken["example_id"]) <= set(pool["example_id"])
    groups = catalog.read("SELECT group_id, budget, inertia FROM run_groups WHERE run_id = ? ORDER BY group_id", [less.run_id])
    clustering = runs.run_status(catalog, less.run_id).run["clustering_id"]
    if method in ("centroid", "herding-clusters"):
        assert clustering == first.stages["cluster"]["clustering_id"]
        members = pool.join(clusterings.assignments(catalog, clustering), on=["segment", "row"], maintain_order="left")
        for group in groups.iter_rows(named=True):
            at = np.flatnonzero(members["cluster"].to_numpy() == group["group_id"])
            mean = rows[at].mean(axis=0)
            assert group["inertia"] == pytest.approx(((rows[at] - mean) ** 2).sum(), rel=1e-5)
            if method == "centroid":
                near = naive.naive_best((-members["distance"].to_numpy()[at]).tolist(), [0.0] * len(at), group["budget"])
            else:
                near = naive.naive_herding(rows[at], mean, group["budget"])
            mine = taken.filter(group_id=group["group_id"]).sort("rank")["example_id"].to_list()
            assert mine == [members["example_id"][int(at[i])] for i in near]
    else:
        assert clustering is None
        assert groups["inertia"].null_count() == len(groups)
    # how it matches is measured of these rows, too
    at = pool.with_row_index("at").join(taken, on="example_id")["at"].to_numpy()
    plain, _ = naive.naive_match_errors(rows, np.zeros(len(rows)), at, np.full(24, 1 / 24))
    found = catalog.read("FROM match_of(?)", [less.run_id])
    assert found.filter(pl.col("cluster").is_null())["error_plain"].item() == pytest.approx(plain, abs=1e-6)
    assert found.filter(pl.col("cluster").is_not_null())["size"].sum() == 80
    # compared with the run of the same method before, and in words
    told = record(values, less.run_id)
    assert (told["base_run"], told["retired"], told["pool"]) == (whole.run_id, 40, 80)
    churn = catalog.read("FROM churn WHERE run_id = ?", [less.run_id]).to_dicts()[0]
    assert (churn["earlier"], churn["kept_by_sticky"]) == (36, 0)
    reasons = {
        run_a: set(catalog.read("FROM selection_diff(?, ?)", [run_a, less.run_id])["reason"])
        for run_a in (whole.run_id, first.run_id)
    }
    assert not reasons[whole.run_id] & {"another method", "reclustered"}
    assert reasons[first.run_id] == {"retired: gone from the sources", "another method"}
    assert check.check(opened(values)) == []
    # the same again takes over every choice
    again = run(values)
    assert again.stages["select"]["copied"] == again.stages["select"]["clusters"] == len(groups)
    assert chosen(values, again.run_id).equals(taken)
    someone = taken["example_id"][0]
    why = catalog.read("SELECT reason, chosen FROM why(?, run := ?)", [someone, again.run_id]).row(0)
    assert (why[0].split(":")[0], why[1]) == (f"chosen by {method}", True)


@pytest.mark.parametrize("refit", ["auto", "never", "always"])
def test_refresh__reclusters_when_asked_to(small_settings: Maker, first_run: First, pool_folder: Path, refit: str) -> None:
    first = first_run(small_settings())
    values = small_settings(refit=refit)
    for topic in TOPICS:
        write(pool_folder / f"more-{topic}.jsonl", topic, range(100, 115))
    second = run(values)
    told = record(values, second.run_id)
    same = second.stages["cluster"]["clustering_id"] == first.stages["cluster"]["clustering_id"]
    assert same == (refit == "never") == (not told["refitted"])
    if refit != "always":
        assert "27% of the pool joined since the clusters were made" in told["why"]
        assert "recluster" in told["advice"]
    catalog = opened(values).catalog
    diff = catalog.read("FROM selection_diff(?, ?)", [first.run_id, second.run_id])
    assert ("reclustered" in set(diff["reason"])) == (refit != "never" and bool((diff["change"] == "left").any()))
    assert catalog.read("SELECT sum(size) AS n FROM coverage_of(?)", [first.run_id]).item() == 120
    # the same pool again finds the clustering that it chose from
    third = run(values)
    assert third.stages["cluster"]["clustering_id"] == second.stages["cluster"]["clustering_id"]
    assert chosen(values, third.run_id).equals(chosen(values, second.run_id))
    small = second.stages["cluster"]
    assert catalog.read("SELECT count(*) AS n FROM cluster_parts WHERE clustering_id = ?", [small["clustering_id"]]).item() == (
        2 if refit == "never" else 1
    )


def test_refresh__sticky_churns_less_and_reports_both(small_settings: Maker, pool_folder: Path, tmp_path: Path) -> None:
    values = small_settings(refit="never", count=30, fraction=None)
    first = run(values)
    for topic in TOPICS:
        write(pool_folder / f"more-{topic}.jsonl", topic, range(100, 115))
    shutil.copytree(values["root"], tmp_path / "sticky")
    churn = {}
    for name, changes in (("plain", {}), ("sticky", {"sticky": 1000.0, "root": str(tmp_path / "sticky")})):
        second = run(mine := values | changes)
        catalog = opened(mine).catalog
        churn[name] = catalog.read("FROM churn WHERE run_id = ?", [second.run_id]).row(0, named=True)
        assert len(chosen(mine, second.run_id)) == 30
        diff = catalog.read("FROM selection_diff(?, ?)", [first.run_id, second.run_id])
        assert (diff["change"] == "left").sum() == churn[name]["left_it"]
    # once more: nothing changed, all is copied
    assert run(mine).stages["select"]["copied"] == second.stages["select"]["clusters"]
    assert churn["plain"]["kept_by_sticky"] == 0
    assert churn["sticky"]["kept_by_sticky"] > 0
    assert churn["sticky"]["churn"] < churn["plain"]["churn"]
    assert churn["sticky"]["churn_without_sticky"] == pytest.approx(churn["plain"]["churn"])


def test_refresh__that_finds_nothing_new_is_quick(tmp_path: Path) -> None:
    """The small version of `bench_refresh known`: real commands, no model; it also asks that the selections are equal."""
    assert max(bench_refresh.known(tmp_path, 2000)) < 15
