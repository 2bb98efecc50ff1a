"""Regrouping: the rows of a clustering rewritten so that each cluster is one contiguous range that begins at a chunk.

    clusterings/<clustering>.zarr/centroids
    clusterings/<clustering>.zarr/part-00000/features, rows, first_slot, labels, distances, locations, touched, sums, squares
    clusterings/<clustering>.zarr/part-00001/...                one more for each refresh; what is written stays as it is

One pass reads the rows in order; each cluster fills a buffer of one chunk, which is written when it is full. Memory is K buffers,
so the chunk gets smaller where K * D is large. Letters: N rows, K clusters, D dimension.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from storage.arrays.chunked import ArraySpec, create_group, write_array, write_chunk
from storage.arrays.segments import FeatureRows
from storage.files.base import Files
from tagcos_stream.memory import require_memory

FORMAT = 2
LARGEST_CHUNK = 256
_LONG_CHUNK = 1 << 16  # rows of the chunks of one-number-a-row arrays: the last chunk is filled up, so not larger
_SUMS_CHUNK = 64  # rows of those of sums: 4 MiB at D = 8,192


@dataclass(frozen=True)
class PartInfo:
    """What the catalog keeps of one part. The digest covers the checksums of all feature chunks, in order."""

    part: int
    rows: int
    slots: int
    chunk_rows: int
    digest: str


def clustering_group(clustering_id: str) -> str:
    """Return the key of a clustering's Zarr group."""
    return f"clusterings/{clustering_id}.zarr"


def part_group(clustering_id: str, part: int) -> str:
    """Return the key of one part of a clustering."""
    return f"{clustering_group(clustering_id)}/part-{part:05d}"


def regroup_bytes(n_clusters: int, dim: int, chunk_rows: int) -> int:
    """Peak memory of `regroup` beyond its 32 bytes a row: a buffer a cluster, four chunks on their way, two blocks read."""
    return (n_clusters + 4) * chunk_rows * dim * 2 + 2 * LARGEST_CHUNK * dim * 2


def choose_chunk_rows(n_rows: int, n_clusters: int, dim: int, memory_limit: int) -> int:
    """The largest power of two, at most 256, that fits the memory and leaves at most about a tenth of the slots empty."""
    rows = LARGEST_CHUNK
    while rows > 1 and regroup_bytes(n_clusters, dim, rows) > memory_limit:
        rows //= 2
    require_memory(
        f"regrouping {n_clusters} clusters of dimension {dim}",
        regroup_bytes(n_clusters, dim, rows),
        memory_limit,
        "raise memory_limit or lower the number of clusters",
    )
    while rows > 8 and rows * n_clusters > n_rows // 5:
        rows //= 2
    return rows


def centroids_spec(n_clusters: int, dim: int) -> ArraySpec:
    """Describe the array of k-means centroids."""
    return ArraySpec(
        "centroids", (n_clusters, dim), 256, "float32", 0.0, ("cluster", "feature"), "k-means centroids; they never move"
    )


def part_specs(n_rows: int, n_clusters: int, touched: int, slots: int, dim: int, chunk_rows: int) -> dict[str, ArraySpec]:
    """Describe the arrays of a part, by name.

    Sums and squares are of the part's own rows; those of a clustering, or of any choice of its rows, follow from them exactly by
    addition and subtraction.
    """

    def long(rows: int) -> int:
        return max(min(rows, _LONG_CHUNK), 1)

    specs = [
        ArraySpec(
            "features",
            (slots, dim),
            chunk_rows,
            "float16",
            float("nan"),
            ("slot", "feature"),
            "rows by cluster; empty slots are NaN",
        ),
        ArraySpec(
            "rows",
            (slots,),
            long(slots),
            "int64",
            -1,
            ("slot",),
            "position of the slot's row in the order clustered; -1 is empty",
        ),
        ArraySpec(
            "first_slot",
            (n_clusters + 1,),
            long(n_clusters + 1),
            "int64",
            0,
            ("cluster",),
            "where each cluster begins, a multiple of the chunk",
        ),
        ArraySpec("labels", (n_rows,), long(n_rows), "int32", -1, ("row",), "cluster of each row, in the order clustered"),
        ArraySpec(
            "locations",
            (n_rows, 2),
            long(n_rows),
            "int64",
            0,
            ("row", "what"),
            "segment (index into the attribute segments) and row in it",
        ),
        ArraySpec(
            "distances", (n_rows,), long(n_rows), "float32", 0.0, ("row",), "Euclidean distance of each row to its centroid"
        ),
        ArraySpec(
            "touched", (touched,), long(touched), "int32", 0, ("entry",), "clusters that have rows in this part, ascending"
        ),
        ArraySpec(
            "sums",
            (touched, dim),
            max(min(touched, _SUMS_CHUNK), 1),
            "float64",
            0.0,
            ("entry", "feature"),
            "exact sum of the rows of each of them",
        ),
        ArraySpec(
            "squares", (touched,), long(touched), "int64", 0, ("entry",), "sum of their squared lengths, in units of 2**-32"
        ),
    ]
    return {spec.name: spec for spec in specs}


def regroup(
    files: Files,
    clustering_id: str,
    rows: FeatureRows,
    labels: np.ndarray,
    *,
    distances: np.ndarray,
    sums: np.ndarray,
    squares: np.ndarray,
    part: int = 0,
    memory_limit: int = 1 << 30,
    chunk_rows: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PartInfo:
    """Write one part: `rows` in their order, labels (N,) int in [0, K). Files only; add_clustering or add_rows commits them.

    distances (N,) float32 to the centroid; sums (K, D) float64 and squares (K,) int64, exact, of these rows (`ClusterSums`).
    chunk_rows is chosen to fit memory_limit where not given. Rows of a cluster keep their order. Interrupted,
    it is simply run again: nothing names the part before it is committed.
    """
    labels, n_clusters = np.asarray(labels), len(sums)
    if labels.shape != (rows.n_rows,) or (labels.size and not (labels.min() >= 0 and labels.max() < n_clusters)):
        raise ValueError(f"labels must be ({rows.n_rows},) in [0, {n_clusters}), got shape {labels.shape}")
    if rows.n_rows == 0:
        raise ValueError("there are no rows to regroup")
    if chunk_rows is None:
        chunk_rows = choose_chunk_rows(rows.n_rows, n_clusters, rows.dim, memory_limit)
    counts = np.bincount(labels, minlength=n_clusters)
    first_slot = np.concatenate([[0], np.cumsum(-(-counts // chunk_rows))]) * chunk_rows
    slot_rows = np.full(int(first_slot[-1]), -1, np.int64)
    slots = np.repeat(first_slot[:-1] - (np.cumsum(counts) - counts), counts) + np.arange(rows.n_rows)
    slot_rows[slots] = np.argsort(labels, kind="stable")
    touched = np.flatnonzero(counts)
    specs = part_specs(rows.n_rows, n_clusters, len(touched), int(first_slot[-1]), rows.dim, chunk_rows)
    group = part_group(clustering_id, part)
    small_arrays = {
        "rows": slot_rows,
        "first_slot": first_slot,
        "labels": labels,
        "distances": distances,
        "locations": rows.locations,
        "touched": touched,
        "sums": sums[touched],
        "squares": squares[touched],
    }
    for name, array in small_arrays.items():
        write_array(files, group, specs[name], np.asarray(array, specs[name].dtype), durable=False)
    checksums = _scatter(files, group, specs["features"], rows, labels, first_slot[:-1] // chunk_rows, progress)
    attributes = {"format": FORMAT, "kind": "tagcos regrouped part", "segments": rows.segments}
    create_group(files, group, list(specs.values()), attributes, durable=False)
    files.sync(group)
    return PartInfo(part, rows.n_rows, int(first_slot[-1]), chunk_rows, parts_digest(checksums))


def write_centroids(files: Files, clustering_id: str, centroids: np.ndarray) -> None:
    """Begin a clustering: (K, D) float32. They never move, so writing others under the same name is the caller's mistake."""
    group, centroids = clustering_group(clustering_id), np.asarray(centroids, np.float32)
    spec = centroids_spec(*centroids.shape)
    write_array(files, group, spec, centroids)
    create_group(files, group, [spec], {"format": FORMAT, "kind": "tagcos clustering", "clustering_id": clustering_id})


def parts_digest(checksums: np.ndarray) -> str:
    """Return a digest of a part's checksums, 32 hex digits."""
    return hashlib.blake2b(np.asarray(checksums, "<u4").tobytes(), digest_size=16).hexdigest()


def _scatter(
    files: Files,
    group: str,
    spec: ArraySpec,
    rows: FeatureRows,
    labels: np.ndarray,
    next_chunk: np.ndarray,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    """Fill and write the chunks; returns the checksum of each."""
    checksums = np.zeros(spec.n_chunks, np.uint32)
    buffers: dict[int, np.ndarray] = {}
    spare: list[np.ndarray] = []  # written: fresh memory would have to be cleared page by page
    filled = np.zeros(len(next_chunk), np.int64)
    next_chunk = next_chunk.copy()
    writing: list[tuple[int, np.ndarray, Future[int]]] = []

    with ThreadPoolExecutor(2, thread_name_prefix="tagcos-regroup") as pool:

        def collect(most: int) -> None:
            while len(writing) > most:
                chunk, buffer, future = writing.pop(0)
                checksums[chunk] = future.result()
                spare.append(buffer)

        def flush(cluster: int) -> None:
            buffer = buffers.pop(cluster)
            buffer[filled[cluster] :] = np.nan
            chunk = int(next_chunk[cluster])
            collect(3)
            writing.append((chunk, buffer, pool.submit(write_chunk, files, group, spec, chunk, buffer, durable=False)))
            next_chunk[cluster] += 1
            filled[cluster] = 0

        for block in range(len(rows.starts) - 1):
            features = rows.read(block)
            mine = labels[rows.starts[block] : rows.starts[block + 1]]
            order = np.argsort(mine, kind="stable")
            for run in np.split(order, np.flatnonzero(np.diff(mine[order])) + 1):
                cluster = int(mine[run[0]])
                while len(run):
                    if cluster not in buffers:
                        buffers[cluster] = spare.pop() if spare else np.empty((spec.chunk_rows, *spec.shape[1:]), spec.dtype)
                    take, run = np.split(run, [spec.chunk_rows - filled[cluster]])
                    np.take(
                        features, take, axis=0, out=buffers[cluster][filled[cluster] : filled[cluster] + len(take)], mode="clip"
                    )
                    filled[cluster] += len(take)
                    if filled[cluster] == spec.chunk_rows:
                        flush(cluster)
            if progress is not None:
                progress(int(rows.starts[block + 1]), rows.n_rows)
        for cluster in sorted(buffers):
            flush(cluster)
        collect(0)
    return checksums
