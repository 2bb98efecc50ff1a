"""Features from vectors of the user's own (gradient variant `vectors`): their space, and their blocks. No model is run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from flows.context import RunContext
from flows.vectors import ResolvedVectors, find_vector_space, read_index, read_rows, resolve, wanted_rows
from storage.arrays import checkpoints, segments
from storage.catalog import spaces, vectors
from storage.catalog.spaces import Space
from tagcos_stream import identity
from tagcos_stream.config import VECTORS
from tagcos_stream.gradients.projection.projections import Projection, make_projection
from tagcos_stream.gradients.vectors import feature_dim, vector_features
from tagcos_stream.types import UserError

NO_VECTOR, UNUSABLE = "no vector", "unusable vector"
DETAILS = {NO_VECTOR: "no row of the vectors belongs to it", UNUSABLE: "it is zero, or has numbers that are not finite"}
MEASURED = {"tokens": pl.Int32, "target_tokens": pl.Int32, "loss": pl.Float64, "norm": pl.Float64}


def vector_space(run: RunContext, sibling: Space | None) -> tuple[Space, dict[str, Any]]:
    """Find the space that the run's vectors can be added to, or make one.

    Parameters
    ----------
    run
        Its sources are read.
    sibling
        A space of the same run that a model computes: the examples' tokens and losses are taken from it. None where no model
        is run.

    Returns
    -------
    tuple of (Space, dict)
        The space, and what to report of the vectors.

    Raises
    ------
    UserError
        No vector belongs to an example of the root, or a file cannot be read.
    """
    found = resolve(run.catalog, read_index(run.settings), run.run_id)
    index, given = found.index, found.given
    if not len(given):
        first = index.entries.row(0, named=True)
        key = first["example_id"] or f"row {first['row']} of {first['file']}"
        raise UserError(
            f"vectors: none of {len(index.entries):,} rows belongs to an example of the sources, such as {key}; `tagcos texts` "
            "writes the ids of all examples, and rows of a file are counted from 0"
        )
    for n, what in ((found.unmatched, "belong to no example"), (found.repeats, "repeat an example that has a vector already")):
        if n:
            run.reporter.say(f"vectors: {n:,} of {len(index.entries):,} rows {what}")
    detail = {"files": len(index.files), "width": index.width, "rows": len(index.entries), "examples": len(given)}
    detail |= {"unmatched": found.unmatched, "repeats": found.repeats}
    space = find_vector_space(run.catalog, run.settings, run.run_id)
    if space is None:
        space = _add(run, sibling, index.width, given)
    return space, detail | {"space_id": space.space_id}


def _add(run: RunContext, sibling: Space | None, width: int, given: pl.DataFrame) -> Space:
    settings = run.settings
    content = identity.content_digest(given.select("example_id", "digest").sort("example_id").write_csv().encode())
    fingerprint = {
        **({} if sibling is None else sibling.fingerprint),
        "settings": {**identity.space_settings(settings), "gradient": VECTORS},
        "vectors": {"width": width, "content": content},
    }
    space_id = identity.space_id(fingerprint)
    checkpoints.save_space(run.root.files, space_id, fingerprint)
    recipe = identity.space_recipe(settings, VECTORS)
    spaces.add_space(
        run.catalog,
        run.run_id,
        space_id,
        recipe=recipe,
        variant=VECTORS,
        dim=feature_dim(width, settings.dim),
        fingerprint=fingerprint,
        checkpoints=[],
    )
    return next(space for space in spaces.spaces_of(run.catalog, recipe) if space.space_id == space_id)


@dataclass(frozen=True)
class _Vectors:
    """The vectors that are needed, in a scratch file, and how features are made of them."""

    rows: np.ndarray  # (n, W) float32
    place: dict[str, int]  # row by example id
    digests: np.ndarray  # (n,) uint64
    projection: Projection | None


def compute_vectors(run: RunContext, space: Space, sibling: Space | None, missing: Iterable[tuple[str, int]]) -> int:
    """Write the features of every block that the space lacks, or that has examples whose vectors came later.

    Parameters
    ----------
    run
        Its pool and target say which examples are wanted.
    space, sibling
        As for `vector_space`; the sibling's blocks are complete.
    missing
        Segment and number of the blocks that the space lacks; the segments are presized.

    Returns
    -------
    int
        Number of rows written.
    """
    found = resolve(run.catalog, read_index(run.settings), run.run_id)
    late = vectors.late(run.catalog, run.run_id, space.space_id, found.given)
    lacking = set(missing)
    blocks = sorted(lacking | {(segment, block) for segment, some in late.items() for block in some})
    if not blocks:
        return 0
    writers = {segment: segments.open_writer(run.root.files, space.space_id, segment) for segment in {s for s, _ in blocks}}
    examples = dict(vectors.examples_of(run.catalog, list(writers)).group_by("segment").agg("example_id").iter_rows())
    inside = {key: examples[key[0]][slice(*writers[key[0]].block_range(key[1]))] for key in blocks}
    wanted = wanted_rows(found, pl.Series([one for some in inside.values() for one in some], dtype=pl.String))
    _require_again(run, space, lacking, wanted)
    projection = None
    if space.dim < found.index.width:
        projection = make_projection(run.settings.projection, dim=space.dim, seed=run.settings.feature_seed)
    scratch = None if run.root.path is None else run.root.path / "work" / run.run_id
    if scratch is not None:
        scratch.mkdir(parents=True, exist_ok=True)
    done, total = 0, sum(map(len, inside.values()))
    with tempfile.TemporaryFile(dir=scratch) as file, run.reporter.stage("vectors", "examples") as progress:
        held = _held(file, found, wanted, projection)
        for segment, block in blocks:
            began = time.perf_counter()
            first, ids = writers[segment].block_range(block)[0], inside[segment, block]
            before, stored = None, None
            if (segment, block) not in lacking:  # vectors that it has may be in files that are no longer given
                before = vectors.block_state(run.catalog, space.space_id, segment, first, first + len(ids))["digest"].to_list()
                stored = segments.open_segment(run.root.files, space.space_id, segment).read_block(block)
            measured = _measured(run, sibling, segment, first, len(ids))
            rows, features = _block(space.dim, held, ids, measured, before, stored)
            checksum = writers[segment].write_block(block, features)
            reasons = rows.filter(pl.col("status") != "ok").select("row", reason="status")
            detail = pl.col("reason").replace_strict(DETAILS, default=None, return_dtype=pl.String)
            spaces.commit_block(
                run.catalog,
                run.run_id,
                space.space_id,
                segment,
                block,
                rows.drop("digest"),
                checksum=checksum,
                seconds=time.perf_counter() - began,
                rejects=reasons.with_columns(detail=detail, snippet=pl.lit(None, pl.String)),
                digests=rows.select("row", "digest").drop_nulls(),
            )
            done += len(rows)
            progress(done, total)
    return total


def _require_again(run: RunContext, space: Space, lacking: Iterable[tuple[str, int]], wanted: pl.DataFrame) -> None:
    """Refuse to make a block again that was taken back, without the vectors that it had."""
    for segment, block in sorted(lacking):
        before = vectors.needed_again(run.catalog, space.space_id, segment, block)
        lost = before.filter(~before.is_in(wanted["example_id"].implode()))
        if len(lost):
            raise UserError(
                f"block {block} of segment {segment} was damaged and is made again, but of {len(lost):,} examples in it, such as "
                f"{lost[0]}, no vector is given: name all files of vectors once more, those of earlier runs too"
            )


def _held(file: Any, found: ResolvedVectors, wanted: pl.DataFrame, projection: Projection | None) -> _Vectors:
    """The wanted vectors, written one after the other: their files are in an order of their own."""
    for rows in read_rows(found.index, wanted):
        file.write(np.ascontiguousarray(rows).data)
    file.flush()
    shape = (len(wanted), found.index.width)
    held = np.memmap(file, np.float32, "r", shape=shape) if len(wanted) else np.zeros(shape, np.float32)
    place = {example_id: n for n, example_id in enumerate(wanted["example_id"].to_list())}
    return _Vectors(held, place, wanted["digest"].to_numpy(), projection)


def _measured(run: RunContext, sibling: Space | None, segment: str, first: int, n: int) -> pl.DataFrame:
    """row, tokens, target_tokens, loss, norm, status of n rows; status null where the sibling has not computed a row."""
    rows = pl.DataFrame({"row": np.arange(first, first + n)})
    if sibling is None:
        return rows.with_columns(*(pl.lit(None, kind).alias(name) for name, kind in MEASURED.items()), status=pl.lit("ok"))
    state = vectors.block_state(run.catalog, sibling.space_id, segment, first, first + n).drop("digest")
    return rows.join(state, on="row", how="left", maintain_order="left")


def _block(
    dim: int,
    held: _Vectors,
    ids: Sequence[str],
    measured: pl.DataFrame,
    before: list[int | None] | None,
    stored: np.ndarray | None,
) -> tuple[pl.DataFrame, np.ndarray]:
    """`measured` with status and digest of the n rows, and their features (n, D) float16, NaN where there is none.

    `before` and `stored` are digests and features that the block had, if it is written again.
    """
    features = np.full((len(ids), dim), np.nan, np.float16)
    digests: list[int | None] = [None] * len(ids) if before is None else before
    if stored is not None:
        features[:] = stored
    places = np.array([held.place.get(example_id, -1) for example_id in ids], np.int64)
    given = np.flatnonzero(places >= 0)
    for i in given.tolist():
        digests[i] = int(held.digests[places[i]])
    usable = np.array([i for i in given.tolist() if digests[i]], np.int64)
    if len(usable):
        features[usable] = vector_features(held.rows[places[usable]], held.projection)
    statuses = []
    for i, status in enumerate(measured["status"].to_list()):
        if status is None or digests[i] is None:  # the model computes what a run wants, and may have left a row out
            statuses.append(NO_VECTOR)
            digests[i] = None
        elif status == "ok":
            statuses.append(UNUSABLE if np.isnan(features[i, 0]) else "ok")
        else:
            statuses.append(status)
    features[np.array([status != "ok" for status in statuses])] = np.nan
    made = {"status": pl.Series(statuses, dtype=pl.String), "digest": pl.Series(digests, dtype=pl.UInt64)}
    return measured.with_columns(**made), features
