"""`tagcos check`: do files and catalog say the same? Every finding names the place, what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from storage.arrays.checkpoints import load_space
from storage.arrays.chunked import DamagedStore
from storage.arrays.grouped import clustering_group
from storage.arrays.grouped_reader import ClusteringReader, regroup_again
from storage.arrays.segments import SegmentReader, features_spec, open_segment, rewrite_metadata
from storage.catalog.clusterings import forget_files, parts, replace_part
from storage.catalog.spaces import forget_block, segment_ids
from storage.examples import ExampleReader
from storage.gc import orphans
from storage.root import Root
from storage.views import SQL
from tagcos_stream.identity import content_digest
from tagcos_stream.types import TransientError, UserError

CHECKS = SQL / "checks.sql"
OTHER = "do as this says; a repair leaves it alone, since the files may be whole"  # another version's, or out of the root
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Finding:
    """`repair` mends it, where that can be done from what is left; damage only, not litter, makes `tagcos check` exit with 1."""

    place: str
    problem: str
    remedy: str
    damage: bool = True
    repair: Callable[[Root], None] | None = None


def check(root: Root, *, deep: bool = True, progress: Progress = lambda what, done, total: None) -> list[Finding]:
    """Everything that is wrong. `deep` reads and verifies every byte; without it, presence, sizes and counts."""
    found = [
        Finding(place, problem, "the catalog contradicts itself: restore catalog-snapshot.duckdb")
        for place, problem in _references(root)
    ]
    found += _parts(root, deep, progress)
    found += _spaces(root, deep, progress)
    found += _clusterings(root, deep, progress)
    litter = orphans(root)
    if litter:
        size = sum(orphan.bytes for orphan in litter)
        found.append(
            Finding(
                root.url,
                f"{len(litter)} orphans, {size} bytes",
                "harmless: `tagcos gc` lists them, --yes removes them",
                damage=False,
            )
        )
    return found


def repair(root: Root, found: list[Finding]) -> list[Finding]:
    """Mend what can be mended, as the root's writer; returns what was."""
    mended = [finding for finding in found if finding.repair is not None]
    for finding in mended:
        assert finding.repair is not None
        finding.repair(root)
    return mended


def _references(root: Root) -> Iterator[tuple[str, str]]:
    with root.catalog.reading() as connection:
        for statement in connection.extract_statements(CHECKS.read_text()):
            yield from connection.execute(statement).fetchall()


def _parts(root: Root, deep: bool, progress: Progress) -> Iterator[Finding]:
    held = root.catalog.read("SELECT * FROM parts ORDER BY segment, part")
    for number, part in enumerate(held.iter_rows(named=True)):
        progress("examples", number, len(held))
        place = f"{root.files.place(part['path'])} (examples of {part['segment']}, part {part['part']})"
        remedy = "restore the file from a copy; without one, start a new --root from the sources"
        size = root.files.size(part["path"])
        if size is None:
            yield Finding(place, "is missing", remedy)
        elif size != part["bytes"]:
            yield Finding(place, f"has {size} bytes instead of {part['bytes']}", remedy)
        elif deep:
            try:
                rows = ExampleReader(root.files, held).read(part["segment"], part["first_row"], part["first_row"] + part["rows"])
            except DamagedStore:
                yield Finding(place, "is not what was written (digest)", remedy)
                continue
            if rows["example_id"].to_list() != _ids(root, part["segment"], part["first_row"], part["rows"]):
                yield Finding(place, "holds other examples than the catalog says", remedy)


def _ids(root: Root, segment: str, first_row: int, rows: int) -> list[str]:
    query = "SELECT example_id FROM examples WHERE segment = ? AND row >= ? AND row < ? ORDER BY row"
    return root.catalog.read(query, [segment, first_row, first_row + rows])["example_id"].to_list()


def _spaces(root: Root, deep: bool, progress: Progress) -> Iterator[Finding]:
    for (space,) in root.catalog.read("SELECT space_id FROM feature_spaces ORDER BY space_id").iter_rows():
        try:
            load_space(root.files, space)
        except TransientError:
            raise
        except UserError as error:
            yield Finding(f"space {space}", str(error), "restore space.json from a copy")
    for saved in root.catalog.read("SELECT * FROM checkpoints ORDER BY space_id, step").iter_rows(named=True):
        place, remedy = (
            f"{root.files.place(saved['path'])} (step {saved['step']} of space {saved['space_id']})",
            "restore it, or start a new --root",
        )
        size = root.files.size(saved["path"])
        if size is None:
            yield Finding(place, "is missing", remedy)
        elif size != saved["bytes"] or (deep and content_digest(root.files.read(saved["path"])) != saved["digest"]):
            yield Finding(place, "is not what was written (size or digest)", remedy)
    segments = root.catalog.read("SELECT * FROM feature_segments ORDER BY space_id, segment")
    for number, segment in enumerate(segments.iter_rows(named=True)):
        progress("features", number, len(segments))
        yield from _segment(root, segment, deep)


def _segment(root: Root, segment: dict[str, Any], deep: bool) -> Iterator[Finding]:
    space, name = segment["space_id"], segment["segment"]
    place = f"segment {name} of space {space}"
    blocks = root.catalog.read("SELECT * FROM blocks WHERE space_id = ? AND segment = ? ORDER BY block", [space, name])
    if blocks.is_empty():
        return
    again = "`tagcos check --repair` takes the block back; the next run computes it again"
    reader = SegmentReader(root.files, space, name, features_spec(segment["rows"], segment["dim"], segment["block_rows"]))
    try:
        problem = _metadata(root, segment)
    except DamagedStore as error:
        problem = str(error).split(";")[0]
    except TransientError:
        raise
    except UserError as error:
        yield Finding(place, str(error), OTHER)
        return
    if problem is not None:
        remedy = "`tagcos check --repair` writes zarr.json files and example ids again; no block is computed again for it"
        yield Finding(place, problem, remedy, repair=_rewrite(segment))
    bad = root.catalog.read("SELECT row FROM feature_rows WHERE space_id = ? AND segment = ? AND status <> 'ok'", [space, name])
    rejected = np.zeros(segment["rows"], bool)
    rejected[bad["row"].to_numpy()] = True
    for block in blocks.iter_rows(named=True):
        problem = _block(root, reader, block, rejected, deep)
        if problem is not None:
            yield Finding(
                f"block {block['block']} of {place}",
                problem,
                again,
                repair=_forget(space, name, blocks.filter(pl.col("block") == block["block"])),
            )


def _metadata(root: Root, segment: dict[str, Any]) -> str | None:
    """How a segment's shape and example ids differ from the catalog's."""
    opened = open_segment(root.files, segment["space_id"], segment["segment"])
    said, known = (opened.shape, opened.chunk_rows), ((segment["rows"], segment["dim"]), segment["block_rows"])
    if said != known:
        return f"has shape {said[0]} in blocks of {said[1]} rows, in the catalog {known[0]} in blocks of {known[1]}"
    if opened.example_ids() != _ids(root, segment["segment"], 0, segment["rows"]):
        return "holds other example ids than the catalog"
    return None


def _rewrite(segment: dict[str, Any]) -> Callable[[Root], None]:
    space, name = segment["space_id"], segment["segment"]

    def again(root: Root) -> None:
        ids = segment_ids(root.catalog, name)
        rewrite_metadata(root.files, space, name, example_ids=ids, dim=segment["dim"], chunk_rows=segment["block_rows"])

    return again


def _forget(space: str, segment: str, blocks: pl.DataFrame) -> Callable[[Root], None]:
    def take_back(root: Root) -> None:
        for block in blocks["block"]:
            forget_block(root.catalog, space, segment, block)

    return take_back


def _block(root: Root, reader: SegmentReader, block: dict[str, Any], rejected: np.ndarray, deep: bool) -> str | None:
    key = reader.chunk_key(block["block"])
    size = root.files.size(key)
    if size != reader.spec.chunk_bytes:
        return f"{root.files.place(key)} " + (
            "is missing" if size is None else f"has {size} bytes instead of {reader.spec.chunk_bytes}"
        )
    if not deep:
        return None
    try:
        rows, checksum = reader.read_block_checksum(block["block"])
    except DamagedStore as error:
        return str(error).split(";")[0]
    if checksum != block["checksum"]:
        return f"{root.files.place(key)} has checksum {checksum:08x}, the catalog {block['checksum']:08x}: it is another block"
    start, stop = reader.spec.chunk_range(block["block"])
    if not np.array_equal(np.isnan(rows).any(axis=1), rejected[start:stop]):
        return f"{root.files.place(key)} has NaN in other rows than the catalog rejects"
    return None


def _clusterings(root: Root, deep: bool, progress: Progress) -> Iterator[Finding]:
    # centroids may wait for their first part; one without a recipe and parts has no files
    known = root.catalog.read(
        """SELECT clustering_id FROM clusterings
        WHERE recipe IS NOT NULL OR clustering_id IN (SELECT clustering_id FROM cluster_parts) ORDER BY clustering_id"""
    )["clustering_id"].to_list()
    regrouped = root.catalog.read(
        "SELECT p.*, c.space_id FROM cluster_parts p JOIN clusterings c USING (clustering_id) ORDER BY part"
    )
    for number, clustering in enumerate(known):
        progress("clusterings", number, len(known))
        mine = regrouped.filter(pl.col("clustering_id") == clustering)
        try:
            reader = ClusteringReader(root.files, clustering, mine["part"].to_list())
            reader.verify_tables()
        except DamagedStore as error:
            remedy = "restore the file from a copy, or `tagcos check --repair` drops the clustering; the next run clusters again"
            yield Finding(f"clustering {clustering}", str(error).split(";")[0], remedy, repair=_drop(clustering))
            continue
        except TransientError:
            raise
        except UserError as error:
            yield Finding(f"clustering {clustering}", str(error), OTHER)
            continue
        for position, part in enumerate(mine.iter_rows(named=True) if deep else ()):
            problem = "is not what was written (digest of its checksums)"
            try:
                if reader.verify(position) == part["digest"]:
                    continue
            except DamagedStore as error:
                problem = str(error).split(";")[0]
            remedy = (
                "`tagcos check --repair` regroups it from the segments; where these are damaged, too, it drops the clustering, "
                "and the next run clusters again"
            )
            yield Finding(f"part {part['part']} of clustering {clustering}", problem, remedy, repair=_regroup(part))


def _drop(clustering: str) -> Callable[[Root], None]:
    def give_up(root: Root) -> None:
        forget_files(root.catalog, clustering)
        for key, _ in list(root.files.list(clustering_group(clustering))):
            root.files.delete(key)  # a fit to the same rows has the same id, and must not meet them

    return give_up


def _regroup(part: dict[str, Any]) -> Callable[[Root], None]:
    clustering = part["clustering_id"]

    def again(root: Root) -> None:
        mine = parts(root.catalog, clustering)
        if part["part"] not in mine:
            return  # dropped for another of its parts
        try:
            reader = ClusteringReader(root.files, clustering, mine)
            info = regroup_again(root.files, reader, mine.index(part["part"]), part["part"], part["space_id"], part["chunk_rows"])
        except DamagedStore:  # of the segments
            return _drop(clustering)(root)
        if info.digest != part["digest"]:  # from whole blocks that are not those that were clustered
            return _drop(clustering)(root)
        replace_part(root.catalog, clustering, info)

    return again
