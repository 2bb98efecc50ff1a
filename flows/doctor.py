"""`tagcos doctor`: is this machine ready? Versions, devices, memory, disk, the root, and the servers that the user configured.

Nothing is contacted but what was configured: the model hub for a hub model, Prefect where PREFECT_API_URL is set, an object store
where the root lies in one.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import os
import platform
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flows.addresses import plain_url
from storage.catalog import runs
from storage.files.local import LocalFiles
from storage.files.open import local_folder
from storage.root import NoRoot, open_root
from tagcos_stream.compile_ahead import cache_folder, marker
from tagcos_stream.config import Settings
from tagcos_stream.machine import affinity, available_cpus, cpu_quota, free_memory, instruction_sets, matrix_rate
from tagcos_stream.memory import GIB
from tagcos_stream.paths import expanded, is_hub_id
from tagcos_stream.types import UserError

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
TIMEOUT = 5.0  # seconds for a server to answer
MIN_MEMORY, MIN_DISK = 4 * GIB, 2 * GIB
PARTS = {  # of a model folder, and the files that hold them
    "config.json": ("config.json",),
    "weights (*.safetensors or *.bin)": ("*.safetensors", "*.bin"),
    "tokenizer": ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json"),
}


@dataclass(frozen=True)
class Finding:
    """state: ok, note (worth knowing) or problem (the remedy says what to do)."""

    what: str
    state: str
    found: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Every check, in order; none raises."""
    return [
        *_versions(),
        *_processor(settings),
        _kernels(),
        *_devices(settings),
        *_memory(settings),
        *_root(settings),
        *_model(settings),
        *_prefect(),
    ]


def _versions() -> Iterator[Finding]:
    wanted = importlib.metadata.metadata("tagcos-stream")["Requires-Python"]
    fits = platform.python_version() in SpecifierSet(wanted)
    yield Finding("python", "ok" if fits else "problem", platform.python_version(), "" if fits else f"needs Python {wanted}")
    lacking, wrong = [], []
    for text in importlib.metadata.requires("tagcos-stream") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        found = _installed(requirement.name)
        if found is None:
            lacking.append(requirement.name)
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} (needs {requirement.specifier})")
    tested = []
    for line in CONSTRAINTS.read_text().splitlines() if CONSTRAINTS.is_file() else []:
        text, _, reason = (part.strip() for part in line.partition("#"))
        if not text:
            continue
        constraint = Requirement(text)
        found = _installed(constraint.name)
        if found is None or constraint.specifier.contains(found, prereleases=True):
            continue
        if "==" in str(constraint.specifier):  # a version that was tested; a range is a limit with a reason
            tested.append(f"{constraint.name} {found} (tested: {str(constraint.specifier)[2:]})")
        else:
            wrong.append(f"{constraint.name} {found} (needs {constraint.specifier}{': ' + reason if reason else ''})")
    again = "pip install -e . -c constraints.txt"
    if lacking or wrong:
        yield Finding("packages", "problem", "; ".join([*wrong, *(f"{name} is not installed" for name in lacking)]), again)
    if tested:
        yield Finding("packages", "note", "other versions than were tested together: " + "; ".join(tested), again)
    if not (lacking or wrong or tested):
        yield Finding("packages", "ok", "as in constraints.txt" if CONSTRAINTS.is_file() else "as required")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor(settings: Settings) -> Iterator[Finding]:
    cpus, quota = available_cpus(), cpu_quota()
    allowed = "no quota" if quota is None else f"a quota of {quota:g} CPUs"
    sets = f"; {', '.join(instruction_sets())}" if instruction_sets() else ""
    found = f"{os.cpu_count()} cores, {affinity()} in the affinity mask, {allowed}: {cpus} threads{sets}; "
    found += f"{matrix_rate() / 1e9:,.0f} GFLOP/s of float32 products"
    if settings.threads and settings.threads > cpus:
        yield Finding("processor", "note", found, f"--threads {settings.threads} is more: leave it out or set at most {cpus}")
    else:
        yield Finding("processor", "ok", found)


def _kernels() -> Finding:
    folder = cache_folder()
    if marker().exists():
        return Finding("kernels", "ok", f"compiled, in {folder}")
    remedy = "a run compiles them during its first stages; `python -m tagcos_stream.compile_ahead` does so now"
    return Finding("kernels", "note", f"not all compiled for this processor yet; they are kept in {folder}", remedy)


def _devices(settings: Settings) -> Iterator[Finding]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(count):
        free, total = torch.cuda.mem_get_info(i)
        name = torch.cuda.get_device_name(i)
        yield Finding(f"cuda:{i}", "ok", f"{name}, {free / GIB:.1f} of {total / GIB:.1f} GiB free")
    number = settings.device.removeprefix("cuda:")
    if count and number.isdecimal() and int(number) >= count:
        yield Finding(
            "gpu", "problem", f"--device {settings.device}: torch finds {count} of them, from cuda:0", "name one of these"
        )
    if not count:
        asked = settings.device.startswith("cuda")
        remedy = "install a CUDA build of torch and its driver, or leave --device out" if asked else ""
        found = f"none; torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"
        yield Finding("gpu", "problem" if asked else "note", found, remedy)


def _memory(settings: Settings) -> Iterator[Finding]:
    free = free_memory()
    wanted = MIN_MEMORY if settings.memory_limit is None else round(settings.memory_limit * GIB)
    enough = free >= wanted
    remedy = "" if enough else f"free some, or lower --memory-limit ({wanted / GIB:.1f} GiB)"
    yield Finding("memory", "ok" if enough else "problem", f"{free / GIB:.1f} GiB free", remedy)


def _root(settings: Settings) -> Iterator[Finding]:
    try:
        root = open_root(settings.root, create=False, wait_seconds=settings.wait, on_wait=lambda message: None)
    except NoRoot:
        root = None
    except UserError as error:
        yield Finding("root", "problem", str(error))
        return
    place = local_folder(settings.root)
    if root is not None and not isinstance(root.files, LocalFiles):
        try:
            root.files.write(".writable", b"")
            root.files.delete(".writable")
            yield Finding("root", "ok", f"{root.url} can be written")
        except UserError as error:
            yield Finding("root", "problem", str(error))
    elif place is None:
        yield Finding("root", "note", f"there is none at {settings.root} yet; `tagcos run` makes it")
        return
    else:
        while not place.exists():
            place = place.parent
        try:
            with tempfile.TemporaryFile(dir=place):
                yield Finding("root", "ok", f"{settings.root} can be {'written' if root else 'made'}")
        except OSError as error:
            yield Finding("root", "problem", f"{place}: {error.strerror}", "choose another --root, or get write permission")
        free = shutil.disk_usage(place).free
        enough = free >= MIN_DISK
        remedy = "" if enough else "free some, or choose a --root on another disk; `tagcos estimate` says how much a run takes"
        yield Finding("disk", "ok" if enough else "problem", f"{free / 1e9:.1f} GB free at {place}", remedy)
    if root is not None and root.lost_its_catalog():
        remedy = "restore it from a backup, or from catalog-snapshot.duckdb of the same folder"
        yield Finding("catalog", "problem", f"{root.url} has data, but {root.catalog_path} is missing", remedy)
    elif root is not None and not root.catalog_path.exists():
        yield Finding("catalog", "note", f"no run yet: there is none at {root.catalog_path}")
    elif root is not None:
        try:
            listed = runs.list_runs(root.catalog)
            unfinished = len(listed.filter(listed["status"] != "complete"))
            yield Finding("catalog", "ok", f"{len(listed)} runs, {unfinished} of them not complete")
        except UserError as error:
            yield Finding("catalog", "problem", str(error))


def _model(settings: Settings) -> Iterator[Finding]:
    """A model on this machine, or at the hub that it would be taken from."""
    model = settings.model
    if not model:
        return
    try:
        place = expanded(model)
    except UserError as error:
        yield Finding("model", "problem", str(error))
        return
    if place.is_dir():
        lacking = [what for what, names in PARTS.items() if not any(next(place.glob(name), None) for name in names)]
        if lacking:
            remedy = "give a folder that `save_pretrained` of the model and of its tokenizer wrote"
            yield Finding("model", "problem", f"{model} has no {' and no '.join(lacking)}", remedy)
        else:
            yield Finding("model", "ok", f"{model} has config, weights and tokenizer")
        return
    if place.exists() or not is_hub_id(model):
        if not place.exists():
            yield Finding("model", "problem", f"{model}: no such file or folder", "give a hub id, a folder or a .gguf file")
        return
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Finding("hub", "note", f"HF_HUB_OFFLINE is set: {model} must be in the cache")
        return
    from huggingface_hub import get_token

    endpoint = plain_url(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    token = get_token()
    state, found = _ask(f"{endpoint}/api/models/{model}", {"Authorization": f"Bearer {token}"} if token else {})
    remedies = {401: "`hf auth login`", 403: "ask for access on the model's page", 404: "check the model's name"}
    remedy = remedies.get(state, "check the network, or set HF_HUB_OFFLINE=1 with the model in the cache")
    yield Finding("hub", "ok", f"{endpoint} has {model}") if state == 200 else Finding("hub", "problem", found, remedy)


def _prefect() -> Iterator[Finding]:
    url = plain_url(os.environ.get("PREFECT_API_URL", "")).rstrip("/")
    if not url:
        return
    state, found = _ask(f"{url}/health", {})
    if state == 200:
        yield Finding("prefect", "ok", f"{url} answers")
    else:
        yield Finding("prefect", "problem", found, "start it (`prefect server start`), or unset PREFECT_API_URL to run without")


def _ask(url: str, headers: dict[str, str]) -> tuple[int, str]:
    """(status, what to tell); 0 where nothing answered."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
            return answer.status, f"{url} answers"
    except urllib.error.HTTPError as error:
        return error.code, f"{url} answers {error.code} {error.reason}"
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last: an address or an answer that is not HTTP
        return 0, f"{url} does not answer: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
