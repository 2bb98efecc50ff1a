"""Target sets: read with the sources, kept apart from the pool, found again by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from flows.context import RunContext
from storage.catalog import pool, targets
from storage.catalog.targets import TargetSet
from storage.examples import example_reader
from tagcos_stream.config import Settings
from tagcos_stream.data.read import read_file
from tagcos_stream.data.rejects import check_rejects
from tagcos_stream.data.same_words import word_keys
from tagcos_stream.data.sources import SourceFile, listing, resolve_sources, set_name, stem
from tagcos_stream.identity import digest
from tagcos_stream.selection.methods import METHODS
from tagcos_stream.types import UserError


def need_target(settings: Settings) -> None:
    """Refuse a method that chooses by the examples of a target set where there is none.

    Parameters
    ----------
    settings
        Of a run, complete with method and target.

    Raises
    ------
    UserError
        Names the remedy.
    """
    if METHODS[settings.method].needs_target and not settings.target:
        raise UserError(
            f"method {settings.method} chooses by the examples of a target set, but none is given: name files of them, or a set "
            "of the root, with --target"
        )


def read_target(run: RunContext) -> TargetSet | None:
    """Read the files of the target, as sources are read, or find the target set that is named.

    Parameters
    ----------
    run
        Context of a run whose settings name files, or a set of the root.

    Returns
    -------
    TargetSet or None
        The set that is now recorded as the run's; None if the selection stands for the pool's mean.
    """
    names = run.settings.target
    found = _named(run, names)
    if found is None and names:
        found = _read(run, resolve_sources(names), _name(names))
    targets.set_of_run(run.catalog, run.run_id, None if found is None else found.target_id)
    return found


def adopt_target(run: RunContext, base: dict[str, Any]) -> TargetSet | None:
    """Find the target of a run that selects again: that of the earlier run, or the set that is named.

    Parameters
    ----------
    run
        The run that selects again; its pool is adopted.
    base
        Row of the run that it selects from.

    Returns
    -------
    TargetSet or None
        The set that is now recorded as the run's.

    Raises
    ------
    UserError
        No set has this name.
    """
    names = run.settings.target
    if list(names) == json.loads(base["config"]).get("target", []):
        found = targets.of_run(run.catalog, str(base["run_id"]))
    elif len(names) > 1:
        raise UserError(f"target {', '.join(names)}: stored features know target sets by one name; read files with `tagcos run`")
    else:
        found = targets.known(run.catalog, names[0]) if names else None
    targets.set_of_run(run.catalog, run.run_id, None if found is None else found.target_id)
    if found is not None:
        leave_out_repeats(run, found)
    return found


def leave_out_repeats(run: RunContext, target: TargetSet) -> int:
    """Leave rows that repeat a target example out of the pool; rows that were compared with this set before are not read again.

    Parameters
    ----------
    run
        Its sources are read.
    target
        Its target set.

    Returns
    -------
    int
        Number of rows left out: equal examples, and those whose turns have the same words in the same order.

    Raises
    ------
    UserError
        All examples of the target set were forgotten.
    """
    wanted = targets.examples(run.catalog, target.target_id)
    if wanted.is_empty():
        raise UserError(f"target {target.name}: all of its examples were forgotten (`tagcos forget`): name others")
    left = targets.unscanned(run.catalog, run.run_id, target.target_id)
    if len(left):
        reader = example_reader(run.root)
        keys = [
            pl.DataFrame({"key": word_keys(frame["messages"]), "like_id": frame["example_id"]})
            for frame in reader.iterate(wanted.select("segment", "row", "example_id").unique("example_id"))
        ]
        known = pl.concat(keys).filter(pl.col("key") > 0).unique("key", keep="first", maintain_order=True)
        same = set(wanted["example_id"])
        found, done = [pl.DataFrame(schema={"example_id": pl.String, "like_id": pl.String})], 0
        with run.reporter.stage("compare with target", "examples") as progress:
            for frame in reader.iterate(left):
                alike = pl.DataFrame({"key": word_keys(frame["messages"]), "example_id": frame["example_id"]}).join(
                    known, on="key"
                )
                alike = alike.filter(~pl.col("example_id").is_in(same)).select("example_id", "like_id")
                equal = frame.filter(pl.col("example_id").is_in(same)).select("example_id", like_id="example_id")
                found += [equal, alike]
                done += len(frame)
                progress(done, len(left))
        targets.record_repeats(run.catalog, target.target_id, left, pl.concat(found))
    counted = targets.repeats(run.catalog, run.run_id)
    if counted:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(counted.items()))
        run.reporter.say(f"left out of the pool for target {target.name}: {reasons}")
    return sum(counted.values())


def _named(run: RunContext, names: tuple[str, ...]) -> TargetSet | None:
    """The set of the root that a single name means, where no file has that path."""
    name = set_name(names)
    return None if name is None else targets.find(run.catalog, name)


def _name(names: tuple[str, ...]) -> str:
    """Name of the set that files make: those of the files, or of the list that names them."""
    found = []
    for name in names:
        path, _, picked = name.partition("#")
        found += [Path(path).stem if path.endswith((".toml", ".yaml", ".yml")) else stem(path), *picked.split(",")]
    made = "+".join(dict.fromkeys(part for part in found if part))
    if made == "none":
        raise UserError("target none: this name means no target; give the file another name")
    return made


def _read(run: RunContext, files: list[SourceFile], name: str) -> TargetSet:
    listed = listing(files, [file.version for file in files])
    known = pool.add_files(run.catalog, run.run_id, listed, of_pool=False)
    with run.reporter.stage("read target", "bytes") as progress:
        for file, row in zip(files, known.iter_rows(named=True), strict=True):
            if not row["complete"]:
                for block in read_file(file, start_row=row["rows_done"]):
                    pool.commit_ingest(run.root, run.run_id, row["file_id"], block, target=True)
                    progress(block.bytes_read, file.size)
    where = f"target {name}"
    rows, rejected = pool.not_accepted(run.catalog, known["file_id"])
    check_rejects(run.settings.max_rejects, rows, rejected, done=True, where=where)
    weights = {row["file_id"]: file.spec.weight for file, row in zip(files, known.iter_rows(named=True), strict=True)}
    target_id = digest(sorted(weights.items()))
    count = targets.add(run.catalog, run.run_id, target_id, name, weights)
    if count == 0:
        raise UserError(f"{where}: no usable example in {', '.join(run.settings.target)} ({rejected} rows rejected)")
    rejects = f", {rejected} rows rejected" if rejected else ""
    parts = targets.examples(run.catalog, target_id)["part"].n_unique()
    run.reporter.say(f"{where}: {count} examples in {parts} parts{rejects}")
    return TargetSet(target_id, name)
