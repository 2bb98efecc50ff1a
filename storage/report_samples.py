"""Examples worth showing of a run, with their text: a bounded number, whatever the size of the selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from storage.arrays import segments
from storage.examples import example_reader
from storage.root import Root
from tagcos_stream.data.canonical import message_text

GROUPS = 40  # whose chosen and just-missed examples are shown: the largest
EXAMPLES = 160  # of each of the two, shared by the groups shown
LEAST, MOST = 4, 10  # of each, a group
CLUSTERS = 300  # whose nearest examples are shown: the largest
NEAREST = 2
SERVED = 40  # target examples that are shown, shared by the parts
CHANGED = 4  # of each kind of change
MAP_CHOSEN, MAP_LEFT = 800, 1600  # examples on the map, at most
MESSAGES, CHARACTERS = 6, 600  # of an example, of a message


@dataclass(frozen=True)
class Message:
    """A turn of a sampled example, shortened."""

    role: str
    content: str  # its first CHARACTERS characters
    left_out: int  # characters


@dataclass(frozen=True)
class Samples:
    """The examples that the report shows, one row an example and role.

    Columns: kind, group_id (of `nearest`: cluster), place, example_id, dataset, score, weight, tokens, target_tokens, loss,
    reason, stands (what it stands for, or what stands for it, in words) and stands_near (ids of some that it stands for).

    kind is `chosen` (place: order of choice, from 0), `missed` (place 1 would have been chosen next), `nearest` (to its centroid,
    from 1), `target` (an example of the target set; dataset: its part; stands_near: the chosen one nearest to it), `entered` or
    `left` (since the earlier run, in no particular order).
    """

    rows: pl.DataFrame
    messages: dict[str, list[Message]]  # by example_id, the first MESSAGES
    turns: dict[str, int]  # by example_id, all


def collect(root: Root, run_id: str, *, clustering_id: str | None, base: str | None) -> Samples:
    """Of a complete run. clustering_id: whose nearest examples are wanted; base: the run to tell changes from.

    Reads each file of examples that holds one of them whole, to verify it. Raises DamagedStore.
    """
    named = {"run": run_id, "groups": GROUPS, "least": LEAST, "most": MOST, "all": EXAMPLES}
    found = [root.catalog.read(CHOSEN_AND_MISSED, named)]
    if clustering_id is not None:
        wanted = {"run": run_id, "clustering": clustering_id, "clusters": CLUSTERS, "each": NEAREST}
        found.append(root.catalog.read(NEAREST_TO_CENTROID, wanted))
    found.append(root.catalog.read(TARGET_EXAMPLES, {"run": run_id, "all": SERVED}))
    if base is not None:
        found.append(root.catalog.read(CHANGES, {"run": run_id, "base": base, "each": CHANGED}))
    rows = pl.concat(found, how="diagonal_relaxed")
    messages: dict[str, list[Message]] = {}
    turns: dict[str, int] = {}
    places = rows.select("example_id", "segment", "row")
    near = rows["stands_near"].explode().drop_nulls().to_list()
    others = root.catalog.read("SELECT example_id, segment, row FROM examples WHERE example_id IN (SELECT unnest(?))", [near])
    places = pl.concat([places, others], how="vertical_relaxed").unique("example_id", maintain_order=True)
    for part in example_reader(root).iterate(places):
        for example in part.iter_rows(named=True):
            turns[example["example_id"]] = len(example["messages"])
            messages[example["example_id"]] = [_message(message) for message in example["messages"][:MESSAGES]]
    return Samples(rows.drop("segment", "row"), messages, turns)


@dataclass(frozen=True)
class MapSample:
    """Examples for the map, drawn by their ids: the chosen and the others each at random, n rows of D dimensions.

    rows: example_id, dataset, cluster and group_id (may be null), chosen, tokens, loss, weight (how many of its kind it was drawn
    for).
    """

    rows: pl.DataFrame
    features: np.ndarray  # (n, D) float16


def map_sample(root: Root, run_id: str, space_id: str, clustering_id: str | None) -> MapSample:
    """Of a complete run. Reads the features of the rows drawn and no others, without verifying the blocks they lie in."""
    named = {"run": run_id, "space": space_id, "clustering": clustering_id, "most": MAP_CHOSEN, "others": MAP_LEFT}
    rows = root.catalog.read(MAP_SAMPLE, named)
    features = segments.open_features(root.files, space_id, rows).gather(np.arange(len(rows)), verify=False)
    return MapSample(rows.drop("segment", "row"), features)


def _message(message: dict[str, Any]) -> Message:
    content = message_text(message)
    return Message(message["role"], content[:CHARACTERS], max(len(content) - CHARACTERS, 0))


# Places are those of the macro why: by margin, then segment and row.
CHOSEN_AND_MISSED = """
    WITH asked AS (
            SELECT method, space_id FROM runs WHERE run_id = $run
        ),
        shown AS (
            SELECT group_id, greatest($least, least($most, $all // count(*) OVER ())) AS each
            FROM (SELECT group_id FROM run_groups WHERE run_id = $run ORDER BY size DESC, group_id LIMIT $groups)
        ),
        chosen AS (
            SELECT 'chosen' AS kind, s.group_id, s.rank AS place, s.example_id, s.score, s.weight
            FROM selections s JOIN shown USING (group_id) WHERE s.run_id = $run AND s.rank < shown.each
        ),
        standing AS (FROM stands_for($run) WHERE example_id IN (SELECT example_id FROM chosen)),
        missed AS (
            SELECT 'missed' AS kind, c.group_id, e.example_id, c.margin::DOUBLE AS score,
                n.example_id AS representative, c.cosine,
                row_number() OVER (PARTITION BY c.group_id ORDER BY c.margin DESC, c.segment, c.row) AS place
            FROM candidate_rows_of($run) c JOIN shown USING (group_id) JOIN examples e ON e.segment = c.segment AND e.row = c.row
            LEFT JOIN selections n ON n.run_id = $run AND n.group_id = c.group_id AND n.rank = c.representative
            WHERE e.example_id NOT IN (SELECT example_id FROM selections WHERE run_id = $run)
            QUALIFY place <= shown.each
        ),
        together AS (FROM chosen UNION ALL BY NAME FROM missed)
    SELECT b.*, e.dataset, r.tokens, r.target_tokens, r.loss, e.segment, e.row, g.rows AS stands_for, g.examples AS stands_near,
        CASE
            WHEN g.rows IS NOT NULL THEN stands_in_words(g.rows, g.datasets)
                || coalesce(format('; nearest target example: one of {} (cosine {:.3f})', t.part, t.cosine), '')
            WHEN b.representative IS NOT NULL
                THEN format('nearest chosen example: {} (cosine {:.3f})', left(b.representative, 12), b.cosine)
        END AS stands,
        CASE WHEN i.row IS NOT NULL THEN 'pinned' ELSE score_in_words((SELECT method FROM asked), b.kind = 'chosen', b.score) END
            AS reason
    FROM together b JOIN examples e USING (example_id) LEFT JOIN standing g USING (example_id)
    LEFT JOIN selection_targets t ON t.run_id = $run AND t.example_id = b.example_id
    LEFT JOIN pins i ON i.run_id = $run AND i.segment = e.segment AND i.row = e.row
    LEFT JOIN feature_rows r ON r.space_id = (SELECT space_id FROM asked) AND r.segment = e.segment AND r.row = e.row
    ORDER BY b.group_id, b.kind, b.place"""
# of every part those whose nearest chosen example is nearest
TARGET_EXAMPLES = """
    SELECT 'target' AS kind, n.part AS dataset, n.example_id, n.chosen_cosine::DOUBLE AS score, [n.chosen_id] AS stands_near,
        e.segment, e.row
    FROM target_nearest n JOIN examples e USING (example_id)
    WHERE n.run_id = $run AND n.example_id NOT IN (SELECT f.example_id FROM forgotten f)
    QUALIFY row_number() OVER (PARTITION BY n.part ORDER BY n.chosen_cosine DESC, n.example_id)
        <= greatest(1, $all // (SELECT greatest(1, count(DISTINCT m.part)) FROM target_nearest m WHERE m.run_id = $run))
    ORDER BY n.part, score DESC LIMIT $all
"""
NEAREST_TO_CENTROID = """
    WITH near AS (
            SELECT a.cluster, p.example_id, p.dataset, p.segment, p.row, count(*) OVER (PARTITION BY a.cluster) AS size,
                row_number() OVER (PARTITION BY a.cluster ORDER BY a.distance, a.segment, a.row) AS place
            FROM (SELECT * FROM assignments WHERE clustering_id = $clustering) a
            JOIN pool_of($run) p ON p.segment = a.segment AND p.row = a.row
        ),
        largest AS (SELECT cluster FROM near WHERE place = 1 ORDER BY size DESC, cluster LIMIT $clusters)
    SELECT 'nearest' AS kind, cluster, place, example_id, dataset, segment, row FROM near
    WHERE place <= $each AND cluster IN (FROM largest) ORDER BY cluster, place"""
MAP_SAMPLE = """
    WITH known AS (
            SELECT p.example_id, p.segment, p.row, p.dataset, a.cluster, c.group_id, s.example_id IS NOT NULL AS chosen,
                r.tokens, r.loss
            FROM pool_of($run) p JOIN feature_rows r ON r.space_id = $space AND r.segment = p.segment AND r.row = p.row
            LEFT JOIN (SELECT * FROM assignments WHERE clustering_id = $clustering) a ON a.segment = p.segment AND a.row = p.row
            LEFT JOIN candidate_rows_of($run) c ON c.segment = p.segment AND c.row = p.row
            LEFT JOIN (SELECT example_id FROM selections WHERE run_id = $run) s ON s.example_id = p.example_id
            WHERE r.status = 'ok'
        ),
        drawn AS (
            SELECT *, row_number() OVER (PARTITION BY chosen ORDER BY md5(example_id), example_id) AS place,
                count(*) OVER (PARTITION BY chosen) AS n
            FROM known
        )
    SELECT * EXCLUDE (place, n), n / least(n, CASE WHEN chosen THEN $most ELSE $others END) AS weight FROM drawn
    WHERE place <= CASE WHEN chosen THEN $most ELSE $others END ORDER BY segment, row"""
CHANGES = """
    SELECT d.change AS kind, d.group_b AS group_id, d.example_id, d.dataset, d.reason, e.segment, e.row,
        row_number() OVER (PARTITION BY d.change, d.reason ORDER BY d.example_id) AS place
    FROM selection_diff($base, $run) d JOIN examples e USING (example_id) QUALIFY place <= $each
    ORDER BY d.change, d.reason, place"""
