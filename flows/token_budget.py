"""How many tokens a pass may have: the memory formulae of the model's stages against what there is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tagcos_stream.config import GIB, Settings
from tagcos_stream.types import UserError

CPU_TOKENS, GPU_TOKENS = 1024, 8192  # a pass, where the settings do not say


def tokens_per_pass(settings: Settings, loaded: Any, stage: str, need: Callable[[int], int], processes: int = 1) -> int:
    """The token budget of a stage that needs need(budget) bytes beside the model, which `processes` run at a time.

    On a CPU it does not depend on the memory found, because a batch's size shows in the last bits of its features;
    on a GPU, where they repeat to rounding only, it is halved until the stage fits.

    Raises:
        UserError: it does not fit; with both sizes and what to lower.
    """
    room, what = _room(settings, loaded, processes)
    on_gpu = loaded.device.startswith("cuda")
    budget = settings.batch_tokens or (GPU_TOKENS if on_gpu else CPU_TOKENS)
    while settings.batch_tokens is None and on_gpu and budget > settings.max_length and need(budget) > room:
        budget //= 2
    if need(budget) > room:
        cut = "batch_tokens or max_length" if budget > settings.max_length else "max_length"
        raise UserError(
            f"{stage} of {settings.model} needs {need(budget) / GIB:.1f} GiB beside the model, in passes of "
            f"{max(budget, settings.max_length)} tokens; {what}: lower {cut}, or lora_rank, or give it more memory"
        )
    return budget


def _room(settings: Settings, loaded: Any, processes: int) -> tuple[int, str]:
    """(bytes that a process may use beside its model, where they come from)."""
    if loaded.device.startswith("cuda"):
        import torch

        free = torch.cuda.mem_get_info(loaded.device)[0]
        free += torch.cuda.memory_reserved(loaded.device) - torch.cuda.memory_allocated(loaded.device)
        return free, f"{loaded.device} has {free / GIB:.1f} GiB free"
    if settings.memory_limit is not None:
        weights = sum(t.numel() * t.element_size() for t in (*loaded.model.parameters(), *loaded.model.buffers()))
        room = int(settings.memory_limit * GIB / processes) - weights
        share = f" for {processes} processes" if processes > 1 else ""
        return (
            room,
            f"memory_limit {settings.memory_limit:g} GiB{share} leaves {max(0, room) / GIB:.1f} beside {weights / GIB:.1f}",
        )
    free = free_bytes()
    return free // processes, f"{free / GIB:.1f} GiB are free" + (f" for {processes} processes" if processes > 1 else "")


def free_bytes() -> int:
    """Memory that this machine, or the container that we run in (cgroup 2), has left."""
    if not Path("/proc/meminfo").is_file():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # no Linux: all there is
    free = _listed(Path("/proc/meminfo"), "MemAvailable:") * 1024
    limit, stat = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat")
    if limit.is_file() and stat.is_file() and (most := limit.read_text().strip()).isdecimal():
        free = min(free, int(most) - _listed(stat, "anon"))  # its page cache counts as used and can be had back
    return free


def _listed(file: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[0] == name)
