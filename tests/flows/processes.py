"""Processes that run a `tagcos` command and can be killed, without the seconds that the imports of a run take.

Each is forked from a server process that has done these imports and nothing else, so that it begins as any new process does: no
thread was started, no setting read, no kernel compiled or loaded.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import forkserver, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import patch

MODULES = ["flows.cli.main", "flows.pipeline", "peft", "transformers.trainer", "transformers.models.llama.modeling_llama"]
CONTEXT = get_context("forkserver")


def start(command: Sequence[str], log: Path, *, session: bool = False) -> BaseProcess:
    """Begin `tagcos COMMAND`, single-threaded; what it prints is appended to a file.

    With `session` it leads a session of its own, so that it may start processes and be killed with them (`os.killpg`).
    """
    CONTEXT.set_forkserver_preload(MODULES)
    with patch.dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE"):  # which torch reads when it is imported
        forkserver.ensure_running()
    log.touch()
    process = CONTEXT.Process(target=_run, args=(list(command), str(log), session), daemon=not session)
    process.start()
    while session and process.is_alive():
        with suppress(ProcessLookupError):  # it has just ended
            if os.getpgid(process.pid or 0) == process.pid:
                break
        time.sleep(0.001)
    return process


def ended(process: BaseProcess, timeout: float = 300) -> int | None:
    """The exit code of a process within so many seconds; None if it still runs."""
    process.join(timeout)
    return process.exitcode


def _run(command: list[str], log: str, session: bool) -> None:
    from flows.cli.main import main

    if session:
        os.setsid()
    with open(log, "ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.argv = ["tagcos", *command]
    main()
