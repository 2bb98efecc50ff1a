"""Rendering a chat template in transformers' sandbox, with bounds on time and length and with marks that show who printed what.

The template's syntax tree gets calls to a tracker: at the start of every loop body and macro, and after every loop. The tracker
stops a rendering that takes too long, and in a marked rendering it prints a mark wherever a loop turns to another message, so
that the text between two marks is known to belong to one message, whatever the template makes of its content.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError, nodes

from tagcos_stream.types import UserError

SECONDS = 5.0  # of this thread on a processor, for one rendering; usual ones take less than a millisecond
CHARACTERS = 4_000_000  # of a rendered text, beyond ten times the length of what is rendered
ENDLESS = 3  # renderings beyond the bounds before any has succeeded: the template is at fault, not the row

_TRACKER, _AT, _ASSIGNED, _DONE, _JOIN, _PLUS = (
    f"tagcos_{name}" for name in ("tracker", "at", "assigned", "done", "join", "plus")
)


class TemplateRefused(ValueError):
    """The chat template raises an error of its own on a conversation (roles that do not alternate, for example)."""


class TemplateFailed(ValueError):
    """The chat template has a fault that shows on this conversation, or exceeds the bounds on time and length."""


class _BoundExceeded(RuntimeError):
    pass


@dataclass(frozen=True)
class Marks:
    """Two private-use characters between which a marked rendering says what stands where."""

    open: str = "\ue0f3"
    close: str = "\ue0f4"

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """A mark: its kind (s, u, b or e), its number, and the message's."""
        return re.compile(f"{self.open}([sube])(\\d+),(\\d+){self.close}")

    def set(self, loop: int, message: int) -> str:
        return f"{self.open}s{loop},{message}{self.close}"

    def unset(self, loop: int) -> str:
        return f"{self.open}u{loop},0{self.close}"

    def chunk(self, number: int, text: str) -> str:
        return f"{self.open}b{number},0{self.close}{text}{self.open}e{number},0{self.close}"


@dataclass
class _Tracker:
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
            raise _BoundExceeded(f"no end after {SECONDS:g} s")
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
        if length > self.limit:
            raise _BoundExceeded(f"more than {self.limit:,} characters")


class ChatTemplate:
    """A compiled chat template.

    Parameters
    ----------
    source : str
        The Jinja text.
    name : str
        The model or tokenizer it belongs to, for messages.

    Raises
    ------
    UserError
        The text is no Jinja template.
    """

    def __init__(self, source: str, name: str) -> None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.source = source
        self.label = f"chat template of {name} ({hashlib.blake2b(source.encode(), digest_size=4).hexdigest()})"
        self._rendered = self._exceeded = 0
        try:
            environment = _bounded(_compile_jinja_template(source).environment)
            tree = environment.parse(source)
            self.looked_for = _looked_for(tree)
            _instrument(tree)
            tree.set_environment(environment)
            self._template: Template = environment.from_string(tree)
        except TemplateSyntaxError as error:
            raise UserError(f"{self.label}, line {error.lineno}: {error.message}: mend the template or take another") from error
        except RecursionError as error:
            raise UserError(f"{self.label}: nested too deeply: mend the template or take another") from error

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        variables: Mapping[str, Any],
        *,
        marks: Marks | None = None,
        size: int = 0,
        probe: bool = False,
    ) -> str:
        """The text that the template prints.

        Parameters
        ----------
        messages : sequence of dict
            As the template reads them, of plain JSON values.
        variables : mapping
            All other variables of the template: special tokens, tools, add_generation_prompt and so on.
        marks : Marks, optional
            Print marks where the template turns to another message.
        size : int
            Characters of the messages and variables, by which the permitted length grows.
        probe : bool
            Not an example's conversation: it does not count whether this rendering succeeds.

        Raises
        ------
        TemplateRefused
            The template calls `raise_exception`.
        TemplateFailed
            Any other error inside the template, with its line; more than `SECONDS` or too many characters.
        UserError
            The bounds were exceeded several times before anything was rendered.
        """
        tracker = _Tracker({id(message): i for i, message in enumerate(messages)}, marks, CHARACTERS + 10 * size)
        pieces, length = [], 0
        try:
            for piece in self._template.generate({**variables, "messages": list(messages), _TRACKER: tracker}):
                length += len(piece)
                tracker.check(length)
                pieces.append(piece)
        except Exception as error:
            raise self._failure(error, probe) from error
        self._rendered += not probe
        return "".join(pieces)

    def _failure(self, error: Exception, probe: bool) -> Exception:
        if type(error) is TemplateError:  # raised by the template's own raise_exception
            return TemplateRefused(f"{self.label} refuses this conversation: {error}")
        line = _line(error)
        where = self.label if line is None else f"{self.label}, line {line}"
        if isinstance(error, _BoundExceeded | MemoryError):
            self._exceeded += not probe
            what = str(error) or "out of memory"
            if self._exceeded >= ENDLESS and not self._rendered:
                return UserError(f"{where}: {what}, {self._exceeded} times in a row: mend the template or take another")
            return TemplateFailed(f"{where}: {what}")
        if isinstance(error, RecursionError):
            return TemplateFailed(f"{where}: recursion without end")
        return TemplateFailed(f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


@lru_cache(maxsize=16)
def chat_template(source: str, name: str) -> ChatTemplate:
    """The compiled template; kept, since compiling takes a thousand times as long as rendering."""
    return ChatTemplate(source, name)


def _bounded(environment: Any) -> Environment:
    """The sandbox with operators that build long values watched, in an environment of its own."""
    bounded = environment.overlay()
    bounded.intercepted_binops = frozenset({"*", "**"})
    bounded.binop_table = {**environment.binop_table, "*": _times, "**": _power}
    calls = {_AT: "at", _ASSIGNED: "assigned", _DONE: "done", _JOIN: "join", _PLUS: "plus"}
    bounded.filters = environment.filters | {name: _filter(getattr(_Tracker, method)) for name, method in calls.items()}
    return bounded


def _filter(method: Any) -> Any:
    return lambda value, tracker, *argument: method(tracker, value, *argument)


def _times(left: Any, right: Any) -> Any:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple) and isinstance(other, int) and len(one) * other > CHARACTERS:
            raise _BoundExceeded(f"more than {CHARACTERS:,} characters")
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(right, int) and abs(right) > 1000:
        raise _BoundExceeded(f"a power of {right}")
    return left**right


def _line(error: BaseException) -> int | None:
    """Line of the template at which it failed; Jinja rewrites the traceback to it."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _looked_for(tree: nodes.Template) -> re.Pattern[str] | None:
    """The strings that a template compares texts with or splits them at, such as </think>."""
    found = set()
    for node in tree.find_all((nodes.Call, nodes.Compare, nodes.Filter, nodes.Test)):
        for constant in node.find_all(nodes.Const):
            text = constant.value.strip() if isinstance(constant.value, str) else ""
            if len(text) > 2 and not text.isalnum() and not re.search(r"\s", text):
                found.add(text)
    return re.compile("|".join(re.escape(text) for text in sorted(found, key=len, reverse=True))) if found else None


def _instrument(tree: nodes.Template) -> None:
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
    arguments = [nodes.Name(_TRACKER, "load"), *([] if argument is None else [argument])]
    call = nodes.Filter(value, function, arguments, [], None, None)
    call.set_lineno(line, override=True)
    return call


def _statement(function: str, value: nodes.Expr, loop: int | None, line: int) -> nodes.Output:
    return nodes.Output([_call(function, value, nodes.Const(loop), line)], lineno=line)
