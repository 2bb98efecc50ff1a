"""Reading a clustering: centroids, exact totals, and any of its rows, by position, over its committed parts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np
import polars as pl

from storage.arrays.chunked import ArraySpec, check_declaration, declare, read_array, read_attributes, read_chunk, read_shape
from storage.arrays.grouped import (
    FORMAT,
    PartInfo,
    centroids_spec,
    clustering_group,
    part_group,
    part_specs,
    parts_digest,
    regroup,
)
from storage.arrays.read_ahead import ReadAhead
from storage.arrays.segments import open_features
from storage.files.base import Files
from tagcos_stream.types import RowBlocks

BLOCK_ROWS = 256  # of what is read: a constant, so that what is computed from a cluster does not depend on its parts
CHUNKS_KEPT = 4  # a chunk that ends in one block and goes on in the next is read once


@dataclass(frozen=True)
class Part:
    """A part of a clustering: its arrays, and which rows its slots hold."""

    group: str
    specs: dict[str, ArraySpec]
    first_slot: np.ndarray
    rows: np.ndarray
    offset: int  # position of the part's first row in the order of all parts
    segments: list[str]

    @cached_property
    def slots(self) -> np.ndarray:
        """(n,) int64: slot of each of the part's rows."""
        found = np.empty(int((self.rows >= 0).sum()), np.int64)
        used = np.flatnonzero(self.rows >= 0)
        found[self.rows[used]] = used
        return found


class PositionRows:
    """RowBlocks over rows of a clustering, by position, in the order given."""

    def __init__(self, files: Files, parts: Sequence[Part], positions: np.ndarray, dim: int, remedy: str) -> None:
        self._files, self._parts, self._positions, self._remedy = files, parts, positions, remedy
        self._offsets = np.array([part.offset for part in parts])
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._lock = Lock()
        self.dim = dim
        self.n_rows = len(positions)
        self.starts = np.append(np.arange(0, self.n_rows, BLOCK_ROWS), self.n_rows).astype(np.int64)
        self._ahead = ReadAhead(self._load, len(self.starts) - 1)

    def read(self, block: int) -> np.ndarray:
        """Return a block, which was read ahead."""
        return self._ahead.get(block)

    def _load(self, block: int) -> np.ndarray:
        positions = self._positions[self.starts[block] : self.starts[block + 1]]
        of = np.searchsorted(self._offsets, positions, side="right") - 1
        slots, sizes = np.empty((2, len(positions)), np.int64)
        for index in np.unique(of):
            part, mine = self._parts[index], of == index
            slots[mine] = part.slots[positions[mine] - part.offset]
            sizes[mine] = part.specs["features"].chunk_rows
        chunks, within = slots // sizes, slots % sizes
        edges = np.flatnonzero((np.diff(of) != 0) | (np.diff(chunks) != 0)) + 1
        pieces = np.split(np.arange(len(positions)), edges)
        out = np.empty((len(positions), self.dim), np.float16)
        for piece in pieces:
            found = self._chunk(int(of[piece[0]]), int(chunks[piece[0]]))
            rows = within[piece]
            contiguous = rows[-1] - rows[0] == len(rows) - 1 and bool((np.diff(rows) == 1).all())
            if contiguous and len(pieces) == 1:
                return found[rows[0] : rows[-1] + 1]
            out[piece[0] : piece[-1] + 1] = found[rows[0] : rows[-1] + 1] if contiguous else found[rows]
        out.flags.writeable = False
        return out

    def _chunk(self, index: int, chunk: int) -> np.ndarray:
        with self._lock:
            if (index, chunk) in self._kept:
                self._kept.move_to_end((index, chunk))
                return self._kept[index, chunk]
        part = self._parts[index]
        found, _ = read_chunk(self._files, part.group, part.specs["features"], chunk, remedy=self._remedy)
        with self._lock:
            self._kept[index, chunk] = found
            while len(self._kept) > CHUNKS_KEPT:
                self._kept.popitem(last=False)
        return found


class ClusteringReader:
    """A clustering with its committed parts, none where it was only begun. Positions run over the parts in order.

    Parameters
    ----------
    files
        Of the root.
    clustering_id
        The clustering.
    parts
        Those the catalog names (`clusterings.parts`): one that is not committed is never read.

    Raises
    ------
    DamagedStore
        An array is missing, or not what was written.
    """

    def __init__(self, files: Files, clustering_id: str, parts: Sequence[int]) -> None:
        self._files = files
        self.clustering_id = clustering_id
        self._remedy = (
            f"run `tagcos check --repair` to have clustering {clustering_id} regrouped or made again, then the same command"
        )
        group = clustering_group(clustering_id)
        attributes = read_attributes(files, group, FORMAT)
        (self.n_clusters, self.dim), _ = read_shape(files, group, "centroids", 2)
        spec = centroids_spec(self.n_clusters, self.dim)
        check_declaration(files, group, declare([spec], attributes))
        self.centroids = read_array(files, group, spec, remedy=self._remedy)
        self.parts: list[Part] = []
        offset = 0
        for part in parts:
            self.parts.append(self._open_part(part, offset))
            offset += len(self.parts[-1].slots)
        self.n_rows = offset

    def read_array(self, part: Part, name: str) -> np.ndarray:
        """Read a whole array of a part. DamagedStore if a checksum is wrong."""
        return read_array(self._files, part.group, part.specs[name], remedy=self._remedy)

    def _open_part(self, part: int, offset: int) -> Part:
        group = part_group(self.clustering_id, part)
        attributes = read_attributes(self._files, group, FORMAT)
        (slots, _), chunk_rows = read_shape(self._files, group, "features", 2)
        n_rows, touched = (read_shape(self._files, group, name, 1)[0][0] for name in ("labels", "touched"))
        specs = part_specs(n_rows, self.n_clusters, touched, slots, self.dim, chunk_rows)
        check_declaration(self._files, group, declare(list(specs.values()), attributes))
        rows, first_slot = (read_array(self._files, group, specs[name], remedy=self._remedy) for name in ("rows", "first_slot"))
        return Part(group, specs, first_slot, rows, offset, list(attributes["segments"]))

    def _all(self, name: str, empty: np.ndarray) -> np.ndarray:
        return np.concatenate([empty, *(self.read_array(part, name) for part in self.parts)])

    @cached_property
    def labels(self) -> np.ndarray:
        """(N,) int32: cluster of every row, by position."""
        return self._all("labels", np.zeros(0, np.int32))

    @cached_property
    def distances(self) -> np.ndarray:
        """(N,) float32: from every row to its centroid, by position."""
        return self._all("distances", np.zeros(0, np.float32))

    def totals(self, parts: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(sums (K, D) float64, sizes (K,) int64, squares (K,) int64) of all rows, or of the first `parts` parts; exact."""
        sums, sizes, squares = (
            np.zeros((self.n_clusters, self.dim)),
            np.zeros(self.n_clusters, np.int64),
            np.zeros(self.n_clusters, np.int64),
        )
        for part in self.parts[:parts]:
            touched = self.read_array(part, "touched")
            sums[touched] += self.read_array(part, "sums")
            squares[touched] += self.read_array(part, "squares")
            sizes += np.bincount(self.read_array(part, "labels"), minlength=self.n_clusters)
        return sums, sizes, squares

    def find(self, rows: pl.DataFrame) -> np.ndarray:
        """(n,) int64: position of each of `rows` (segment, row), -1 for those that are not in this clustering."""
        names = sorted({*rows["segment"].unique(), *(name for part in self.parts for name in part.segments)})
        number = {name: i for i, name in enumerate(names)}
        mine = [np.zeros(0, np.int64)]
        for part in self.parts:
            where = self.read_array(part, "locations")
            mine.append((np.array([number[name] for name in part.segments], np.int64)[where[:, 0]] << 40) + where[:, 1])
        known = np.concatenate(mine)
        order = np.argsort(known, kind="stable")
        segments = (
            rows["segment"].replace_strict(number, return_dtype=pl.Int64).to_numpy() if len(rows) else np.zeros(0, np.int64)
        )
        wanted = (segments << 40) + rows["row"].to_numpy().astype(np.int64)
        at = np.searchsorted(known, wanted, sorter=order)
        found = np.full(len(rows), -1, np.int64)
        inside = at < len(known)
        here = order[at[inside]]
        found[inside] = np.where(known[here] == wanted[inside], here, -1)
        return found

    def rows(self, positions: np.ndarray) -> RowBlocks:
        """The rows at these positions, in this order. Fast where neighbours here are neighbours on disk."""
        return PositionRows(self._files, self.parts, np.asarray(positions, np.int64), self.dim, self._remedy)

    def cluster_rows(self, cluster: int, keep: np.ndarray | None = None) -> np.ndarray:
        """(n_k,) int64: positions of the cluster's rows, in order; `keep` (N,) bool leaves some out."""
        if not 0 <= cluster < self.n_clusters:
            raise ValueError(f"clustering {self.clustering_id} has clusters 0 to {self.n_clusters - 1}, asked for {cluster}")
        return np.flatnonzero(self.labels == cluster if keep is None else (self.labels == cluster) & keep)

    def cluster(self, cluster: int, keep: np.ndarray | None = None) -> RowBlocks:
        """Return the rows of a cluster, all or those to keep, as blocks."""
        return self.rows(self.cluster_rows(cluster, keep))

    def verify_tables(self) -> None:
        """Read all arrays of every part except the features; raises DamagedStore if one is not what was written."""
        for part in self.parts:
            for name in set(part.specs) - {"features"}:
                self.read_array(part, name)

    def verify(self, part: int) -> str:
        """Read every chunk of a part; its digest, or DamagedStore."""
        opened = self.parts[part]
        spec = opened.specs["features"]
        sums = [read_chunk(self._files, opened.group, spec, chunk, remedy=self._remedy)[1] for chunk in range(spec.n_chunks)]
        return parts_digest(np.array(sums, np.uint32))


def regroup_again(files: Files, reader: ClusteringReader, position: int, part: int, space_id: str, chunk_rows: int) -> PartInfo:
    """Write a part again from the segments if only its regrouped features were damaged: same bytes, same digest."""
    opened = reader.parts[position]
    where = reader.read_array(opened, "locations")
    chosen = pl.DataFrame({"segment": np.array(opened.segments)[where[:, 0]], "row": where[:, 1]})
    sums, squares = np.zeros((reader.n_clusters, reader.dim)), np.zeros(reader.n_clusters, np.int64)
    touched = reader.read_array(opened, "touched")
    sums[touched], squares[touched] = (reader.read_array(opened, name) for name in ("sums", "squares"))
    return regroup(
        files,
        reader.clustering_id,
        open_features(files, space_id, chosen),
        reader.read_array(opened, "labels"),
        distances=reader.read_array(opened, "distances"),
        sums=sums,
        squares=squares,
        part=part,
        chunk_rows=chunk_rows,
    )
