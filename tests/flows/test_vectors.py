"""Vectors of the user's own as features: by id or by row of a source, without a model or with one, and as the pool grows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows import models, pipeline
from flows.compare import diagnose, evaluate
from flows.progress import SilentReporter
from flows.report.build import make_report
from flows.vectors import read_index
from storage import check
from storage.catalog import runs
from storage.catalog.spaces import forget_block
from storage.root import Root, open_root
from tagcos_stream.config import Settings, load_settings
from tagcos_stream.evaluation.config import load_evaluation
from tagcos_stream.gradients.projection.projections import make_projection
from tagcos_stream.types import UserError
from tests.flows.conftest import SMALL, TOPICS, Call, conversation, features_of
from tests.naive import naive_vector_feature

WIDTH = 24


class Saying(SilentReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def write_pool(folder: Path, numbers: range = range(40)) -> None:
    folder.mkdir(exist_ok=True)
    for topic in TOPICS:
        lines = [json.dumps({"messages": conversation(topic, n)}) for n in numbers]
        (folder / f"{topic}-{numbers.start}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def vector_of(topic: str, n: int) -> np.ndarray:
    """(WIDTH,) float32: a topic's direction, and the example's own."""
    own = np.random.default_rng([TOPICS.index(topic), n]).standard_normal(WIDTH)
    own[TOPICS.index(topic)] += 3
    return own.astype(np.float32)


def write_vectors(path: Path, numbers: range = range(40), first: int = 0, change: dict[int, float] | None = None) -> str:
    """Vectors by file and row, in an order unlike the sources'; `change`: numbers added to the vectors of these rows."""
    names = [(topic, n) for n in reversed(numbers) for topic in TOPICS]
    made = [vector_of(topic, n) + (change or {}).get(n, 0) for topic, n in names]
    pl.DataFrame(
        {
            "file": [f"{topic}-{first}.jsonl" for topic, _ in names],
            "row": [n - first for _, n in names],
            "embedding": pl.Series(np.array(made), dtype=pl.Array(pl.Float32, WIDTH)),
        }
    ).write_parquet(path)
    return str(path)


def settings_of(folder: Path, *files: str, **changes: Any) -> Settings:
    values = {"sources": (str(folder / "pool"),), "root": str(folder / "root"), "gradient": "vectors", "vectors": files}
    return load_settings(SMALL | values | changes)


def run(settings: Settings, reporter: Saying | None = None) -> pipeline.Outcome:
    return pipeline.run(settings, reporter or SilentReporter())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pool, vectors, and a root with a run on them, made without a model."""
    folder = tmp_path_factory.mktemp("vectors")
    write_pool(folder / "pool")
    run(settings_of(folder, write_vectors(folder / "a.parquet")))
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A copy, whose sources are those of `made`."""
    shutil.copytree(made / "root", tmp_path / "root")
    (tmp_path / "pool").symlink_to(made / "pool")
    return tmp_path


def opened(folder: Path) -> Root:
    return open_root(str(folder / "root"), create=False)


def spaces(folder: Path) -> int:
    return int(opened(folder).catalog.read("SELECT count(*) FROM feature_spaces").item())


def test_vectors__are_the_features_and_every_command_works_on_them(made: Path, tagcos: Call, tmp_path: Path) -> None:
    root = opened(made)
    base = runs.complete_run(root.catalog, None)["run_id"]
    pool, features = features_of(root, base)
    places = root.catalog.read("SELECT o.example_id, f.url, o.row FROM occurrences o JOIN files f USING (file_id)")
    for row, feature in zip(
        pool.join(places, on="example_id", maintain_order="left").iter_rows(named=True), features, strict=True
    ):
        topic = Path(row["url"]).name.removesuffix("-0.jsonl")
        np.testing.assert_allclose(feature, naive_vector_feature(vector_of(topic, row["row_right"]).tolist(), None), atol=1e-3)
    assert pool["tokens"].null_count() == len(pool) == 120
    shutil.copytree(made / "root", tmp_path / "root")
    again = pipeline.reselect(str(tmp_path / "root"), reporter=SilentReporter(), method="omp", where="dataset <> 'sums-0'")
    assert again.stages["select"]["selected"] == 12
    diagnose.diagnose(
        str(tmp_path / "root"), base, methods=("omp", "random"), fractions=(0.1,), seeds=(0,), reporter=SilentReporter()
    )
    assert (diagnose.table(str(tmp_path / "root"), base)["error_weighted"] < 1).any()
    assert "120" in make_report(opened(tmp_path), again.run_id)
    assert tagcos("export", again.run_id, "--root", tmp_path / "root", "--out", tmp_path / "chosen.jsonl")[0] == 0
    assert check.check(opened(tmp_path)) == []
    refused: list[tuple[dict[str, Any], str]] = [
        ({"method": "longest"}, "method longest reads target_tokens, which 120 of 120 examples do not have"),
        ({"method": "stratified"}, "method stratified reads target_tokens"),
        ({"tokens": "500"}, "a budget in tokens reads target_tokens"),
        ({"method": "ifd"}, "ifd was not computed"),
    ]
    for changes, says in refused:
        with pytest.raises(UserError, match=says):
            pipeline.reselect(str(tmp_path / "root"), base, SilentReporter(), **changes)
    asked = {"root": str(tmp_path / "root"), "run": base, "heldout_files": (str(made / "pool" / f"{TOPICS[0]}-0.jsonl"),)}
    with pytest.raises(UserError, match="no model given: add --model"):
        evaluate.evaluate(load_evaluation(asked), SilentReporter())


def test_vectors__by_id_from_texts_projected_equal_the_definition(made: Path, tagcos: Call, tmp_path: Path) -> None:
    """The documented way: `tagcos texts`, vectors of these texts, `tagcos run --gradient vectors`."""
    texts = tmp_path / "texts.parquet"
    assert tagcos("texts", made / "pool", "--out", texts, "--json")[1].strip().startswith('{"examples": 120')
    found = pl.read_parquet(texts)
    assert found.columns == ["example_id", "file", "row", "dataset", "text"]
    first = found.filter(pl.col("row") == 7, pl.col("dataset") == "cities-0").to_dicts()[0]
    assert first["text"] == "\n\n".join(turn["content"] for turn in conversation("cities", 7))
    wide = np.random.default_rng(1).standard_normal((120, 300))
    vectors = found.select("example_id", vector=pl.Series(wide, dtype=pl.Array(pl.Float64, 300)))
    vectors.sample(fraction=1, shuffle=True, seed=0).write_parquet(tmp_path / "wide.parquet")
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    given = ("--gradient", "vectors", "--vectors", tmp_path / "wide.parquet", "--root", tmp_path / "root", "--quiet")
    code, _, err = tagcos("run", made / "pool", *given, *options)
    assert (code, err) == (0, ""), err
    root = opened(tmp_path)
    pool, features = features_of(root, runs.complete_run(root.catalog, None)["run_id"])
    assert features.shape == (120, 256)
    projection, rows = make_projection(dim=256, seed=0), dict(zip(found["example_id"].to_list(), wide.tolist(), strict=True))
    for example_id, feature in list(zip(pool["example_id"].to_list(), features, strict=True))[::17]:
        np.testing.assert_allclose(feature, naive_vector_feature(rows[example_id], projection), atol=1e-3)
    assert tagcos("texts", made / "pool", "--out", tmp_path / "texts.csv")[2].startswith("tagcos: ")
    thought = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "ok", "reasoning_content": "because"}]
    (tmp_path / "thought.jsonl").write_text(json.dumps({"messages": thought}) + "\n", encoding="utf-8")
    assert tagcos("texts", tmp_path / "thought.jsonl", "--out", texts)[0] == 0
    assert pl.read_parquet(texts)["text"].to_list() == ["what\n\nbecause\nok"]
    assert tagcos("texts", made / "pool", "--out", made / "a.parquet" / "t.parquet")[0] == 2


def test_refresh__needs_vectors_of_new_rows_only_and_another_vector_is_another_space(copied: Path, made: Path) -> None:
    before = opened(copied).catalog.read("SELECT segment, block, committed_at FROM blocks ORDER BY ALL")
    # the same vectors in other files, and stored otherwise: the same space, nothing to compute
    half = pl.read_parquet(made / "a.parquet").with_columns(pl.col("embedding").arr.to_list().cast(pl.List(pl.Float64)) * 4)
    half.head(50).write_parquet(copied / "b1.parquet")
    half.tail(70).write_parquet(copied / "b2.parquet")
    same = run(settings_of(copied, str(copied / "b*.parquet"), fraction=0.2))
    assert (same.stages["gradients"]["vectors"], spaces(copied)) == (0, 1)
    assert pipeline.dry_run(settings_of(copied, str(copied / "b*.parquet"), fraction=0.2)).step("gradients").compute == 0
    # a grown pool, and vectors of its new rows alone
    in_tokens = settings_of(copied, str(made / "a.parquet"), fraction=None, tokens="300")  # whose root has the features
    with pytest.raises(UserError, match=r"a budget in tokens reads target_tokens, which 120 of 120 examples do not have"):
        run(in_tokens)
    assert pipeline.dry_run(in_tokens, SilentReporter()).step("gradients").compute == 0
    (copied / "pool").unlink()
    shutil.copytree(made / "pool", copied / "pool")
    write_pool(copied / "pool", range(40, 50))
    new = write_vectors(copied / "new.parquet", range(40, 50), first=40)
    grown = run(settings_of(copied, new))
    assert (grown.stages["gradients"]["vectors"], grown.stages["select"]["pool"], spaces(copied)) == (30, 150, 1)
    after = opened(copied).catalog.read("SELECT segment, block, committed_at FROM blocks ORDER BY ALL")
    assert before.join(after, on=before.columns, how="anti").is_empty()
    # one changed vector: a space of its own, in which the others need theirs again
    changed = write_vectors(copied / "changed.parquet", change={3: 0.5})
    other = run(settings_of(copied, changed, new))
    assert (other.stages["gradients"]["vectors"], other.stages["select"]["pool"], spaces(copied)) == (150, 150, 2)
    back = run(settings_of(copied, str(made / "a.parquet"), new, seed=1))
    assert (back.stages["gradients"]["vectors"], spaces(copied)) == (0, 2)
    # new rows join the space of the run before, not the newest one
    write_pool(copied / "pool", range(50, 52))
    joined = run(settings_of(copied, write_vectors(copied / "newer.parquet", range(50, 52), first=50)))
    assert (joined.stages["gradients"]["vectors"], joined.stages["select"]["pool"], spaces(copied)) == (6, 156, 2)
    assert check.check(opened(copied)) == []


def test_missing__is_rejected_by_name_and_mended_by_a_later_file(made: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").symlink_to(made / "pool")
    every = pl.read_parquet(made / "a.parquet")
    bad = every.with_columns(
        pl.when(pl.col("row") == 4).then(pl.lit([0.0] * WIDTH)).otherwise(pl.col("embedding").arr.to_list()).alias("embedding")
    )
    stray = bad.head(2).with_columns(row=pl.lit(99, pl.Int64) + pl.int_range(2))
    pl.concat([bad.filter(pl.col("row") != 2), stray]).write_parquet(tmp_path / "most.parquet")
    reporter = Saying()
    first = run(settings_of(tmp_path, str(tmp_path / "most.parquet")), reporter)
    assert first.stages["select"]["pool"] == 114
    assert "vectors: 2 of 119 rows belong to no example" in reporter.said
    warned = [line for line in reporter.said if line.startswith("WARNING")]
    assert any("3 of 120 examples (2.5%) have no feature and cannot be selected: no vector: no row" in line for line in warned)
    assert any("unusable vector: it is zero, or has numbers that are not finite" in line for line in warned)
    found = opened(tmp_path).catalog.read("SELECT reason, rows FROM rejects_by_reason WHERE stage = 'gradients' ORDER BY reason")
    assert found.rows() == [("no vector", 3), ("unusable vector", 3)]
    every.filter(pl.col("row") == 2).write_parquet(tmp_path / "rest.parquet")
    mended = run(settings_of(tmp_path, str(tmp_path / "rest.parquet")))
    assert (mended.stages["select"]["pool"], spaces(tmp_path)) == (117, 1)
    every.filter(pl.col("row") == 4).write_parquet(tmp_path / "repaired.parquet")
    mended = run(settings_of(tmp_path, str(tmp_path / "repaired.parquet")))
    assert (mended.stages["select"]["pool"], spaces(tmp_path)) == (120, 1)
    root = opened(tmp_path)
    assert check.check(root) == []
    # a block that was taken back needs all of its vectors again
    space, segment = root.catalog.read("SELECT space_id, segment FROM blocks WHERE block = 1").row(0)
    forget_block(root.catalog, space, segment, 1)
    with pytest.raises(UserError, match=r"block 1 of segment \S+ was damaged and is made again, but of \d+ examples in it"):
        run(settings_of(tmp_path, str(tmp_path / "repaired.parquet")))
    mended = run(settings_of(tmp_path, str(made / "a.parquet")))
    assert (mended.stages["select"]["pool"], spaces(tmp_path)) == (120, 1)
    pool, features = features_of(root, mended.run_id)
    whole, wanted = features_of(opened(made), runs.complete_run(opened(made).catalog, None)["run_id"])
    at = whole.with_row_index().join(pool.select("example_id"), on="example_id", how="right", maintain_order="right")["index"]
    np.testing.assert_array_equal(features, wanted[at.to_numpy()])


def test_together__vectors_have_the_models_tokens_losses_and_ifd(
    made: Path, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pool").symlink_to(made / "pool")
    files, model = str(made / "a.parquet"), str(model_folder)
    both = {"model": model, "gradient": "hidden", "also_gradients": ("vectors",), "ifd": True}
    first = run(settings_of(tmp_path, files, **both))
    assert first.stages["gradients"]["vectors"] == first.stages["gradients"]["computed"] == 120
    root = str(tmp_path / "root")
    second = pipeline.reselect(root, reporter=SilentReporter(), gradient="vectors", method="omp", where="ifd < 9 AND loss < 99")
    signals = "SELECT example_id, tokens, target_tokens, loss, ifd FROM signals_of(?) ORDER BY example_id"
    catalog = opened(tmp_path).catalog
    one, two = (catalog.read(signals, [run_id]) for run_id in (first.run_id, second.run_id))
    assert one.equals(two)
    assert one.null_count().row(0) == (0,) * 5
    assert pipeline.reselect(root, reporter=SilentReporter(), gradient="vectors", tokens="200").stages["select"]["tokens"] <= 200
    # of several spaces of vectors, a selection has those of the run that it selects from, and of selections of it
    other = write_vectors(tmp_path / "other.parquet", change={3: 0.5})
    run(settings_of(tmp_path, other, **both, name="other"))
    others: tuple[dict[str, Any], ...] = ({}, {"gradient": "hidden"}, {"count": 5})
    for changes in others:
        space = runs.run_status(catalog, second.run_id).run["space_id"]
        again = pipeline.reselect(root, first.run_id, SilentReporter(), **({"gradient": "vectors"} | changes))
        third = pipeline.reselect(root, again.run_id, SilentReporter(), gradient="vectors", seed=1)
        assert runs.run_status(catalog, third.run_id).run["space_id"] == space
    # the space of vectors alone is another one; no model is loaded for it
    monkeypatch.setattr(models, "load_adapted", None)
    alone = run(settings_of(tmp_path, files))
    assert alone.stages["gradients"]["vectors"] == 120
    assert spaces(tmp_path) == 4
    assert check.check(opened(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vectors": ()}, "name their files with --vectors"),
        ({"gradient": "adam-delta", "model": "some/model"}, "add --gradient vectors, or --also-gradients vectors"),
        ({"ifd": True}, "ifd is computed by a model"),
        ({"vectors": ("nowhere.parquet",)}, "vectors nowhere.parquet: no such file"),
    ],
)
def test_refused__before_anything_is_read(made: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    (tmp_path / "pool").symlink_to(made / "pool")
    with pytest.raises(UserError, match=says):
        run(settings_of(tmp_path, str(made / "a.parquet"), **changes))
    assert not (tmp_path / "root").exists()


def test_refused__what_no_run_can_use(copied: Path, made: Path) -> None:
    every = pl.read_parquet(made / "a.parquet")
    every.with_columns(pl.col("embedding").arr.to_list().list.head(5)).write_parquet(copied / "narrow.parquet")
    pl.concat([every, every.head(1).with_columns(embedding=every["embedding"].tail(1))]).write_parquet(copied / "twice.parquet")
    every.head(1).with_columns(file=pl.lit("other.jsonl")).write_parquet(copied / "other.parquet")
    (copied / "pool").unlink()
    shutil.copytree(made / "pool", copied / "pool")
    (copied / "pool" / "sub").mkdir()
    shutil.copy(made / "pool" / "sums-0.jsonl", copied / "pool" / "sub" / "sums-0.jsonl")
    for files, says in (
        (("twice.parquet",), r"1 examples have two different vectors, such as row 39 of sums-0.jsonl in row 0 of .* and row 120"),
        (("twice.parquet", "narrow.parquet"), r"narrow.parquet are 5 wide, those of .*twice.parquet 24"),
    ):
        with pytest.raises(UserError, match=says):
            read_index(settings_of(copied, *(str(copied / name) for name in files)))
    with pytest.raises(UserError, match=r"none of 1 rows belongs to an example of the sources, such as row 39 of other.jsonl; "):
        run(settings_of(copied, str(copied / "other.parquet")))
    with pytest.raises(UserError, match=r"vectors name file sums-0.jsonl, which 2 source files could be: .*/sub/sums-0.jsonl"):
        run(settings_of(copied, str(made / "a.parquet")))
