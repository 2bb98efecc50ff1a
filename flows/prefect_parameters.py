"""Flow parameters made from `Settings`: flat, with titles, descriptions, defaults and limits, for a server to check and show."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from annotated_types import MinLen
from pydantic import Field
from pydantic.fields import FieldInfo

from storage.exports.write import FORMATS
from tagcos_stream.config import ADDRESSES, SELECT_FIELDS, Settings
from tagcos_stream.credentials import WITH_KEY
from tagcos_stream.declare import panel_of
from tagcos_stream.evaluation.config import Evaluation

ACRONYMS = {"Lora": "LoRA", "Rslora": "rsLoRA", "Gpus": "GPUs"}
REQUIRED = ("sources",)  # of a refresh: nothing can be done without them
OF_EVALUATION = ("heldout_files", "tasks")  # further parameters that may be addresses
_TEXT_WITH_KEY = {"type": "string", "pattern": WITH_KEY}
# JSON schema: a server stores what it was asked for before a flow sees it, so the server has to refuse this
NO_KEY = {
    "not": {
        "description": "an address that holds a key: give it without, and the key in the environment of the worker",
        "anyOf": [_TEXT_WITH_KEY, {"type": "array", "contains": _TEXT_WITH_KEY}],
    }
}


def title(name: str) -> str:
    """warmup_examples -> Warmup examples."""
    first, *rest = name.split("_")
    return " ".join([ACRONYMS.get(first.capitalize(), first.capitalize()), *rest])


def _panels() -> list[str]:
    """The panels of `tagcos run --help`, in their order."""
    return list(dict.fromkeys(panel_of(Settings, name) for name in Settings.model_fields))


def _ordered(names: Iterable[str]) -> list[str]:
    """Settings in the groups and order of `tagcos run --help`."""
    panels = _panels()
    return sorted(names, key=lambda name: panels.index(panel_of(Settings, name)))


def _parameter(
    name: str, field: FieldInfo, *, default: Any, description: str | None = None, panel: str = ""
) -> inspect.Parameter:
    """`default` Ellipsis: required. panel: group of the parameter, shown before its title.

    Limits (ge, gt, le) stay with the type, so that the server refuses what breaks them, and an address that holds a key.
    """
    kind: Any = field.annotation
    limits = [*field.metadata, *([MinLen(1)] if default is ... else [])]
    if default is None:
        kind = kind | None
    annotation = Annotated[(kind, *limits)] if limits else kind
    shown_title = f"{panel}: {title(name)}" if panel else title(name)
    extra: dict[str, Any] = {"title": shown_title, **(NO_KEY if name in (*ADDRESSES, *OF_EVALUATION) else {})}
    shown = Field(default, description=description or field.description, json_schema_extra=extra)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=annotation)


def refresh_parameters() -> list[inspect.Parameter]:
    """Every setting, and an export."""
    fields = Settings.model_fields
    return [
        _parameter(name, fields[name], default=... if name in REQUIRED else fields[name].default, panel=panel_of(Settings, name))
        for name in _ordered(fields)
    ] + export_parameters()


def select_parameters() -> list[inspect.Parameter]:
    """Root and run, then what may change, where what is left out stays as that run had it; and an export."""
    root = Settings.model_fields["root"]
    run = FieldInfo(
        annotation=str, description="Complete run whose pool and settings are taken: its id, a name, or latest (main)."
    )
    named = [
        _parameter("root", root, default=root.default, panel="Pool"),
        _parameter("run", run, default="latest", panel="Pool"),
    ]
    changed = [
        _parameter(
            name,
            Settings.model_fields[name],
            default=None,
            description=_or_as_before(Settings.model_fields[name]),
            panel=panel_of(Settings, name),
        )
        for name in _ordered(SELECT_FIELDS)
    ]
    return [*named, *changed, *export_parameters()]


def export_parameters() -> list[inspect.Parameter]:
    """Where and in which format a complete run is exported."""
    out = FieldInfo(annotation=str, description="File or folder to export the selection to; empty: no export.")
    kinds: Any = Literal[tuple(FORMATS)]
    format = FieldInfo(annotation=kinds, description="Format of the export (docs/exports.md).")
    return [
        _parameter("out", out, default=None, panel="Export"),
        _parameter("format", format, default="messages", panel="Export"),
    ]


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the fields that a form gives as empty text, empty list or null: they are as if they were not there."""
    return {name: value for name, value in values.items() if value is not None and value not in ("", [], ())}


def evaluate_parameters() -> list[inspect.Parameter]:
    """Every setting of an evaluation."""
    return [_parameter(name, field, default=field.default) for name, field in Evaluation.model_fields.items()]


def _or_as_before(field: FieldInfo) -> str:
    plain = re.sub(r"; default [^;]*$", "", (field.description or "").removesuffix("."))
    return f"{plain}; empty: as in that run."


def takes(parameters: Iterable[inspect.Parameter]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function of keyword arguments this signature, for Prefect to read."""

    def signed(function: Callable[..., Any]) -> Callable[..., Any]:
        listed = list(parameters)
        function.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
        function.__annotations__ = {p.name: p.annotation for p in listed}
        return function

    return signed
