"""The machine that this process may use: cores, quota, memory, instruction sets, speed, defaults of environment variables.

Light to import, because these must be set before torch and Numba are imported.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath

# instruction sets that the kernels' speed depends on, as /proc/cpuinfo names them (x86 and ARM)
INSTRUCTION_SETS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "asimddp", "sve")


def available_cpus(root: Path = Path("/")) -> int:
    """Threads that can run at the same time: the cores of the affinity mask, or fewer under a container's CPU quota.

    A quota of 2.5 CPUs gives 2: with a third thread all three would be stopped in every period, and a parallel region waits for
    its slowest thread.

    Parameters
    ----------
    root : Path
        Folder that holds ``proc`` and ``sys``.

    Returns
    -------
    int
        At least 1.
    """
    quota = cpu_quota(root)
    cores = affinity()
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def affinity() -> int:
    """Cores that this process may be scheduled on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPU time per second of wall-clock time that the control groups of this process allow, in CPUs.

    The limit of every group from the process's own up to the root counts: ``cpu.max`` in version 2, ``cpu.cfs_quota_us`` and
    ``cpu.cfs_period_us`` in version 1.

    Parameters
    ----------
    root : Path
        As for `available_cpus`.

    Returns
    -------
    float or None
        None without a limit, or where there are no control groups.
    """
    return min((quota for folder in _groups(root, "cpu") if (quota := _quota(folder)) is not None), default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups of a controller that this process belongs to, with their ancestors.

    Inside a container the path in /proc may be the host's, of which only the mount's top is visible: what does not exist is
    skipped, and the top always counts.
    """
    mounts = root / "sys" / "fs" / "cgroup"
    try:
        memberships = (root / "proc" / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if controllers == "":
            tops = (mounts, mounts / "unified")
        elif controller in controllers.split(","):
            tops = (mounts / controller, mounts / controllers)
        else:
            continue
        own = PurePosixPath(path)
        for top in tops:
            for group in (own, *own.parents):
                folder = top / group.relative_to("/") if group.is_absolute() else top
                if folder.is_dir():
                    yield folder


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return None
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None  # "max" and -1: none


def instruction_sets(root: Path = Path("/")) -> list[str]:
    """Vector instruction sets of the processor that matter here, of INSTRUCTION_SETS; empty where /proc does not list them."""
    try:
        text = (root / "proc" / "cpuinfo").read_text()
    except OSError:
        return []
    flags = next((line.split(":", 1)[1].split() for line in text.splitlines() if line.startswith(("flags", "Features"))), [])
    return [name for name in INSTRUCTION_SETS if name in flags]


def matrix_rate(n: int = 1024, seconds: float = 0.2) -> float:
    """Floating-point operations per second of float32 products of (n, n) matrices, measured on `available_cpus()` threads."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    a = np.random.default_rng(0).standard_normal((n, n), np.float32)
    with threadpool_limits(available_cpus(), user_api="blas"):
        np.dot(a, a)
        begun, turns = time.perf_counter(), 0
        while not turns or time.perf_counter() - begun < seconds:
            np.dot(a, a)
            turns += 1
        return 2 * n**3 * turns / (time.perf_counter() - begun)


def set_environment_defaults(
    environment: MutableMapping[str, str] = os.environ, root: Path = Path("/"), package: Path = Path(__file__).parent
) -> None:
    """Set environment variables that libraries read when they are imported; what is set already stays.

    - ``OMP_WAIT_POLICY``: passive. Threads that spin while they wait for each other cost a loaded machine up to ten times the
      processor time of a small run, and gain 2% at most on a quiet one; no bit of a result changes.
    - ``OMP_NUM_THREADS``, ``NUMBA_NUM_THREADS``: under a CPU quota below the number of cores, as many as the quota has CPUs.
    - ``NUMBA_CACHE_DIR``: where compiled kernels cannot be kept next to the source, a folder in the user's cache.
    - ``USE_HUB_KERNELS``: off. transformers would download native code for some models, where the package kernels is installed.

    Parameters
    ----------
    environment : mutable mapping
        The environment to change; child processes inherit that of this process.
    root : Path
        Folder that holds ``proc`` and ``sys``.
    package : Path
        Folder of the source.
    """
    environment.setdefault("USE_HUB_KERNELS", "0")
    if "GOMP_SPINCOUNT" not in environment:
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cpus = available_cpus(root)
    if cpus < affinity():
        for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            environment.setdefault(name, str(cpus))
    if "NUMBA_CACHE_DIR" not in environment and not os.access(package, os.W_OK):
        environment["NUMBA_CACHE_DIR"] = str(_user_cache(environment) / "kernels")


def _user_cache(environment: MutableMapping[str, str]) -> Path:
    """Return the program's folder in the user's cache; a temporary one where the user has none that can be written.

    A temporary folder of a fixed name would not do: another user could put code there, which Numba would load.
    """
    folder = Path(environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME", "/")) / ".cache") / "tagcos"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="tagcos-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="tagcos-"))


def free_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may still take.

    That is what the machine has left, or less where a control group limits memory. The limit of every group from the process's
    own up to the root counts: ``memory.max`` in version 2, ``memory.limit_in_bytes`` in version 1.

    Parameters
    ----------
    root : Path
        As for `available_cpus`.

    Returns
    -------
    int
        At least 0. Without Linux's /proc all memory that the machine has.
    """
    if not (root / "proc" / "meminfo").is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = _fields(root / "proc" / "meminfo")["MemAvailable"] * 1024
    left = [found for folder in _groups(root, "memory") if (found := _memory_left(folder)) is not None]
    return max(0, min([free, *left]))


def _memory_left(folder: Path) -> int | None:
    """What a group's limit leaves, of which its page cache can be had back; None without a limit."""
    try:
        if (folder / "memory.max").is_file():
            limit, used = (folder / "memory.max").read_text().strip(), ("anon", "shmem")
        else:  # with no limit a number near 2**63
            limit, used = (folder / "memory.limit_in_bytes").read_text().strip(), ("total_rss", "total_shmem")
        fields = _fields(folder / "memory.stat")
    except OSError:
        return None
    return int(limit) - sum(fields.get(name, 0) for name in used) if limit.isdecimal() else None


def _fields(file: Path) -> dict[str, int]:
    """The first number of every line, by the name before it."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}
