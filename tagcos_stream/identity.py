"""Every identity: what makes two things the same, so that what is there already is found and not computed again.

| thing | the same when these agree | function |
|---|---|---|
| example | canonical content of its messages, tools and template arguments | `tagcos_stream.data.canonical` |
| source file | URL, content, reader, container, the source's settings that change rows | `source_version`, `file_id` |
| run | every setting but those of the machine, with absolute sources; the run it selects from again | `config_hash` |
| recipe of a space | settings that decide `feature`, `warmup` (if there is one) and `weights` | `space_recipe` |
| space | those settings, with model, template, checkpoints, the user's vectors by their content: its fingerprint | `space_id` |
| checkpoint | adapter weights, Adam moments and their step count | `checkpoint_content` |
| recipe of a clustering | space, settings that decide `clusters` | `clustering_recipe` |
| clustering | its recipe, the ids of the pool it was fitted to, in order | `clustering_id` |
| choice | clustering or space, group, its rows, those that count, budget, method, seed, what it reads | `choice_id` |
| evaluation | run, model content, settings that decide `training`, what these resolve to, rows measured on | `evaluation_id` |

What a setting decides is declared at the setting (tagcos_stream/config.py), so that a new one enters the identities it must. The
forms of the hashed values are kept as they were when stores were first written: another form would lose what these hold. (That of
choices has changed once: it costs the first run after an upgrade the choices within clusters, no feature.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tagcos_stream.config import MACHINE_FIELDS, SPACE_FIELDS, VECTORS, WARMUP_FIELDS, Settings
from tagcos_stream.declare import decided_by
from tagcos_stream.paths import expanded
from tagcos_stream.selection.methods import METHODS

if TYPE_CHECKING:
    import polars as pl

    from tagcos_stream.types import Checkpoint

CHOICE = 2  # raise it when the same inputs choose otherwise than before
READER_VERSION = 5  # raise it when the same file gives other rows than before
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "optimizer.pt", "optimizer.bin")

# settings that came later, at the value that features had before: spaces of before are found by the names they have
ADDED = {"special_tokens": "keep"}
OF_VECTORS = ("projection", "dim", "feature_seed")  # what features of the user's own vectors depend on besides these


def digest(value: Any, length: int = 16) -> str:
    """Short stable name of plain data: `length` hex digits of blake2b over its sorted JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=length // 2).hexdigest()


def content_digest(data: bytes) -> str:
    """blake2b-128, 32 hex digits: of files and of fingerprints."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# source files


def source_version(
    url: str, content: str, container: str, *, key: str | None, limit: int | None, dataset: str, options: Mapping[str, Any]
) -> str:
    """32 hex digits that name what reading a file gives: the content, the reader, and the settings that change rows."""
    named = [url, content, container, READER_VERSION, key, limit, dataset, options]
    return content_digest(json.dumps(named, sort_keys=True).encode())


def file_id(url: str, content: str, rules: str) -> str:
    """16 hex digits: a file version in the catalog. `rules`: `source_version`, and what rows are decontaminated by."""
    return content_digest("\0".join([url, content, rules]).encode())[:16]


# runs


def run_identity(settings: Settings) -> dict[str, Any]:
    """The settings that tell one run from another."""
    return {name: value for name, value in settings.model_dump(mode="json").items() if name not in MACHINE_FIELDS}


def config_hash(settings: Settings, reselects: str | None = None) -> str:
    """Hash of what distinguishes one run from another; `reselects`: the run whose pool it selects from again."""
    identity = {**run_identity(settings), "sources": absolute_sources(settings.sources)}
    if reselects is not None:  # its pool is that run's, whatever the sources hold by now
        identity["reselects"] = reselects
    return digest(identity)


def absolute_sources(sources: Sequence[str]) -> list[str]:
    """Local paths made absolute: the same words in another folder name another pool."""
    return [source if "://" in source else str(expanded(source).absolute()) for source in sources]


def reading(settings: Settings) -> dict[str, Any]:
    """Identify what a run reads and how, whatever the files hold: runs that agree on it are compared by source."""
    named = {"sources": absolute_sources(settings.sources), "decontaminate": absolute_sources(settings.decontaminate)}
    return {**named, "reader": READER_VERSION}


# feature spaces


def space_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that fix what a feature means, except for those identified by content.

    Those are the model, and an adapter of the user's own, which brings its rank, targets and training with it. Hidden states of
    the model without adapter depend on no warm-up, vectors of the user's own without a model's features on no model.
    """
    values = settings.model_dump(mode="json")
    if not settings.model_variants:
        return {name: values[name] for name in OF_VECTORS}
    trained = not settings.adapter and not settings.reads_base_model
    found = {name: values[name] for name in SPACE_FIELDS if trained or name not in WARMUP_FIELDS}
    return {name: value for name, value in found.items() if name not in ADDED or value != ADDED[name]}


def space_recipe(settings: Settings, variant: str) -> str:
    """Name of all that is decided before a warm-up: runs that agree on it share one feature space, whatever their pool."""
    decided = space_settings(settings) | {"gradient": variant}
    if not settings.model_variants and variant == VECTORS:
        return digest(decided)
    for name in decided_by(Settings, "weights"):
        if name != "adapter":
            decided[name] = getattr(settings, name)
    if settings.adapter:
        decided["adapter"] = adapter_content(settings.adapter)
    return digest(decided)


def adapter_content(folder: str) -> str:
    """Hash of what an imported adapter consists of: trained further in the same place, it is another one."""
    files = [path for name in ADAPTER_FILES if (path := Path(folder, name)).is_file()]
    return _files_content(tuple((path, (stat := path.stat()).st_ino, stat.st_size, stat.st_mtime_ns) for path in files))


@lru_cache(maxsize=1)
def _files_content(states: tuple[tuple[Path, int, int, int], ...]) -> str:
    """Hash of files in these states, which are read once as long as they do not change."""
    hashed = hashlib.blake2b(digest_size=16)
    for path, *_ in states:
        with path.open("rb") as file:
            hashed.update(path.name.encode() + hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
    return hashed.hexdigest()


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces. NaN and infinity are refused: they are not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def space_id(fingerprint: Mapping[str, Any]) -> str:
    """16 hex digits: the name of the space with this fingerprint."""
    return content_digest(canonical_json(fingerprint).encode())[:16]


def checkpoint_content(checkpoint: Checkpoint) -> str:
    """32 hex digits: the adapter, its moments and their step count, as they enter a space's fingerprint."""
    content = hashlib.blake2b(f"{checkpoint.adam_steps}".encode(), digest_size=16)
    for name, array in sorted(checkpoint.arrays().items()):
        content.update(f"{name}{array.shape}".encode())
        content.update(np.ascontiguousarray(array, np.float32).data)
    return content.hexdigest()


# clusterings


def clustering_recipe(settings: Settings, space: str) -> str:
    """Name of what is decided about a clustering, without the pool: a grown pool finds by it the one that is there."""
    values = settings.model_dump(mode="json")
    decided = {name: values[name] for name in decided_by(Settings, "clusters")}
    decided["rows"] = [decided.pop("min_cluster_rows"), decided.pop("max_cluster_rows")]
    return digest({"space": space, **decided})


def clustering_id(settings: Settings, space: str, example_ids: Sequence[str]) -> str:
    """Name of the clustering fitted to just this pool: its example ids, in order of segment and row."""
    return digest({"recipe": clustering_recipe(settings, space), "pool": digest("".join(example_ids))})


# choices


def choice_id(
    settings: Settings,
    place: str,
    group: int,
    rows: pl.DataFrame,
    budget: int,
    *,
    earlier: Sequence[str] | None = None,
    reference: Sequence[str] | None = None,
    target: Sequence[Any] | None = None,
    counted: pl.DataFrame | None = None,
    first_rows: int | None = None,
    pinned: Sequence[str] | None = None,
) -> str:
    """32 hex digits: equal inputs, equal choice within a group.

    Parameters
    ----------
    place
        The clustering or the space: means and scores of the rows follow from it.
    rows
        The group's members: segment, row, in their order.
    budget
        Number of rows to choose, or of tokens to spend.
    earlier
        Ids that an earlier run chose, where these are to be kept (`sticky`).
    reference
        Ids of the selection that the method compares with, where it does.
    target
        The target set that the choice follows, with what else decides its share in the group; None for the group's own mean.
    counted
        segment and row of those whose mean is matched, where these are others than the members.
    first_rows
        Rows that the method is asked for at first, where the budget is in tokens.
    pinned
        Ids of the members that must be chosen, where there are any.
    """
    values = settings.model_dump(mode="json")
    # `sticky` counts only with what it keeps, `gain_per` only with a budget in tokens
    read = {name: values[name] for name in METHODS[settings.method].settings if name not in ("sticky", "gain_per")}
    kept = None if earlier is None else [settings.sticky, list(earlier)]
    named: list[Any] = [CHOICE, place, group, _rows_digest(rows), budget, settings.method, settings.seed, read, kept]
    if reference is not None:
        named.append(list(reference))
    if target is not None:
        named.append({"target": list(target)})
    if counted is not None:
        named.append({"counted": _rows_digest(counted)})
    if first_rows is not None:
        gain = values["gain_per"] if "gain_per" in METHODS[settings.method].settings else None
        named.append(["tokens", settings.tokens_all, first_rows, gain])
    if pinned:
        named.append({"pinned": list(pinned), **({"begins": True} if METHODS[settings.method].begins_with_pins else {})})
    return digest(named, 32)


def _rows_digest(rows: pl.DataFrame) -> str:
    """32 hex digits: these rows (segment, row) in this order."""
    members = hashlib.blake2b(digest_size=16)
    for (segment,), part in rows.select("segment", "row").group_by("segment", maintain_order=True):
        members.update(str(segment).encode() + part["row"].to_numpy().astype("<i8").tobytes())
    return members.hexdigest()


# evaluations


def evaluation_id(run_id: str, model: str, config: Mapping[str, Any], measured: str | None) -> str:
    """Return the id of an evaluation, 12 hex digits.

    model: fingerprint of its content; config: how it is trained, in values that are resolved; measured: hash of the rows that
    losses are measured on.
    """
    return digest([run_id, model, config, measured], 12)
