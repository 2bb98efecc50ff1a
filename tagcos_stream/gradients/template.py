"""Rendering a chat template in transformers' sandbox, bounded in time and length, with marks that show who printed what."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes

from tagcos_stream.gradients.template_bounds import CHARACTERS, BoundExceeded
from tagcos_stream.gradients.template_tracker import TRACKER, Marks, Tracker, instrument, watched
from tagcos_stream.types import UserError

ENDLESS = 3  # renderings beyond the bounds before any has succeeded: the template is at fault, not the row


class TemplateRefused(ValueError):
    """The chat template raises an error of its own on a conversation (roles that do not alternate, for example)."""


class TemplateFailed(ValueError):
    """The chat template has a fault that shows on this conversation, or exceeds the bounds on time and length."""


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
        The text is not a Jinja template.
    """

    def __init__(self, source: str, name: str) -> None:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.source = source
        self.label = f"chat template of {name} ({hashlib.blake2b(source.encode(), digest_size=4).hexdigest()})"
        self._rendered = self._exceeded = 0
        try:
            # that of an empty template: compiling one computes its constant expressions, here without bounds
            environment = watched(_compile_jinja_template("").environment)
            tree = environment.parse(source)
            self.looked_for = _looked_for(tree)
            instrument(tree)
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
        tracker = Tracker({id(message): i for i, message in enumerate(messages)}, marks, CHARACTERS + 10 * size)
        pieces, length = [], 0
        try:
            for piece in self._template.generate({**variables, "messages": list(messages), TRACKER: tracker}):
                length += len(piece)
                tracker.check(length)
                pieces.append(piece)
        except Exception as error:  # the template is a program of its own and may fail in any way
            raise self._failure(error, probe) from error
        self._rendered += not probe
        return "".join(pieces)

    def _failure(self, error: Exception, probe: bool) -> Exception:
        if type(error) is TemplateError:  # raised by the template's own raise_exception
            return TemplateRefused(f"{self.label} refuses this conversation: {error}")
        line = _line(error)
        where = self.label if line is None else f"{self.label}, line {line}"
        if isinstance(error, BoundExceeded | MemoryError):
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
    """Compile a template, or return the compiled one: compiling takes a thousand times as long as rendering.

    Parameters
    ----------
    source, name
        Jinja text, and the model or tokenizer that it belongs to.

    Returns
    -------
    ChatTemplate
        Shared by all callers.
    """
    return ChatTemplate(source, name)


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
