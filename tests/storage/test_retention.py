"""Runs dropped by age and name: what others need stays, and nothing refers to what is gone."""

from __future__ import annotations

import pytest

from storage import check, retention, snapshot
from storage.catalog import runs, selections
from storage.database import Catalog
from storage.root import Root
from storage.snapshot import snapshot_path
from tests.storage import tiny


def name_runs(root: Root, ages: dict[str, tuple[float, str | None]]) -> None:
    """run -> (days since it completed, its name)."""
    with root.catalog.transaction() as connection:
        for run, (days, name) in ages.items():
            connection.execute(
                """UPDATE runs SET name = $name, finished_at = now()::TIMESTAMP - to_days($days::INTEGER),
                    started_at = now()::TIMESTAMP - to_days($days::INTEGER) WHERE run_id = $run""",
                {"name": name, "days": days, "run": run},
            )


@pytest.fixture
def many(filled: Root) -> tuple[Root, list[str]]:
    """Four runs, oldest first: the first, one that nothing else needs, one whose choices the last took over, the last."""
    first = runs.list_runs(filled.catalog)["run_id"][0]
    second = tiny.run(filled, examples=320).run_id
    third = tiny.run(filled, examples=340).run_id
    last = "last-run"
    with filled.catalog.transaction() as connection:  # the same again: every choice is taken over
        for table in ("runs", "run_files", "run_groups", "selections"):
            connection.execute(
                f"INSERT INTO {table} BY NAME SELECT * REPLACE ($last AS run_id) FROM {table} WHERE run_id = $third",
                {"last": last, "third": third},
            )
        connection.execute("UPDATE run_groups SET copied_from = ? WHERE run_id = ?", [third, last])
    name_runs(filled, {first: (40, "main"), second: (30, None), third: (20, "main"), last: (1, "main")})
    for run in (first, second, third):
        filled.files.write(f"reports/{run}.html", b"<p>")
    snapshot.publish(filled, last)
    return filled, [first, second, third, last]


@pytest.mark.process  # some seconds
def test_retention__drops_what_is_asked_and_nothing_that_is_needed(many: tuple[Root, list[str]]) -> None:
    root, (first, second, third, last) = many
    assert retention.to_drop(root, unnamed=True).runs == [second]
    assert retention.to_drop(root, days=25).runs == [second]  # the first decided what is held out
    assert retention.to_drop(root, days=35, unnamed=True).runs == []
    assert [retention.to_drop(root, days=days).runs for days in (1e6, 1e12, float("inf"))] == [[], [], []]
    assert retention.to_drop(root, days=10, names=["main"]).runs == [third]
    assert retention.to_drop(root, names=["main"]).runs == [third, last]
    runs.promote(root.catalog, third, "prod")
    assert retention.to_drop(root, names=["main"]).runs == [last]
    assert retention.to_drop(root, names=["main", "prod"]).runs == [third, last]

    dropped = retention.to_drop(root, days=10, names=["main", "prod"], unnamed=True)
    assert dropped.runs == [second, third]
    assert dropped.reports == sorted(f"reports/{run}.html" for run in (second, third))
    with root.catalog.transaction() as connection:
        connection.execute(
            """INSERT INTO refreshes BY NAME SELECT $last AS run_id, $third AS base_run, 300 AS pool, 0 AS added, 0 AS returned,
                0 AS retired, false AS refitted, 'keep' AS advice, now()::TIMESTAMP AS decided_at""",
            {"last": last, "third": third},
        )
    before = root.catalog.read("FROM candidate_rows_of(?) ORDER BY ALL", [last])
    chosen = selections.chosen_by(root.catalog, last)
    size = sum(count for _, count in root.files.list(""))
    published = snapshot_path(root).read_bytes()
    with root.writer():
        retention.drop(root, dropped)
    assert runs.list_runs(root.catalog)["run_id"].to_list() == [last, first]
    assert root.catalog.read("FROM candidate_rows_of(?) ORDER BY ALL", [last]).equals(before)
    assert selections.chosen_by(root.catalog, last) == chosen
    assert root.catalog.read("FROM changes_of(?)", [last]).is_empty(), "nothing is compared with a run that is gone"
    assert {key for key, _ in root.files.list("reports")} == {f"reports/{first}.html"}
    assert check.check(root) == []
    assert size > sum(count for _, count in root.files.list(""))
    assert dropped.bytes > 0
    # the copy for readers knows of it, and what is used by no run is gone
    assert Catalog(snapshot_path(root)).read("SELECT count(*) FROM runs").item() == 2
    assert not retention.unfinished(root)
    snapshot_path(root).write_bytes(published)  # as where the drop is killed before it publishes again
    assert retention.unfinished(root)
    used = root.catalog.read("SELECT clustering_id FROM runs")["clustering_id"]
    assert set(root.catalog.read("SELECT clustering_id FROM clusterings")["clustering_id"]) == set(used)
    assert root.catalog.read("SELECT count(*) FROM promotions").item() == 0


KEPT = {  # tables that name a run, space or clustering, and whose rows outlive it
    "run_id": {"segments", "evaluations", "target_sets", "rejects", "blocks", "feature_spaces", "clusterings"},  # who made it
    "space_id": {"runs", "clusterings", "rejects"},
    "clustering_id": {"runs", "refreshes"},
}


def test_retention__every_table_that_names_a_run_is_dropped_from_or_kept_on_purpose(filled: Root) -> None:
    dropped = {"run_id": retention.OF_A_RUN, "space_id": retention.OF_A_SPACE, "clustering_id": retention.OF_A_CLUSTERING}
    for column, kept in KEPT.items():
        query = "SELECT DISTINCT table_name FROM duckdb_columns() JOIN duckdb_tables() USING (table_name) WHERE column_name = ?"
        named = set(filled.catalog.read(query, [column])["table_name"])
        assert named == kept | set(dropped[column]), column


@pytest.mark.process  # some seconds
def test_retention__drops_features_that_no_run_uses_any_more(many: tuple[Root, list[str]]) -> None:
    root, (_, second, _, _) = many
    with root.catalog.transaction() as connection:
        connection.execute("UPDATE runs SET space_id = 'other' WHERE run_id = ?", [second])
        for table in ("feature_spaces", "feature_rows"):
            connection.execute(f"INSERT INTO {table} BY NAME SELECT * REPLACE ('other' AS space_id) FROM {table}")
        connection.execute(
            "INSERT INTO checkpoints BY NAME SELECT * REPLACE ('other' AS space_id, 'x' AS digest) FROM checkpoints"
        )
    root.files.write("spaces/other/space.json", b"{}")
    dropped = retention.to_drop(root, unnamed=True)
    assert dropped.spaces == ["other"]
    with root.catalog.transaction() as connection:  # computed beside the one in use, by the same adapter
        connection.execute("UPDATE checkpoints SET digest = (SELECT min(digest) FROM checkpoints)")
    assert retention.to_drop(root, unnamed=True).spaces == []
    with root.catalog.transaction() as connection:  # hidden states, which no adapter made
        connection.execute("DELETE FROM checkpoints WHERE space_id = 'other'")
        connection.execute("UPDATE feature_spaces SET variant = 'hidden' WHERE space_id = 'other'")
    assert retention.to_drop(root, unnamed=True).spaces == ["other"]
    config = "UPDATE runs SET config = json_merge_patch(config, ?)"
    with root.catalog.transaction() as connection:
        connection.execute(config, ['{"also_gradients": ["hidden"]}'])
    assert retention.to_drop(root, unnamed=True).spaces == []
    with root.writer():
        retention.drop(root, dropped)
    assert root.files.size("spaces/other/space.json") is None
    for table in retention.OF_A_SPACE:
        assert root.catalog.read(f"SELECT count(*) FROM {table} WHERE space_id = 'other'").item() == 0
