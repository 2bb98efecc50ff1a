"""The tracker inside a chat template: its calls in the template's syntax tree, the marks it prints and the bounds it keeps.

Calls stand at the start of every loop body and macro, and after every loop. The tracker stops a rendering that takes too long,
and in a marked rendering it prints a mark wherever a loop turns to another message, so that the text between two marks is known
to belong to one message, whatever the template makes of its content.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any

from jinja2 import Environment, nodes

from tagcos_stream.gradients.template_bounds import BoundExceeded, bounded

SECONDS = 5.0  # of this thread on a processor, for one rendering; usual ones take less than a millisecond
CLOCK, TODAY = "strftime_now", date(2024, 7, 26)  # what a template may print: a live date would change the tokens every day
TRACKER, _AT, _ASSIGNED, _DONE, _JOIN, _PLUS = (
    f"tagcos_{name}" for name in ("tracker", "at", "assigned", "done", "join", "plus")
)


@dataclass(frozen=True)
class Marks:
    """Two private-use characters that enclose the marks of a rendering."""

    open: str = "\ue0f3"
    close: str = "\ue0f4"

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """A mark: its kind (s, u, b or e), its number, and the message's."""
        return re.compile(f"{self.open}([sube])(\\d+),(\\d+){self.close}")

    def set(self, loop: int, message: int) -> str:
        """Return the mark of a loop that begins to print a message."""
        return f"{self.open}s{loop},{message}{self.close}"

    def unset(self, loop: int) -> str:
        """Return the mark of a loop that has ended."""
        return f"{self.open}u{loop},0{self.close}"

    def chunk(self, number: int, text: str) -> str:
        """Return text between the marks of a chunk."""
        return f"{self.open}b{number},0{self.close}{text}{self.open}e{number},0{self.close}"


@dataclass
class Tracker:
    """What the calls in the template's tree do during one rendering."""

    messages: Mapping[int, int]  # id() of a message's dict -> its number
    marks: Marks | None
    limit: int  # characters
    deadline: float = field(default_factory=lambda: time.thread_time() + SECONDS)
    steps: int = 0
    active: set[int] = field(default_factory=set)  # loops that stand at a message

    def at(self, value: object, loop: int) -> str:
        """A loop body or macro begins, with `value` as the loop's item."""
        self.steps += 1
        if not self.steps & 63 and time.thread_time() > self.deadline:
            raise BoundExceeded(f"no end after {SECONDS:g} s")
        if self.marks is None:
            return ""
        number = self.messages.get(id(value))
        if number is not None:
            self.active.add(loop)
            return self.marks.set(loop, number)
        return self.done(None, loop)

    def assigned(self, value: object, loop: int) -> str:
        """A variable is set in a loop over something else, such as positions: the first message that is set counts."""
        if self.marks is None or loop in self.active:
            return ""
        number = self.messages.get(id(value))
        if number is None:
            return ""
        self.active.add(loop)
        return self.marks.set(loop, number)

    def done(self, _: None, loop: int) -> str:
        """Note the end of a loop and return its mark, if it printed messages."""
        if self.marks is None or loop not in self.active:
            return ""
        self.active.remove(loop)
        return self.marks.unset(loop)

    def join(self, values: list[object]) -> str:
        """The `~` operator."""
        text = "".join(map(str, values))
        self.check(len(text))
        return text

    def plus(self, left: Any, right: Any) -> Any:
        """The `+` operator."""
        total = left + right
        if isinstance(total, str | list | tuple):
            self.check(len(total))
        return total

    def check(self, length: int) -> None:
        """Raise BoundExceeded if a text is longer than the limit, in characters."""
        if length > self.limit:
            raise BoundExceeded(f"more than {self.limit:,} characters")


def watched(environment: Any) -> Environment:
    """The bounded sandbox with the tracker's calls and a clock that stands, in an environment of its own."""
    own: Any = bounded(environment)
    own.globals = {**own.globals, CLOCK: TODAY.strftime}
    calls = {_AT: "at", _ASSIGNED: "assigned", _DONE: "done", _JOIN: "join", _PLUS: "plus"}
    own.filters = own.filters | {name: _filter(getattr(Tracker, method)) for name, method in calls.items()}
    return own


def _filter(method: Any) -> Any:
    return lambda value, tracker, *argument: method(tracker, value, *argument)


def instrument(tree: nodes.Template) -> None:
    """Insert the tracker's calls into a parsed template."""
    numbers = itertools.count(1)

    def changed(node: Any, loop: int | None, printed: bool) -> list[Any]:
        """The node with calls inside it, and what follows it in a list of statements.

        `loop` is the innermost loop around it; what is `printed` right away needs no bound of its own.
        """
        if not isinstance(node, nodes.Node):
            return [node]
        within = next(numbers) if isinstance(node, nodes.For) else None if isinstance(node, nodes.Macro) else loop
        inside = isinstance(node, nodes.Output) or (printed and not isinstance(node, nodes.Call))
        for name, value in list(node.iter_fields()):
            if isinstance(value, list):
                setattr(node, name, [new for item in value for new in changed(item, within, inside)])
            elif isinstance(value, nodes.Node):
                setattr(node, name, changed(value, within, inside)[0])
        if isinstance(node, nodes.For):
            target = nodes.Name(node.target.name, "load") if isinstance(node.target, nodes.Name) else nodes.Const(None)
            node.body.insert(0, _statement(_AT, target, within, node.lineno))
            return [node, _statement(_DONE, nodes.Const(None), within, node.lineno)]
        if isinstance(node, nodes.Macro):
            node.body.insert(0, _statement(_AT, nodes.Const(None), 0, node.lineno))
        if isinstance(node, nodes.Concat) and not printed:
            return [_call(_JOIN, nodes.List(node.nodes), None, node.lineno)]
        if isinstance(node, nodes.Add) and not printed:
            return [_call(_PLUS, node.left, node.right, node.lineno)]
        if loop is not None and isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
            return [node, _statement(_ASSIGNED, nodes.Name(node.target.name, "load"), loop, node.lineno)]
        return [node]

    changed(tree, None, False)


def _call(function: str, value: nodes.Expr, argument: nodes.Expr | None, line: int) -> nodes.Expr:
    """A call of the tracker, as a filter: those are not looked up and checked each time, as functions are."""
    arguments = [nodes.Name(TRACKER, "load"), *([] if argument is None else [argument])]
    call = nodes.Filter(value, function, arguments, [], None, None)
    call.set_lineno(line, override=True)
    return call


def _statement(function: str, value: nodes.Expr, loop: int | None, line: int) -> nodes.Output:
    return nodes.Output([_call(function, value, nodes.Const(loop), line)], lineno=line)
