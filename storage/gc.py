"""Garbage: files under the root that no catalog transaction names. Never read, listed by `tagcos gc`, swept by the next run."""

from __future__ import annotations

import re
from dataclasses import dataclass

from storage.arrays.grouped import clustering_group, part_group
from storage.arrays.segments import ids_spec, segment_group
from storage.files.base import TEMPORARY
from storage.root import Root

# Only these are ours to sweep: exports and reports belong to the user.
FOLDERS = ("examples", "spaces", "clusterings", "work", "snapshots")
# Here, only what a write left that was cut off.
LITTERED = ("reports", ".tmp-catalog", ".tmp-snapshot", ".tmp-compact")
CUT_OFF = "temporary file of a write that did not finish"


@dataclass(frozen=True)
class Orphan:
    """A file of the root that nothing in the catalog refers to."""

    key: str
    bytes: int
    reason: str


def work_key(run_id: str, name: str) -> str:
    """Where an unfinished run keeps what it needs to go on, such as the state of k-means; swept once the run is complete."""
    return f"work/{run_id}/{name}"


def orphans(root: Root) -> list[Orphan]:
    """What nothing refers to, with the reason. Hold root.writer() to believe it: a run at work has files not yet named."""
    known = _Known(root)
    found = []
    for folder in FOLDERS:
        for key, size in root.files.list(folder):
            reason = known.reason(key)
            if reason is not None:
                found.append(Orphan(key, size, reason))
    for folder in _littered(root):
        found += [Orphan(key, size, CUT_OFF) for key, size in root.files.list(folder) if TEMPORARY in key]
    return sorted(found, key=lambda orphan: orphan.key)


def sweep(root: Root, found: list[Orphan]) -> int:
    """Remove them; returns the bytes freed. Call it as the root's writer, with a list made as the root's writer."""
    for orphan in found:
        root.files.delete(orphan.key)
    for folder in _littered(root):
        root.files.delete(f"{folder}/{TEMPORARY}")  # a folder that was left empty goes with the last of its files
    return sum(orphan.bytes for orphan in found)


def _littered(root: Root) -> tuple[str, ...]:
    return LITTERED if root.path is not None else ()  # a put to an object store is whole or absent


class _Known:
    """Everything the catalog names, read once."""

    def __init__(self, root: Root) -> None:
        with root.catalog.reading() as connection:

            def rows(query: str) -> list[tuple[object, ...]]:
                return connection.execute(query).fetchall()

            self.files = {row[0] for row in rows("SELECT path FROM parts UNION ALL SELECT path FROM checkpoints")}
            self.spaces = {row[0] for row in rows("SELECT space_id FROM feature_spaces")}
            self.files |= {f"spaces/{space}/space.json" for space in self.spaces}
            self.segments = {
                segment_group(str(space), str(segment)): int(str(n))
                for space, segment, n in rows("SELECT space_id, segment, rows FROM feature_segments")
            }
            self.blocks = {
                f"{segment_group(str(space), str(segment))}/features/c.{block}.0"
                for space, segment, block in rows("SELECT space_id, segment, block FROM blocks")
            }
            # centroids may wait for their first part; without a recipe they were of an older format, and nothing reads them
            query = "SELECT clustering_id FROM clusterings WHERE recipe IS NOT NULL UNION SELECT clustering_id FROM cluster_parts"
            self.clusterings = {clustering_group(str(row[0])) for row in rows(query)}
            self.parts = {
                part_group(str(clustering), int(str(part)))
                for clustering, part in rows("SELECT clustering_id, part FROM cluster_parts")
            }
            self.runs = {str(run): str(status) for run, status in rows("SELECT run_id, status FROM runs")}

    def reason(self, key: str) -> str | None:
        """Why the file is an orphan, or None."""
        if TEMPORARY in key:
            return CUT_OFF
        if key in self.files:
            return None
        folder, *inside = key.split("/")
        if folder == "examples":
            return "part that no transaction names"
        if folder == "spaces":
            return self._in_space(key, inside)
        if folder == "clusterings":
            group = key[: key.find(".zarr") + len(".zarr")]
            if group not in self.clusterings:
                return "clustering that no transaction names"
            part = re.match(r"part-\d{5}", key[len(group) + 1 :])
            return "part of a clustering that no transaction names" if part and f"{group}/{part[0]}" not in self.parts else None
        status = self.runs.get(inside[0]) if len(inside) > 1 else "complete"
        if folder == "work":
            return "state of a run that is complete or unknown" if status in (None, "complete") else None
        return "snapshot of an unknown run" if status is None else None

    def _in_space(self, key: str, inside: list[str]) -> str | None:
        if inside[0] not in self.spaces:
            return "space that no transaction names"
        group = key[: key.find(".zarr") + len(".zarr")]
        if group not in self.segments:
            return "file of a space that no transaction names"
        if "/features/c." in key:
            return None if key in self.blocks else "block that no transaction names"
        if "/example_ids/c." in key:
            chunks = ids_spec(self.segments[group]).n_chunks
            return None if int(key.rsplit("c.", 1)[1].split(".")[0]) < chunks else "chunk outside its array"
        return None if key.endswith("zarr.json") else "file that is not part of a segment"
