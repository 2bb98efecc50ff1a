"""Reading a clustering: centroids, exact means, and each cluster as one run of chunks over its committed parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from storage.ahead import ReadAhead
from storage.chunks import ArraySpec, check_declaration, declare, read_array, read_attributes, read_chunk, read_json
from storage.features import open_features
from storage.files import Files
from storage.regroup import FORMAT, PartInfo, centroids_spec, clustering_group, part_group, part_specs, parts_digest, regroup
from tagcos_stream.types import RowBlocks


@dataclass(frozen=True)
class Part:
    group: str
    specs: dict[str, ArraySpec]
    first_slot: np.ndarray
    rows: np.ndarray
    offset: int  # position of the part's first row in the order of all parts
    segments: list[str]


class ClusterRows:
    """RowBlocks over the rows of one cluster; `keep` leaves some out."""

    def __init__(self, files: Files, pieces: Sequence[tuple[Part, int, np.ndarray]], dim: int, remedy: str) -> None:
        self._files = files
        self._pieces = [piece for piece in pieces if piece[2].any()]
        self._remedy = remedy
        self.dim = dim
        self.starts = np.concatenate([[0], np.cumsum([piece[2].sum() for piece in self._pieces])]).astype(np.int64)
        self.n_rows = int(self.starts[-1])
        self._ahead = ReadAhead(self._load, len(self._pieces))

    def read(self, block: int) -> np.ndarray:
        return self._ahead.get(block)

    def _load(self, block: int) -> np.ndarray:
        part, chunk, mask = self._pieces[block]
        found, _ = read_chunk(self._files, part.group, part.specs["features"], chunk, remedy=self._remedy)
        if mask.all():
            return found
        count = int(mask.sum())
        rows = found[:count] if mask[:count].all() else found[mask]  # the last chunk of a cluster: no copy
        rows.flags.writeable = False
        return rows


class ClusteringReader:
    """A clustering with all its committed parts. Positions run over the parts in order."""

    def __init__(self, files: Files, clustering_id: str, parts: Sequence[int]) -> None:
        if not parts:
            raise ValueError(f"clustering {clustering_id} has no committed part")
        self._files = files
        self.clustering_id = clustering_id
        self._remedy = f"run `tagcos check --repair` to have clustering {clustering_id} regrouped, then the same command"
        group = clustering_group(clustering_id)
        attributes = read_attributes(files, group, FORMAT)
        self.n_clusters, self.dim = read_json(files, f"{group}/centroids/zarr.json")["shape"]
        spec = centroids_spec(self.n_clusters, self.dim)
        check_declaration(files, group, declare([spec], attributes))
        self.centroids = read_array(files, group, spec, remedy=self._remedy)
        self.parts: list[Part] = []
        self._labels: list[np.ndarray] = []
        offset = 0
        for part in parts:
            opened, labels = self._open_part(part, offset)
            self.parts.append(opened)
            self._labels.append(labels)
            offset += len(labels)
        self.n_rows = offset
        newest = self.parts[-1]
        self.means, self.sizes, self.inertia = (self.read_array(newest, name) for name in ("means", "sizes", "inertia"))

    def read_array(self, part: Part, name: str) -> np.ndarray:
        return read_array(self._files, part.group, part.specs[name], remedy=self._remedy)

    def _open_part(self, part: int, offset: int) -> tuple[Part, np.ndarray]:
        group = part_group(self.clustering_id, part)
        attributes = read_attributes(self._files, group, FORMAT)
        features = read_json(self._files, f"{group}/features/zarr.json")
        n_rows = int(read_json(self._files, f"{group}/labels/zarr.json")["shape"][0])
        chunk_rows = int(features["chunk_grid"]["configuration"]["chunk_shape"][0])
        specs = part_specs(n_rows, self.n_clusters, features["shape"][0], self.dim, chunk_rows)
        check_declaration(self._files, group, declare(list(specs.values()), attributes))
        rows, first_slot, labels = (
            read_array(self._files, group, specs[name], remedy=self._remedy) for name in ("rows", "first_slot", "labels")
        )
        return Part(group, specs, first_slot, rows, offset, list(attributes["segments"])), labels

    @property
    def labels(self) -> np.ndarray:
        """(N,) int32: cluster of every row, by position."""
        return np.concatenate(self._labels)

    def locations(self) -> tuple[np.ndarray, np.ndarray]:
        """(segment names (N,), rows (N,) int64) by position: what a row is, whatever the pool became."""
        names, rows = [], []
        for part in self.parts:
            where = self.read_array(part, "locations")
            names.append(np.array(part.segments)[where[:, 0]])
            rows.append(where[:, 1])
        return np.concatenate(names), np.concatenate(rows)

    def cluster_rows(self, cluster: int, keep: np.ndarray | None = None) -> np.ndarray:
        """(n_k,) int64: positions of the cluster's rows, in the order that `cluster` reads them."""
        found = [part.rows[slots] + part.offset for part, _, slots in self._slots(cluster, keep)]
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def cluster(self, cluster: int, keep: np.ndarray | None = None) -> RowBlocks:
        """The cluster's rows; `keep` (N,) bool by position leaves out, for example, retired examples."""
        pieces = []
        for part, chunk, slots in self._slots(cluster, keep):
            mask = np.zeros(part.specs["features"].chunk_rows, bool)
            mask[slots - chunk * part.specs["features"].chunk_rows] = True
            pieces.append((part, chunk, mask))
        return ClusterRows(self._files, pieces, self.dim, self._remedy)

    def _slots(self, cluster: int, keep: np.ndarray | None) -> list[tuple[Part, int, np.ndarray]]:
        """(part, chunk, slots of the cluster in that chunk that are kept) in order."""
        if not 0 <= cluster < self.n_clusters:
            raise ValueError(f"clustering {self.clustering_id} has clusters 0 to {self.n_clusters - 1}, asked for {cluster}")
        found = []
        for part in self.parts:
            size = part.specs["features"].chunk_rows
            for chunk in range(part.first_slot[cluster] // size, part.first_slot[cluster + 1] // size):
                slots = np.arange(chunk * size, (chunk + 1) * size)
                rows = part.rows[slots]
                used = rows >= 0
                if keep is not None:
                    used[used] = keep[rows[used] + part.offset]
                if used.any():
                    found.append((part, chunk, slots[used]))
        return found

    def verify(self, part: int) -> str:
        """Read every chunk of a part; its digest, or DamagedStore."""
        opened = self.parts[part]
        spec = opened.specs["features"]
        sums = [read_chunk(self._files, opened.group, spec, chunk, remedy=self._remedy)[1] for chunk in range(spec.n_chunks)]
        return parts_digest(np.array(sums, np.uint32))


def open_clustering(files: Files, clustering_id: str, parts: Sequence[int] = (0,)) -> ClusteringReader:
    """`parts` are those the catalog names (clusterings.parts): an uncommitted one is never read."""
    return ClusteringReader(files, clustering_id, parts)


def regroup_again(files: Files, reader: ClusteringReader, position: int, part: int, space_id: str, chunk_rows: int) -> PartInfo:
    """Write a part anew from the segments, where only its regrouped features were damaged: same bytes, same digest."""
    opened = reader.parts[position]
    where = reader.read_array(opened, "locations")
    chosen = pl.DataFrame({"segment": np.array(opened.segments)[where[:, 0]], "row": where[:, 1]})
    return regroup(
        files,
        reader.clustering_id,
        open_features(files, space_id, chosen),
        reader.read_array(opened, "labels"),
        centroids=reader.centroids,
        means=reader.read_array(opened, "means"),
        sizes=reader.read_array(opened, "sizes"),
        inertia=reader.read_array(opened, "inertia"),
        part=part,
        chunk_rows=chunk_rows,
    )
