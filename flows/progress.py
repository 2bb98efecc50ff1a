"""Telling people how far a stage is: bars in a terminal, a line every few seconds in a log, nothing at all in a library call."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

SETTLED = 10.0  # seconds before the time left is shown


class Stage(Protocol):
    """Callback with which a stage reports its progress."""

    def __call__(self, done: float, total: float | None = None, /) -> None:
        """Work done so far, in the stage's unit, and the whole where it is known."""


class Reporter(Protocol):
    """Shows the progress and the messages of a run."""

    def stage(self, title: str, unit: str) -> AbstractContextManager[Stage]:
        """Show a stage for the duration of the context, which yields the callback for its progress."""
        ...

    def say(self, text: str) -> None:
        """Show a message."""
        ...


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        amount = f"{_amount(task.completed)}/{_amount(task.total)}" if task.total else _amount(task.completed)
        unit = task.fields["unit"]
        return Text(f"{amount} {unit}" + (f", {_amount(speed)} {unit}/s" if speed else ""))


def _amount(value: float | None) -> str:
    if value is None:
        return "?"
    for threshold, scale, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= threshold:
            return f"{value / scale:.1f}{suffix}"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


class _TimeLeft(TimeRemainingColumn):
    def render(self, task: Task) -> Text:
        if task.finished or ((task.elapsed or 0) >= SETTLED and task.completed >= 0.01 * (task.total or 0)):
            return super().render(task)
        return Text("-:--:--", style="progress.remaining")


class BarReporter:
    """Progress bars with rate and time left, on standard error."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def say(self, text: str) -> None:
        """Print a message above the bars."""
        self.console.print(text, style="dim", markup=False, highlight=False)

    @contextmanager
    def stage(self, title: str, unit: str) -> Iterator[Stage]:
        """Show a progress bar with rate and time left."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<12}"),
            BarColumn(24),
            _Rate(),
            _TimeLeft(elapsed_when_finished=True),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(title, total=None, unit=unit)

            def update(done: float, total: float | None = None) -> None:
                progress.update(task, completed=done, total=total if total is not None else progress.tasks[0].total)

            yield update
            done = progress.tasks[0].completed
            progress.update(task, total=max(done, 1), completed=max(done, 1))


class LineReporter:
    """At most a line every `every` seconds and one when a stage ends: for logs and pipes."""

    def __init__(self, write: Callable[[str], None] | None = None, every: float = 5.0) -> None:
        self.write = write or (lambda text: print(text, file=sys.stderr, flush=True))
        self.every = every

    def say(self, text: str) -> None:
        """Write a message as a line."""
        self.write(text)

    @contextmanager
    def stage(self, title: str, unit: str) -> Iterator[Stage]:
        """Write a line of progress now and then, with rate and time left."""
        start = last = time.monotonic()
        first: float | None = None  # a resumed stage starts above zero, which must not count into its rate
        done, total = 0.0, None

        def line() -> str:
            seconds = time.monotonic() - start
            rate = (done - (first or 0)) / seconds if seconds > 0 else 0.0
            known = total and seconds >= SETTLED and done - (first or 0) >= 0.01 * total  # the first blocks load and compile
            left = f", {(total - done) / rate:.0f} s left" if total and known and rate > 0 and done < total else ""
            whole = f"/{_amount(total)}" if total else ""
            return f"{title}: {_amount(done)}{whole} {unit}, {_amount(rate)} {unit}/s, {seconds:.0f} s{left}"

        def update(now: float, whole: float | None = None) -> None:
            nonlocal last, done, total, first
            first = now if first is None else first
            done, total = now, whole if whole is not None else total
            if time.monotonic() - last >= self.every:
                last = time.monotonic()
                self.write(line())

        yield update
        self.write(line())


class SilentReporter:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Show nothing."""

    @contextmanager
    def stage(self, title: str, unit: str) -> Iterator[Stage]:
        """Show nothing; the callback ignores its arguments."""
        yield lambda done, total=None: None


def forward(stage: Stage) -> Stage:
    """Wrap a stage's callback so that it never goes back: workers tell what they did, and results come later than that."""
    most = 0.0

    def update(done: float, total: float | None = None) -> None:
        nonlocal most
        most = max(most, done)
        stage(most, total)

    return update


def default_reporter() -> Reporter:
    """Return progress bars for a terminal, lines for a log file."""
    return BarReporter() if sys.stderr.isatty() else LineReporter()
