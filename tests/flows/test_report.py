"""The report page: its numbers are SQL's, it shows text as text, and a real browser draws, filters and reads it."""

from __future__ import annotations

import html
import json
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import pipeline
from flows.addresses import plain_url
from flows.compare import diagnose
from flows.progress import SilentReporter
from flows.report import build
from flows.report.build import make_report, write_report
from flows.report.picture import datasets_png
from storage import forget
from storage.catalog import runs
from storage.database import Catalog
from storage.root import Root, open_root
from tagcos_stream.config import DEFAULT_FRACTION, load_settings
from tagcos_stream.types import UserError
from tests.flows.conftest import TOPICS, Call, conversation
from tests.pages import Browser, Content, browser
from tests.storage import tiny

HACKS = (
    "<script>window.hacked = 1</script>",
    '</script><script>window.hacked = 2</script><img src=x onerror="window.hacked = 3">',
    "**bold** [link](javascript:window.hacked=4) <!-- not a comment {{ 7 * 7 }} & &amp; \u2028 `code`",
    "\u202eright to left override, never ended; שלום עולם, مرحبا",
    "a\x00b\x1bc \U0001f600 ' \" </textarea></title></style>",
)
NASTY_NAME = '<b onmouseover="window.hacked=5">\u202eשם</b></script>'
MARK = "svg .role-mark path[d]"
PLOTS = {"datasets", "map", "budget", "curves", "residuals", "errors", "sizes-tokens", "rejects", "drift", "changes", "controls"}
SECTIONS = [
    "datasets",
    "map",
    "budget",
    "residuals",
    "lengths",
    "examples",
    "rejects",
    "exclusions",
    "changes",
    "controls",
    "lineage",
    "stages",
]


Sql = Callable[[str], list[tuple[Any, ...]]]


def nasty(n: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"{HACKS[n % len(HACKS)]} {n}"},
        {"role": "assistant", "content": f"{HACKS[(n + 1) % len(HACKS)]} {n}"},
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Root:
    """A root with a run on 56 examples, and one more after 15 nasty ones and a bad row came; with controls measured."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "pool").mkdir()
    for topic, count in zip(TOPICS, (24, 24, 8), strict=True):
        write(folder / "pool" / f"{topic}.jsonl", [{"messages": conversation(topic, n)} for n in range(count)])
    values: dict[str, Any] = {
        "sources": (str(folder / "pool"),),
        "root": str(folder / "root"),
        "model": str(model_folder),
        "fraction": 0.2,
        "max_length": 256,
        "warmup_examples": 16,
        "dim": 256,
        "block_rows": 32,
        "clusters": 3,
        "min_cluster_rows": 2,
        "batch_tokens": 512,
        "wait": 1,
    }
    pipeline.run(load_settings(values), SilentReporter())
    rows: list[dict[str, Any]] = [{"messages": nasty(n), "dataset": NASTY_NAME} for n in range(15)]
    write(folder / "pool" / "nasty.jsonl", [*rows, {"messages": "<script>window.hacked = 6</script>"}])
    pipeline.run(load_settings(values), SilentReporter())
    diagnose.diagnose(values["root"], methods=("random", "tagcos"), fractions=(0.1, 0.2), seeds=(0, 1), reporter=SilentReporter())
    return open_root(values["root"], create=False)


@pytest.fixture(scope="module")
def page(grown: Root) -> Path:
    place, _ = write_report(grown, runs.find_run(grown.catalog, "latest"))
    return Path(place)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def shown(chromium: Browser, page: Path) -> Browser:
    """The page, drawn; tests leave it as they find it."""
    chromium.open(page)
    return chromium


@pytest.fixture(scope="module")
def content(page: Path) -> Content:
    return Content(page.read_text(encoding="utf-8"))


def latest(root: Root) -> tuple[Catalog, str]:
    return root.catalog, runs.find_run(root.catalog, "latest")


@pytest.fixture(scope="module")
def sql(grown: Root) -> Sql:
    """Ask the catalog; RUN is the page's run."""
    catalog, run_id = latest(grown)
    return lambda query: catalog.read(query.replace("RUN", f"'{run_id}'")).rows()


def test_numbers__of_datasets_clusters_and_the_whole(content: Content, sql: Sql) -> None:
    sources = sql("SELECT dataset, pool, selected, share_of_pool, share_of_selection FROM by_dataset(RUN) ORDER BY 2 DESC, 1")
    assert [[row[0], *map(float, row[1:5])] for row in content.rows("datasets")] == [list(row) for row in sources]
    drawn = {(row["name"], row["who"]): (row["examples"], row["share"]) for row in content.plots["datasets"]["rows"]}
    assert drawn == {(row[0], who): pair for row in sources for who, pair in (("pool", row[1:4:2]), ("selection", row[2:5:2]))}

    counted = sql("SELECT count(*), (SELECT count(*) FROM selections WHERE run_id = RUN) FROM pool_of(RUN)")[0]
    assert (content.figures["found"], content.figures["selected"]) == counted
    assert content.figures["tokens"] == sql("SELECT sum(target_tokens) FROM selection_of(RUN)")[0][0]
    errors = sql("SELECT error_plain, error_weighted FROM match_of(RUN) WHERE cluster IS NULL")[0]
    assert (content.figures["error_plain"], content.figures["error_weighted"]) == errors

    clusters = sql("SELECT cluster, size, selected, residual FROM coverage_of(RUN) ORDER BY size DESC, cluster")
    assert [tuple(float(row[n]) for n in (0, 1, 2, 4)) for row in content.rows("clusters")] == clusters
    rows = content.plots["budget"]["rows"]
    assert [(row["c"], row["size"], row["selected"]) for row in rows] == [row[:3] for row in clusters]
    assert all([sum(part[n] for part in row["parts"]) for n in (1, 2)] == [row["size"], row["selected"]] for row in rows)
    points = [row for row in content.plots["map"]["rows"] if row["kind"] == "example"]
    assert len(points) == sum(row[1] for row in clusters)  # fewer than the map has room for
    assert sum(row["chosen"] == "yes" for row in points) == content.figures["selected"]
    assert {(row["c"], sum(other["c"] == row["c"] for other in points)) for row in points} == {row[:2] for row in clusters}
    assert {row["c"] for row in content.plots["map"]["rows"] if row["kind"] == "outline"} == {
        row[0] for row in clusters if row[1] > 2
    }
    ends = {(row["c"], row["selected"], row["residual"]) for row in content.plots["residuals"]["rows"]}
    assert ends == {(row[0], row[2], row[3]) for row in clusters}
    curve = {(row["c"], row["chosen"], row["residual"]) for row in content.plots["curves"]["rows"]}
    assert curve == set(sql("SELECT group_id, rank + 1, residual_after FROM selections WHERE run_id = RUN"))


@pytest.mark.parametrize("measure", ["tokens", "target tokens", "characters", "loss"])
def test_numbers__of_lengths(content: Content, sql: Sql, measure: str) -> None:
    column = {"target tokens": "r.target_tokens", "characters": "p.chars"}.get(measure, f"r.{measure}")
    values = sql(f"""SELECT {column}::DOUBLE, p.example_id IN (SELECT example_id FROM selections WHERE run_id = RUN)
        FROM pool_of(RUN) p JOIN feature_rows r ON r.segment = p.segment AND r.row = p.row AND r.status = 'ok'
            AND r.space_id = (SELECT space_id FROM runs WHERE run_id = RUN)""")
    bins = content.plots[f"sizes-{measure.replace(' ', '-')}"]["rows"]
    edges = sorted({(row["low"], row["high"]) for row in bins})
    for low, high in edges:
        inside = [chosen for value, chosen in values if low <= value < high or (high == edges[-1][1] == value)]
        mine = [row for row in bins if row["low"] == low]
        assert (sum(row["pool"] for row in mine), sum(row["selected"] for row in mine)) == (len(inside), sum(inside)), low
    assert sum(row["pool"] for row in bins) == len(values)
    (chosen,) = [row for row in content.rows("lengths") if row[:2] == [measure, "selection"]]
    assert float(chosen[2]) == sum(chosen for _, chosen in values)
    assert float(chosen[3]) == pytest.approx(sum(value for value, chosen in values if chosen))


def test_numbers__of_rejects_changes_controls_and_stages(content: Content, sql: Sql) -> None:
    rejected = sql("SELECT reason, stage, sum(rows) FROM rejects_by_reason GROUP BY ALL ORDER BY ALL")
    assert sorted((row["name"], row["stage"], row["value"]) for row in content.plots["rejects"]["rows"]) == rejected
    assert content.figures["rejected"] == sum(row[2] for row in rejected) > 0
    base = sql("SELECT base_run FROM refreshes WHERE run_id = RUN")[0][0]
    changed = sql(f"SELECT change, reason, count(*) FROM selection_diff('{base}', RUN) GROUP BY ALL ORDER BY ALL")
    assert sorted((row[0], row[1], int(row[2])) for row in content.rows("changes")) == changed
    drift = sql("SELECT share, distance_shift, movement, loss_shift, unseen FROM drift WHERE run_id = RUN")[0]
    assert [float(row[2]) for row in content.rows("drift")] == [value for value in drift if value is not None]
    compared = sql("SELECT method, fraction, error_fitted FROM comparison_of(RUN) ORDER BY ALL")
    assert sorted((row["who"], row["fraction"], row["error"]) for row in content.plots["controls"]["rows"]) == compared
    assert len(compared) == 4
    took = sql("SELECT stage, seconds, peak_bytes FROM stages WHERE run_id = RUN ORDER BY finished_at")
    assert [(row[0], float(row[1]), int(row[2])) for row in content.rows("stages")] == took
    assert dict(content.rows("settings"))["dim"] == "256"


def test_reasons__are_those_of_why(content: Content, grown: Root) -> None:
    catalog, run_id = latest(grown)
    told = [example for example in content.examples if example[1] not in ("entered", "left")]
    assert len(told) > 40
    with catalog.reading() as connection:
        found = {row[0]: connection.sql("FROM why(?, run := ?)", params=[row[0], run_id]).pl().to_dicts()[0] for row in told}
    for identity, heading, reason in told:
        why = found[identity]
        assert why["reason"].endswith(reason)
        missed = "would be next" if why["places_to_cut"] == 1 else f"{why['places_to_cut']} from the cut"
        assert heading == (f"choice {why['rank'] + 1}" if why["chosen"] else missed)


def test_top__says_what_sets_the_run_apart(page: Path, sql: Sql) -> None:
    text = page.read_text(encoding="utf-8")
    top = html.unescape(re.sub("<[^>]+>", "", text[text.index("<h1>") : text.index("<dl")]))
    assert "selected by tagcos from 4 datasets, by the gradients of" in top
    for words in ("fraction 0.2", "max_length 256", "dim 256"):
        assert words in top
    assert "lora_rank" not in top  # as by default
    assert build._defaults("fraction") == [None, DEFAULT_FRACTION]  # a run records the fraction that it used
    base = sql("SELECT base_run FROM refreshes WHERE run_id = RUN")[0][0]
    assert f"Since {base}, by dataset (pool, chosen): " in top
    before, now = (dict[str, int](sql(f"SELECT dataset, pool FROM by_source({run})")) for run in (f"'{base}'", "RUN"))
    assert NASTY_NAME.split(">")[0] in top
    assert f" 0 → {now[NASTY_NAME]}, chosen 0 → " in top
    assert NASTY_NAME not in before


def test_examples__say_what_they_stand_for(content: Content, page: Path, sql: Sql) -> None:
    text = html.unescape(page.read_text(encoding="utf-8"))
    stands = sql("SELECT example_id, rows, datasets FROM stands_for(RUN) WHERE rows > 1")
    assert stands
    for identity, rows, datasets in stands:
        article = text[text.index(f'data-id="{identity}"') :].split("</article>")[0]
        assert f"stands for {rows} rows of its group: {datasets}" in article.replace("\ufffd", "\x1b")
        assert article.count("<li>") == min(3, rows - 1)
    assert text.count("nearest chosen example: ") > 10


def test_page__is_one_file_that_asks_nobody(page: Path, content: Content) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.encode()) < 10e6
    assert "default-src 'none'" in html.unescape(text)
    assert content.tags.count("script") == 3
    assert not {"link", "img", "iframe", "object", "base", "embed"} & set(content.tags)
    assert set(content.links) == {"#content", *(f"#{name}" for name in SECTIONS)}


def test_browser__draws_every_plot_without_a_complaint(shown: Browser, content: Content) -> None:
    assert shown.log() == []
    assert shown.run("return performance.getEntriesByType('resource').length") == 0
    marks = dict(shown.each(".plot", f"[e.id.slice(5), e.querySelectorAll({json.dumps(MARK)}).length]"))
    assert set(marks) == set(content.plots) >= PLOTS
    assert all(count > 0 for count in marks.values()), marks
    assert marks["datasets"] == len(content.plots["datasets"]["rows"]) == 8
    drawn = content.plots["map"]["rows"]
    outlines = {row["c"] for row in drawn if row["kind"] == "outline"}
    assert marks["map"] == sum(row["kind"] == "example" for row in drawn) + len(outlines)
    assert marks["budget"] == len(content.plots["budget"]["rows"])
    assert shown.each("main > section", "e.id") == SECTIONS


def test_browser__shows_text_as_it_was_written(shown: Browser) -> None:
    texts = shown.each(".example .text", "e.textContent")
    for hack in HACKS:
        assert any(text.startswith(hack.replace("\0", "\ufffd").replace("\x1b", "\ufffd")) for text in texts), hack
    assert NASTY_NAME in shown.each("#table-datasets td", "e.textContent")
    assert set(shown.each(".example .text, .example bdi, td bdi", "getComputedStyle(e).unicodeBidi")) == {"isolate"}
    assert set(shown.each(".example .text", "e.dir")) == {"auto"}
    assert shown.count("main img, main b, main script") == 0
    # what a pointer over a cluster shows
    shown.run(f"document.querySelector('#plot-map {MARK}').dispatchEvent(new MouseEvent('mousemove', {{ bubbles: true }}))")
    assert shown.run("return window.hacked") is None


def test_browser__filters_by_dataset_cluster_and_text(shown: Browser, content: Content, sql: Sql) -> None:
    everything, rows, whole = shown.count(".example"), content.plots["map"]["rows"], shown.count(f"#plot-map {MARK}")
    counted = sql("""SELECT c.group_id, count(*), count(s.example_id), e.dataset FROM candidate_rows_of(RUN) c
        JOIN examples e USING (segment, row) LEFT JOIN selection_of(RUN) s USING (example_id) GROUP BY ALL ORDER BY ALL""")
    for place, name in enumerate(row["name"] for row in content.plots["datasets"]["rows"][::2]):
        shown.fill("filter-dataset", str(place))
        assert shown.count(f"#plot-datasets {MARK}") == 2
        assert set(shown.each(".example:not([hidden]) .head bdi", "e.textContent")) == {name}
        assert 0 < shown.count(".example") < everything
        assert shown.count("#table-datasets tbody tr") == 1
        mine = [row[:3] for row in counted if row[3] == name]
        labels = [label for label in shown.each(f"#plot-map {MARK}", "e.getAttribute('aria-label')") if "dataset: " in label]
        assert len(labels) == sum(row[1] for row in mine)
        assert sum("chosen: yes" in label for label in labels) == sum(row[2] for row in mine)
        assert shown.count("#table-clusters tbody tr") == len(mine)
        bars = shown.each(f"#plot-sizes-characters {MARK}", "e.getAttribute('aria-label')")
        assert sum(number("examples", bar) for bar in bars if "of: pool" in bar) == sum(row[1] for row in mine)

    cluster = str(counted[0][0])
    shown.fill("filter-dataset", "")
    shown.fill("filter-cluster", cluster)
    points = [row for row in rows if row["kind"] == "example" and str(row["c"]) == cluster]
    assert shown.count(f"#plot-map {MARK}") == len(points) + 1
    assert shown.count(".group") == 1
    assert set(shown.each(".example:not([hidden])", "e.dataset.c")) == {cluster}

    shown.run(f"document.querySelector('#plot-map {MARK}').dispatchEvent(new MouseEvent('click', {{ bubbles: true }}))")
    assert shown.run("return document.getElementById('filter-cluster').value") == "", "a second click on the only one left"
    shown.fill("filter-text", "RIGHT TO LEFT")
    texts = shown.each(".example:not([hidden])", "e.textContent")
    assert texts
    assert all("right to left" in text for text in texts)
    assert shown.count("#table-settings tbody tr") == len(content.rows("settings")), "the text is searched in examples only"
    assert shown.run("return document.getElementById('filter-says').textContent") == f"{len(texts)} of {everything} examples"

    shown.run("document.querySelector('.filters button[type=reset]').click()")
    shown.wait("return document.getElementById('filter-says').textContent === ''")
    assert shown.count(".example") == everything
    shown.wait(f"return document.querySelectorAll('#plot-map {MARK}').length === {whole}")
    assert shown.log("SEVERE") == []


def number(words: str, label: str) -> int:
    """From what a mark says of itself."""
    found = re.search(rf"(?:^|; ){words}: ([\d,]+)", label)
    assert found is not None, label
    return int(found[1].replace(",", ""))


def test_browser__is_used_by_keyboard(shown: Browser) -> None:
    tab, enter = "\ue004", "\ue007"
    shown.run("scrollTo(0, 0); document.activeElement.blur()")
    shown.press(tab)
    assert shown.run("return document.activeElement.className") == "skip"
    sizes = ("#table-clusters tbody tr", "Number(e.cells[1].dataset.v)")
    before = shown.each(*sizes)
    shown.run("document.querySelectorAll('#table-clusters th button')[1].focus()")
    shown.press(enter, enter)  # largest first, as it was; then smallest first
    assert shown.each(*sizes) == sorted(before)
    assert shown.run("return document.querySelectorAll('#table-clusters th')[1].ariaSort") == "ascending"
    shown.press(enter)
    assert shown.each(*sizes) == before
    assert all(shown.each(".filters input, .filters select", "e.labels.length"))
    assert all(shown.each(".plot", "e.getAttribute('aria-label')"))
    shown.run("document.getElementById('filter-text').focus()")
    assert shown.run("return getComputedStyle(document.activeElement).outlineStyle") != "none"


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, True)])
def test_browser__on_a_phone_and_in_the_dark(chromium: Browser, page: Path, tmp_path: Path, width: int, dark: bool) -> None:
    chromium.open(page, width=width, dark=dark)
    assert chromium.log() == []
    assert chromium.run("return document.documentElement.scrollWidth") <= width
    assert max(chromium.each(".plot svg", "e.getBoundingClientRect().right")) <= width
    # red, green and blue together: 0 is black, 765 white
    of = "getComputedStyle(e).{}.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0)"
    (paper,), (ink,) = (chromium.each("body", of.format(name)) for name in ("backgroundColor", "color"))
    axis = chromium.each("#plot-datasets .role-axis-label text", of.format("fill"))
    assert (paper < 200 and min(ink, *axis) > 500) if dark else (paper > 700 and max(ink, *axis) < 300)
    chromium.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000


def test_report__says_what_is_missing(filled: Root) -> None:
    """A first run, undiagnosed, that chose from the whole pool: no drift, no controls, one group; sentences instead of plots."""
    root, run_id = filled, runs.find_run(filled.catalog, "latest")
    with root.catalog.transaction() as connection:
        connection.execute("DELETE FROM diagnostics")
        connection.execute("DELETE FROM rejects")
        connection.execute("DELETE FROM assignments")
        connection.execute("DELETE FROM clusterings")
        connection.execute("UPDATE runs SET clustering_id = NULL, method = 'random'")
        connection.execute("UPDATE selections SET group_id = 0, weight = NULL, round = NULL, residual_after = NULL")
        connection.execute("UPDATE candidates SET group_id = 0")
        connection.execute("DELETE FROM run_groups WHERE group_id > 0")
        connection.execute("UPDATE run_groups SET size = 275, selected = 26, budget = 26, residual = NULL, inertia = NULL")
    page = make_report(root, run_id)
    found = Content(page)
    assert not {"budget", "curves", "errors", "drift", "changes", "controls", "rejects"} & set(found.plots)
    assert {"datasets", "map", "sizes-characters", "seconds"} <= set(found.plots)
    assert {row["kind"] for row in found.plots["map"]["rows"]} == {"example"}
    missing = re.findall(r'<section id="(\w+)"[^>]*>\s*<h2[^>]*>[^<]*</h2>\s*<p class="missing">', page)
    assert missing == ["budget", "residuals", "rejects", "exclusions", "changes", "controls"]


def test_report__of_groups_that_are_parts_of_clusters(selected_root: Root) -> None:
    """Datasets chosen from separately have groups with numbers of their own."""
    run_id = pipeline.reselect(selected_root.url, None, SilentReporter(), balance="equal").run_id
    groups = selected_root.catalog.read("FROM run_groups WHERE run_id = ? ORDER BY size DESC, group_id", [run_id])
    clusters = selected_root.catalog.read("SELECT DISTINCT cluster FROM assignments")["cluster"].to_list()
    assert not {*groups["group_id"]} <= {*clusters}
    page = make_report(selected_root, run_id)
    found = Content(page)
    assert re.findall("<h3>(Group [0-9]+):", page) == [f"Group {group}" for group in sorted(groups["group_id"])]
    assert f"over {len(groups)} groups." in page
    assert [row["c"] for row in found.plots["budget"]["rows"]] == groups["group_id"].to_list()
    assert {int(row[0]) for row in found.rows("clusters")} == {*clusters}
    assert "residual" not in page[page.index('id="table-clusters"') :].split("</thead>")[0]
    rows = found.plots["map"]["rows"]
    members = "SELECT e.example_id, c.group_id FROM candidate_rows_of(?) c JOIN examples e USING (segment, row)"
    expected = {example_id[:12]: group for example_id, group in selected_root.catalog.read(members, [run_id]).iter_rows()}
    assert {row["example"]: row["c"] for row in rows if row["kind"] == "example"} == expected
    outlines = [row for row in rows if row["kind"] == "outline"]
    assert {row["cluster"] for row in outlines} <= {*clusters}
    assert not any("c" in row for row in outlines)  # whatever group is shown


def test_browser__of_groups_that_are_no_clusters(selected_root: Root, chromium: Browser, tmp_path: Path) -> None:
    """The map is filtered by parts of clusters; strata have no residual, and bars all the same."""
    run_id = pipeline.reselect(selected_root.url, None, SilentReporter(), balance="equal").run_id
    page = make_report(selected_root, run_id)
    (tmp_path / "groups.html").write_text(page, encoding="utf-8")
    rows = Content(page).plots["map"]["rows"]
    outlines = {row["cluster"] for row in rows if row["kind"] == "outline"}
    groups = [row["c"] for row in rows if row["kind"] == "example"]
    chromium.open(tmp_path / "groups.html")
    assert chromium.log() == []
    assert chromium.count(f"#plot-map {MARK}") == len(groups) + len(outlines)
    chromium.fill("filter-cluster", str(groups[0]))
    assert chromium.count(f"#plot-map {MARK}") == groups.count(groups[0]) + len(outlines)

    run_id = pipeline.reselect(selected_root.url, None, SilentReporter(), balance="natural", method="stratified").run_id
    (tmp_path / "strata.html").write_text(make_report(selected_root, run_id), encoding="utf-8")
    chromium.open(tmp_path / "strata.html")
    assert chromium.log() == []
    strata = selected_root.catalog.read("FROM run_groups WHERE run_id = ?", [run_id])
    assert chromium.count(f"#plot-budget {MARK}") == len(strata) > 3
    assert not any("undefined" in label for label in chromium.each(f"#plot-map {MARK}", "e.ariaLabel") if "main" in label)


def test_report__names_datasets_that_share_a_budget_of_tokens(selected_root: Root) -> None:
    run_id = pipeline.reselect(selected_root.url, None, SilentReporter(), method="balanced", tokens="500").run_id
    (budget,) = selected_root.catalog.read("SELECT sum(budget) FROM run_groups WHERE run_id = ?", [run_id]).row(0)
    page = make_report(selected_root, run_id)
    assert f"How the {budget:,} tokens were shared over 3 datasets." in page
    assert re.findall("<h3>Dataset \u2068(.*?)\u2069:", page) == ["cities", "colours", "sums"]
    assert 'id="filter-cluster"' not in page  # there is a filter for datasets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/a b.jsonl?sig=x#y", "s3://bucket/a b.jsonl"),
        ("https://host/a@b", "https://host/a@b"),
        ("a?b@c", "a?b@c"),
        ("http://[broken/x", "http://[broken/x"),
    ],
)
def test_plain_url__has_no_user_and_no_query(text: str, shown: str) -> None:
    assert plain_url(text) == shown


def test_report__is_made_where_an_example_that_another_stands_for_was_forgotten(filled: Root) -> None:
    run_id = runs.find_run(filled.catalog, "latest")
    near = filled.catalog.read("SELECT DISTINCT unnest(examples) AS example_id FROM stands_for(?)", [run_id])["example_id"]
    with filled.writer():
        forget.forget(filled, near.to_list())
    assert "(forgotten: its text was erased)" in make_report(filled, run_id)


def test_report__one_cluster_has_a_map_of_its_examples(filled: Root) -> None:
    with filled.catalog.transaction() as connection:
        connection.execute("DELETE FROM assignments WHERE cluster > 0")
        for table in ("run_groups", "selections", "candidates"):
            connection.execute(f"DELETE FROM {table} WHERE group_id > 0")
    found = Content(make_report(filled, runs.find_run(filled.catalog, "latest")))
    points = [row for row in found.plots["map"]["rows"] if row["kind"] == "example"]
    assert len(points) > 200
    assert {row["c"] for row in found.plots["map"]["rows"] if row["kind"] == "outline"} == {0}
    assert "budget" not in found.plots
    assert len(found.plots["curves"]["rows"]) == 7


EVALUATED = """
    INSERT INTO evaluations SELECT id, run, 'small', 'f', 9, 'd', '{}', '{}', now()::TIMESTAMP
        FROM (VALUES ('mine', $run), ('theirs', 'another')) e(id, run);
    CREATE TEMP TABLE trained AS
        SELECT e.id AS evaluation_id, m.method, 'adam' AS gradient, '' AS setting, 0.1 AS fraction, seed, 'steps' AS regime,
            false AS weighted, m.value + (seed - 1) * 0.01 * sqrt(3) AS value, p.part
        FROM (VALUES ('mine'), ('theirs')) e(id), (VALUES ('tagcos', 1.5), ('random', 2.0)) m(method, value),
            (VALUES (NULL), ('red'), ('blue')) p(part), range(3) s(seed);
    INSERT INTO evaluation_units BY NAME SELECT * EXCLUDE (value, part), 12 AS examples, 2 AS steps, 1 AS passes, 99 AS tokens,
        1 AS train_seconds, 1 AS measure_seconds, false AS copied, now()::TIMESTAMP AS finished_at
        FROM trained WHERE part IS NULL;
    INSERT INTO evaluation_scores BY NAME SELECT *, 'loss' AS measure, 9 AS items FROM trained;
    DROP TABLE trained
"""


def test_report__shows_evaluations_where_there_are_any(filled: Root) -> None:
    """Of this run, and not of another."""
    root, run_id = filled, runs.find_run(filled.catalog, "latest")
    with root.catalog.transaction() as connection:
        for statement in EVALUATED.split(";\n"):
            connection.execute(statement, {"run": run_id} if "$run" in statement else None)
    found = Content(make_report(root, run_id))
    (ours, random) = (row[1:2] + row[5:8] for row in found.rows("evaluations"))
    assert [ours[0], *map(float, ours[1:])] == ["tagcos adam", *map(pytest.approx, (1.5, 0.01, -0.5))]
    assert [random[0], *map(float, random[1:3]), random[3]] == ["random adam", *map(pytest.approx, (2.0, 0.01)), ""]
    (drawn,) = found.plots["evaluations"]["rows"]
    assert drawn["value"] == pytest.approx(-0.5)


def test_command__finds_the_run_and_names_the_file(grown: Root, tmp_path: Path, tagcos: Call) -> None:
    first = runs.list_runs(grown.catalog)["run_id"][-1]

    code, out, _ = tagcos("report", first, "--root", grown.url)
    assert code == 0
    assert f"{grown.url}/reports/{first}.html" in out
    assert "There was no run before this one" in Path(grown.url, "reports", f"{first}.html").read_text()
    code, out, _ = tagcos("report", "latest", "--out", tmp_path / "deep" / "page.html", "--root", grown.url)
    assert code == 0
    assert (tmp_path / "deep" / "page.html").read_text() == Path(grown.url, "reports", f"{latest(grown)[1]}.html").read_text()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]
    for arguments, said in (
        (["nothing-like-it"], "there is no run nothing-like-it"),
        (["run-"], "give more of the id"),
        (["latest", "--out", tmp_path / "page.pdf"], "must end in .html"),
        (["latest", "--out", tmp_path / "deep" / "page.html" / "x.html"], "choose another --out"),
    ):
        code, _, err = tagcos("report", *arguments, "--root", grown.url)
        assert (code, err.count("\n")) == (2, 1), arguments
        assert said in err


def test_report__of_a_run_in_progress_is_refused(grown: Root, tmp_path: Path) -> None:
    shutil.copytree(grown.url, tmp_path / "root")
    root = open_root(str(tmp_path / "root"), create=False)
    run_id = latest(root)[1]
    with root.catalog.transaction() as connection:
        connection.execute("UPDATE runs SET status = 'running' WHERE run_id = ?", [run_id])
    with pytest.raises(UserError, match="is running, not complete"):
        write_report(root, run_id)


@pytest.mark.slow
def test_report__of_a_hundred_thousand_selections(tmp_path: Path) -> None:
    """A million rows without a model: numbers are exact, the page and what it takes to make stay small."""
    root = open_root(str(tmp_path / "root"))
    made = tiny.run(root, examples=1_000_000, file_rows=16_384, block_rows=8_192)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    place, size = write_report(root, made.run_id)
    took, more = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    found = Content(Path(place).read_text(encoding="utf-8"))
    print(
        f"\n{len(made.selection)} of {found.figures['usable']:.0f}: {took:.1f} s, {size / 1e6:.2f} MB, {more / 1024:.0f} MiB more"
    )
    assert found.figures["selected"] == len(made.selection) > 90_000
    assert len(found.plots["map"]["rows"]) < 4_000
    assert sum(row["pool"] for row in found.plots["sizes-characters"]["rows"]) == found.figures["usable"] > 900_000
    assert size < 10e6


def test_serve__on_loopback_until_interrupted(page: Path) -> None:
    command = [sys.executable, "-c", SERVE, str(page)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as serving:
        assert serving.stderr is not None
        address = serving.stderr.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(address, timeout=10) as answer:
            assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
            assert answer.read() == page.read_bytes()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            opener.open(address + "other", timeout=10)
        with socket.create_connection(("127.0.0.1", int(address.split(":")[2].strip("/")))) as gone:
            gone.sendall(b"GET / HTTP/1.0\r\n\r\n")
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets the connection at its end
            gone.recv(1)
        with opener.open(address, timeout=10) as answer:
            assert answer.read() == page.read_bytes()
        serving.send_signal(signal.SIGINT)
        assert serving.wait(10) == 0
        assert serving.stderr.read() == ""


# what `tagcos report --serve` calls, without the seconds that its imports take
SERVE = """
import sys
from pathlib import Path
from flows.report.serve import serve
serve(Path(sys.argv[1]).read_bytes(), 0, lambda address: print(address, file=sys.stderr, flush=True))
"""


def test_picture__is_a_png_of_the_datasets(grown: Root) -> None:
    catalog, run_id = latest(grown)
    drawn = datasets_png(catalog.read("FROM by_dataset(?)", [run_id]).to_dicts())
    assert drawn.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", drawn[16:24])
    assert width > 600
    assert height > 200


def test_changes__of_sources_are_in_notes_and_a_table(page: Path, content: Content, sql: Sql) -> None:
    assert "+15 new, 1 row rejected." in page.read_text(encoding="utf-8")
    (pool,) = content.rows("source-changes")
    (counted,) = sql(
        "SELECT before, pool, new, returned, retired, rejected, selected FROM source_changes("
        "(SELECT base_run FROM refreshes WHERE run_id = RUN), RUN)"
    )
    assert pool[0] == "pool"
    assert tuple(map(int, pool[1:])) == counted
