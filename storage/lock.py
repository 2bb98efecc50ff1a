"""One writer per root: flock on a file that names its holder. The kernel releases the lock when the process ends."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from storage.files.base import write_error
from tagcos_stream.types import TransientError

REPEAT_MESSAGE_SECONDS = 30.0
FIRST_PAUSE = 0.02  # seconds


class Waiting:
    """A wait with a time limit: reports the reason at first and every 30 s, then raises TransientError with the same text."""

    def __init__(self, seconds: float, on_wait: Callable[[str], None]) -> None:
        # one more attempt at least: `locked_by` and a reader of the catalog have theirs for a moment only
        self._deadline = time.monotonic() + max(seconds, FIRST_PAUSE)
        self._seconds = seconds
        self._on_wait = on_wait
        self._next_message = 0.0
        self._pause = FIRST_PAUSE

    def wait(self, reason: str, remedy: str) -> None:
        """Sleep before the next attempt, longer each time. TransientError once the time to wait has passed."""
        now = time.monotonic()
        if now >= self._deadline:
            raise TransientError(f"{reason}; waited {self._seconds:g} s. {remedy}")
        if now >= self._next_message and self._pause > 0.1:  # short transactions of a healthy writer are not worth a message
            self._on_wait(f"{reason}; waiting up to {self._deadline - now:.0f} s more")
            self._next_message = now + REPEAT_MESSAGE_SECONDS
        time.sleep(min(self._pause, max(self._deadline - now, 0.0)))
        self._pause = min(self._pause * 1.5, 1.0)


def holder(path: Path) -> str:
    """Describe the process that holds the lock, for a message, from what it wrote into the lock file."""
    try:
        found = json.loads(path.read_text())
        return f"process {found['pid']} on {found['host']}, which began at {found['started']}"
    except (OSError, ValueError, KeyError):
        return "a process that has not identified itself yet"


def locked_by(path: Path) -> tuple[str, int] | None:
    """Return host and process id of the writer that holds a lock file; None if it is free or the holder is not known yet."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        try:
            found = json.loads(path.read_text())
            return str(found["host"]), int(found["pid"])
        except (OSError, ValueError, KeyError):
            return None
    finally:
        os.close(descriptor)


@contextmanager
def writer_lock(path: Path, root_url: str, *, wait_seconds: float, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock while the body runs.

    Parameters
    ----------
    path
        Lock file; made if missing.
    root_url
        Name of the root in messages.
    wait_seconds
        How long to wait for another writer.
    on_wait
        Called with a message while waiting.

    Raises
    ------
    TransientError
        Another writer, which the message names, still holds the lock after `wait_seconds`.
    UserError
        The lock file cannot be opened or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # close-on-exec: a started program does not inherit it
    except OSError as error:
        raise write_error(str(path), error) from error
    try:
        waiting = Waiting(wait_seconds, on_wait)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting.wait(
                    f"{root_url} is being written by {holder(path)}", "Let it finish, stop it, or choose another --root."
                )
        mine = {"pid": os.getpid(), "host": platform.node(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(mine).encode(), 0)
        except OSError as error:  # a full disk
            raise write_error(str(path), error) from error
        yield
    finally:
        os.close(descriptor)
