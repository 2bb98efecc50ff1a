"""The user's checks of a run (setting `checks`): SQL files whose rows are failures, run after ingest and after the selection."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from flows.context import RunContext
from storage.catalog import changes, check_results
from tagcos_stream.types import UserError

Stage = Literal["ingest", "select"]
Severity = Literal["stop", "warn"]


@dataclass(frozen=True)
class Check:
    """One file of the folder.

    Parameters
    ----------
    path
        The file; its stem is the name of the check.
    query
        One SELECT statement.
    severity
        `stop` fails the run if the query returns a row, `warn` reports it.
    stages
        After which stages it is run.
    """

    path: Path
    query: str
    severity: Severity
    stages: tuple[Stage, ...]


def load_checks(folder: str | None) -> tuple[Check, ...]:
    """Read the checks of a folder.

    Parameters
    ----------
    folder
        The setting `checks`; None for no checks.

    Returns
    -------
    tuple of Check
        In order of file names.

    Raises
    ------
    UserError
        There is no such folder, it holds no .sql file, or the comment at the head of a file has an unknown value.
    """
    if folder is None:
        return ()
    paths = sorted(Path(folder).expanduser().glob("*.sql"))
    if not paths:
        raise UserError(f"checks: {folder} is not a folder with .sql files; write one, or leave the setting out")
    return tuple(_load(path) for path in paths)


def run_checks(run: RunContext, checks: Sequence[Check], stage: Stage) -> None:
    """Run the checks of a stage, report and record what they return.

    Raises
    ------
    UserError
        A check with severity `stop` returned a row, or a check cannot be run.
    """
    mine = [check for check in checks if stage in check.stages]
    values = {"run": run.run_id, "since": changes.compared_with(run.catalog, run.run_id)}
    stopped = []
    for check in mine:
        try:
            found = check_results.failing_rows(run.catalog, check.query, values)
        except UserError as error:
            raise UserError(f"check {check.path}: {error}; correct the file") from error
        first = found.to_dicts()[0] if len(found) else {}
        check_results.record(run.catalog, run.run_id, stage, check.path.stem, check.severity, len(found), first)
        if len(found):
            text = f"check {check.path.stem} ({check.severity}) after {stage}: {described(len(found), first)}"
            run.reporter.say(text)
            stopped += [(check, text)] if check.severity == "stop" else []
    if mine:
        run.reporter.say(f"checks after {stage}: {len(mine)} run")
    if stopped:
        texts = "; ".join(text for _, text in stopped)
        raise UserError(
            f"{texts}. Nothing was published: correct the sources or settings, or {stopped[0][0].path} "
            "(`-- severity: warn` only reports)"
        )


def described(rows: int, first: Mapping[str, Any]) -> str:
    """Say how many rows a check returned, and show the first."""
    if not rows:
        return "passed"
    count = f"more than {check_results.MOST_ROWS:,}" if rows > check_results.MOST_ROWS else f"{rows:,}"
    cells = ", ".join(f"{name} {_short(value)}" for name, value in first.items())
    return f"{count} row{'s' * (rows != 1)}, the first: {cells}"


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= 60 else text[:59] + "…"


def _load(path: Path) -> Check:
    try:
        query = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"check {path} cannot be read: {error}; correct the file") from error
    stages = _header(path, query, "after", get_args(Stage))
    severity = _header(path, query, "severity", get_args(Severity))
    return Check(path, query, severity[0] if len(severity) == 1 else "stop", stages)


def _header(path: Path, query: str, name: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values of `-- name: value` in the comments at the head of a file, several with commas; all where there is none."""
    for line in query.splitlines():
        if line.strip() and not line.lstrip().startswith("--"):
            break
        if match := re.fullmatch(rf"\s*--\s*{name}\s*:(.*)", line, re.IGNORECASE):
            given = tuple(match[1].lower().replace(",", " ").split())
            if not given or not set(given) <= set(values):
                raise UserError(f"check {path}: {name} {match[1].strip()!r} is unknown; use {' or '.join(values)}")
            return given
    return values
