"""Signals that arrive while DuckDB runs a query."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal during a query raise what its handler raises.

    DuckDB calls the handler, drops what it raised, and raises RuntimeError("Query interrupted"): a run that was cancelled would
    be recorded as failed. The interpreter writes the number of each signal to a pipe, and the handler is called again.

    Yields
    ------
    None
        For the body, which runs queries.

    Raises
    ------
    KeyboardInterrupt
        A query was interrupted, and no handler raised anything.
    """
    if threading.current_thread() is not threading.main_thread():  # no other thread handles signals
        yield
        return
    arrived, notice = os.pipe()
    os.set_blocking(arrived, False)
    os.set_blocking(notice, False)
    before = signal.set_wakeup_fd(notice, warn_on_full_buffer=False)
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        for number in _read(arrived):
            handler = signal.getsignal(number)
            if callable(handler):
                handler(number, None)
        raise KeyboardInterrupt from error
    finally:
        signal.set_wakeup_fd(before)
        if before >= 0 and (left := _read(arrived)):  # an event loop that waits for them
            os.write(before, left)
        os.close(arrived)
        os.close(notice)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 64)
    except BlockingIOError:
        return b""
