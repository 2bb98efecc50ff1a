"""Ninety or more real instruction examples made from the installed Python standard library, in six families.

Nothing is downloaded and nothing invented: explanations are docstrings, code is source, answers are computed. The families differ
in form and content, so that clusters of their gradients mean something.
"""

from __future__ import annotations

import ast
import datetime
import errno
import importlib
import inspect
import json
import os
import random
import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from types import ModuleType

from storage.files.base import write_error

Conversation = list[dict[str, str]]

MODULES = (
    "argparse", "bisect", "calendar", "collections", "colorsys", "copy", "csv", "datetime", "difflib", "dis", "enum",
    "fnmatch", "fractions", "functools", "glob", "gzip", "heapq", "html", "inspect", "ipaddress", "json", "keyword", "linecache",
    "locale", "logging", "mimetypes", "ntpath", "numbers", "operator", "os", "platform", "posixpath", "pprint", "queue", "quopri",
    "random", "reprlib", "sched", "secrets", "shlex", "shutil", "statistics", "string", "tempfile", "textwrap", "threading",
    "tokenize", "traceback", "types", "urllib.parse", "uuid", "warnings", "weakref", "zipfile",
)  # fmt: skip
MAX_CHARS = 180  # of an answer: the demo runs on two processor cores


def _turns(*texts: str) -> Conversation:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def _functions() -> Iterator[tuple[ModuleType, str, Callable[..., object]]]:
    for name in MODULES:
        module = importlib.import_module(name)
        for attribute, value in sorted(vars(module).items()):
            if inspect.isfunction(value) and value.__module__ == name and not attribute.startswith("_") and inspect.getdoc(value):
                yield module, attribute, value


def _first_paragraph(thing: object) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def _explain() -> Iterator[Conversation]:
    for module, name, function in _functions():
        text = _first_paragraph(function)
        if 30 <= len(text) <= MAX_CHARS:
            yield _turns(f"What does the function `{module.__name__}.{name}` do?", text)


def _code() -> Iterator[Conversation]:
    for module, _, function in _functions():
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        except OSError:  # made at run time, or the installation has no source files
            continue
        if isinstance(tree, ast.FunctionDef) and len(tree.body) > 1:
            tree.body = tree.body[1:]  # without the docstring, which the question holds
            source = ast.unparse(tree)
            signature = source.split("\n")[0]
            if len(source) <= MAX_CHARS and source.count("\n") > 1:
                task = _first_paragraph(function)[:MAX_CHARS]
                yield _turns(f"Write this Python function of the module {module.__name__}.\n\n{signature}\n    # {task}", source)


def _units() -> Iterator[Conversation]:
    factors = {
        ("kilometres", "metres"): 1000, ("hours", "minutes"): 60, ("days", "hours"): 24, ("weeks", "days"): 7,
        ("minutes", "seconds"): 60, ("kilograms", "grams"): 1000, ("dozens", "pieces"): 12, ("feet", "inches"): 12,
        ("gibibytes", "mebibytes"): 1024, ("litres", "millilitres"): 1000,
    }  # fmt: skip
    for (large, small), factor in factors.items():
        for amount in (3, 7, 12, 25, 40, 64, 90, 150):
            value = amount * factor
            assert value // factor == amount
            yield _turns(
                f"Convert {amount} {large} to {small}.",
                f"One of the {large} has {factor} {small}, so {amount} {large} are {amount} x {factor} = {value} {small}.",
            )


def _arithmetic() -> Iterator[Conversation]:
    rng = random.Random(20240715)
    things = ("apples", "books", "coins", "pencils", "tickets", "stamps")
    names = ("Ada", "Alan", "Barbara", "Edsger", "Grace", "Katherine")
    for _ in range(70):
        a, b, c = rng.randint(3, 40), rng.randint(2, 12), rng.randint(1, 30)
        name, thing = rng.choice(names), rng.choice(things)
        full, given = a * b, min(c, a * b)
        question = f"{name} has {b} boxes with {a} {thing} each and gives away {given}. How many {thing} are left?"
        steps = (
            f"{b} boxes hold {b} * {a} = {full} {thing}. After giving away {given}, {full} - {given} = {full - given} are left."
        )
        yield _turns(question, f"{steps} The answer is {full - given}.")


def _reference() -> Iterator[Conversation]:
    for status in HTTPStatus:
        if status.description:
            yield _turns(f"What does HTTP status {status.value} mean?", f"{status.phrase}: {status.description}.")
    for number, symbol in sorted(errno.errorcode.items())[:30]:
        yield _turns(f"Which error is {symbol} on this system?", f"Error number {number}: {os.strerror(number)}.")
    for code in range(0x03B1, 0x03C9, 2):
        yield _turns(f"Give the Unicode name and code point of {chr(code)}.", f"{unicodedata.name(chr(code))}, U+{code:04X}.")


def _dialogue() -> Iterator[Conversation]:
    for name in MODULES:
        module = importlib.import_module(name)
        functions = [(f, v) for m, f, v in _functions() if m is module and 20 <= len(_first_paragraph(v)) <= MAX_CHARS // 2]
        about = _first_paragraph(module)[: MAX_CHARS // 2]
        if about and len(functions) >= 2:
            (first, one), (second, two) = functions[0], functions[-1]
            yield _turns(
                f"I am learning the Python module {name}. What is it for?", about,
                f"And what does its function {first} do?", _first_paragraph(one),
                f"How about {second}?", _first_paragraph(two),
            )  # fmt: skip
    day = datetime.date(2000, 1, 1)
    for step in range(24):
        date = day + datetime.timedelta(days=step * 397)
        after = date + datetime.timedelta(days=10)
        yield _turns(
            f"Which day of the week was {date.isoformat()}?", f"It was a {date.strftime('%A')}.",
            "And ten days later?", f"Ten days later is {after.isoformat()}, a {after.strftime('%A')}.",
        )  # fmt: skip


FAMILIES: dict[str, Callable[[], Iterator[Conversation]]] = {
    "explain": _explain,
    "code": _code,
    "units": _units,
    "arithmetic": _arithmetic,
    "reference": _reference,
    "dialogue": _dialogue,
}


PER_FAMILY = 15  # of the demo: half a minute of gradients on two cores, and enough for clusters of families


def demo_examples(per_family: int = PER_FAMILY) -> dict[str, list[Conversation]]:
    """Family name -> up to `per_family` conversations, the same for the same Python version."""
    chosen = {}
    for family, make in FAMILIES.items():
        everything = list(make())
        random.Random(family).shuffle(everything)  # a string seeds by its bytes, the same in every process
        chosen[family] = everything[:per_family]
    return chosen


def write_demo_data(folder: Path, per_family: int = PER_FAMILY, added: int = 0) -> list[Path]:
    """One JSONL file (OpenAI messages) per family; unchanged files are left alone.

    Parameters
    ----------
    folder : Path
        Created where it is missing.
    per_family : int
        Conversations of a family, at most.
    added : int
        Further conversations, of the families in turn, in a file of their own.

    Raises
    ------
    UserError
        The folder cannot be written.
    """
    files = demo_examples(per_family)
    if added:
        more = [conversations[per_family:] for conversations in demo_examples(per_family + added).values()]
        files["added"] = [conversations[i] for i in range(added) for conversations in more if i < len(conversations)][:added]
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for family, conversations in files.items():
            path = folder / f"{family}.jsonl"
            text = "".join(json.dumps({"messages": turns}, ensure_ascii=False) + "\n" for turns in conversations)
            if not path.is_file() or path.read_bytes() != text.encode():
                path.write_text(text, encoding="utf-8")
            paths.append(path)
    except OSError as error:
        raise write_error(str(folder), error) from error
    return paths
