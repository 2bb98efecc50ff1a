"""Vectors of the user's own: read from Parquet and Zarr in batches, scaled, and refused where they cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from tagcos_stream.data import vectors
from tagcos_stream.gradients.projection.projections import make_projection
from tagcos_stream.gradients.vectors import feature_dim, vector_features
from tagcos_stream.types import UserError
from tests.naive import naive_vector_feature

IDS = [f"{n:032x}" for n in range(7)]
WIDE = np.random.default_rng(0).standard_normal((7, 24))


def parquet(path: Path, found: np.ndarray | None = None, kind: Any = None, **columns: Any) -> Path:
    """A file with the vectors as `vector`, lists of `kind`."""
    values = pa.array((WIDE if found is None else found).tolist(), kind or pa.list_(pa.float32()))
    pq.write_table(pa.table({**(columns or {"example_id": IDS}), "vector": values}), path)
    return path


def group(path: Path, **arrays: np.ndarray) -> Path:
    made = zarr.open_group(path, mode="w")
    for name, values in arrays.items():
        made.create_array(name, data=values, chunks=(3, *values.shape[1:]))
    return path


def read(path: Path) -> tuple[pl.DataFrame, np.ndarray]:
    batches = list(vectors.read_batches(vectors.open_vector_file(str(path))))
    assert [start for start, *_ in batches] == np.cumsum([0, *[len(rows) for *_, rows in batches]])[:-1].tolist()
    return pl.concat([keys for _, keys, _ in batches]), np.concatenate([rows for *_, rows in batches])


@pytest.mark.parametrize("kind", ["halffloat", "float32", "float64", "large", "fixed", "zarr", "zarr bytes"])
def test_read__every_type_and_container_gives_the_same_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(vectors, "BATCH_BYTES", 8 * 24 * 3)  # three rows
    if kind.startswith("zarr"):
        raw = np.frombuffer(bytes.fromhex("".join(IDS)), np.uint8).reshape(-1, 16)
        path = group(tmp_path / "a.zarr", features=WIDE.astype(np.float32), example_id=raw)
        if kind == "zarr":
            path = group(
                tmp_path / "b.zarr",
                emb=WIDE.astype(np.float16),
                row=np.arange(7),
                file=np.array(["a.jsonl"] * 7, np.dtypes.StringDType()),
            )
    else:
        lists = {"large": pa.large_list(pa.float32()), "fixed": pa.list_(pa.float32(), 24)}
        made = {"halffloat": pa.float16(), "float32": pa.float32(), "float64": pa.float64()}
        found = WIDE.astype(np.float16) if kind == "halffloat" else WIDE
        path = parquet(tmp_path / "a.parquet", found, lists.get(kind) or pa.list_(made[kind]))
    keys, rows = read(path)
    np.testing.assert_allclose(rows, WIDE, atol=2e-3)
    if kind == "zarr":
        assert keys.rows() == [("a.jsonl", n) for n in range(7)]
    else:
        assert keys["example_id"].to_list() == IDS


def test_read__a_row_without_a_vector_has_no_key(tmp_path: Path) -> None:
    found: list[Any] = WIDE.tolist()
    found[2], found[4][5] = None, None
    pq.write_table(pa.table({"example_id": IDS, "vector": pa.array(found, pa.list_(pa.float32()))}), tmp_path / "a.parquet")
    keys, rows = read(tmp_path / "a.parquet")
    assert keys["example_id"].to_list() == [*IDS[:2], None, *IDS[3:]]
    assert vectors.scaled(rows)[1].tolist() == [0, 0, 1, 0, 1, 0, 0]


def test_scaled__features_equal_their_definition_whatever_the_size_of_the_numbers() -> None:
    odd = np.vstack([WIDE[0] * 1e200, WIDE[0] * 1e-200, WIDE[0], np.zeros(24), np.full(24, np.nan), np.full(24, np.inf)])
    rows, states = vectors.scaled(odd)
    assert states.tolist() == [vectors.USABLE] * 3 + [vectors.ZERO, vectors.NOT_FINITE, vectors.NOT_FINITE]
    projections = [None, make_projection(dim=64, seed=3), make_projection("rademacher", dim=64, seed=3)]
    for projection in projections:
        made = vector_features(rows[:3], projection)
        assert made.dtype == np.float16
        for row in made:
            np.testing.assert_allclose(row, naive_vector_feature(WIDE[0].tolist(), projection), atol=5e-4)
    assert (feature_dim(24, 64), feature_dim(100, 64)) == (24, 64)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"id": IDS}, "by a column example_id .* or by columns file and row of a source; there are id, vector"),
        ({"file": ["a"] * 7, "row": ["x"] * 7}, "example_id and file are texts, row is a whole number"),
        ({"example_id": IDS, "e1": pa.array(WIDE.tolist()), "e2": pa.array(WIDE.tolist())}, None),
    ],
)
def test_refused__columns(tmp_path: Path, columns: dict[str, Any], says: str | None) -> None:
    path = parquet(tmp_path / "a.parquet", None, None, **columns)
    if says is None:  # several columns of vectors: the one called `vector`
        assert vectors.open_vector_file(str(path)).column == "vector"
    else:
        with pytest.raises(UserError, match=says):
            read(path)


def test_refused__with_the_remedy(tmp_path: Path) -> None:
    ragged: list[Any] = WIDE.tolist()
    ragged[5] = ragged[5][:23]
    pq.write_table(pa.table({"example_id": IDS, "vector": ragged}), tmp_path / "ragged.parquet")
    with pytest.raises(UserError, match=r"ragged.parquet: row 5 has 23 numbers, not 24"):
        read(tmp_path / "ragged.parquet")
    with pytest.raises(UserError, match="lists of float16, float32 or float64, of the columns example_id, vector none"):
        read(parquet(tmp_path / "ints.parquet", np.ones((7, 3), np.int64), pa.list_(pa.int64())))
    several = {"example_id": IDS, "a": WIDE.tolist(), "b": WIDE.tolist()}
    pq.write_table(pa.table(several), tmp_path / "two.parquet")
    with pytest.raises(UserError, match="several could hold them: a, b; name one of them vector"):
        read(tmp_path / "two.parquet")
    pq.write_table(pa.table({"example_id": IDS[:1], "vector": pa.array([None], pa.list_(pa.float32()))}), tmp_path / "no.parquet")
    with pytest.raises(UserError, match="column vector has no vector in any row"):
        read(tmp_path / "no.parquet")
    with pytest.raises(UserError, match="vector has 7 rows, row has 6"):
        read(group(tmp_path / "c.zarr", vector=WIDE, file=np.array(["a"] * 7, np.dtypes.StringDType()), row=np.arange(6)))
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    with pytest.raises(UserError, match=r"damaged.parquet: cannot be read: "):
        read(tmp_path / "damaged.parquet")


def test_find__files_folders_globs_and_what_is_not_there(tmp_path: Path) -> None:
    first, second = parquet(tmp_path / "a.parquet"), parquet(tmp_path / "b.pq")
    third = group(tmp_path / "c.zarr", vector=WIDE, example_id=np.zeros((7, 16), np.uint8))
    (tmp_path / "notes.txt").write_text("")
    every = [str(first), str(second), str(third)]
    assert vectors.find_vector_files([str(tmp_path)]) == every
    assert vectors.find_vector_files([str(tmp_path / "*"), str(first)]) == every
    for name, says in (("notes.txt", "give a Parquet file"), ("none.parquet", "no such file"), ("*.npy", "no Parquet file")):
        with pytest.raises(UserError, match=says):
            vectors.find_vector_files([str(tmp_path / name)])
    with pytest.raises(UserError, match="only local files"):
        vectors.find_vector_files(["s3://bucket/a.parquet"])
