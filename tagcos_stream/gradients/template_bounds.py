"""The sandbox of chat templates with bounds on single expressions: no call, filter or operator builds an endless value.

Loops and macros are bounded by the tracker, between whose calls these run.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from jinja2 import Environment

CHARACTERS = 4_000_000  # that one expression may add to the texts it is given, which are as long as a row is
BITS = 100_000  # of a whole number
INDENT = 1_000  # of JSON, in characters
# a field of a format that is very wide, or as wide as a value says: of % and of str.format
WIDE = re.compile(r"%[-+ #0]*\d*\.?(?:\d{5,}|\*)|\{[^{}]*:[^{}]*(?:\d{5,}|\{)")
PAD = ("ljust", "rjust", "center", "zfill")


class BoundExceeded(RuntimeError):
    """A rendering takes too long, or prints or builds too much."""


def bounded(environment: Any) -> Environment:
    """Bound what single expressions build.

    Parameters
    ----------
    environment
        The sandbox that templates are compiled for.

    Returns
    -------
    Environment
        One of its own, whose calls, filters and operators raise BoundExceeded.
    """
    watched = environment.overlay()
    watched.intercepted_binops = frozenset({"*", "**", "%"})
    watched.binop_table = {**environment.binop_table, "*": _times, "**": _power, "%": _modulo}
    watched.globals = {name: value for name, value in environment.globals.items() if name != "lipsum"}
    watched.filters = {name: _guarded(value, FILTERS.get(name)) for name, value in environment.filters.items()}
    call = watched.call

    def bounded_call(context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(called, "__wrapped__", called)  # the sandbox has a str.format of its own
        if isinstance(text := getattr(method, "__self__", None), str):
            _check_method(method.__name__, text, *args, **kwargs)
        return call(context, called, *args, **kwargs)

    watched.call = bounded_call
    return watched


def check(length: int) -> None:
    """Raise BoundExceeded where an expression would make more than CHARACTERS."""
    if length > CHARACTERS:
        raise BoundExceeded(f"more than {CHARACTERS:,} characters")


def _times(left: Any, right: Any) -> Any:
    for one, other in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple) and isinstance(other, int):
            check(len(one) * other)
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * abs(right))
    return left**right


def _check_bits(bits: int) -> None:
    if bits > BITS:
        raise BoundExceeded(f"a number of more than {BITS:,} bits")


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        _check_format(left)
    return left % right


def _check_format(text: str) -> None:
    if (wide := WIDE.search(text)) is not None:
        raise BoundExceeded(f"a field as wide as {wide[0]!r} says")


def _check_method(name: str, text: str, *args: Any, **kwargs: Any) -> None:
    """Bound a method of a text whose result may be much longer than the text."""
    if name in PAD and args and isinstance(args[0], int):
        check(args[0])
    elif name == "expandtabs":
        check(text.count("\t") * int([*args, *kwargs.values(), 8][0]))
    elif name == "replace" and len(args) > 1:
        _check_replace(text, *args[:2])
    elif name == "join" and args and isinstance(args[0], list | tuple):
        _check_join(args[0], text)
    elif name in ("format", "format_map"):
        _check_format(text)


def _check_replace(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    check(str(text).count(str(old)) * (len(str(new)) - len(str(old))))


def _check_join(values: Any, d: Any = "", *_: Any, **__: Any) -> None:
    texts = [value for value in values if isinstance(value, str)]
    repeated = sum(map(len, texts)) - sum({id(text): len(text) for text in texts}.values())
    check(len(values) * len(str(d)) + repeated)


def _check_indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    check(str(text).count("\n") * (width if isinstance(width, int) else len(width)))


def _check_json(_: Any, *args: Any, indent: Any = None, **__: Any) -> None:
    if any(isinstance(one, int) and one > INDENT for one in (indent, *args)) or len(str(indent)) > INDENT:
        raise BoundExceeded(f"JSON indented by more than {INDENT:,} characters")


# filter -> what is asked before it runs, with its arguments
FILTERS: dict[str, Callable[..., None]] = {
    "batch": lambda value, count, *_, **__: check(count),
    "center": lambda value, width=80: check(width),
    "format": lambda value, *_, **__: _check_format(str(value)),
    "indent": _check_indent,
    "join": _check_join,
    "replace": _check_replace,
    "slice": lambda value, count, *_, **__: check(count),
    "tojson": _check_json,
    "wordwrap": lambda text, width=79, long=True, wrap=None, *_: check(len(str(text)) * (len(wrap or " ") - 1)),
}


def _guarded(function: Callable[..., Any], guard: Callable[..., None] | None) -> Callable[..., Any]:
    if guard is None:
        return function
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # its arguments begin with the context or the environment

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        own = list(args)
        if guard is _check_join and not isinstance(own[first], str | list | tuple):
            own[first] = list(own[first])  # a generator, which can be counted once only
        guard(*own[first:], **kwargs)
        return function(*own, **kwargs)

    return guarded
