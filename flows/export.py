"""`tagcos export`: a run's selection for a trainer, tokenised with the run's own model where the format asks for tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storage.catalog import runs
from storage.exports import write as exports
from storage.exports.shapes import Unfit
from storage.root import Root
from tagcos_stream.config import Settings
from tagcos_stream.data.pairs import read_pair
from tagcos_stream.data.reasons import RowError
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.types import UserError


def export(
    root: Root,
    run_id: str | None,
    path: Path,
    *,
    format: str | None = None,
    leave_out: bool = False,
    tokenizer: str | None = None,
    trust_remote_code: bool = False,
) -> exports.Exported:
    """Write a run's selection for a trainer, as `storage.exports.write.export` does.

    Parameters
    ----------
    root
        The root that holds the run.
    run_id
        A complete run; None or "latest" for the newest one.
    path
        File or folder to write; replaced only if an earlier export made it.
    format
        Name of an export format; by default JSON lines or Parquet by the suffix.
    leave_out
        Leave out what the format cannot hold, instead of refusing.
    tokenizer
        Model whose tokens the format `trl` writes; by default the run's model.
    trust_remote_code
        Allow Python code that is distributed with that model to run. The run's record does not decide it: others may have
        made the root.

    Returns
    -------
    Exported
        Counts and place.

    Raises
    ------
    UserError
        As for `storage.exports.write.export`, or the tokenizer's model cannot be found.
    """
    name = exports.check_target(path, format)
    run = runs.complete_run(root.catalog, run_id)
    encode = _encoder(run, tokenizer, trust_remote_code) if name == "trl" else None
    if tokenizer and not encode:
        raise UserError(f"--tokenizer is for format trl; {name} holds text")
    remark = _read_as_turns if name == "alpaca" else None
    return exports.export(root, run["run_id"], path, format=name, leave_out=leave_out, encode=encode, remark=remark)


def _read_as_turns(example: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What to say of an Alpaca row that our own reader takes for other turns: a prompt may be written out as turns."""
    try:
        found = [(m["role"], m["content"]) for m in read_pair(dict(rows[0]), "instruction", "output", RowOptions())]
    except RowError:
        found = []
    if found == [(m["role"], m["content"]) for m in example["messages"]]:
        return None
    return "texts look like turns, for which `tagcos run` would take them: read again they are other examples"


def _encoder(run: Mapping[str, Any], tokenizer: str | None, trust_remote_code: bool) -> exports.Encode:
    from flows.models import Rejected, encode_row
    from tagcos_stream.gradients.model import load_max_positions, load_tokenizer

    config = json.loads(run["config"])
    # a run's record may be older than a setting
    settings = Settings(**{name: value for name, value in config.items() if name in Settings.model_fields})
    own = tokenizer is None or tokenizer == settings.model
    named = settings.model if tokenizer is None else tokenizer
    if not named:
        raise UserError(f"run {run['run_id']} is of vectors and has no model: name one whose tokens to write with --tokenizer")
    source: dict[str, Any] = {
        "revision": settings.revision if own else None,
        "trust_remote_code": trust_remote_code,
    }
    loaded = load_tokenizer(named, **source)
    longest = settings.max_length
    try:
        longest = min(longest, load_max_positions(named, **source))
    except UserError:
        if own:
            raise  # the features were computed within its limit
        # otherwise a folder that holds a tokenizer and no model, which has no limit

    def encoded(example: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        found = encode_row(loaded, example, longest, settings.too_long == "reject", settings.special_tokens)
        if isinstance(found, Rejected):
            raise Unfit(found.detail or found.reason)
        ids = found.input_ids.tolist()
        return ids, [token if target else -100 for token, target in zip(ids, found.target.tolist(), strict=True)]

    return encoded
