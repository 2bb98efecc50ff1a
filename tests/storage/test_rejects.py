"""Rejects in the catalog: listed up to a number for each reason and file, counted exactly beyond it."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from storage.catalog import changes, pool, runs
from storage.check import check
from storage.root import Root
from tagcos_stream.data.canonical import KEPT
from tagcos_stream.data.read import read_file, resolve_sources


def ingest(root: Root, path: Path, block_rows: int) -> str:
    """The file into the root, in blocks; a run that ends before the last block goes on where it stopped."""
    with root.writer():
        run = runs.open_run(root.catalog, config={}, config_hash="a", versions={}, seeds={})
        (file,) = resolve_sources([str(path)])
        listed = {"source": "s", "url": file.url, "digest": file.digest, "size": file.size, "format": file.format, "spec": ""}
        row = pool.add_files(root.catalog, run.run_id, pl.DataFrame([listed])).to_dicts()[0]
        for block in read_file(file, start_row=row["rows_done"], block_rows=block_rows):
            counts = pool.commit_ingest(root, run.run_id, row["file_id"], block)
            assert counts.rows == len(block.occurrences) + len(block.rejects)
            if block.next_row > 2 * KEPT and not row["rows_done"]:
                break
    return run.run_id


def test_rejects__beyond_a_number_are_counted(root: Root, tmp_path: Path) -> None:
    good = '{"prompt": "a", "completion": "b"}'
    lines = [good, *["{}"] * (KEPT - 10), *["x"] * 20, *["{}"] * KEPT, "", *["{}"] * 17, good]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    ingest(root, path, 300)
    run_id = ingest(root, path, 250)  # the second attempt goes on in the middle of what is only counted
    found = root.catalog.read("SELECT reason, row, rows, snippet, summary FROM rejects ORDER BY row")
    assert found.filter(pl.col("reason") == "unknown_shape").height == KEPT + 1
    (rest,) = found.filter("summary").to_dicts()
    first = 1 + KEPT - 10 + 20 + 10  # the row of the first that is not listed
    assert rest == {"reason": "unknown_shape", "row": first, "rows": KEPT + 7, "snippet": None, "summary": True}
    assert runs.run_status(root.catalog, run_id).rejects == changes.rejected(root.catalog, run_id) == 2 * KEPT + 27
    by_reason = root.catalog.read("FROM rejects_by_reason_of(?) ORDER BY rows", [run_id])
    assert by_reason.select("reason", "rows").rows() == [("broken_json", 20), ("unknown_shape", 2 * KEPT + 7)]
    assert "beyond the first" not in by_reason["for_example"][1]
    assert pool.read_by(root.catalog, run_id) == {"new": 1, "rejected": 2 * KEPT + 27}
    assert check(root) == []
