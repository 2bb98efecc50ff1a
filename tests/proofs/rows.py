"""Ingest hostile files and count their rows: `python -m tests.proofs.rows FOLDER --rows 100000`.

Each trial makes one file and ingests it into FOLDER/root as a run does. Half of the files are JSONL of rows of many shapes, every
other row with random bytes changed, cut, copied or put in: each line that is not blank must be an example or a reject, never
both, and the one that reading row by row says. The others are of the kinds that ingest reads, changed in the same way as whole
files, before or after they were packed: their rows must be numbered without gaps, or the file refused by a message. The catalog
must list what was read, and no file may take longer than MOST_SECONDS.

Trials are appended to FOLDER/rows.jsonl, so that the same command goes on where it was. A failed one ends the proof and leaves
its file, FOLDER/a.KIND.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl

from storage.catalog import pool, runs
from storage.root import open_root
from tagcos_stream.data.sources import resolve_sources
from tagcos_stream.types import UserError
from tests.data.mutations import SHAPED, check_file, check_lines, mutated, mutated_lines
from tests.data.tools import FILE_KINDS, Read, chat, make_file, write_bytes

LINES = 100  # of a file
MOST_SECONDS = 10.0  # of a file, on a machine that does other work


class Proof:
    """Trials in a folder, and a root that took their rows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record = self.folder / "rows.jsonl"
        shutil.rmtree(self.folder / "root", ignore_errors=True)  # of trials that are recorded, and of one that was not
        self.root = open_root(str(self.folder / "root"))
        self.run_id = runs.open_run(self.root.catalog, config={}, config_hash="rows", versions={}, seeds={}).run_id

    def trials(self) -> list[dict[str, Any]]:
        """Those that are recorded."""
        if not self.record.exists():
            return []
        return [json.loads(line) for line in self.record.read_text(encoding="utf-8").splitlines()]

    def trial(self, number: int) -> dict[str, Any]:
        """Make a file, read it and commit it; what must not happen is an AssertionError."""
        rng = random.Random(number)
        kind, block_rows = ("jsonl" if number % 2 else rng.choice(FILE_KINDS)), rng.choice((25, 8192))
        for left in self.folder.glob("a.*"):
            left.unlink()
        path = self.folder / f"a.{kind}"
        begin = time.perf_counter()
        done: dict[str, Any] = {"number": number, "kind": kind, "refused": False, "examples": 0, "rejects": {}}
        try:
            if number % 2:
                lines = [
                    rng.choice((line, json.dumps(rng.choice(SHAPED)).encode())) for line in mutated_lines(LINES, seed=number)
                ]
                found = check_lines(path, lines, block_rows)
            else:
                packed = rng.random() < 0.5  # change the packed bytes, or what they unpack to
                plain = path if packed else path.with_name(path.name.removesuffix(".gz").removesuffix(".zst"))
                changed = mutated(make_file(plain, [chat(LINES * number + i) for i in range(LINES)]).read_bytes(), rng) or b" "
                (Path.write_bytes if packed else write_bytes)(path, changed)
                found = check_file(path, block_rows)
        except UserError:
            done["refused"] = True
        else:
            self.commit(path, found)
            done |= {"examples": len(found.occurrences), "rejects": dict(Counter(found.rejects["reason"]))}
        done["seconds"] = round(time.perf_counter() - begin, 3)
        assert done["seconds"] < MOST_SECONDS, f"{path}: {done['seconds']} s"
        return done

    def commit(self, path: Path, found: Read) -> None:
        """Commit what was read, and look whether the catalog and the stored examples have it."""
        (file,) = resolve_sources([str(path)])
        listed = {"source": str(path), "url": file.url, "digest": file.digest, "size": file.size, "format": file.format}
        file_id = pool.add_files(self.root.catalog, self.run_id, pl.DataFrame([listed]))["file_id"][0]
        for block in found.blocks:
            pool.commit_ingest(self.root, self.run_id, file_id, block)
        rows = "SELECT row, example_id FROM occurrences WHERE file_id = ? ORDER BY row"
        stored = self.root.catalog.read(rows, [file_id])
        assert stored.equals(found.occurrences.select("row", "example_id").sort("row")), path
        rejected = self.root.catalog.read("SELECT row, reason FROM rejects WHERE file_id = ? ORDER BY row", [file_id])
        assert rejected.equals(found.rejects.select("row", "reason").sort("row")), path

    def go_on(self, rows: int) -> None:
        """Make trials until so many rows were read."""
        trials = self.trials()
        done, number = sum(map(rows_of, trials)), len(trials)
        while done < rows:
            trial = self.trial(number)
            with self.record.open("a", encoding="utf-8") as record:
                record.write(json.dumps(trial) + "\n")
            done, number = done + rows_of(trial), number + 1
            if number % 100 == 0 or done >= rows:
                print(f"{done:,} of {rows:,} rows in {number:,} files", flush=True)

    def table(self) -> str:
        """Files and rows by kind, and rejects by reason, as Markdown."""
        trials = self.trials()
        lines = ["| kind | files | refused as a whole | examples | rejects | longest, s |", "|---|--:|--:|--:|--:|--:|"]
        for kind in (*FILE_KINDS, ""):
            these = [trial for trial in trials if kind in (trial["kind"], "")]
            if these:
                rejects = sum(map(rows_of, these)) - sum(trial["examples"] for trial in these)
                refused, examples = (sum(trial[name] for trial in these) for name in ("refused", "examples"))
                longest = max(trial["seconds"] for trial in these)
                lines.append(f"| {kind or 'all'} | {len(these):,} | {refused:,} | {examples:,} | {rejects:,} | {longest:.1f} |")
        reasons: Counter[str] = Counter()
        for trial in trials:
            reasons.update(trial["rejects"])
        named = ", ".join(f"`{reason}` {n:,}" for reason, n in reasons.most_common())
        return "\n".join([*lines, f"\nRejects: {named}."])


def rows_of(trial: dict[str, Any]) -> int:
    """Rows of a recorded trial."""
    return int(trial["examples"]) + sum(trial["rejects"].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000, help="in all, with those that FOLDER has recorded")
    chosen = parser.parse_args()
    proof = Proof(chosen.folder)
    proof.go_on(chosen.rows)
    print(proof.table())


if __name__ == "__main__":
    main()
