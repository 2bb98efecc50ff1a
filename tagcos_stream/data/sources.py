"""What to read: paths, folders, globs and lists of named sources, resolved to files whose content has a digest."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import xxhash

from tagcos_stream.data.containers.registry import CONTAINERS
from tagcos_stream.data.layouts import BESIDE_SAVED, dataset_above, is_shard, of_split, parts_of
from tagcos_stream.data.remote import base_of, is_remote, list_files
from tagcos_stream.data.row_options import RowOptions
from tagcos_stream.data.shapes import SHAPE_NAMES
from tagcos_stream.data.source_lists import is_list, read_list
from tagcos_stream.data.source_spec import SourceSpec
from tagcos_stream.identity import source_version
from tagcos_stream.paths import expanded
from tagcos_stream.types import UserError

ENDINGS = {ending: name for name, (endings, _) in CONTAINERS.items() for ending in endings}
PACKED = (".gz", ".zst")
MARK_OF_ROOT = "tagcos.json"  # whose folder holds what was computed, not rows to read (storage/root.py)
T = TypeVar("T")


@dataclass(frozen=True)
class SourceFile:
    """One file. url: absolute path or URL. digest: of the content as it lies (local: XXH3-128; object stores: size and etag)."""

    source: str
    url: str
    size: int
    digest: str
    format: str
    spec: SourceSpec
    folder: str | None = None  # the dataset's name by the folders above, where the file is one shard of it

    @property
    def dataset(self) -> str:
        """Name for rows that carry none: the source's, that of the folder above a shard, or the file's."""
        return self.spec.dataset or self.folder or stem(self.url)

    @property
    def version(self) -> str:
        """32 hex digits that name what reading this file gives: the content, the reader, and the settings that change rows."""
        spec = self.spec
        return source_version(
            self.url,
            self.digest,
            self.format,
            key=spec.key,
            limit=spec.limit,
            dataset=self.dataset,
            options={name: value for name, value in asdict(spec.options).items() if name != "scores" or value},
        )


def listing(files: Sequence[SourceFile], specs: Sequence[str]) -> pl.DataFrame:
    """Files as the catalog records them.

    Parameters
    ----------
    files
        F of them.
    specs
        (F,) texts that name the rules by which each is read.

    Returns
    -------
    pl.DataFrame
        source, url, digest, size, format, spec, weight and scores, a row a file.
    """
    columns = {name: [getattr(file, name) for file in files] for name in ("source", "url", "digest", "size", "format")}
    weights, scores = [float(file.spec.weight) for file in files], [list(file.spec.options.scores) for file in files]
    types: dict[str, Any] = {"size": pl.Int64, "weight": pl.Float64, "scores": pl.List(pl.String)}
    return pl.DataFrame(columns | {"spec": list(specs), "weight": weights, "scores": scores}, schema_overrides=types)


def resolve_sources(specs: Sequence[str | SourceSpec]) -> list[SourceFile]:
    """The files of all sources, each once, in the order of the sources and by name within one.

    A string is a path (file, folder, glob), a URL, or a file that lists sources (.toml, dataset_info.json, axolotl .yaml;
    `#a,b` behind it picks some by name). UserError: no such path, a glob or folder without a readable file, an unknown ending,
    an empty file that was named itself, a file that two sources read with different settings.
    """
    files: dict[str, SourceFile] = {}
    for spec in [s for given in specs for s in _specs(given)]:
        if spec.options.shape is not None and spec.options.shape not in SHAPE_NAMES:
            raise UserError(f"source {spec.path}: shape {spec.options.shape!r} is unknown; there are {', '.join(SHAPE_NAMES)}")
        for file in _remote(spec) if is_remote(spec.path) else _local(spec):
            first = files.setdefault(file.url, file)
            if replace(file, folder=first.folder).version != first.version:
                raise UserError(
                    f"{file.url}: sources {first.spec.path} ({first.source}) and {spec.path} ({file.source}) both read this "
                    "file, with different settings: name it in one of them, or read a copy of it in the other"
                )
    return list(files.values())


def _specs(given: str | SourceSpec, *, within: Path | None = None) -> list[SourceSpec]:
    """The sources that a path or a source names: several where it names a list. within: the TOML list that names it."""
    source = SourceSpec(given) if isinstance(given, str) else given
    path, _, names = source.path.partition("#")
    if "://" in path or not is_list(Path(path)) or Path(source.path).is_dir():
        return [source]
    place = expanded(path)
    if within is not None and place.suffix == ".toml":
        raise UserError(f"{within}: source {path}: a list cannot name another .toml list; name both")
    found = read_list(place, names, source.options)
    if isinstance(given, SourceSpec):
        found = [_with(spec, given) for spec in found]
    return [s for spec in found for s in _specs(spec, within=place)] if place.suffix == ".toml" else found


def _with(entry: SourceSpec, given: SourceSpec) -> SourceSpec:
    """An entry of a list with what the source that names the list says otherwise than by default."""
    default = SourceSpec("")
    own = {f.name: getattr(given, f.name) for f in fields(SourceSpec) if f.name not in ("path", "options", "notes")}
    options = {f.name: getattr(given.options, f.name) for f in fields(RowOptions)}
    changed = {name: value for name, value in options.items() if value != getattr(default.options, name)}
    return replace(
        entry,
        **{name: value for name, value in own.items() if value != getattr(default, name)},
        options=replace(entry.options, **changed),
    )


def score_names(specs: Sequence[str | SourceSpec]) -> list[str]:
    """Return the columns that sources name as scores, each once, reading lists of sources but no rows.

    Parameters
    ----------
    specs
        As for `resolve_sources`.

    Returns
    -------
    list of str
        In lower case, in the order of the sources.

    Raises
    ------
    UserError
        A list of sources cannot be read, or has a mistake.
    """
    names = [name.lower() for given in specs for spec in _specs(given) for name in spec.options.scores]
    return list(dict.fromkeys(names))


def set_name(names: Sequence[str]) -> str | None:
    """Read the name of a stored set of examples from what may also be sources.

    Parameters
    ----------
    names
        Files, or one name.

    Returns
    -------
    str or None
        The one name, if it is not a path; None for files.
    """
    return names[0] if len(names) == 1 and not expanded(names[0]).exists() else None


def stem(url: str) -> str:
    """The file's name without its endings."""
    name = url.rstrip("/").rsplit("/", 1)[-1]
    for ending in (*PACKED, *ENDINGS):
        name = name.removesuffix(ending)
    return name


def container_of(url: str) -> str | None:
    """A name of CONTAINERS from the name's ending, or None."""
    name = url.lower()
    for ending in PACKED:
        name = name.removesuffix(ending)
    return ENDINGS.get(os.path.splitext(name)[1])


def _local(spec: SourceSpec) -> list[SourceFile]:
    path = expanded(spec.path)
    alone = path.is_file()
    if alone:
        paths = [path]
    elif path.is_dir():
        found = sorted(p for p in _below(path) if p.is_file() and container_of(p.name) and not _hidden(p.relative_to(path)))
        paths = [p for p in found if not _beside_rows(p)]
        if not paths:
            raise UserError(f"source {spec.path}: the folder holds no file ending in {', '.join(ENDINGS)}")
    elif glob.has_magic(spec.path):
        paths = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if os.path.isfile(p))
        if not paths:
            raise UserError(f"source {spec.path}: no file matches; check the pattern (** goes into folders)")
    else:
        raise UserError(f"source {spec.path}: no such file or folder")
    base = path.parent if alone else path if path.is_dir() else Path(re.split(r"[*?\[]", f"{path}")[0] + "x").parent
    paths = _of_split(spec, paths, os.path.abspath(base), os.path.abspath)
    return [_file(spec, p, alone) for p in paths]


def _below(folder: Path) -> Iterator[Path]:
    """Files of a folder and of all below it, each once, also of those that links lead to; none of a root of ours in it."""
    seen = set()
    for at, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(at)
        if real in seen or (MARK_OF_ROOT in names and Path(at) != folder):
            folders.clear()
            continue
        seen.add(real)
        folders.sort(key=lambda name: (os.path.islink(os.path.join(at, name)), name))
        yield from (Path(at, name) for name in names)


def _remote(spec: SourceSpec) -> list[SourceFile]:
    found = list_files(spec.path)
    base = base_of(spec.path)
    if base == spec.path:  # no pattern: what matches one is read
        roots = {f.url.removesuffix(MARK_OF_ROOT) for f in found if f.url.endswith(f"/{MARK_OF_ROOT}")}
        within = tuple(roots - {base.rstrip("/") + "/"})
        found = [f for f in found if not f.url.startswith(within)]
    files = [f for f in found if (spec.format or container_of(f.url)) and f.url.rsplit("/", 1)[-1] not in BESIDE_SAVED]
    if not files:
        raise UserError(f"source {spec.path}: {len(found)} files there, none that can be read")
    files = _of_split(spec, files, base, lambda f: f.url)
    return [
        SourceFile(
            spec.name or stem(spec.path),
            f.url,
            f.size,
            f.digest,
            spec.format or str(container_of(f.url)),
            spec,
            _folder(f.url, f.url.rsplit("/", 2)[0] + "/dataset_dict.json" in {g.url for g in found}),
        )
        for f in files
    ]


def _of_split(spec: SourceSpec, files: list[T], base: str, place: Callable[[T], str]) -> list[T]:
    """The files that hold the split that the source asks for. UserError where none does."""
    if spec.split is None:
        return files
    taken = of_split([(parts_of(place(f), base), stem(place(f))) for f in files], spec.split)
    if not any(taken):
        names = ", ".join(place(f).rsplit("/", 1)[-1] for f in files[:5])
        raise UserError(
            f"source {spec.path}: no file of split {spec.split!r} among its {len(files)} files ({names}); set `split` to another"
        )
    return [f for f, is_taken in zip(files, taken, strict=True) if is_taken]


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _beside_rows(path: Path) -> bool:
    """Whether a file only describes the rows of its folder, or is a cache of `datasets` among the shards of a saved one."""
    if path.name in BESIDE_SAVED:
        return True
    return path.name.startswith("cache-") and path.suffix == ".arrow" and (path.parent / "state.json").exists()


def _folder(url: str, saved_splits: bool) -> str | None:
    """The dataset's name where the file is a shard of it."""
    if not is_shard(stem(url)):
        return None
    return dataset_above(url.split("/")[:-1], saved_splits)


def _file(spec: SourceSpec, path: Path, alone: bool) -> SourceFile:
    kind = spec.format or container_of(path.name)
    if kind is None:
        raise UserError(f"source {path}: unknown ending; name its format in a list of sources, one of {', '.join(CONTAINERS)}")
    try:
        size = path.stat().st_size
        if size == 0 and alone:
            raise UserError(f"source {path}: the file is empty")
        digest = _digest(path)
    except OSError as e:
        raise UserError(f"source {path}: cannot be read: {e.strerror}; check its permissions") from None
    resolved = path.resolve()
    # links, as in the hub's cache, lead to files whose names say nothing
    named = path.absolute()
    folder = _folder(named.as_posix(), (named.parent.parent / "dataset_dict.json").is_file())
    if folder is None and named.name != resolved.name:
        folder = stem(named.name)
    return SourceFile(spec.name or stem(spec.path), str(resolved), size, digest, kind, spec, folder)


def _digest(path: Path) -> str:
    state = xxhash.xxh3_128()
    with path.open("rb") as f:
        while chunk := f.read(1 << 22):
            state.update(chunk)
    return "xxh3:" + state.hexdigest()
